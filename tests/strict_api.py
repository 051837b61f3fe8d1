"""An API that counts strictly, by credential and by model too, and says no in whatever way a test tells it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from faulty_server import Exchange, faulty_server

from callmill.config.limit_spec import LimitSpec, Scope, parse_limit
from callmill.simulator.enforcers import Enforcer, make_enforcer
from callmill.simulator.options import EnforcerKind


@dataclass(frozen=True)
class Reply:
    """An answer: a status, headers and a body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"


@dataclass(frozen=True)
class Arrival:
    """A call as the API saw it.

    Attributes:
        at_s: When it was there, on the monotonic clock.
        key: The credential that it came with.
        model: The model that its body names.
        status: What it was answered.
        broken: Whether it broke a limit.
        host: Where it came from.
    """

    at_s: float
    target: str
    key: str
    model: str
    status: int
    broken: bool
    host: str = ""


class StrictApi:
    """One API. A call that breaks a limit is answered 429 and charged to none.

    Attributes:
        url: Base URL.
        arrivals: Every call that was answered, in the order of the answers.
        reply: What a test wants answered in place of 200, given the target and the credential; None: the usual. It is
            asked before the limits are.
        headers: Headers of the answers that keep the limits.
        latency_s: How long an answer takes.
        storm_over: Set when the calls of the last storm were answered, at ``storm_at_s`` of the monotonic clock.
    """

    def __init__(self, enforcer: EnforcerKind, burst: int | None) -> None:
        self.url = ""
        self._kind, self._burst = enforcer, burst
        self._limits: list[LimitSpec] = []
        self._enforcers: dict[tuple[LimitSpec, str], Enforcer] = {}
        self.arrivals: list[Arrival] = []
        self.reply: Callable[[str, str], Reply | None] = lambda _target, _key: None
        self.headers: Callable[[], dict[str, str]] = dict
        self.latency_s = 0.0
        self._held: list[asyncio.Future[Reply]] = []
        self._storm: tuple[int, Reply] | None = None
        self.storm_over = threading.Event()
        self.storm_at_s = 0.0

    def limit(self, *texts: str) -> None:
        """Enforce these limits from now on, on all calls, per key or per model."""
        self._limits = [parse_limit(text) for text in texts]
        self._enforcers = {}

    def enforcer(self, spec: LimitSpec, owner: str = "") -> Enforcer:
        """Return what enforces a limit on all calls, or on those of a credential or model."""
        made = self._enforcers.get((spec, owner))
        if made is None:
            made = self._enforcers[spec, owner] = make_enforcer(spec, self._kind, self._burst)
        return made

    def storm(self, calls: int, reply: Reply) -> None:
        """Hold the next calls until so many are there, then answer all of them like this at once."""
        self.storm_over.clear()
        self._storm = (calls, reply)

    def accepted(self, since_s: float = 0.0) -> list[Arrival]:
        """Return the calls that were answered 200, in the order of arrival."""
        return [arrival for arrival in self.arrivals if arrival.status == 200 and arrival.at_s >= since_s]

    @property
    def broken(self) -> list[Arrival]:
        """Calls that broke a limit."""
        return [arrival for arrival in self.arrivals if arrival.broken]

    async def answer(self, exchange: Exchange) -> None:
        """Judge a call that has arrived."""
        at_s = time.monotonic()
        reply, broken = await self._held_reply(), False
        key = exchange.headers.get("authorization", "").removeprefix("Bearer ")
        body = json.loads(exchange.body) if exchange.body else {}
        model = body.get("model", "")
        reply = reply or self.reply(exchange.target, key)
        if reply is None:
            broken = not self._admit(key, model, body.get("weight", 1))
            reply = Reply(429) if broken else Reply(headers=self.headers())
        host = exchange.writer.get_extra_info("peername")[0]
        self.arrivals.append(Arrival(at_s, exchange.target, key, model, reply.status, broken, host))
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        lines = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        await exchange.answer(f"{reply.status} Told", f"Content-Type: application/json\r\n{lines}", reply.body)

    async def _held_reply(self) -> Reply | None:
        if self._storm is None:
            return None
        calls, reply = self._storm
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._held.append(future)
        if len(self._held) == calls:
            self._storm, held, self._held = None, self._held, []
            for each in held:
                each.set_result(reply)
            self.storm_at_s = time.monotonic()
            self.storm_over.set()
        return await future

    def _admit(self, key: str, model: str, weight: int) -> bool:
        owners = {Scope.API: "", Scope.KEY: key, Scope.MODEL: model}
        enforcers = [self.enforcer(spec, owners[spec.scope]) for spec in self._limits]
        now_ns = time.monotonic_ns()
        if any(enforcer.wait_ns(now_ns, weight) for enforcer in enforcers):
            return False
        for enforcer in enforcers:
            enforcer.charge(now_ns, weight)
        return True


@contextlib.contextmanager
def strict_api(
    enforcer: EnforcerKind = EnforcerKind.BUCKET, burst: int | None = None, host: str = "127.0.0.1"
) -> Iterator[StrictApi]:
    """Serve until the block ends."""
    api = StrictApi(enforcer, burst)
    with faulty_server(api.answer, host=host) as server:
        api.url = server.url("", host)
        yield api
