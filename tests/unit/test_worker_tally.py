"""What a lane counts of its calls."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from callmill.ledger.latency import bucket
from callmill.workers import tally as module
from callmill.workers.tally import CUT_OFF, Tally
from callmill.workers.throttling import Throttled
from callmill.workers.verdict import SUCCEEDED, Failed, Retryable


def answer(status: int) -> SimpleNamespace:
    """Return an answer."""
    return SimpleNamespace(status=status)


def test_calls_are_counted_by_what_came_of_them():
    """Every call is in one class: that of its status, 429 where the API refused by whatever status, or its fault."""
    tally = Tally()
    for status in (200, 204, 302, 404, 500, 503):
        tally.ended(SUCCEEDED, answer(status), 1000)
    tally.ended(Throttled(None), answer(503), 1000)
    tally.ended(Failed("http_999", ""), answer(999), 1000)
    tally.ended(Retryable("timeout", ""), None, 1000)
    tally.broken_off(CUT_OFF)
    counts = tally.take()
    results = {name[2:]: calls for name, calls in counts.items() if name.startswith("r:")}
    assert results == {"2xx": 2, "3xx": 1, "4xx": 1, "5xx": 2, "429": 1, "other": 1, "timeout": 1, "cut_off": 1}
    assert counts["calls"] == sum(results.values())


def test_times_go_into_buckets():
    """Every latency is in its bucket; a call that found its slot at once waited in the lowest."""
    tally = Tally()
    for latency_us in (10, 1000, 1000):
        tally.started(0.0)
        tally.ended(SUCCEEDED, answer(200), latency_us)
    tally.started(0.25)
    counts = tally.take()
    assert (counts[f"l:{bucket(10)}"], counts[f"l:{bucket(1000)}"], counts["latency_us"]) == (1, 2, 2010)
    assert (counts[f"w:{bucket(250_000)}"], counts["w:0"], counts["wait_us"]) == (1, 3, 250_000)


def test_what_was_taken_is_not_taken_again():
    """A second look has only what came since."""
    tally = Tally()
    tally.tokens += 7
    tally.recorded(3, 1)
    tally.again(spends_attempt=True)
    tally.started(0.0)
    first = tally.take()
    assert (first["tokens"], first["succeeded"], first["failed"], first["retries"]) == (7, 3, 1, 1)
    assert tally.take() == {}
    tally.started(0.0)
    assert tally.take() == {"w:0": 1}


@pytest.mark.parametrize("throttled", [True, False])
def test_a_refusal_spends_no_attempt(throttled):
    """What the API refused because of its limits is a throttled call and no retry."""
    tally = Tally()
    tally.ended(Throttled(None) if throttled else Retryable("timeout", ""), answer(429), 1000)
    tally.again(spends_attempt=not throttled)
    counts = tally.take()
    assert (counts["throttled"], counts["retries"]) == ((1, 0) if throttled else (0, 1))


def test_a_refusal_that_ends_its_job_is_counted():
    """A call that the API refused because of its limits is a throttled one, also where no other attempt follows."""
    tally = Tally()
    tally.ended(Throttled(None), answer(429), 1000)
    assert tally.take()["throttled"] == 1


def test_counts_that_nobody_takes_stay_small(monkeypatch):
    """In a worker that reports nothing, times are worked out before they pile up, and none is lost."""
    monkeypatch.setattr(module, "_MOST_TIMES", 10)
    tally = Tally()
    for number in range(1000):
        tally.started(1.0 if number % 2 else 0.0)
        tally.ended(SUCCEEDED, answer(200), 1000)
        assert len(tally._latencies_us) + len(tally._waits_us) < 2 * 10
    counts = tally.take()
    assert counts["calls"] == counts[f"l:{bucket(1000)}"] == 1000
    assert sum(calls for name, calls in counts.items() if name.startswith("w:")) == 1000
