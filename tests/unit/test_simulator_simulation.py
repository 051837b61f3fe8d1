"""The simulated API without sockets, on a clock that the test moves."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from callmill.config.limit_spec import parse_limit
from callmill.simulator.call_log import LogLine, NoLog
from callmill.simulator.connection import Answer, Ending, Request
from callmill.simulator.latency import parse_latency
from callmill.simulator.options import EnforcerKind, SimulatorOptions
from callmill.simulator.simulation import Simulation

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


class ListLog(NoLog):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []

    def write(self, line: LogLine) -> None:
        """Keep the line."""
        self.lines.append(line)


class Api:
    """A simulation, its clock and its log."""

    def __init__(self, **options: Any) -> None:
        self.now_ns = START
        self.log = ListLog()
        limits = tuple(parse_limit(text) for text in options.pop("limits", ()))
        options.setdefault("seed", 1)
        self.simulation = Simulation(SimulatorOptions(limits=limits, **options), 1, lambda: self.now_ns, self.log)

    def arrive(self, method="GET", target="/", body=b"", **headers: str) -> Answer:
        """Hand in a request without ending its answer."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.simulation.handle(Request(method, target, named, body, keep_alive=True))

    def call(self, *args: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Hand in a request, deliver its answer, and return status, headers and parsed body."""
        answer = self.arrive(*args, **headers)
        if answer.ended is not None:
            answer.ended(True)
        return split(answer.data)

    def stats(self) -> dict[str, Any]:
        """Return what /stats answers."""
        return self.call("GET", "/stats")[2]


def split(data: bytes) -> tuple[int, dict[str, str], Any]:
    """Take an answer's bytes apart."""
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status_line.split()[1]), headers, msgspec.json.decode(body) if body else None


def test_an_echo_carries_the_call_and_no_credential():
    """Any path answers method, path, query, parsed body and three headers; authorization is never repeated."""
    status, headers, body = Api().call(
        "PATCH",
        "/users/7?a=1&b=x%20y&a=2&empty=",
        b'{"row": [1, 2.50, null]}',
        idempotency_key="row-7",
        content_type="application/json",
        user_agent="me",
        authorization="Bearer secret",
    )
    assert status == 200
    assert body == {
        "method": "PATCH",
        "path": "/users/7",
        "query": {"a": ["1", "2"], "b": "x y", "empty": ""},
        "body": {"row": [1, 2.5, None]},
        "headers": {"idempotency-key": "row-7", "content-type": "application/json", "user-agent": "me"},
    }
    assert headers["x-request-id"]


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [(b"", None), (b"a=1&b=2", "a=1&b=2"), (b"\xff{", "\ufffd{"), (b"7", 7), (b"[" * 100_000, "[" * 100_000)],
)
def test_a_body_that_is_not_json_is_echoed_as_text(sent, echoed):
    """A body comes back as parsed JSON where it is JSON, as text where it is not, as null where there is none."""
    assert Api().call("POST", "/x", sent)[2]["body"] == echoed


def test_a_chat_completion_repeats_the_message_and_counts_tokens():
    """A chat completion carries the last message back, and its usage adds up."""
    body = b'{"model":"m","max_tokens":3,"messages":[{"role":"system","content":"12345678"},{"content":"' + b"y" * 40
    status, _headers, reply = Api().call("POST", "/v1/chat/completions", body + b'"}]}')
    assert status == 200
    assert reply["choices"][0]["message"]["content"] == "y" * 40
    assert reply["usage"] == {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    assert reply["id"].startswith("chatcmpl-")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"messages":[]}', b'{"messages":[1]}', b'{"messages":"hi"}'])
def test_a_chat_completion_without_messages_is_a_400(body):
    """A body that asks for no completion gets a 400, never a failure of the server."""
    assert Api().call("POST", "/v1/chat/completions", body)[0] == 400


