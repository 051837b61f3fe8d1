"""Fates: shares and replay."""

from __future__ import annotations

from collections import Counter

import pytest

from callmill.simulator.fates import FateKind, Fates
from callmill.simulator.latency import parse_latency
from callmill.simulator.options import SimulatorOptions


def kinds(options: SimulatorOptions, count: int, seed: int = 7) -> list[FateKind]:
    """Draw the kinds of ``count`` fates."""
    fates = Fates(options, seed)
    return [fates.draw().kind for _ in range(count)]


def test_the_same_seed_gives_the_same_fates():
    """Two runs with one seed draw the same faults and latencies; another seed draws others."""
    options = SimulatorOptions(error_rate=0.3, hang_rate=0.1, latency=parse_latency("1ms-9ms"))
    runs = [[fates.draw() for _ in range(200)] for fates in (Fates(options, 1), Fates(options, 1), Fates(options, 2))]
    assert runs[0] == runs[1] != runs[2]


def test_latency_does_not_move_the_faults():
    """Another latency leaves the n-th call's fault as it was."""
    plain = SimulatorOptions(error_rate=0.2, reset_rate=0.2)
    slow = SimulatorOptions(error_rate=0.2, reset_rate=0.2, latency=parse_latency("lognormal:5ms,p99=9ms"))
    assert kinds(plain, 500) == kinds(slow, 500)


def test_rates_are_kept():
    """Over many calls each fault's share is its rate, and the malformed share splits evenly into its three ways."""
    options = SimulatorOptions(error_rate=0.1, reset_rate=0.05, hang_rate=0.02, malformed_rate=0.3)
    counts = Counter(kinds(options, 20_000))
    expected = {
        FateKind.ERROR: 0.1,
        FateKind.RESET: 0.05,
        FateKind.HANG: 0.02,
        FateKind.NOT_HTTP: 0.1,
        FateKind.BROKEN_JSON: 0.1,
        FateKind.TRUNCATED: 0.1,
        FateKind.ANSWER: 0.53,
    }
    assert {kind: counts[kind] / 20_000 for kind in expected} == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("field", ["error_rate", "reset_rate", "hang_rate", "malformed_rate"])
def test_a_rate_of_one_spares_no_call(field):
    """With one fault's rate at 1 no call is answered, with all at 0 every call is."""
    assert FateKind.ANSWER not in kinds(SimulatorOptions(**{field: 1.0}), 1000)
    assert set(kinds(SimulatorOptions(), 1000)) == {FateKind.ANSWER}


def test_error_statuses_are_drawn_from_the_list():
    """Errors carry every status of the list and no other."""
    fates = Fates(SimulatorOptions(error_rate=1.0, error_statuses=(503, 404)), 1)
    assert {fates.draw().status for _ in range(100)} == {404, 503}


def test_a_hang_lasts_until_its_bound():
    """A hanging call's latency is the bound, not the drawn latency."""
    fates = Fates(SimulatorOptions(hang_rate=1.0, hang_s=12.0, latency=parse_latency("5ms")), 1)
    assert fates.draw().latency_s == 12.0
