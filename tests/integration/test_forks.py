"""Processes that fork after they used Callmill: the child and the parent both go on, and neither hears of the other."""

from __future__ import annotations

import pytest
import redis
from forking_program import run

from callmill.ledger.keys import BATCHES


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """No profiles file is near: every API's name will do."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("end", ["os._exit", "sys.exit"])
@pytest.mark.parametrize("uses", [True, False])
def test_parent_and_child_both_go_on(redis_url, end, uses):
    """A client works in a child, and on in its parent beside the child and after its end, whichever way that comes."""
    program = f"""
    client = Client(URL)
    atexit.register(client.close)
    batch = client.submit(jobs(3), name="before")

    def child():
        if {uses}:
            assert batch.progress().total == 3
            client.submit(jobs(4), name="child")
            os.kill(os.getpid(), signal.SIGSTOP)

    pid = forked(child, {end})
    os.waitpid(pid, os.WUNTRACED) if {uses} else None
    assert client.submit(jobs(5), name="beside").progress().total == 5
    os.kill(pid, signal.SIGCONT) if {uses} else None
    assert ended(pid) == 0
    assert client.submit(jobs(6), name="after").progress().total == 6
    print(sorted(progress.name for progress in client.batches()))
    """
    expected = {"before", "beside", "after"} | ({"child"} if uses else set())
    assert run(redis_url, program).strip() == str(sorted(expected))


def test_generations(redis_url):
    """A child's child has a client of its own, too."""
    program = """
    client = Client(URL)
    client.submit(jobs(1))

    def child():
        client.submit(jobs(1))
        assert ended(forked(lambda: client.submit(jobs(1)), sys.exit)) == 0
        client.submit(jobs(1))

    assert ended(forked(child, sys.exit)) == 0
    client.submit(jobs(1))
    print(len(client.batches()))
    """
    assert run(redis_url, program).strip() == "5"


def test_fork_while_threads_use_the_client(redis_url):
    """Children forked at any moment of other threads' calls find no lock held, and take nothing from those threads."""
    program = """
    client = Client(URL)
    client.submit(jobs(1))
    over = threading.Event()
    failed = []

    def work():
        while not over.is_set():
            try:
                client.submit(jobs(2)).progress()
            except CallmillError as error:
                failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    exits = [ended(forked(lambda: client.submit(jobs(2)).progress(), end)) for end in (os._exit, sys.exit) * 10]
    over.set()
    for thread in threads:
        thread.join()
    print(set(exits), failed)
    """
    assert run(redis_url, program).strip() == "{0} []"


def test_fork_while_outcomes_are_read(redis_url):
    """An iteration under way stays its parent's: a child that ends with it, or asks it for more, does no harm."""
    program = """
    client = Client(URL)
    batch = client.submit([], name="empty")
    assert list(batch.outcomes()) == []
    waiting = client.submit(jobs(1))
    iteration = waiting.outcomes()
    reader = threading.Thread(target=lambda: print("read", list(iteration)))
    reader.start()
    time.sleep(0.3)  # it waits for Redis then

    def child():
        other = waiting.failed_jobs()
        assert list(other) == []

    assert ended(forked(child, sys.exit)) == 0
    waiting.cancel()
    reader.join()

    begun = waiting.outcomes()
    def child():
        try:
            next(begun)
        except StopIteration:
            pass
    assert ended(forked(child, sys.exit)) == 0
    assert list(begun) == []
    """
    assert run(redis_url, program).strip() == "read []"


def test_inherited_iteration_is_refused(redis_url):
    """A child that goes on with an iteration of its parent's is told to begin its own; the parent's goes on."""
    program = """
    from callmill.producer.event_loop_thread import EventLoopThread

    async def numbers():
        for number in range(3):
            yield number

    iteration = EventLoopThread.shared().iterate(numbers())
    assert next(iteration) == 0

    def child():
        try:
            next(iteration)
        except UsageError as error:
            assert "start a new one in the child" in str(error)
        else:
            os._exit(1)

    assert ended(forked(child, sys.exit)) == 0
    print(list(iteration))
    """
    assert run(redis_url, program).strip() == "[1, 2]"


def test_multiprocessing(redis_url):
    """A pool of forked processes, and its parent, share one client of a module."""
    program = """
    client = Client(URL)
    client.submit(jobs(1))

    def work(count):
        return client.submit(jobs(count)).progress().total

    with multiprocessing.get_context("fork").Pool(3) as pool:
        results = pool.map_async(work, range(1, 9))
        assert client.submit(jobs(2)).progress().total == 2
        print(sum(results.get(20)))
    client.submit(jobs(1))
    """
    assert run(redis_url, program).strip() == "36"


def test_async_client(redis_url):
    """In a child of a running event loop an AsyncClient names the remedy; on a loop of the child's it works."""
    program = """
    client = AsyncClient(URL)

    async def main():
        batch = await client.submit(jobs(1))
        pid = os.fork()
        if pid == 0:
            try:
                await client.submit(jobs(1))
            except UsageError as error:
                assert "asyncio.run()" in str(error) and "spawn" in str(error), error
                os._exit(0)
            os._exit(1)
        assert ended(pid) == 0
        assert (await batch.progress()).total == 1
        loop_thread = threading.Thread(target=lambda: exits.append(ended(forked(child, sys.exit))))
        loop_thread.start()
        while loop_thread.is_alive():
            assert (await batch.progress()).total == 1
        assert (await client.submit(jobs(3))).id

    exits = []

    def child():
        async def own():
            assert (await (await client.submit(jobs(2))).progress()).total == 2
            await client.aclose()
        asyncio.run(own())

    asyncio.run(main())
    print(exits)
    """
    assert run(redis_url, program).strip() == "[0]"
    with redis.Redis.from_url(redis_url) as raw:
        assert raw.zcard(BATCHES) == 3


def test_limiters(redis_url):
    """A limiter gives a child no slot, since they are the parent's, and says what to do; the parent goes on."""
    program = """
    def refused(take):
        try:
            take()
        except UsageError as error:
            assert "forked" in str(error), error
        else:
            os._exit(1)

    def child():
        refused(lambda: threads.acquire(timeout=5))
        with BlockingLimiter(URL, "other", ["1000/second"]) as own:
            own.settle(own.acquire(timeout=5), None)
        threads.close()

    async def main():
        async with open_limiter(URL, "api", ["1000/second"]) as limiter:
            limiter.settle(await limiter.acquire(), None)
            child = lambda: refused(lambda: asyncio.run(limiter.acquire()))
            assert ended(forked(child, os._exit)) == 0
            async with asyncio.timeout(5):
                for _ in range(50):
                    limiter.settle(await limiter.acquire(), None)

    with BlockingLimiter(URL, "threads", ["1000/second"]) as threads:
        threads.settle(threads.acquire(timeout=5), None)
        print([ended(forked(child, end)) for end in (os._exit, sys.exit)])
        for _ in range(50):
            threads.settle(threads.acquire(timeout=5), None)
        asyncio.run(main())
    """
    assert run(redis_url, program).strip() == "[0, 0]"