def test_a_limit_answers_429_with_its_wait_and_charges_nothing():
    """The call over the limit gets 429 and Retry-After, and after that time exactly one more fits."""
    api = Api(limits=["2/second"])
    assert [api.call()[0] for _ in range(2)] == [200, 200]
    api.now_ns += SECOND // 2
    status, headers, body = api.call()
    assert (status, headers["retry-after"], headers["x-ratelimit-remaining-requests"]) == (429, "1", "0")
    assert "2/second" in body["error"]["message"]
    api.now_ns += SECOND // 2
    assert [api.call()[0] for _ in range(3)] == [200, 200, 429]


@pytest.mark.parametrize(
    ("body", "headers", "tokens"),
    [
        (b'{"max_tokens": 40}', {}, 40),
        (b'{"max_completion_tokens": 30}', {}, 30),
        (b'{"max_tokens": 40}', {"x_simulator_tokens": "25"}, 25),
        (b'{"max_tokens": true}', {}, 1),
        (b'{"max_tokens": -5}', {}, 1),
        (b'{"max_tokens": "40"}', {"x_simulator_tokens": "many"}, 1),
        (b"", {"x_simulator_tokens": "9" * 5000}, 1),
        (b"", {}, 1),
    ],
)
def test_tokens_are_charged_from_the_request(body, headers, tokens):
    """The header wins over max_tokens, nonsense counts as 1."""
    api = Api(limits=["100 tokens/minute"])
    _status, answered, _body = api.call("POST", "/x", body, **headers)
    assert answered["x-ratelimit-remaining-tokens"] == str(100 - tokens)
    assert api.log.lines[0].tokens == tokens


def test_errors_count_against_the_limit_and_are_reported_apart():
    """A 503 is an accepted call for the limit, and stands among the errors by its status."""
    api = Api(limits=["2/second"], error_rate=1.0, error_statuses=(503,))
    assert [api.call()[0] for _ in range(3)] == [503, 503, 429]
    stats = api.stats()
    assert (stats["accepted"], stats["rejected"], stats["errors"]) == (2, 1, {"503": 2})


@pytest.mark.parametrize(
    ("options", "ending", "kinds"),
    [
        ({"reset_rate": 1.0}, Ending.RESET, {"reset"}),
        ({"hang_rate": 1.0}, Ending.CLOSE, {"hang"}),
        ({"malformed_rate": 1.0}, None, {"not_http", "broken_json", "truncated"}),
    ],
)
def test_faults_are_counted_and_logged_by_kind(options, ending, kinds):
    """Every fault is an accepted call, counted under its kind, logged with it and with no status."""
    api = Api(**options)
    answers = [api.arrive() for _ in range(60)]
    assert ending is None or {answer.ending for answer in answers} == {ending}
    stats = api.stats()
    assert stats["accepted"] == sum(stats["errors"].values()) == 60
    assert set(stats["errors"]) == kinds
    assert {(line.status, line.fault) for line in api.log.lines} == {(None, kind) for kind in kinds}


def test_stats_tell_the_largest_window_whatever_the_enforcer():
    """A fixed window lets twice its amount through around its edge, and the sliding count shows it."""
    api = Api(limits=["5/second"], enforcer=EnforcerKind.FIXED)
    api.now_ns += SECOND - 1
    assert [api.call()[0] for _ in range(6)] == [200] * 5 + [429]
    api.now_ns += 1
    assert [api.call()[0] for _ in range(6)] == [200] * 5 + [429]
    assert api.stats()["limits"] == [{"limit": "5/second", "rejected": 2, "largest_in_any_window": 10}]


def test_stats_tell_rate_and_times_of_arrival():
    """Times are Unix times of the first and last arrival; the rate is of the accepted calls between them."""
    api = Api(limits=["1000/second"])
    for _ in range(11):
        api.call()
        api.now_ns += SECOND // 10
    stats = api.stats()
    assert stats["first_arrival"] == START / SECOND
    assert stats["last_arrival"] == pytest.approx(START / SECOND + 1)
    assert stats["rate_per_s"] == pytest.approx(10.0)


