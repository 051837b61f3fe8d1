"""How many calls may start with the permits of a limit that is learned, and beside them."""

from __future__ import annotations

from time import monotonic

import pytest

from callmill.limits.permits import STALLED_S, Permits, PermitSet
from callmill.limits.turns import Turn


def granted(count: int, *, limit: int | None = None) -> Permits:
    """Return permits that are learned, of which so many are granted."""
    permits = Permits(limit, learns=True)
    permits.granted = permits.goal = count
    permits.valid_until = monotonic() + 1000
    return permits


def hang(permits: Permits, turn: Turn) -> None:
    """Let calls of one class take all permits and end none for as long as it takes to notice."""
    held = PermitSet([permits], turn=turn)
    while held.free > 0:
        held.take(0)
    permits.watch(0.0)
    permits.watch(STALLED_S)


@pytest.mark.parametrize(("count", "beside"), [(1, 1), (4, 2), (28, 14)])
def test_beside_calls_that_hang_a_class_has_half_as_many_places(count, beside):
    """Another class may start half as many calls; the class whose calls hang may start none."""
    permits, hangs, other = granted(count), Turn(1.0), Turn(1.0)
    hang(permits, hangs)
    assert PermitSet([permits], turn=hangs).free <= 0
    assert PermitSet([permits], turn=other).free == beside


def test_no_more_calls_are_in_flight_than_twice_what_was_learned():
    """However many classes come while calls hang, they share what was learned once more."""
    permits = granted(4)
    for _ in range(20):
        hang(permits, Turn(1.0))
    assert permits.used == 8


def test_a_limit_that_is_written_down_is_never_exceeded():
    """Where calls in flight are limited in the profile, others wait for calls that hang."""
    permits = granted(4, limit=4)
    hang(permits, Turn(1.0))
    assert PermitSet([permits], turn=Turn(1.0)).free == 0


def test_a_place_that_comes_free_is_the_end_of_it():
    """Once a call that hung is over, no class may exceed what is granted."""
    permits, hangs = granted(4), Turn(1.0)
    other = PermitSet([permits], turn=Turn(1.0))
    hang(permits, hangs)
    PermitSet([permits], turn=hangs).give(0)
    assert other.free == 1
    other.take(0)
    assert other.free == 0


def test_who_has_no_permit_may_ask_once_whether_the_api_takes_a_call():
    """After refusals another worker may hold the only permit: one call of a class that waits starts without."""
    permits = granted(0)
    permits.try_with(1)
    other = PermitSet([permits], turn=Turn(1.0))
    assert other.free == 0
    permits.exceed()
    assert other.free == 1
    other.take(0)
    assert other.free == 0
