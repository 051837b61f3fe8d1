"""The limiter on its own: asyncio programs and threads that share limits with each other and with workers."""

from __future__ import annotations

import _thread
import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest
from limits_kit import rules, worst_window
from local_nodes import free_port, until
from redis.asyncio import Redis

from callmill.errors import ConfigurationError, UsageError, WaitTimeoutError
from callmill.limits import BlockingLimiter, Limiter, Slot, blocking, open_limiter

PROGRAM = Path(__file__).parents[1] / "limits_alone.py"
LIMIT = 150
SECONDS = 3.0
ONE = ["1 concurrent"]


@contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A program that waits for its start."""
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, PROGRAM, *arguments], stdin=pipe, stdout=pipe, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


async def call_as_workers_do(url: str, seconds: float) -> list[float]:
    """Call with a limiter that is made as workers make theirs."""
    starts: list[float] = []

    async def call() -> None:
        while True:
            slot = await limiter.acquire()
            starts.append(monotonic())
            limiter.settle(slot, None)

    async with Redis.from_url(url) as connection:
        limiter = Limiter(connection, "api", rules(f"{LIMIT}/second"), worker="worker-1")
        await limiter.start()
        tasks = [asyncio.create_task(call()) for _ in range(12)]
        await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await limiter.aclose()
    return starts


def test_tasks_threads_and_workers_share_one_limit(redis_url):
    """A program with tasks, two with threads and a worker's limiter: no second holds too much, each has its part."""
    kinds = ["asyncio", "threads", "threads"]
    with (
        program(redis_url, kinds[0], str(SECONDS), f"{LIMIT}/second") as first,
        program(redis_url, kinds[1], str(SECONDS), f"{LIMIT}/second") as second,
        program(redis_url, kinds[2], str(SECONDS), f"{LIMIT}/second") as third,
    ):
        programs = [first, second, third]
        for child in programs:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in programs:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        shares = [asyncio.run(call_as_workers_do(redis_url, SECONDS))]
        shares += [json.loads(child.communicate(timeout=20)[0]) for child in programs]
    starts = [round(start * 1e6) for share in shares for start in share]
    assert worst_window(starts, 1_000_000) <= LIMIT
    assert len(starts) > 0.5 * LIMIT * SECONDS
    assert min(len(share) for share in shares) > 0.1 * len(starts)


def test_a_wait_that_times_out_takes_nothing(redis_url):
    """After its timeout a call has left neither a place in the line nor a permit behind: the next one gets it."""
    with BlockingLimiter(redis_url, "api", ONE) as limiter:
        held = limiter.acquire(timeout=10)
        for timeout in (0, 0.05):
            with pytest.raises(WaitTimeoutError, match="api: no slot within"):
                limiter.acquire(timeout=timeout)
        status = limiter.status()
        assert (status.waiting, status.in_flight) == (0, 1)
        limiter.settle(held, None)
        limiter.settle(limiter.acquire(timeout=0), None)
        assert limiter.status().in_flight == 0