def test_stats_before_any_call_are_empty_and_never_counted():
    """/stats and /reset count nothing and obey no limit."""
    api = Api(limits=["1/day"])
    for _ in range(5):
        stats = api.stats()
        assert api.call("POST", "/reset")[0] == 200
    assert (stats["accepted"], stats["rejected"], stats["first_arrival"], stats["rate_per_s"]) == (0, 0, None, None)
    assert api.log.lines == []


def test_only_get_stats_and_post_reset_are_special():
    """Other methods on these paths are ordinary calls."""
    api = Api()
    assert api.call("POST", "/stats")[2]["path"] == "/stats"
    assert api.call("GET", "/reset")[2]["path"] == "/reset"
    assert api.stats()["accepted"] == 2


def test_repeats_after_a_delivered_success_are_told_by_key():
    """A key that comes again after its 2xx is reported; one that comes again after an error is only a repeat."""
    api = Api(limits=["3/second"], error_rate=0.0)
    api.call("POST", "/", b"", idempotency_key="done")
    api.call("POST", "/", b"", idempotency_key="done")
    lost = api.arrive("POST", "/", b"", idempotency_key="lost")
    assert lost.ended is not None
    lost.ended(False)
    assert api.call("POST", "/", b"", idempotency_key="lost")[0] == 429
    report = api.stats()["idempotency"]
    assert report == {
        "keys": 2,
        "repeated_keys": 2,
        "calls_after_2xx": 1,
        "keys_after_2xx": ["done"],
        "forgotten": 0,
    }
    assert api.stats()["abandoned"] == 1


def test_calls_in_flight_are_counted_and_limited():
    """A concurrent limit refuses while calls are in flight, and the most at once is told."""
    api = Api(limits=["2 concurrent"], latency=parse_latency("50ms"))
    first, second = api.arrive(), api.arrive()
    assert (first.delay_s, api.arrive().delay_s) == (0.05, 0.0)
    assert api.stats()["in_flight"] == 2
    for answer in (first, second):
        assert answer.ended is not None
        answer.ended(True)
    assert api.call()[0] == 200
    stats = api.stats()
    assert (stats["in_flight"], stats["max_in_flight"], stats["rejected"]) == (0, 2, 1)
    assert stats["limits"][0]["largest_in_any_window"] == 2
    assert stats["latency_given"]["count"] == 3
    assert stats["latency_given"]["p50_s"] == pytest.approx(0.05, rel=0.02)


def test_a_reset_starts_limits_counts_and_draws_anew():
    """After /reset the limit is whole, the counts are zero, and the same faults come again."""
    api = Api(limits=["20/second"], error_rate=0.5)
    first = [api.call()[0] for _ in range(21)]
    late = api.arrive()
    api.call("POST", "/reset")
    assert late.ended is None
    assert [api.call()[0] for _ in range(21)] == first
    assert (api.stats()["accepted"], api.stats()["rejected"]) == (20, 1)


def test_a_call_from_before_a_reset_does_not_disturb_the_counts_after_it():
    """A call in flight over a reset ends in the run that it arrived in."""
    api = Api(limits=["1 concurrent"])
    late = api.arrive()
    api.call("POST", "/reset")
    new = api.arrive()
    assert late.ended is not None
    late.ended(True)
    assert api.stats()["in_flight"] == 1
    assert api.call()[0] == 429
    assert new.ended is not None


def test_the_log_has_a_line_per_call_in_order():
    """Each call, refused ones too, is logged with time, method, path, key and status."""
    api = Api(limits=["1/second"])
    api.call("POST", "/a?q=1", b"", idempotency_key="k")
    api.call("GET", "/b")
    assert [(line.method, line.path, line.idempotency_key, line.status, line.fault) for line in api.log.lines] == [
        ("POST", "/a", "k", 200, None),
        ("GET", "/b", None, 429, None),
    ]
    assert api.log.lines[0].time == START / SECOND


def test_head_gets_the_head_of_its_answer():
    """A HEAD is answered without a body and with the length that the body would have."""
    status, headers, body = Api().call("HEAD", "/x")
    assert (status, body) == (200, None)
    assert int(headers["content-length"]) > 0
