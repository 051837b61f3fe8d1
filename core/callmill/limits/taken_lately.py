"""TakenLately: how many calls an API took from this process within the last second."""

from __future__ import annotations

_STEPS, _STEP_S = 10, 0.1
_SHORTEST_S = 0.5
"""A rate is told from no shorter time: a server may take a burst at once."""


class TakenLately:
    """Counts calls in steps of 0.1 s; times are those of ``time.monotonic()``."""

    def __init__(self) -> None:
        self._counts = [0] * _STEPS
        self._step = 0
        self._first_s = float("inf")

    def add(self, now_s: float) -> None:
        """Count one call that was taken."""
        step = int(now_s / _STEP_S)
        if step != self._step:
            self._forget(step, now_s)
        self._counts[step % _STEPS] += 1

    def per_s(self, now_s: float, under_way: int) -> float:
        """Calls a second taken lately, with those that are under way and were not refused."""
        self._forget(int(now_s / _STEP_S), now_s)
        lasted_s = min(1.0, max(_SHORTEST_S, now_s - self._first_s))
        return (sum(self._counts) + under_way) / lasted_s

    def _forget(self, step: int, now_s: float) -> None:
        passed = step - self._step
        for old in range(self._step + 1, self._step + 1 + min(passed, _STEPS)):
            self._counts[old % _STEPS] = 0
        self._step = step
        if passed > _STEPS:
            self._first_s = now_s


class Untold:
    """Calls that the API took with each credential and that Redis has not been told of."""

    def __init__(self, keys: int) -> None:
        self._counts = [0] * keys
        self._none = [0] * keys

    def add(self, key: int) -> None:
        """Count one call with a credential, from 0."""
        self._counts[key] += 1

    def pop(self, key: int) -> int:
        """What is to be told of one credential."""
        count, self._counts[key] = self._counts[key], 0
        return count

    def pop_all(self) -> list[int]:
        """What is to be told of each credential."""
        counts, self._counts = self._counts, self._none.copy()
        return counts
