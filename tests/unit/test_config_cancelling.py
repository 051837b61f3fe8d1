"""Tasks that do not end at the first word."""

from __future__ import annotations

import asyncio

import pytest

from callmill.config.cancelling import end_tasks, to_its_end


def test_task_that_swallows_a_cancellation_ends_all_the_same():
    """A task that loses the first cancellation to somebody inside it gets another one."""

    async def stubborn() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await asyncio.sleep(3600)

    async def scenario() -> None:
        task = asyncio.ensure_future(stubborn())
        await asyncio.sleep(0)
        await end_tasks([task])
        assert task.cancelled()

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_ending_tasks_is_finished_before_it_is_cancelled():
    """Who is cancelled while it ends tasks leaves none behind, and is cancelled then."""
    ended = []

    async def slow_to_end() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)
            ended.append(True)

    async def scenario() -> None:
        task = asyncio.ensure_future(slow_to_end())
        await asyncio.sleep(0)
        ending = asyncio.ensure_future(end_tasks([task]))
        await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        assert ended == [True]

    asyncio.run(scenario())


def test_what_must_not_be_left_half_done_is_done_whole():
    """However often its waiter is cancelled, the work is over before the waiter is."""

    async def scenario() -> None:
        work = asyncio.ensure_future(asyncio.sleep(0.05, "done"))
        waiter = asyncio.ensure_future(to_its_end(work))
        for _ in range(2):
            await asyncio.sleep(0)
            waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert work.result() == "done"

    asyncio.run(scenario())
