"""Which failed jobs a condition means."""

from __future__ import annotations

import pytest

from callmill.errors import UsageError
from callmill.jobs import FailedJob, Failure
from callmill.ledger.bitmaps import bitmap_of, members
from callmill.ledger.failure_filter import FailureFilter


def failed(code: str, status: int | None, *, job_id: str = "row-1", api: str = "a") -> FailedJob:
    """Return a failed job that failed of something else before."""
    failures = [
        Failure(
            code=code,
            message="",
            status=status,
            answer="",
            answer_bytes=0,
            request_id=None,
            attempts=1,
            started_at=0.0,
            latency=0.0,
            failed_at=0.0,
        )
        for code, status in (("dns", None), (code, status))
    ]
    return FailedJob(id=job_id, index=0, api=api, failed=True, failures=failures)


JOBS = {
    "500": failed("http_500", 500),
    "503": failed("http_503", 503, api="b"),
    "404": failed("http_404", 404, job_id="x=1"),
    "timeout": failed("timeout", None),
    "too large": failed("too_large", 200),
}


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        ("", set(JOBS)),
        ("status=500", {"500"}),
        ("status=5xx", {"500", "503"}),
        ("status=5XX, api=b", {"503"}),
        ("status=none", {"timeout"}),
        ("status = 200", {"too large"}),
        ("code=timeout", {"timeout"}),
        ("code=dns", set()),
        ("cause=http_404", {"404"}),
        ("cause=too_large/200", {"too large"}),
        ("code=too_large", {"too large"}),
        ("id=x=1", {"404"}),
        ("status=500,code=timeout", set()),
    ],
)
def test_conditions_mean_what_they_say(where, meant):
    """Every condition must hold, and what counts is the latest failure."""
    chosen = FailureFilter(where)
    assert {name for name, job in JOBS.items() if chosen(job)} == meant
    assert bool(chosen) == bool(where)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("500", ["'500'", "field=value", "api, cause, code, id, status"]),
        ("status=", ["'status='"]),
        ("=500", ["'=500'"]),
        ("status=500,", ["''", "field=value"]),
        ("statsu=500", ["'statsu'", "api, cause, code, id, status"]),
        ("status=5x", ["status", "'5x'", "500, 5xx, or none"]),
        ("status=0xx", ["'0xx'"]),
    ],
)
def test_bad_conditions_are_refused(where, names):
    """A condition that is none is refused with its text, its field and the fields that are known."""
    with pytest.raises(UsageError) as caught:
        FailureFilter(where)
    assert [name for name in names if name not in str(caught.value)] == []


@pytest.mark.parametrize("offsets", [set(), {0}, {7}, {8}, {0, 1, 9, 499}])
def test_bitmaps_are_sets(offsets):
    """A bitmap has the offsets that it was made of, in as many bytes as the last one needs."""
    bitmap = bitmap_of(offsets)
    assert set(members(bitmap)) == offsets
    assert len(bitmap) == (max(offsets) // 8 + 1 if offsets else 0)
