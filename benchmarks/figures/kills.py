"""A batch whose workers are killed: one of two, in turns, every few seconds, with kill -9, and started again.

A worker that was started again is there before the next is killed: on a slow machine nobody would ever work otherwise.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Self

from api_server import BURST, Answer
from child import Child
from figure import Figure
from figures.limit import used_share
from msgspec import Struct
from scale import Scale
from stage import Stage
from workload import jobs

_RATE = 250
_WORKERS = 2
_KILL_EVERY_S = 3.0
_OUTCOMES_TIMEOUT_S = 300.0


class Repeats(Struct, frozen=True):
    """Calls that the API accepted more than once, and how many seconds later each came again."""

    calls: int
    after_s: list[float]


class Killer:
    """Keeps workers running and kills one of them every few seconds while the context lasts."""

    def __init__(self, stage: Stage) -> None:
        self.kills = 0
        self._stage = stage
        self._workers: list[Child] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill_in_turns, name="killer")

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            for _ in range(_WORKERS):
                self._workers.append(starting.enter_context(self._stage.start_worker()))
            self._stage.await_workers(*self._workers)
            starting.pop_all()
        return self

    def start(self) -> None:
        """Begin to kill."""
        self._thread.start()

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        for worker in self._workers:
            worker.stop()

    def _kill_in_turns(self) -> None:
        while not self._over.wait(_KILL_EVERY_S):
            turn = self.kills % _WORKERS
            self._workers[turn].kill()
            self.kills += 1
            self._workers[turn] = started = self._stage.start_worker()
            started.await_ready(partial(self._is_enough, started))

    def _is_enough(self, started: Child) -> bool:
        return self._over.is_set() or self._stage.has_reported(started)


def measure(scale: Scale) -> list[Figure]:
    """Run the batch under fire, then compare ids, outcomes and what the API saw."""
    with Stage([f"{_RATE}/second"], burst=BURST, server_rate=_RATE) as stage, Killer(stage) as killer:
        batch = stage.client.submit(jobs(scale.killed_jobs, f"/limited/{_RATE}", own_ids=True), name="under-fire")
        killer.start()
        batch.wait(_OUTCOMES_TIMEOUT_S)
        outcomes = Counter(outcome.id for outcome in batch.outcomes())
        failed = batch.progress().failed
        answers = stage.api.answers()
    submitted = {f"row-{number}" for number in range(scale.killed_jobs)}
    wrong = sum(count - 1 for count in outcomes.values()) + len(outcomes.keys() - submitted)
    accepted = [answer for answer in answers if answer.status == 200]
    repeats = _repeats(accepted)
    return [
        Figure(name="jobs lost under kill -9", unit="jobs", runs=(len(submitted - outcomes.keys()),), must=0),
        Figure(name="second outcomes under kill -9", unit="outcomes", runs=(wrong,), must=0),
        Figure(name="failed jobs under kill -9", unit="jobs", runs=(failed,), must=0, note=f"{killer.kills} kills"),
        Figure(name="refusals (429) under kill -9", unit="calls", runs=(len(answers) - len(accepted),)),
        Figure(name="repeated calls under kill -9", unit="calls", runs=(repeats.calls,)),
        *_recovery(repeats),
        Figure(
            name="longest silence at the API under kill -9",
            unit="s",
            runs=(max(after.time_s - before.time_s for before, after in pairwise(accepted)),),
        ),
        Figure(
            name="share of the limit used under kill -9",
            unit="%",
            runs=(used_share(accepted, _RATE) * 100,),
            better="higher",
        ),
    ]


def _repeats(accepted: list[Answer]) -> Repeats:
    first_s: dict[str, float] = {}
    after_s = [
        answer.time_s - first_s[answer.key]
        for answer in accepted
        if first_s.setdefault(answer.key, answer.time_s) != answer.time_s
    ]
    return Repeats(len(accepted) - len(first_s), after_s)


def _recovery(repeats: Repeats) -> list[Figure]:
    if not repeats.after_s:
        return []
    note = f"median {median(repeats.after_s):.1f} s; from the first answer of a repeated call to its second"
    return [Figure(name="recovery time after kill -9", unit="s", runs=(max(repeats.after_s),), note=note)]
