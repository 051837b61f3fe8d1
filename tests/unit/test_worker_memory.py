"""How a worker keeps what tenants and APIs send within its memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callmill.workers import memory_watch as module
from callmill.workers.held_chunks import LargeChunks
from callmill.workers.memory_limits import MemoryLimits, available_bytes, return_free_memory, return_large_pieces
from callmill.workers.memory_watch import watch_memory
from callmill.workers.transports.answer_room import AnswerRoom, AnswersOfApi, Reading, ReadingInThread

MiB = 2**20


async def begun(waiting: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Begin to wait for room."""
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(0)
    return task


def reading_of(api: AnswersOfApi, size_bytes: int) -> Reading:
    """Return a large answer of which so many bytes were read."""
    reading = api.reading()
    reading.grow(size_bytes)
    return reading


def test_an_answer_waits_for_room_and_gets_it():
    """What does not fit waits, its API shows it, and it goes on when another answer was read to its end."""

    async def scenario() -> None:
        api = AnswersOfApi(AnswerRoom(20))
        first, second = reading_of(api, 8), reading_of(api, 2)
        task = await begun(second.room_for(2))
        assert (task.done(), api.waiting) == (False, 1)
        first.end()
        await task
        assert (api.waiting, api.bytes, api.room.reading_bytes) == (0, 2, 2)

    asyncio.run(scenario())


def test_the_oldest_answer_of_an_api_is_always_read_on():
    """However full the room is, one answer of each API goes on; but none while all of it waits for Redis."""

    async def scenario() -> None:
        room = AnswerRoom(20)
        one, other = AnswersOfApi(room), AnswersOfApi(room)
        first, second = reading_of(one, 30), reading_of(other, 30)
        room.tight = True
        await first.room_for(100)
        await second.room_for(100)
        room.unrecorded(20)
        task = await begun(first.room_for(1))
        assert not task.done()
        room.unrecorded(19)
        await task

    asyncio.run(scenario())


def test_an_api_has_half_of_the_room():
    """One API's answers leave half of the room to the others."""

    async def scenario() -> None:
        room = AnswerRoom(20)
        one, other = AnswersOfApi(room), AnswersOfApi(room)
        _, second = reading_of(one, 9), reading_of(one, 0)
        _, fourth = reading_of(other, 1), reading_of(other, 0)
        waits = await begun(second.room_for(2))
        await fourth.room_for(9)
        assert not waits.done()
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        assert one.waiting == 0

    asyncio.run(scenario())


def test_an_answer_that_cannot_wait_longer_has_more_room():
    """Where half of its time is over, an answer may exceed the room by as much again, unless memory is short."""

    async def scenario() -> None:
        room = AnswerRoom(20)
        api = AnswersOfApi(room)
        _, second = reading_of(api, 20), reading_of(api, 0)
        await second.room_for(20, within_s=0.02)
        await asyncio.wait_for(second.room_for(20, within_s=60), 1)  # from then on it waits no more
        for too_much, room.tight in ((21, False), (1, True)):
            with pytest.raises(TimeoutError):
                await second.room_for(too_much, within_s=0.02)
        assert (api.waiting, second.waited) == (0, True)

    asyncio.run(scenario())


def test_a_thread_waits_for_room_until_its_call_is_given_up():
    """In a thread, too, an answer waits, and goes on or fails with its call; what it took is free again."""

    async def scenario() -> None:
        room, gave_up = AnswerRoom(20), threading.Event()
        api = AnswersOfApi(room)
        first = reading_of(api, 10)
        reading = ReadingInThread(api, asyncio.get_running_loop(), gave_up.is_set, asyncio.timeout(None))
        growing = asyncio.create_task(asyncio.to_thread(reading.grow, 5))
        while not api.waiting:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
        gave_up.set()
        with pytest.raises(TimeoutError):
            await growing
        await asyncio.to_thread(reading.end)
        await asyncio.sleep(0)
        assert (api.bytes, list(api.readings)) == (10, [first])

    asyncio.run(scenario())


def test_large_chunks_have_their_part_and_small_ones_need_no_leave():
    """Beside large chunks another one fits or does not; one alone always does, and so does every small one."""
    room = LargeChunks(30 * MiB)
    with room.place() as first, room.place() as second, room.place() as small:
        assert first.take(40 * MiB)
        assert not second.take(10 * MiB)
        assert small.take(MiB)
        assert first.take(15 * MiB)
        assert second.take(15 * MiB)
        room.tight = True
        assert not second.take(16 * MiB)
    with room.place() as alone:
        assert alone.take(100 * MiB)


def test_the_smallest_control_group_counts(tmp_path: Path):
    """Of the machine and all control groups that a process is in, of either version, the smallest bound holds."""
    own = tmp_path / "own"
    own.write_text("4:memory:/a/b\n3:cpu,cpuacct:/c\n0::/d/e\n")
    for name, text in {
        "memory/a/b/memory.limit_in_bytes": "9223372036854771712",
        "memory/a/memory.limit_in_bytes": str(300 * MiB),
        "cpu/c/memory.limit_in_bytes": "1",
        "d/e/memory.max": "max",
        "d/memory.max": str(200 * MiB),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_bytes(tmp_path, own) == 200 * MiB
    assert available_bytes(tmp_path, tmp_path / "none") > 200 * MiB


def test_small_machines_share_out_little(monkeypatch):
    """With 512 MiB the parts are small enough to be held at once, and nobody has more than the defaults."""
    monkeypatch.setattr("callmill.workers.memory_limits.available_bytes", lambda: 512 * MiB)
    limits = MemoryLimits.of_this_process()
    assert limits.large_chunks_bytes + limits.answers_bytes + 4 * limits.recorded_at_once_bytes < 256 * MiB
    monkeypatch.setattr("callmill.workers.memory_limits.available_bytes", lambda: 2**40)
    assert MemoryLimits.of_this_process().answers_bytes == MemoryLimits().answers_bytes
    return_large_pieces()
    return_free_memory()


def test_a_process_near_its_bound_takes_in_nothing_large(monkeypatch, caplog):
    """While the process has more than it should, its parts know, and the log says so once; then it is over."""
    held = iter([5, 50, 50, 60, 60, 5])
    told: list[bool] = []
    parts = [SimpleNamespace(tight=False), SimpleNamespace(tight=False)]

    async def pause(_: float) -> None:
        told.append(parts[0].tight and parts[1].tight)

    monkeypatch.setattr(module, "rss_bytes", lambda: next(held) * MiB)
    limits = MemoryLimits(tight_from_bytes=20 * MiB)
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(watch_memory(limits, SimpleNamespace(pause=pause), *parts))  # type: ignore[arg-type]
    assert told == [False, False, True, True, False]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
