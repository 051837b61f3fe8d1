"""The simulated API: every call is judged once, when its last byte has arrived."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from callmill.simulator.call_log import CallLog, LogLine
from callmill.simulator.connection import Answer, Ending, Request
from callmill.simulator.enforcers import make_enforcer
from callmill.simulator.fates import Fate, FateKind, Fates
from callmill.simulator.gate import Gate, Refusal
from callmill.simulator.options import SimulatorOptions
from callmill.simulator.rate_headers import Headers, rate_headers
from callmill.simulator.replies import CHAT_PATH, Content, chat_completion, echo, parse_content, tokens_asked
from callmill.simulator.run_stats import Report, RunStats
from callmill.simulator.tokens import Charging, TokenCosts, Tokens
from callmill.simulator.wire import NOT_HTTP, answer, error_body, json_bytes, render

_NS_PER_S = 1_000_000_000


class _Run:
    """State between two resets. A call keeps the run that it arrived in, so a reset never sees half a call."""

    def __init__(self, options: SimulatorOptions, seed: int) -> None:
        enforcers = [make_enforcer(limit, options.enforcer, options.burst) for limit in options.limits]
        self.gate = Gate(enforcers, options.charge)
        self.costs = TokenCosts(options.tokens, seed)
        self.fates = Fates(options, seed)
        self.stats = RunStats(options.limits)


class _Call(Struct, frozen=True):
    request: Request
    path: str
    content: Content
    tokens: Tokens
    now_ns: int
    request_id: str

    @property
    def key(self) -> str | None:
        return self.request.headers.get("idempotency-key")


class Simulation:
    """Answers requests; knows no sockets and reads no clock but ``clock_ns``.

    Args:
        options: What to simulate.
        seed: Of latencies, costs and faults.
        clock_ns: Unix time in nanoseconds that never goes back.
        log: Where calls are noted.
    """

    def __init__(self, options: SimulatorOptions, seed: int, clock_ns: Callable[[], int], log: CallLog) -> None:
        self._options = options
        self._seed = seed
        self._clock_ns = clock_ns
        self._log = log
        self._run = _Run(options, seed)
        self._calls = 0

    def handle(self, request: Request) -> Answer:
        """Judge one request that has just arrived."""
        path = request.target.partition("?")[0]
        if path == "/stats" and request.method == "GET":
            # Whoever reads the counts may read the log next.
            self._log.flush()
            return answer(request, 200, json_bytes(self.report()))
        if path == "/reset" and request.method == "POST":
            self._run = _Run(self._options, self._seed)
            return answer(request, 200, b'{"reset":true}')
        return self._judge(request, path)

    def report(self) -> Report:
        """Return the counts since the start or the last reset."""
        return self._run.stats.report(enforcer=self._options.enforcer.value, seed=self._seed)

    def _judge(self, request: Request, path: str) -> Answer:
        now_ns, run = self._clock_ns(), self._run
        content = parse_content(request.body)
        self._calls += 1
        call = _Call(
            request,
            path,
            content,
            run.costs.next() or tokens_asked(request, content),
            now_ns,
            f"req_{self._calls:012d}",
        )
        run.stats.arrived(now_ns, call.key)
        refusal = run.gate.admit(now_ns, call.tokens)
        if refusal is not None:
            run.stats.reject(refusal.broken)
            self._note(call, 429, None)
            return self._refused(call, refusal)
        fate = run.fates.draw()
        run.costs.taken()
        run.stats.accept(now_ns, fate)
        at_answer = self._options.charge is Charging.ANSWER
        if not at_answer:
            run.stats.charge(now_ns, call.tokens)
        reply, status = self._reply(call, fate)
        delivers_2xx = status is not None and 200 <= status < 300
        self._note(call, status, None if status is not None else fate.kind.value)

        def ended(delivered: bool) -> None:  # noqa: FBT001 - the connection's contract
            run.gate.release()
            if at_answer and fate.kind is not FateKind.ERROR:
                answered_ns = self._clock_ns()
                run.gate.settle(answered_ns, call.tokens)
                run.stats.charge(answered_ns, call.tokens)
            run.stats.ended(delivered=delivered, succeeded_key=call.key if delivers_2xx else None)

        return Answer(reply.data, reply.ending, fate.latency_s, ended)

    def _refused(self, call: _Call, refusal: Refusal) -> Answer:
        broken = ", ".join(str(self._options.limits[position]) for position in refusal.broken)
        body = error_body(f"Rate limit reached: {broken}", "rate_limit_exceeded")
        return answer(call.request, 429, body, self._headers(call, refusal.wait_ns))

    def _reply(self, call: _Call, fate: Fate) -> tuple[Answer, int | None]:
        """Return what to send, and the status if it is a whole answer."""
        if fate.kind is FateKind.HANG:
            return Answer(b"", Ending.CLOSE), None
        if fate.kind is FateKind.RESET:
            return Answer(b"", Ending.RESET), None
        if fate.kind is FateKind.NOT_HTTP:
            return Answer(NOT_HTTP, Ending.CLOSE), None
        return self._http_reply(call, fate)

    def _http_reply(self, call: _Call, fate: Fate) -> tuple[Answer, int | None]:
        headers = self._headers(call, None)
        if fate.kind is FateKind.ERROR:
            body = error_body("The simulator was told to fail this call", "server_error")
            return answer(call.request, fate.status, body, headers), fate.status
        status, body = self._success(call)
        if fate.kind is FateKind.BROKEN_JSON:
            return answer(call.request, 200, body[:-1] + b"<", headers), None
        if fate.kind is FateKind.TRUNCATED:
            half = render(200, body[: len(body) // 2], headers, length=len(body))
            return Answer(half, Ending.CLOSE), None
        return answer(call.request, status, body, headers), status

    def _success(self, call: _Call) -> tuple[int, bytes]:
        drawn = None if self._options.tokens is None else call.tokens
        if call.path != CHAT_PATH or call.request.method != "POST":
            return 200, echo(call.request, call.content, drawn)
        body = chat_completion(call.content, call.request_id, drawn)
        if body is None:
            return 400, error_body("'messages' must be a list of messages, not empty", "invalid_request_error")
        return 200, body

    def _headers(self, call: _Call, retry_after_ns: int | None) -> Headers:
        standings = self._run.gate.standings(call.now_ns)
        headers = rate_headers(self._options.headers, standings, now_ns=call.now_ns, retry_after_ns=retry_after_ns)
        headers.append(("x-request-id", call.request_id))
        return headers

    def _note(self, call: _Call, status: int | None, fault: str | None) -> None:
        self._log.write(
            LogLine(
                time=call.now_ns / _NS_PER_S,
                method=call.request.method,
                path=call.path,
                idempotency_key=call.key,
                status=status,
                fault=fault,
                tokens=call.tokens.total,
            )
        )