def test_a_quota_is_not_spent_by_waiting_for_it(redis_url):
    """A call that gives up before its quota has room leaves the quota as it was."""
    with BlockingLimiter(redis_url, "api", ["2/day"]) as limiter:
        for _ in range(2):
            limiter.settle(limiter.acquire(timeout=20), None)
        with pytest.raises(WaitTimeoutError):
            limiter.acquire(timeout=0.1)
        status = limiter.status()
        assert (status.fired, status.waiting, status.held) == (2, 0, 0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Take Ctrl-C as a program does; whoever started the tests may have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_loses_no_permit(redis_url):
    """Interrupted at the moment in which it gets its permit, or soon before or after, a thread gives it back."""
    never = threading.Event()

    def race(held: Slot) -> None:
        limiter.settle(held, None)
        _thread.interrupt_main()

    with BlockingLimiter(redis_url, "api", ONE) as limiter:
        for _ in range(40):
            racing = threading.Thread(target=race, args=[limiter.acquire(timeout=10)])
            try:
                racing.start()
                with limiter.slot(timeout=10):
                    never.wait(10)
            except KeyboardInterrupt:
                racing.join()
            else:
                pytest.fail("the interrupt was lost")
            status = limiter.status()
            assert (status.waiting, status.in_flight) == (0, 0)


def test_closing_wakes_threads_that_wait(redis_url):
    """Threads that wait when the limiter is closed end with a UsageError, as every later use does; reports do not."""
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            limiter.acquire()
        except UsageError as error:
            ended.append(error)

    before = threading.active_count()
    limiter = BlockingLimiter(redis_url, "api", ONE)
    held = limiter.acquire(timeout=10)
    threads = [threading.Thread(target=wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: limiter.status().waiting == len(threads))
    limiter.close()
    limiter.close()
    for thread in threads:
        thread.join(5)
    assert [str(error) for error in ended] == ["api: the limiter is closed"] * len(threads)
    assert threading.active_count() == before
    for use in (limiter.acquire, limiter.status, lambda: limiter.pause(1, "late"), limiter.slot().__enter__):
        with pytest.raises(UsageError, match="api: the limiter is closed"):
            use()
    limiter.settle(held, None)
    limiter.refused(held, 1, "late")
    limiter.accepted(held)
    limiter.feed(held, [])


def test_closing_ends_tasks_that_wait(redis_url):
    """Tasks that wait at the end of ``open_limiter`` are cancelled, and whoever asks later gets a UsageError."""

    async def scenario() -> None:
        async with open_limiter(redis_url, "api", ONE) as limiter:
            await limiter.acquire()
            waiting = asyncio.create_task(limiter.acquire())
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(UsageError, match="is not running"):
            await limiter.acquire()

    asyncio.run(scenario())


def test_the_end_of_a_process_with_waiting_threads_is_not_held_up(redis_url):
    """A process that never closes its limiter ends all the same, without a word on standard error."""
    text = f"from callmill.limits import BlockingLimiter; BlockingLimiter({redis_url!r}, 'api', ['9/second']).acquire()"
    done = subprocess.run([sys.executable, "-c", text], timeout=20, check=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_a_forked_child_is_told_to_make_its_own(redis_url, monkeypatch):
    """In another process than the one that made it, a limiter refuses instead of waiting for ever."""
    with BlockingLimiter(redis_url, "api", ONE) as limiter:
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: -1)
            with pytest.raises(UsageError, match="forked"):
                limiter.acquire()
            limiter.close()
        limiter.settle(limiter.acquire(timeout=10), None)


def test_a_thread_that_gets_its_turn_too_late_asks_again(redis_url, monkeypatch):
    """A slot that reaches its thread later than the guard allows starts no call: another one does."""
    with BlockingLimiter(redis_url, "api", ["100/second"]) as limiter:
        limiter.settle(limiter.acquire(timeout=10), None)
        late = iter([0.0, 0.0, 1.0])  # the deadline, what is left of it, and the moment of the turn

        def clock() -> float:
            return monotonic() + (next(late, 0.0) if threading.current_thread() is threading.main_thread() else 0.0)

        monkeypatch.setattr(blocking, "monotonic", clock)
        limiter.settle(limiter.acquire(timeout=10), None)
        assert limiter.status().fired >= 3


def test_a_refusal_in_a_thread_pauses_programs_elsewhere(redis_url):
    """What one program learns from a 429 holds for the others: a refusal in a thread pauses an asyncio program."""

    async def scenario() -> None:
        async with open_limiter(redis_url, "api", ["100/second"]) as limiter:
            with await asyncio.to_thread(BlockingLimiter, redis_url, "api", ["100/second"]) as threads:
                slot = await asyncio.to_thread(threads.acquire)
                threads.settle(slot, None)
                threads.refused(slot, 30, "429")
                async with asyncio.timeout(5):
                    while limiter.status().pause_reason != "429":  # noqa: ASYNC110 - told only to those who ask
                        await asyncio.sleep(0.001)
                assert 25 < limiter.status().paused_for_s <= 30

    asyncio.run(scenario())


def test_models_and_credentials_have_limits_of_their_own(redis_url):
    """A limit per model or per key holds for each by itself: the next model, or the next key, has its own permit."""
    with BlockingLimiter(redis_url, "models", ["1 concurrent per model"]) as limiter:
        limiter.acquire(model="small", timeout=10)
        limiter.acquire(model="large", timeout=10)
        with pytest.raises(WaitTimeoutError):
            limiter.acquire(model="small", timeout=0.05)
    with BlockingLimiter(redis_url, "keys", ["1 concurrent per key"], keys=["a", "b"]) as limiter:
        assert {limiter.acquire(timeout=10).key for _ in range(2)} == {0, 1}
        with pytest.raises(WaitTimeoutError):
            limiter.acquire(timeout=0.05)


def test_without_redis_calls_wait_and_time_out():
    """Where no Redis answers, the limiter is made, calls wait, and their timeout still holds."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    with BlockingLimiter(url, "api", ["100/second"]) as limiter, pytest.raises(WaitTimeoutError):
        limiter.acquire(timeout=0.2)


WRONG = [
    ({"limits": ["fast"]}, UsageError, "'fast' is no limit; write '500/minute'"),
    ({"limits": "5/second"}, UsageError, "write a list"),
    ({"limits": []}, UsageError, "write a list"),
    ({"limits": ["5/second", "9/second"]}, UsageError, "count the same"),
    ({"enforcer": "nginx"}, UsageError, "'nginx' is no enforcer; one of bucket, sliding, fixed, unknown"),
    ({"burst": 5}, UsageError, "only with enforcer 'bucket'"),
    ({"burst": 0}, UsageError, "at least 1"),
    ({"quantum": 0.0}, UsageError, "quantum"),
    ({"guard": -1.0}, UsageError, "guard"),
    ({"keys": ["a", "a"]}, UsageError, "keys"),
    ({"keys": "a"}, UsageError, "keys"),
    ({"name": "{x}"}, UsageError, "no name of an API"),
    ({"url": "http://localhost"}, ConfigurationError, "redis"),
]


@pytest.mark.parametrize(("wrong", "kind", "text"), WRONG, ids=lambda value: str(value) if type(value) is dict else "")
def test_what_is_wrong_is_said_at_once(wrong, kind, text):
    """A limit, option, name or URL that is none raises an error of our tree that names it, and leaves no thread."""
    given = {"url": "redis://localhost", "name": "api", "limits": ["5/second"], **wrong}
    before = threading.active_count()
    with pytest.raises(kind, match=text):
        BlockingLimiter(**given)

    async def enter() -> None:
        async with open_limiter(**given):
            pass

    with pytest.raises(kind, match=text):
        asyncio.run(enter())
    until(lambda: threading.active_count() <= before)


def test_importing_the_limiter_is_cheap():
    """The limiter needs no Celery, no HTTP client and nothing of the command line: redis, msgspec and pydantic do."""
    text = (
        "import sys; from callmill.limits import Limiter, open_limiter, BlockingLimiter;"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    out = subprocess.run([sys.executable, "-c", text], timeout=20, check=True, capture_output=True, text=True).stdout
    loaded = set(out.split())
    assert {"redis", "msgspec"} <= loaded
    assert loaded.isdisjoint(
        {"celery", "kombu", "flower", "tornado", "pyreqwest", "requests", "uvloop", "httptools", "click", "rich"}
    )
