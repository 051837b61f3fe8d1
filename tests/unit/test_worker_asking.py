"""Runners that wait for slots: each class is heard, and who gives way loses nothing."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from callmill.jobs.traffic import Priority, TrafficClass
from callmill.jobs.wire import WireJob
from callmill.limits import Slot
from callmill.workers.asking import Asking
from callmill.workers.call import Call
from callmill.workers.fair_queue import FairQueue

BULK, URGENT = TrafficClass(Priority.BULK), TrafficClass(Priority.INTERACTIVE)


class Owner:
    """Owns urgent calls."""

    traffic = URGENT


async def asking(runners: int) -> tuple[Asking, FairQueue, list[asyncio.Task[Slot | None]]]:
    """Let so many runners ask for bulk calls; none gets a slot."""
    queue = FairQueue(lambda traffic: traffic.priority.weight)
    asks, never = Asking(queue), asyncio.get_running_loop().create_future()

    async def forever() -> Slot:
        await asyncio.shield(never)
        raise AssertionError

    tasks = [asyncio.create_task(asks.wait(cast("Any", Owner()), queue.line(BULK), forever())) for _ in range(runners)]
    await asyncio.sleep(0)
    return asks, queue, tasks


def add_urgent(queue: FairQueue) -> None:
    """Let an urgent call wait."""
    owner = cast("Any", Owner())
    queue.add(owner, [Call(WireJob("GET", "/"), owner, 0, 0, "")])


def test_one_runner_gives_way_to_a_class_that_does_not_ask():
    """The runner that began to ask last goes without a slot and without an error; the others wait on."""

    async def main() -> None:
        asks, queue, tasks = await asking(3)
        asks.make_heard()
        add_urgent(queue)
        asks.make_heard()
        assert await tasks[-1] is None
        assert not tasks[-1].cancelling()
        assert (len(asks), len(queue.line(BULK).askers)) == (2, 2)
        assert not any(task.done() for task in tasks[:2])

    asyncio.run(main())


def test_the_only_runner_of_a_class_stays():
    """A class that asks once is not silenced by a heavier one."""

    async def main() -> None:
        asks, queue, (task,) = await asking(1)
        add_urgent(queue)
        asks.make_heard()
        await asyncio.sleep(0)
        assert not task.done()
        assert len(asks) == 1

    asyncio.run(main())


def test_cancelled_runner_is_cancelled_even_while_it_gives_way():
    """A runner that is stopped ends as cancelled, whoever else wanted it to give way."""

    async def main() -> None:
        asks, queue, tasks = await asking(2)
        add_urgent(queue)
        asks.make_heard()
        tasks[-1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[-1]
        assert len(asks) == 1

    asyncio.run(main())
