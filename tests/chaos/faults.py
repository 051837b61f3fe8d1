"""The faults of a storm, in four streams that run beside each other; drawn from a seed before the storm begins."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random

import redis
from arena import Arena, ChaosRedis
from history import Fault
from local_nodes import free_port, until

_ARMED_S = 8.0
_STOP_S = 40.0
_UNWRITTEN_S = 2.0


@dataclass(frozen=True)
class Planned:
    """A fault to come.

    Attributes:
        gap_s: Quiet time of its stream before it.
        size: From 0 to 1: how long, how much.
        pick: Chooses whom it befalls, and the pass of a chosen point.
    """

    name: str
    gap_s: float
    size: float
    pick: int


Play = Callable[[Arena, Planned], Fault | None]


def _kill(arena: Arena, planned: Planned) -> Fault:
    place = arena.take(planned.pick)
    worker, began_s = arena.workers[place], time.time()
    worker.kill()
    arena.note(fault := _of(planned, began_s, worker.process.pid))
    arena.replace(place)
    return fault


def _stop(arena: Arena, planned: Planned) -> Fault:
    worker, began_s = arena.workers[arena.take(planned.pick)], time.time()
    worker.send(signal.SIGSTOP)
    time.sleep(0.5 + planned.size * (2.5 * arena.size.lease_s - 0.5))
    worker.send(signal.SIGCONT)
    arena.note(fault := _of(planned, began_s, worker.process.pid))
    return fault


def _die(point: str, arena: Arena, planned: Planned) -> Fault | None:
    place = arena.take(planned.pick)
    worker = arena.workers[place]
    worker.arm.write_text(f"{point} {1 + planned.pick % 3}")
    with suppress(subprocess.TimeoutExpired):
        worker.process.wait(_ARMED_S)
    worker.arm.unlink()
    if worker.status == "running":
        return None
    arena.note(fault := _of(planned, time.time(), worker.process.pid))
    arena.replace(place)
    return fault


def _end(number: signal.Signals, arena: Arena, planned: Planned) -> Fault:
    place = arena.take(planned.pick)
    worker, began_s = arena.workers[place], time.time()
    worker.send(number)
    worker.process.wait(_STOP_S)
    fault = _of(planned, began_s, worker.process.pid, f"exit code {worker.process.returncode}")
    arena.note(fault)
    arena.replace(place)
    return fault


def _redis_kill(arena: Arena, planned: Planned) -> Fault:
    began_s = time.time()
    arena.redis.kill()
    time.sleep(2 * planned.size)
    arena.redis.start().ready()
    # A server that waits for its disk (appendfsync everysec) answers before it has written, for two seconds at most.
    fault = Fault(planned.name, "redis", began_s, time.time(), 0, began_s - _UNWRITTEN_S)
    arena.note(fault)
    return fault


def _redis_lost_second(arena: Arena, planned: Planned) -> Fault:
    with arena.submitting:
        path = arena.redis.aof()
        until_s = time.monotonic() + 1.0
        lost_from_s, size_bytes = time.time(), path.stat().st_size
        while time.monotonic() < until_s:
            time.sleep(0.01)
        began_s = time.time()
        arena.redis.kill()
        lost_bytes = path.stat().st_size - size_bytes
        with path.open("r+b") as file:  # what is left of a command at the end, the server cuts off itself
            file.truncate(size_bytes)
        arena.redis.start().ready()
    fault = Fault(planned.name, "redis", began_s, time.time(), 0, lost_from_s, f"{lost_bytes} bytes lost")
    arena.note(fault)
    return fault


def _redis_oom(arena: Arena, planned: Planned) -> Fault:
    began_s = time.time()
    with redis.Redis.from_url(arena.redis.url) as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1_000_000)
        time.sleep(0.5 + 2 * planned.size)
        admin.config_set("maxmemory", 0)
    arena.note(fault := _of(planned, began_s))
    return fault


def _cut(arena: Arena, planned: Planned) -> Fault:
    began_s = time.time()
    arena.forwarder.lead_to(arena.redis.port)
    arena.note(fault := _of(planned, began_s))
    return fault


def _half_open(arena: Arena, planned: Planned) -> Fault:
    began_s = time.time()
    arena.forwarder.silence()
    time.sleep(0.5 + 3 * planned.size)
    arena.forwarder.lead_to(arena.redis.port)
    arena.note(fault := _of(planned, began_s))
    return fault


def _latency(least_s: float, most_s: float, arena: Arena, planned: Planned) -> Fault:
    began_s, delay_s = time.time(), least_s + (most_s - least_s) * planned.size
    arena.forwarder.delay(delay_s)
    time.sleep(3)
    arena.forwarder.delay(0)
    arena.note(fault := _of(planned, began_s, about=f"{delay_s * 1000:.0f} ms each way"))
    return fault


def _readonly(arena: Arena, planned: Planned) -> Fault:
    began_s = time.time()
    with redis.Redis.from_url(arena.redis.url) as admin:
        admin.replicaof("127.0.0.1", free_port())  # of nobody: it keeps its data, and takes no writes
        time.sleep(0.3 + 2 * planned.size)
        admin.replicaof("NO", "ONE")
    arena.note(fault := _of(planned, began_s))
    return fault


def _failover(arena: Arena, planned: Planned) -> Fault:
    old, new = arena.redis, ChaosRedis(arena.folder).start()
    new.ready()
    with redis.Redis.from_url(old.url) as primary, redis.Redis.from_url(new.url) as replica:
        replica.replicaof("127.0.0.1", old.port)
        until(lambda: replica.info("replication").get("master_link_status") == "up", 20, "the replica has all")
        began_s = time.time()
        primary.execute_command("FAILOVER", "TO", "127.0.0.1", new.port, "TIMEOUT", 5000)
        until(lambda: replica.info("replication")["role"] == "master", 10, "the replica is promoted")
        time.sleep(0.5 * planned.size)  # clients still speak to the old one, which takes no writes
        arena.redis = new
        arena.forwarder.lead_to(new.port)
    arena.note(fault := _of(planned, began_s))
    old.teardown()
    return fault


def _api(mode: str, arena: Arena, planned: Planned) -> Fault:
    api, began_s = ("free", "paced")[planned.pick % 2], time.time()
    arena.api_mode(api, mode)
    time.sleep(1 + 3 * planned.size)
    arena.api_mode(api, "well")
    arena.note(fault := _of(planned, began_s, about=api))
    return fault


def _producer_kill(arena: Arena, planned: Planned) -> Fault:
    api = ("free", "paced")[planned.pick % 2]
    start = ("sealed", "at once")[planned.pick // 2 % 2]
    jobs = max(60, min(600, arena.size.jobs // 40))
    with arena.submitting:
        batch_id = f"{arena.seed}-p{len(arena.batches)}"
        arena.batches[batch_id] = jobs
        began_s = time.time()
        writer = arena.writer(batch_id, api, jobs, start, 0.2)
        assert writer.stdout is not None
        for _ in range(1 + planned.pick % 4):
            writer.stdout.readline()
        time.sleep(0.25 * planned.size)
        writer.kill()
        writer.wait()
        arena.note(fault := _of(planned, began_s, about=f"{batch_id}, {start}"))
        time.sleep(2 * planned.size)
        arena.submit(batch_id, api, jobs, start=start)
    return fault


def _reader_kill(arena: Arena, planned: Planned) -> Fault:
    batch_id = sorted(arena.readers)[planned.pick % len(arena.readers)]
    began_s, reader = time.time(), arena.readers[batch_id]
    reader.kill()
    reader.wait()
    arena.note(fault := _of(planned, began_s, about=batch_id))
    arena.read(batch_id)
    return fault


STREAMS: dict[str, dict[str, Play]] = {
    "workers": {
        "kill": _kill,
        "stop": _stop,
        **{f"die-{point}": partial(_die, point) for point in ("pop", "claim", "call", "commit", "finish")},
        "term": partial(_end, signal.SIGTERM),
        "quit": partial(_end, signal.SIGQUIT),
    },
    "redis": {
        "redis-kill": _redis_kill,
        "redis-lost-second": _redis_lost_second,
        "redis-oom": _redis_oom,
        "cut": _cut,
        "half-open": _half_open,
        "latency": partial(_latency, 0.002, 0.01),  # as much as the limiter's guard is there for
        "redis-slow": partial(_latency, 0.03, 0.15),
        "readonly": _readonly,
        "failover": _failover,
    },
    "apis": {
        f"api-{mode}": partial(_api, mode)
        for mode in ("down", "hanging", "resetting", "garbage", "truncated", "failing")
    },
    "clients": {"producer-kill": _producer_kill, "reader-kill": _reader_kill},
}
NAMES = [name for faults in STREAMS.values() for name in faults]
KILLS = {"kill", *(name for name in NAMES if name.startswith("die-"))}


def plan(seed: str, stream: str, names: Sequence[str], mean_gap_s: float) -> Iterator[Planned]:
    """Yield the faults of a stream for ever: each of these kinds once, in a drawn order, then again."""
    random = Random(f"{seed}:{stream}")
    kinds = [name for name in STREAMS[stream] if name in names]
    while kinds:
        for name in random.sample(kinds, len(kinds)):
            yield Planned(name, random.uniform(0.5, 1.5) * mean_gap_s, random.random(), random.randrange(1000))


def _of(planned: Planned, began_s: float, worker: int = 0, about: str = "") -> Fault:
    stream = next(stream for stream, faults in STREAMS.items() if planned.name in faults)
    return Fault(planned.name, stream, began_s, time.time(), worker, None, about)
