"""Fleets that meet APIs of which nobody knows the limits, in virtual time: real limiters, real scripts, model servers."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from virtual_time import InstantRedis, VirtualLoop, virtual_time

from callmill.config.limit_spec import parse_limit
from callmill.limits import Limiter
from callmill.limits.rules import LimitRules

RUNNERS = 256


@dataclass
class Answer:
    status: int
    after_s: float | None = None


class Bucket:
    """limit_req: ``burst`` calls beyond the first at once."""

    def __init__(self, rate: float, burst: int, latency_s: float = 0.001, status: int = 429) -> None:
        self.rate, self.burst, self.latency_s = rate, burst, latency_s
        self.excess, self.last = 0.0, 0.0

    async def call(self, loop: VirtualLoop) -> Answer:
        now = loop.time()
        excess = max(0.0, self.excess - (now - self.last) * self.rate + 1) if self.last else 0.0
        if excess > self.burst:
            await asyncio.sleep(0.001)
            return Answer(429)
        self.excess, self.last = excess, now
        await asyncio.sleep(self.latency_s)
        return Answer(200)


class Sliding:
    def __init__(self, amount: int, window_s: float, latency_s: float = 0.001, hint: bool = False) -> None:
        self.amount, self.window_s, self.latency_s, self.hint = amount, window_s, latency_s, hint
        self.log: deque[float] = deque()

    async def call(self, loop: VirtualLoop) -> Answer:
        now = loop.time()
        while self.log and self.log[0] <= now - self.window_s:
            self.log.popleft()
        if len(self.log) >= self.amount:
            await asyncio.sleep(0.001)
            return Answer(429, self.log[0] + self.window_s - now if self.hint else None)
        self.log.append(now)
        await asyncio.sleep(self.latency_s)
        return Answer(200)


class Fixed:
    """Windows that begin with the first call, as express-rate-limit's do."""

    def __init__(self, amount: int, window_s: float, latency_s: float = 0.001, hint: bool = False) -> None:
        self.amount, self.window_s, self.latency_s, self.hint = amount, window_s, latency_s, hint
        self.ends, self.count = 0.0, 0

    async def call(self, loop: VirtualLoop) -> Answer:
        now = loop.time()
        if now >= self.ends:
            self.ends, self.count = now + self.window_s, 0
        self.count += 1
        if self.count > self.amount:
            await asyncio.sleep(0.001)
            return Answer(429, self.ends - now if self.hint else None)
        await asyncio.sleep(self.latency_s)
        return Answer(200)


class Concurrent:
    def __init__(self, most: int, latency_s: float = 0.2) -> None:
        self.most, self.latency_s, self.now = most, latency_s, 0

    async def call(self, _loop: VirtualLoop) -> Answer:
        if self.now >= self.most:
            await asyncio.sleep(0.001)
            return Answer(429)
        self.now += 1
        await asyncio.sleep(self.latency_s)
        self.now -= 1
        return Answer(200)


class Queueing:
    """M/M/c: so many servers, whose work takes an exponential time."""

    def __init__(self, servers: int, mean_s: float, seed: int = 1) -> None:
        self.free, self.mean_s, self.random = asyncio.Semaphore(servers), mean_s, random.Random(seed)

    async def call(self, _loop: VirtualLoop) -> Answer:
        async with self.free:
            await asyncio.sleep(self.random.expovariate(1 / self.mean_s))
        return Answer(200)


class Refusing:
    """Refuses with ``Retry-After: 0`` for a while, then takes everything."""

    def __init__(self, for_s: float, after_s: float | None = 0.0) -> None:
        self.for_s, self.after_s, self.began = for_s, after_s, 0.0

    async def call(self, loop: VirtualLoop) -> Answer:
        self.began = self.began or loop.time()
        await asyncio.sleep(0.001)
        return Answer(429, self.after_s) if loop.time() < self.began + self.for_s else Answer(200)


@dataclass
class Run:
    done: int = 0
    calls: int = 0
    refused: int = 0
    took_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    refusals: Counter[int] = field(default_factory=Counter)
    refused_at: list[float] = field(default_factory=list)
    done_at: list[float] = field(default_factory=list)

    @property
    def most(self) -> int:
        return max(self.refusals.values(), default=0)


