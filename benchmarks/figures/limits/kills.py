"""Workers that are killed: one of eight every few seconds, with kill -9, while a new one takes its place."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Self

from figure import Figure
from figures.limits.arena import Api, Arena
from figures.limits.at_limit import run_at_limit
from figures.limits.cases import Case
from figures.limits.scale import LimitScale

from callmill.simulator import EnforcerKind

_KILL_EVERY_S = 5.0
_CASES = (Case(EnforcerKind.BUCKET, 100), Case(EnforcerKind.SLIDING, 100))


class _Killer:
    """Kills one worker after the other while the context lasts, and starts another one at once."""

    def __init__(self, arena: Arena) -> None:
        self.kills = 0
        self._arena = arena
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill_in_turns, name="killer")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _kill_in_turns(self) -> None:
        workers = self._arena.workers
        while not self._over.wait(_KILL_EVERY_S):
            turn = self.kills % len(workers)
            workers[turn].kill()
            workers[turn] = self._arena.start_worker()
            self.kills += 1


def measure(scale: LimitScale) -> Iterator[Figure]:
    """Run at the limits of two APIs under fire."""
    with Arena({case.api: Api(case.server(), case.profile()) for case in _CASES}) as arena, _Killer(arena) as killer:
        runs = run_at_limit(arena, dict.fromkeys(_CASES, scale.killing_s))
        kills = killer.kills
    for case, run in runs.items():
        bound = case.bound(run.guard_s)
        yield Figure(name=f"429s under kill -9, {case.name}", unit="calls", runs=(run.calls.refused,), must=0, aim=0)
        yield Figure(
            name=f"share used under kill -9, {case.name}",
            unit="%",
            runs=(run.used * 100,),
            better="higher",
            must=98 * bound,
            note=f"{kills} kills; bound {bound:.2%} at a guard of {run.guard_s * 1000:.1f} ms; {run.load}",
        )
