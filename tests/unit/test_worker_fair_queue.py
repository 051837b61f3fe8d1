"""The calls that wait in a lane: each comes out once, in its order, and an owner's leave together."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.jobs.traffic import NORMAL, Priority, TrafficClass
from callmill.jobs.wire import WireJob
from callmill.workers.call import Call
from callmill.workers.fair_queue import PLAIN, CallQueue, FairQueue

BULK = TrafficClass(Priority.BULK)


@dataclass(eq=False)
class Owner:
    """Owns calls of one class."""

    traffic: TrafficClass = NORMAL

    def calls(self, count: int) -> list[Call]:
        """Return new calls, numbered."""
        return [Call(WireJob("GET", "/"), cast("Any", self), n, n, "") for n in range(count)]


def queue_of(weights: dict[TrafficClass, float] | None = None) -> FairQueue:
    """Return an empty queue; classes that are not named weigh 1."""
    return FairQueue(lambda traffic: (weights or {}).get(traffic, 1.0))


@given(data=st.data())
def test_calls_come_out_once_and_in_order(data):
    """Whatever comes, goes, is forgotten or sorted, each call is taken once, in its order, and the count is right."""
    queue, owners = CallQueue(NORMAL, PLAIN), [Owner(), Owner(), Owner()]
    waiting: list[Call] = []
    for _ in range(data.draw(st.integers(1, 80))):
        owner = cast("Any", data.draw(st.sampled_from(owners)))
        match data.draw(st.sampled_from(["add", "first", "take", "take", "forget", "best", "sort"])):
            case "add":
                calls = owner.calls(data.draw(st.integers(0, 4)))
                queue.add(owner, calls)
                waiting += calls
            case "first":
                calls = owner.calls(data.draw(st.integers(0, 3)))
                queue.add(owner, calls, first=True)
                waiting[:0] = calls
            case "forget":
                queue.forget(owner)
                waiting = [call for call in waiting if call.owner is not owner]
            case "take":
                assert queue.take() is (waiting.pop(0) if waiting else None)
            case "best":
                best = min(waiting, key=lambda call: -call.offset, default=None)
                assert queue.take_best(lambda call: (-call.offset,)) is best
                waiting = [call for call in waiting if call is not best]
            case "sort":
                queue.sort(lambda call: (call.offset,))
                waiting.sort(key=lambda call: call.offset)
        assert len(queue) == len(waiting)
        assert list(queue) == waiting
    assert queue.take_all() == waiting
    assert queue.take() is None


def test_what_was_forgotten_leaves_nothing_behind():
    """Owners that come and go behind a call that nobody takes leave no trace in the queue."""
    queue, stays = CallQueue(NORMAL, PLAIN), cast("Any", Owner())
    queue.add(stays, stays.calls(1))
    for _ in range(10_000):
        owner = cast("Any", Owner())
        queue.add(owner, owner.calls(3))
        queue.forget(owner)
    assert len(queue) == 1
    assert len(queue._stretches) < 200
    assert list(queue._of) == [stays]


def test_kinds_of_a_class_wait_apart_and_count_together():
    """Calls of other models or weights have queues of their own; the class has all of them."""
    queue, owner = queue_of(), cast("Any", Owner())
    large, heavy = queue.of_kind(NORMAL, ("large", 1)), queue.of_kind(NORMAL, ("", 7))
    large.add(owner, owner.calls(2))
    heavy.add(owner, owner.calls(3))
    assert (len(queue), len(queue.of_class(NORMAL)), queue.waiting()) == (5, 5, [large, heavy])
    queue.forget(owner)
    assert (len(queue), queue.waiting()) == (0, [])


def test_share_is_what_is_left_by_those_that_wait():
    """A class alone has everything; beside others that wait it has its weight's part."""
    queue, small = queue_of({NORMAL: 3.0}), cast("Any", Owner(BULK))
    assert queue.share(NORMAL) == 1
    queue.of_kind(BULK, PLAIN).add(small, small.calls(1))
    assert queue.share(NORMAL) == pytest.approx(0.75)


def test_class_with_calls_is_not_dropped():
    """A class is forgotten only when nothing of it waits."""
    queue, owner = queue_of(), cast("Any", Owner())
    waiting = queue.of_kind(NORMAL, PLAIN)
    waiting.add(owner, owner.calls(1))
    queue.drop(NORMAL)
    assert len(queue) == 1
    waiting.take()
    queue.drop(NORMAL)
    assert queue.classes() == []


def test_who_knows_a_queue_knows_the_one_that_is_used():
    """A class that is dropped and comes again uses the queue that the limiter holds on to; else nothing is left."""
    queue = queue_of()
    held = queue.of_kind(NORMAL, PLAIN)
    queue.of_kind(BULK, PLAIN)
    queue.drop(NORMAL)
    queue.drop(BULK)
    gc.collect()
    assert queue.of_kind(NORMAL, PLAIN) is held
    assert list(queue._kinds) == [(NORMAL, PLAIN)]
