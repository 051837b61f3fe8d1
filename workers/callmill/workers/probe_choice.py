"""ProbeChoice: which waiting call tests whether an API that was down is up again.

A job may fail for reasons of its own, and so may a path, a batch or a traffic class. So the next probe is the call that
has least in common with failed probes, and has failed least itself.
"""

from __future__ import annotations

import random
from itertools import islice

from callmill.workers.call import Call
from callmill.workers.fair_queue import CallQueue, ClassQueue, FairQueue
from callmill.workers.kinship import batch_of, path_of

_MOST_REMEMBERED = 10_000
_LOOKED_AT = 128


class ProbeChoice:
    """Chooses among the calls waiting in a queue, based on those that failed since the API was last up."""

    def __init__(self, queue: FairQueue) -> None:
        self._queue = queue
        self._failed: dict[object, int] = {}

    def queue(self) -> CallQueue | None:
        """Return the queue that the next probe should come from; None: nothing waits."""
        return min(self._queue.waiting(), key=self._rank_queue, default=None)

    def take(self, queue: CallQueue) -> Call | None:
        """Take the next probe from a queue; None: nothing waits there."""
        return queue.take_best(self._rank_call)

    def has_new(self) -> bool:
        """Say whether a call waits whose class or batch has not failed yet."""
        return any(map(self.is_new, self._queue.classes()))

    def met(self, call: Call) -> None:
        """Record that a call failed while the API seemed to be up."""
        self._bound()
        for kind in _kinds_of(call):
            self._failed.setdefault(kind, 1)

    def failed(self, call: Call) -> None:
        """Record that a call failed as a probe."""
        self._bound()
        for kind in _kinds_of(call):
            self._failed[kind] = self._failed.get(kind, 0) + 1

    def forget(self) -> None:
        """Record that a call was answered: earlier failures prove nothing any more."""
        self._failed.clear()

    def api_is_up(self) -> None:
        """Move calls similar to failed ones behind all others, as they may fail again, and forget the failures."""
        if self._failed:
            for queue in self._queue.waiting():
                queue.sort(self._kinship)
            self._failed.clear()

    def is_new(self, waiting: ClassQueue) -> bool:
        """Say the same for one class."""
        if not len(waiting):
            return False
        failed = self._failed
        return waiting.traffic not in failed or any(
            batch_of(call) not in failed for call in islice(waiting, _LOOKED_AT)
        )

    def has_room(self, waiting: ClassQueue) -> bool:
        """Say whether to take in more work of a class: what a probe needs, plus some to find new calls."""
        return not len(waiting) or (len(waiting) < _LOOKED_AT and not self.is_new(waiting))

    def _bound(self) -> None:
        if len(self._failed) > _MOST_REMEMBERED:
            self._failed.clear()

    def _rank_queue(self, queue: CallQueue) -> int:
        return self._failed.get(queue.traffic, 0)

    def _rank_call(self, call: Call) -> tuple[float, ...]:
        return *self._kinship(call), random.random()  # noqa: S311 - variety, not secrecy

    def _kinship(self, call: Call) -> tuple[float, ...]:
        """Return how much a call has in common with failed ones, and how often it failed itself."""
        kin = self._failed.get(batch_of(call), 0) + self._failed.get(path_of(call), 0)
        return kin, call.attempts + call.spared


def _kinds_of(call: Call) -> tuple[object, ...]:
    return call.owner.traffic, batch_of(call), path_of(call)
