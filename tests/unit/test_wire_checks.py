"""What a job in wire form may say: the same for ``submit`` and for workers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from callmill.jobs.bounds import LATEST_MS, MAX_AMOUNT, MAX_CONTENT_TYPE_LENGTH, MAX_KEY_LENGTH, MAX_TIMEOUT_S
from callmill.jobs.wire import WireCost, WireJob
from callmill.jobs.wire_checks import invalid_jobs, problem_of

GOOD: dict[str, dict[str, Any]] = {
    "least": {},
    "other method": {"method": "M-SEARCH"},
    "headers": {"headers": {"X-a": "é\tb", "soapACTION": "", "x-many": "x" * 60_000}},
    "hundred headers": {"headers": {f"x{n}": "1" for n in range(100)}},
    "content type": {"content_type": "multipart/form-data; boundary=" + "b" * 70},
    "longest type": {"content_type": "t" * MAX_CONTENT_TYPE_LENGTH},
    "longest key": {"idempotency_key": "k" * MAX_KEY_LENGTH},
    "longest time": {"timeout_s": MAX_TIMEOUT_S},
    "shortest time": {"timeout_s": 1e-9},
    "most tokens": {"tokens": MAX_AMOUNT, "cost": WireCost(MAX_AMOUNT, MAX_AMOUNT, "m" * 200)},
    "last deadline": {"deadline_ms": LATEST_MS},
    "deadline long ago": {"deadline_ms": 0},
}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "content type of two lines": ({"content_type": "text/plain\r\nHost: evil"}, "content_type"),
    "long content type": ({"content_type": "t" * (MAX_CONTENT_TYPE_LENGTH + 1)}, "content_type"),
    "deadline in the year 10000": ({"deadline_ms": LATEST_MS + 1}, "deadline"),
    "deadline before the year 1": ({"deadline_ms": -(2**62)}, "deadline"),
    "no time": ({"timeout_s": float("nan")}, "timeout"),
    "negative time": ({"timeout_s": -1.0}, "timeout"),
    "a day and more": ({"timeout_s": MAX_TIMEOUT_S + 1}, "timeout"),
    "empty key": ({"idempotency_key": ""}, "idempotency_key"),
    "weight of nothing": ({"cost": WireCost(None, 0)}, "weight"),
    "output beyond tokens": ({"tokens": 1, "cost": WireCost(2)}, "output_tokens"),
    "model of two lines": ({"cost": WireCost(None, 1, "a\nb")}, "model"),
    **{
        f"{name} header": ({"headers": {name: "x"}}, "headers")
        for name in (
            "HOST",
            "te",
            "Trailer",
            "upgrade",
            "Keep-Alive",
            "Proxy-Connection",
            "expect",
            "Cookie",
            ":path",
            "",
        )
    },
}


def job(fields: dict[str, Any]) -> WireJob:
    """Return a job that is right unless a field says otherwise."""
    return msgspec.structs.replace(WireJob("GET", "/"), **fields)


@pytest.mark.parametrize("fields", GOOD.values(), ids=GOOD)
def test_what_may_be_sent(fields):
    """A job at its bounds passes, twice as well as once."""
    assert (problem_of(job(fields)), problem_of(job(fields))) == (None, None)


@pytest.mark.parametrize(("fields", "field"), BAD.values(), ids=BAD)
def test_what_must_not_be_sent(fields, field):
    """A job beyond them is refused with its field, also when the same was refused before."""
    for _ in range(2):
        problem = problem_of(job(fields))
        assert problem is not None
        assert problem[0] == field
        assert len(problem[1]) < 300


def test_each_wrong_job_is_found():
    """Of many jobs the wrong ones are named by their place."""
    jobs = [job({}), job({"method": "CONNECT"}), job({}), job({"headers": {"Host": "x"}})]
    assert {at: field for at, (field, _) in invalid_jobs(jobs).items()} == {1: "method", 3: "headers"}