async def _fleet(
    loop: VirtualLoop, url: str, make: Callable[[], Any], jobs: int, workers: int, limits: tuple[str, ...], until_s: float,
    change: Callable[[Any, float], None] | None, trace: bool, seed: int,
) -> Run:
    redis, run, began = InstantRedis(url, loop, 0.0004), Run(), 0.0
    server = make()
    jitter = random.Random(seed)
    rules = LimitRules(tuple(parse_limit(text) for text in limits))
    limiters = [Limiter(redis, "api", rules, worker=f"w{n}") for n in range(workers)]  # type: ignore[arg-type]
    for limiter in limiters:
        await limiter.start()
    await asyncio.sleep(1.5)
    parts, over = [deque(range(n, jobs, workers)) for n in range(workers)], asyncio.Event()
    began = loop.time()

    async def runner(limiter: Limiter, waiting: deque[int]) -> None:
        while waiting and not over.is_set():
            slot = limiter.try_acquire() or await limiter.acquire()
            if not waiting:
                limiter.settle(slot, 0)
                return
            job = waiting.popleft()
            run.calls += 1
            started = loop.time()
            await asyncio.sleep(jitter.expovariate(1 / 0.0005))
            if change:
                change(server, loop.time() - began)
            answer = await server.call(loop)
            if answer.status == 200:
                limiter.accepted(slot)
                limiter.settle(slot, None)
                run.done += 1
                run.latencies_s.append(loop.time() - started)
                run.done_at.append(loop.time() - began)
                if run.done == jobs:
                    over.set()
            else:
                run.refused += 1
                run.refused_at.append(loop.time() - began)
                run.refusals[job] += 1
                if trace:
                    print(f"{loop.time() - began:8.3f} refused")
                limiter.refused(slot, answer.after_s, "429")
                limiter.settle(slot, None)
                if run.refusals[job] > 1:
                    waiting.append(job)
                else:
                    waiting.appendleft(job)
                loop.call_later(0.0, start)

    tasks: set[asyncio.Task[None]] = set()

    def start() -> None:
        for n, limiter in enumerate(limiters):
            mine = [t for t in tasks if t.get_name() == str(n)]
            for _ in range(min(RUNNERS, len(parts[n])) - len(mine)):
                task = loop.create_task(runner(limiter, parts[n]), name=str(n))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    start()
    try:
        async with asyncio.timeout(until_s):
            await over.wait()
    except TimeoutError:
        pass
    run.took_s = loop.time() - began
    over.set()
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if trace:
        import redis as r
        c = r.Redis.from_url(url, decode_responses=True)
        for key in c.keys("callmill:*"):
            if c.type(key) == "hash": print(key, c.hgetall(key))
    for limiter in limiters:
        await limiter.aclose()
    return run


def simulate(
    url: str, make: Callable[[], Any], jobs: int = 150, workers: int = 1, limits: tuple[str, ...] = (), until_s: float = 150,
    change: Callable[[Any, float], None] | None = None, trace: bool = False, seed: int = 1,
) -> Run:
    with virtual_time() as loop:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(_fleet(loop, url, make, jobs, workers, limits, until_s, change, trace, seed))


CASES: dict[str, tuple[Callable[[], Any], int, float]] = {
    "limit_req 10/s b5": (lambda: Bucket(10, 5), 150, 14.4),
    "limit_req 100/s b20": (lambda: Bucket(100, 20), 600, 5.8),
    "limit_req 10/s b5 0.2s": (lambda: Bucket(10, 5, 0.2), 150, 14.6),
    "limit_req 100/s b20 0.2s": (lambda: Bucket(100, 20, 0.2), 600, 6.0),
    "sliding 10/1s": (lambda: Sliding(10, 1), 150, 15),
    "sliding 100/1s": (lambda: Sliding(100, 1), 600, 6),
    "fixed 10/1s": (lambda: Fixed(10, 1), 150, 15),
    "fixed 50/5s": (lambda: Fixed(50, 5), 150, 15),
    "sliding 10/1s hint": (lambda: Sliding(10, 1, hint=True), 150, 15),
    "fixed 50/5s hint": (lambda: Fixed(50, 5, hint=True), 150, 15),
    "conn 4": (lambda: Concurrent(4), 150, 7.5),
    "conn 16": (lambda: Concurrent(16), 150, 1.9),
    "conn 4 fast": (lambda: Concurrent(4, 0.02), 600, 3),
    "M/M/4 .2": (lambda: Queueing(4, 0.2), 150, 7.5),
    "M/M/4 .05": (lambda: Queueing(4, 0.05), 600, 7.5),
    "RA0 one": (lambda: Refusing(4), 1, 4),
    "RA0 ten": (lambda: Refusing(4), 10, 4),
}


def main() -> None:
    url, only = sys.argv[1], sys.argv[2:] 
    import redis as r
    client = r.Redis.from_url(url)
    for name, (make, jobs, ideal_s) in CASES.items():
        if only and not any(o in name for o in only):
            continue
        for workers in (1, 4):
            runs = []
            for seed in range(5):
                client.flushall()
                runs.append(simulate(url, make, jobs, workers, seed=seed, trace="-v" in only and seed == 0))
            mid = lambda f: sorted(map(f, runs))[2]
            lat = mid(lambda x: sum(x.latencies_s) / max(1, len(x.latencies_s)))
            print(f"{name:26} w{workers} done {min(x.done for x in runs):4} refused {mid(lambda x: x.refused):5} = {mid(lambda x: 100*x.refused/max(1,x.calls)):5.1f} % took {mid(lambda x: x.took_s):7.2f} = {mid(lambda x: x.took_s)/ideal_s:.2f} x most {mid(lambda x: x.most)} lat {lat:.3f}", flush=True)


if __name__ == "__main__":
    main()
