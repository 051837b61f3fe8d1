"""A worker that may have 512 MiB, beside everything that is too large: it is not killed, and others' jobs are done."""

from __future__ import annotations

import gzip
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from faulty_server import Exchange, faulty_server
from hostile_chunks import (
    MiB,
    RawChunk,
    bomb,
    chunk_of,
    framed,
    packed_jobs,
    submit_raw,
    tiny_objects,
    wide_headers,
)
from local_nodes import WorkerProcess, until, write_profiles

from callmill.jobs.wire import WireJob
from callmill.producer import Batch, Client, Job

pytestmark = pytest.mark.chaos

LIMIT_BYTES = 512 * MiB
CHUNKS, ANSWERS = 250, 250
GOOD_BATCHES, GOOD_JOBS = 10, 200

ZEROS, NOISE = bytes(8 * MiB), os.urandom(7 * MiB)
BOMB = gzip.compress(bytes(500 * MiB), 6)
DEEP = b"[" * 4_000_000
BODIES = {
    "zeros": ("", ZEROS),
    "noise": ("", NOISE),
    "bomb": ("Content-Encoding: gzip\r\n", BOMB),
    "just": ("Content-Encoding: gzip\r\n", gzip.compress(ZEROS)),
    "deep": ("Content-Type: application/json\r\n", DEEP),
    "too-large": ("", bytes(9 * MiB)),
}


class Group:
    """A control group with a bound of memory, of either version."""

    def __init__(self, name: str, limit_bytes: int) -> None:
        root = Path("/sys/fs/cgroup")
        self.is_v1 = (root / "memory" / "cgroup.procs").exists()
        self.path = (root / "memory" if self.is_v1 else root) / name
        self.path.mkdir()
        (self.path / ("memory.limit_in_bytes" if self.is_v1 else "memory.max")).write_text(str(limit_bytes))
        if not self.is_v1:
            with suppress(OSError):
                (self.path / "memory.swap.max").write_text("0")

    @property
    def kills(self) -> int:
        """How often the kernel killed a process of it."""
        text = (self.path / ("memory.oom_control" if self.is_v1 else "memory.events")).read_text()
        return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))

    @property
    def peak_bytes(self) -> int:
        """The most that it ever had."""
        with suppress(OSError):
            return int((self.path / ("memory.max_usage_in_bytes" if self.is_v1 else "memory.peak")).read_text())
        return 0

    def remove(self) -> None:
        """Remove it; its processes have ended."""
        until(self._removed, 10)

    def _removed(self) -> bool:
        try:
            self.path.rmdir()
        except OSError:
            return False
        return True


class BoundWorker(WorkerProcess):
    """A worker in a control group."""

    group: Group

    def command(self) -> list[str]:
        """Return a command that joins the group, then becomes the worker."""
        join = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
        return [sys.executable, "-c", join, str(self.group.path / "cgroup.procs"), *super().command()]


@pytest.fixture
def group() -> Iterator[Group]:
    """Make a control group, where that may be done."""
    try:
        made = Group(f"callmilltest{os.getpid()}", LIMIT_BYTES)
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield made
    made.remove()


async def answer(exchange: Exchange) -> None:
    """Answer with what the path names."""
    headers, body = BODIES.get(exchange.target.split("/")[1], ("", b"ok"))
    exchange.body = b""
    await exchange.answer(headers=headers, body=body)


