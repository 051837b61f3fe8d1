"""One process's limiter on a real Redis: waiting, cancelling, settling, pausing, and Redis going away."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from time import monotonic

import pytest
from limits_kit import rules
from local_nodes import RedisProcess
from redis.asyncio import Redis
from started_limiter import started, until

from callmill.config.limit_spec import Enforcer
from callmill.errors import UsageError
from callmill.limits import KeyRules, Limiter, LimitRules, Slot


def test_calls_start_in_the_order_of_asking_and_never_early(redis_url):
    """Slots go to the calls of a process in the order in which they asked, none before its start time."""

    async def scenario() -> None:
        order, early = [], []

        async def call(number: int) -> None:
            slot = await limiter.acquire()
            order.append(number)
            early.append(slot.start > monotonic())
            limiter.settle(slot, None)

        async with started(redis_url, rules("6000/minute")) as limiter:
            await asyncio.gather(*(call(number) for number in range(40)))
        assert order == list(range(40))
        assert not any(early)

    asyncio.run(scenario())


def test_a_cancelled_call_loses_nothing_for_the_others(redis_url):
    """Slots of cancelled calls go to those that wait behind them: the others do not wait any longer for it."""

    async def scenario() -> None:
        async with started(redis_url, rules("3000/minute")) as limiter:
            first = await limiter.acquire()
            tasks = [asyncio.create_task(limiter.acquire()) for _ in range(30)]
            await tasks[0]
            for task in tasks[1:20]:
                task.cancel()
            slots = await asyncio.gather(*tasks[20:])
            assert slots[-1].start - first.start < 20 * 0.0201
            assert limiter.status().waiting == 0

    asyncio.run(scenario())


def test_a_call_cancelled_with_its_slot_in_hand_gives_it_back(redis_url):
    """A call that is cancelled in the moment of its slot hands it on to the next one."""

    async def scenario() -> None:
        async with started(redis_url, rules("120/minute", enforcer=Enforcer.BUCKET, burst=2)) as limiter:
            unlucky, lucky = (asyncio.create_task(limiter.acquire()) for _ in range(2))
            while limiter.status().waiting != 1:  # noqa: ASYNC110 - the moment between its slot and its task's turn
                await asyncio.sleep(0)
            unlucky.cancel()
            await asyncio.wait_for(lucky, 0.3)  # the next slot is half a second away
            assert unlucky.cancelled()

    asyncio.run(scenario())


def test_a_due_slot_is_taken_without_waiting(redis_url):
    """try_acquire gives a held slot that is due, never one that another call waits for, never a second one."""

    async def scenario() -> None:
        async with started(redis_url, rules("600/minute", enforcer=Enforcer.BUCKET, burst=2)) as limiter:
            assert limiter.try_acquire() is None
            task = asyncio.create_task(limiter.acquire())
            await until(lambda: limiter.status().held)
            assert limiter.try_acquire() is None
            task.cancel()
            await asyncio.sleep(limiter.status().next_start_in_s or 0)
            taken: list[Slot] = []
            await until(lambda: taken.extend(filter(None, [limiter.try_acquire()])) or taken)
            assert taken[0].start <= monotonic()
            assert limiter.try_acquire() is None

    asyncio.run(scenario())


def test_late_slots_are_dropped_not_fired_in_a_bunch(redis_url):
    """A process that was frozen drops the slots of that time, counts them, and fires none later than its validity.

    Where the machine itself held the process up, a call may see its slot that much later.
    """
    frozen_s = 0.1

    async def scenario() -> None:
        lateness, turns = [], []

        async def call() -> None:
            while True:
                slot = await limiter.acquire()
                lateness.append(monotonic() - slot.start)

        async def watch() -> None:
            while True:
                turns.append(monotonic())
                await asyncio.sleep(0)

        async with started(redis_url, rules("1000/second", guard_s=0.008)) as limiter:
            tasks = [asyncio.create_task(call()) for _ in range(300)]
            await until(lambda: len(lateness) >= 100)
            missed, fired = limiter.status().slots_missed, len(lateness)
            tasks.append(asyncio.create_task(watch()))
            time.sleep(frozen_s)  # noqa: ASYNC251 - the frozen process is what is tested
            await until(lambda: len(lateness) >= fired + 100)
            for task in tasks:
                task.cancel()
            assert limiter.status().slots_missed - missed >= 50
            held_up_s = max(later - earlier for earlier, later in pairwise(turns))
            assert max(lateness[fired:]) < 0.007 + held_up_s

    asyncio.run(scenario())


def test_tokens_settle_to_what_was_used(redis_url):
    """Refunded tokens make room: calls that reserve ten times what they use start far faster than reserved."""

    async def scenario() -> None:
        async with started(redis_url, rules("60000 tokens/minute")) as limiter:
            begin = (await limiter.acquire(10)).start
            for _ in range(10):
                slot = await limiter.acquire(500)
                limiter.settle(slot, 50)
                limiter.settle(slot, 0)
                slot_start = slot.start
            assert slot.tokens == 500
            assert slot_start - begin < 0.75 * 9 * 0.5

    asyncio.run(scenario())


def test_a_pause_holds_here_at_once_and_only_grows(redis_url):
    """From the pause on no call starts in this process until its end; a shorter one changes nothing."""

    async def scenario() -> None:
        async with started(redis_url, rules("100/second")) as limiter:
            await limiter.acquire()
            begin = monotonic()
            await asyncio.gather(limiter.pause(0.5, "429 Retry-After: 1"), limiter.pause(0.1, "shorter"))
            status = limiter.status()
            assert status.paused_for_s == pytest.approx(0.5, abs=0.1)
            assert status.pause_reason == "429 Retry-After: 1"
            slots = await asyncio.gather(*(limiter.acquire() for _ in range(5)))
            assert begin + 0.5 <= slots[0].start < begin + 1.0
            assert limiter.status().pause_reason is None

    asyncio.run(scenario())


def test_a_pause_outlives_the_process_that_told_it(redis_url):
    """A process that starts within a pause learns of it before it calls."""

    async def scenario() -> None:
        async with started(redis_url, rules("100/second"), worker="a") as teller:
            begin = monotonic()
            await teller.pause(1.0, "429")
        async with started(redis_url, rules("100/second"), worker="b") as limiter:
            assert limiter.status().pause_reason == "429"
            assert (await limiter.acquire()).start >= begin + 1.0

    asyncio.run(scenario())


def test_calls_begun_under_other_limits_free_no_permits_of_the_new_ones(redis_url):
    """A concurrency limit set while calls are under way is kept when these end, and for good."""

    async def scenario() -> None:
        async with started(redis_url, rules("5 concurrent")) as limiter:
            before = [await limiter.acquire() for _ in range(3)]
            limiter.reconfigure(rules("2 concurrent per key"))
            for slot in before:
                limiter.settle(slot, None)
            held = [await limiter.acquire() for _ in range(2)]
            await until(lambda: limiter.status().round_trips > 8)
            assert limiter.try_acquire() is None
            for slot in held:
                limiter.settle(slot, None)

    asyncio.run(scenario())


def test_without_limits_calls_start_at_once_but_for_pauses(redis_url):
    """An API without limits costs no exchange per call and still obeys a pause."""

    async def scenario() -> None:
        async with started(redis_url, rules("none")) as limiter:
            before = limiter.status().round_trips
            for _ in range(100):
                limiter.settle(await limiter.acquire(), None)
            assert limiter.status().round_trips <= before + 1
            begin = monotonic()
            await limiter.pause(0.2, "429")
            assert limiter.try_acquire() is None
            await limiter.acquire()
            assert monotonic() - begin >= 0.2

    asyncio.run(scenario())


def test_permits_bound_the_calls_in_flight(redis_url):
    """With permits and a rate, no more calls are in flight than permits, and a settled call frees one."""

    async def scenario() -> None:
        async with started(redis_url, rules("1000/second", "3 concurrent")) as limiter:
            slots = [await limiter.acquire() for _ in range(3)]
            waiting = asyncio.create_task(limiter.acquire())
            await asyncio.sleep(0.1)
            assert not waiting.done()
            assert limiter.status().in_flight == 3
            limiter.settle(slots[0], None)
            limiter.settle(slots[0], None)
            await asyncio.wait_for(waiting, 2)
            assert limiter.status().in_flight == 3

    asyncio.run(scenario())


def test_calls_wait_for_redis_and_go_on_by_themselves(tmp_path):
    """While Redis is away acquire neither fails nor grants more than was held; when it is back, calls go on."""

    async def scenario(server: RedisProcess) -> None:
        times = []

        async def call() -> None:
            while True:
                await limiter.acquire()
                times.append(monotonic())

        async with started(server.url, rules("6000/minute")) as limiter:
            tasks = [asyncio.create_task(call()) for _ in range(50)]
            await until(lambda: len(times) >= 20)
            await asyncio.to_thread(server.kill)
            gone = monotonic()
            await asyncio.sleep(0.8)
            held = [at for at in times if at > gone]
            assert len(held) <= 60
            assert not held or held[-1] < gone + 0.6
            await asyncio.to_thread(lambda: server.start().ready())
            back = len(times)
            async with asyncio.timeout(5):
                await until(lambda: len(times) >= back + 20)
            assert not any(task.done() for task in tasks)
            for task in tasks:
                task.cancel()

    server = RedisProcess(tmp_path).start()
    try:
        server.ready()
        asyncio.run(scenario(server))
    finally:
        server.teardown()


def test_a_limiter_starts_before_redis_does(tmp_path):
    """start() does not fail without Redis: the calls start when it comes."""

    async def scenario(server: RedisProcess) -> None:
        async with started(server.url, rules("100/second")) as limiter:
            task = asyncio.create_task(limiter.acquire())
            await asyncio.to_thread(lambda: server.start().ready())
            await asyncio.wait_for(task, 5)

    server = RedisProcess(tmp_path)
    try:
        asyncio.run(scenario(server))
    finally:
        server.teardown()


def test_acquire_on_a_limiter_that_does_not_run_says_so(redis_url):
    """Waiting on a limiter that was never started, or is closed, is a mistake that is told at once."""

    async def scenario() -> None:
        async with Redis.from_url(redis_url) as connection:
            limiter = Limiter(connection, "api", rules("1/second"), worker="w")
            with pytest.raises(UsageError):
                await limiter.acquire()
        async with started(redis_url, rules("1/hour")) as limiter:
            task = asyncio.create_task(limiter.acquire())
            await asyncio.sleep(0)
        assert task.cancelled() or await asyncio.wait([task], timeout=1)
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(UsageError):
            await limiter.acquire()

    asyncio.run(scenario())


def test_an_api_that_refuses_for_days_is_asked_once_a_minute(redis_url):
    """However many waves of refusals came, told by whomever, the next one pauses the API for a minute."""

    async def scenario() -> None:
        async with started(redis_url, LimitRules()) as limiter:
            for waves in (5000, 10**17):
                limiter._on_message(f"row {waves}")
                slot = Slot(monotonic() + 1, group=limiter._default)
                limiter.refused(slot, None, "429")
                assert limiter.paused_for_s == pytest.approx(60, abs=1)

    asyncio.run(scenario())


def test_keys_of_a_pool_that_are_refused_together_all_go_on(redis_url):
    """After a wave of refusals of two keys each is tried with one call; once that is taken, neither is held back."""

    async def scenario() -> None:
        pool = LimitRules(keys=(KeyRules("a"), KeyRules("b")))
        async with started(redis_url, pool) as limiter, asyncio.timeout(10):
            refused = [await limiter.acquire() for _ in range(4)]
            for slot in refused:
                limiter.refused(slot, None, "429")
                limiter.settle(slot, 0)
            tried = [await limiter.acquire() for _ in range(2)]
            assert sorted(slot.key for slot in tried) == [0, 1]
            for slot in tried:
                limiter.accepted(slot)
                limiter.settle(slot, 0)
            again = [await limiter.acquire() for _ in range(4)]
            assert {slot.key for slot in again} == {0, 1}

    asyncio.run(scenario())