def hostile_chunks(chance: random.Random) -> list[RawChunk]:
    """Return chunks of every kind, most of them many times."""
    kinds = [
        bomb(1024 * MiB),
        bomb(19 * MiB),
        RawChunk(framed(packed_jobs(), 1)[:12], 50_000_000),
        tiny_objects(6_000_000, b"\x92\xa0\xa0"),
        tiny_objects(4_000_000, b"\x80"),
        wide_headers(500, 100),
        chunk_of(*(WireJob("GET", "/", headers={"a": "x" * 5_000_000}) for _ in range(100))),
        chunk_of(*(WireJob("GET", "/", headers={"a": "x" * 60_000}) for _ in range(300))),
        chunk_of(WireJob("POST", "/", body=NOISE + NOISE)),
        chunk_of(*(WireJob("POST", "/", body=bytes(MiB)) for _ in range(18))),
        chunk_of(WireJob("POST", "/", body=NOISE * 4)),
        RawChunk(framed(b"\x93\xa3api\x00" + b"\x91" * 19_000_000, 1)),
        RawChunk(os.urandom(20 * MiB)),
    ]
    chunks = [*(chance.choice(kinds) for _ in range(CHUNKS - len(kinds) - 1)), *kinds, wide_headers(3000, 100)]
    chance.shuffle(chunks)
    return chunks


def drain(batch: Batch, codes: Counter[str]) -> None:
    """Read a batch's outcomes to the end and drop them."""
    for outcome in batch.outcomes(release=True):
        codes["ok" if outcome.error is None else outcome.error.code] += 1


@dataclass
class Kept:
    """A worker that is started again whenever it ends, as Compose does."""

    make: Callable[[], BoundWorker]
    workers: list[BoundWorker] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Keep one running until it is over."""
        while not self.over.is_set():
            worker = self.make().start()
            self.workers.append(worker)
            while worker.status == "running" and not self.over.wait(0.1):
                pass
        for worker in self.workers:
            worker.teardown()


@contextmanager
def kept_running(make: Callable[[], BoundWorker]) -> Iterator[Kept]:
    """Keep a worker running meanwhile."""
    kept = Kept(make)
    thread = threading.Thread(target=kept.run)
    thread.start()
    try:
        yield kept
    finally:
        kept.over.set()
        thread.join()


def test_nothing_too_large_kills_a_worker_twice(redis_url, client: Client, tmp_path, group, capsys):
    """Of 500 payloads and answers beyond all bounds none kills its worker twice, and all good jobs are done."""
    chance = random.Random(14)
    hostile = hostile_chunks(chance)
    codes: Counter[str] = Counter()
    BoundWorker.group = group
    with faulty_server(answer) as server:
        profile = [f'base_url = "{server.url("").rstrip("/")}"', "timeout = 30", "retry = { attempts = 2 }"]
        apis = write_profiles(tmp_path / "apis.toml", {"api": profile, "big": profile})
        with kept_running(lambda: BoundWorker(tmp_path, redis_url, apis, {})) as kept:
            began_s = time.monotonic()
            raw = client.batch(submit_raw(redis_url, hostile))
            answers = client.submit(
                Job("GET", f"/{chance.choice(list(BODIES))}/{n}", api="big", id=str(n)) for n in range(ANSWERS)
            )
            readers = [threading.Thread(target=drain, args=(batch, codes)) for batch in (raw, answers)]
            for reader in readers:
                reader.start()
            good = [
                client.submit(
                    (Job("POST", f"/good/{n}/{k}", api="api", json=k) for k in range(GOOD_JOBS)), tenant=f"t{n}"
                )
                for n in range(GOOD_BATCHES)
            ]
            waits = [batch.wait(300).succeeded for batch in good]
            good_s = time.monotonic() - began_s
            for reader in readers:
                reader.join(300)
            ended = raw.progress().ended and answers.progress().ended
    with capsys.disabled():
        print(  # noqa: T201 - figures that are asked for
            f"\n{CHUNKS} chunks and {ANSWERS} answers in {time.monotonic() - began_s:.0f} s, "
            f"good jobs after {good_s:.0f} s; killed {group.kills} times of {len(kept.workers)} starts, "
            f"peak {group.peak_bytes / MiB:.0f} MiB; {dict(codes)}"
        )
    assert ended
    assert waits == [GOOD_JOBS] * GOOD_BATCHES
    assert codes["internal"] == codes["poison"] == 0
    assert group.kills <= 1
