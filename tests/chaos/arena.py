"""Everything that a storm goes over: Redis, its forwarder, the APIs, workers, producers, consumers, their history."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from chaos_api import APIS
from history import EventLog, Exit, Fault
from local_nodes import RedisProcess, WorkerProcess, until, write_profiles
from tcp_forwarder import Forwarder

_HERE = Path(__file__).parent
_READY_S = 90.0
_TERM_S = 40.0


@dataclass(frozen=True)
class Size:
    """How large a storm is.

    Attributes:
        jobs: Of the batches that run through the whole storm.
        lasts_s: How long they would take without faults.
        workers: Processes.
        lease_s: Of the workers.
    """

    jobs: int
    lasts_s: float
    workers: int = 3
    lease_s: float = 2.0

    @property
    def paced_per_s(self) -> int:
        """Limit of the strict API: 40 % of the jobs go there."""
        return max(5, int(0.4 * self.jobs / self.lasts_s))

    @property
    def latency_s(self) -> float:
        """Mean latency of the other API, which takes ``CONNECTIONS`` calls at once of each worker."""
        return min(1.0, CONNECTIONS * self.workers * self.lasts_s / (0.6 * self.jobs))


CONNECTIONS = 32


class ChaosRedis(RedisProcess):
    """A server with an append-only file that is synced every second, as the embedded one."""

    def command(self) -> list[str]:
        """Return the server's command line."""
        durable = ["--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"]
        replica = ["--repl-diskless-sync-delay", "0", "--repl-timeout", "10"]
        return [*super().command()[:-2], *durable, *replica]

    def aof(self) -> Path:
        """Return the file that commands are appended to now."""
        return max(self.folder.glob("appendonlydir/*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))


class ChaosWorker(WorkerProcess):
    """A worker that writes its history and can be told to die at a point."""

    @property
    def arm(self) -> Path:
        """The file that tells it."""
        return self.folder / "arm"

    def command(self) -> list[str]:
        """Return the worker's command line."""
        options = ["worker", "-l", "INFO", "-n", f"chaos@{self.id[:12]}", "--without-mingle", "--without-gossip"]
        return [sys.executable, "-m", "celery", "-A", "fault_worker", *options]

    def environment(self) -> dict[str, str]:
        """Return the worker's settings."""
        events = self.folder.parent / "events"
        return {
            **super().environment(),
            **python_path(),
            "CHAOS_LOG": str(events / f"worker-{self.id[:8]}.jsonl"),
            "CHAOS_ARM": str(self.arm),
        }


def python_path() -> dict[str, str]:
    """Return the environment in which the programs beside this module find each other."""
    paths = [str(_HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


class Arena:
    """The parts, started and stopped together. Methods may be called from the threads of several streams of faults."""

    def __init__(self, folder: Path, size: Size, seed: str) -> None:
        self.folder = folder
        self.size = size
        self.seed = seed
        self.events = folder / "events"
        self.events.mkdir(parents=True)
        self.log = EventLog(self.events / "storm.jsonl")
        self.workers: list[ChaosWorker] = []
        self.batches: dict[str, int] = {}
        self.submitting = threading.RLock()
        """Held while a batch is being submitted: what was not yet told to be accepted may be lost with Redis."""
        self.readers: dict[str, subprocess.Popen[bytes]] = {}
        self._children: list[subprocess.Popen[bytes]] = []
        self._hands = threading.RLock()
        self._ended: set[int] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.callback(self._end_all)
        self.redis = ChaosRedis(self.folder).start()
        self.redis.ready()
        self.forwarder = self._stack.enter_context(Forwarder(self.redis.port))
        self.url = self.forwarder.url
        self._start_apis()
        for _ in range(self.size.workers):
            self.workers.append(self._worker())
        for worker in self.workers:
            worker.ready(_READY_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.log.close()

    def _start_apis(self) -> None:
        size = self.size
        arguments = [self.events / "api.jsonl", f"{size.paced_per_s}/second", size.latency_s, self.seed]
        self._api = self._child("chaos_api.py", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._api.stdout is not None
        ports = dict(zip(APIS, self._api.stdout.readline().decode().split(), strict=True))
        common = ["timeout = 2.5", "retry = { attempts = 500, base = 0.1, cap = 0.5 }", 'idempotency = "by-key"']
        own = {
            "free": [f"max_connections = {CONNECTIONS}"],
            "paced": [f'limits = ["{size.paced_per_s}/second"]', 'enforcer = "sliding"'],
        }
        profiles = {name: [f'base_url = "http://127.0.0.1:{ports[name]}"', *common, *own[name]] for name in APIS}
        self._apis = write_profiles(self.folder / "apis.toml", profiles)

    def api_mode(self, api: str, mode: str) -> None:
        """Make an API behave as a mode of ``chaos_api`` says."""
        assert self._api.stdin is not None
        self._api.stdin.write(f"{api} {mode}\n".encode())
        self._api.stdin.flush()

    def end_apis(self) -> None:
        """End the APIs; their log is whole afterwards."""
        assert self._api.stdin is not None
        self._api.stdin.close()
        self._api.wait(20)

    def _worker(self) -> ChaosWorker:
        settings = {"lease_s": self.size.lease_s, "shutdown_grace_s": 5}
        return ChaosWorker(self.folder, self.url, self._apis, settings).start()  # type: ignore[return-value]

    def take(self, pick: int) -> int:
        """Return the place of a worker that runs."""
        self.revive()
        return pick % len(self.workers)

    def replace(self, place: int) -> None:
        """Note the end of a worker and start another one in its place."""
        with self._hands:
            self._note_end(self.workers[place], meant=True)
            self.workers[place] = self._worker()
        self._wait_ready(self.workers[place])

    def revive(self) -> None:
        """Start another worker for each that ended without being told to, and note that."""
        for place, worker in enumerate(self.workers):
            with self._hands:
                if worker.status == "running" or self.workers[place] is not worker:
                    continue
                self._note_end(worker, meant=False)
                self.workers[place] = self._worker()
            self._wait_ready(self.workers[place])

    def _wait_ready(self, worker: ChaosWorker) -> None:
        """Wait until a worker serves; one that ended instead is for ``revive``."""
        until(lambda: worker.status != "running" or worker.ready_prompt in worker.logs(), _READY_S, "a worker is ready")

    def _note_end(self, worker: ChaosWorker, *, meant: bool) -> None:
        pid, code = worker.process.pid, worker.process.wait(_TERM_S)
        if pid not in self._ended:
            self._ended.add(pid)
            tail = "" if meant else "\n".join(worker.logs().splitlines()[-25:])
            self.log.write(Exit(pid, time.time(), code, meant, tail))

    def note(self, fault: Fault) -> None:
        """Write a fault down."""
        self.log.write(fault)

    def submit(self, batch_id: str, api: str, jobs: int, *, start: str = "sealed") -> None:
        """Submit a batch and read it from the beginning."""
        with self.submitting:
            self.batches[batch_id] = jobs
            writer = self.writer(batch_id, api, jobs, start)
            assert writer.wait(120) == 0, f"the producer of {batch_id} ended with {writer.returncode}"
            self.read(batch_id)
            time.sleep(1.5)  # a Redis that loses its last second must not lose what nobody knows of yet

    def writer(self, batch_id: str, api: str, jobs: int, start: str, pause_s: float = 0) -> subprocess.Popen[bytes]:
        """Start a producer."""
        return self._child("writer.py", self.url, batch_id, api, jobs, start, pause_s, stdout=subprocess.PIPE)

    def read(self, batch_id: str) -> None:
        """Start a consumer, or one that goes on where another one ended."""
        log = self.events / f"read-{batch_id}.jsonl"
        self.readers[batch_id] = self._child("reader.py", self.url, batch_id, log)

    def heal(self) -> None:
        """Let everything work again."""
        for api in APIS:
            self.api_mode(api, "well")
        self.forwarder.delay(0)

    def stop_workers(self) -> None:
        """Ask all workers to stop, and wait."""
        for worker in self.workers:
            if worker.status == "running":
                worker.send(signal.SIGTERM)
        for worker in self.workers:
            self._note_end(worker, meant=True)

    def logs(self) -> dict[str, str]:
        """Return the log of every worker that ever ran."""
        return {path.parent.name: path.read_text(errors="replace") for path in self.folder.glob("ChaosWorker-*/log")}

    def _child(self, program: str, *arguments: object, **options: int) -> subprocess.Popen[bytes]:
        name = f"{program}-{len(self._children)}.err"
        with (self.folder / name).open("wb") as errors:
            child = subprocess.Popen(
                [sys.executable, str(_HERE / program), *map(str, arguments)],
                cwd=self.folder,
                env={**os.environ, **python_path()},
                stderr=errors,
                start_new_session=True,
                **{"stdin": subprocess.DEVNULL, **options},  # type: ignore[call-overload]
            )
        self._children.append(child)
        return child  # type: ignore[no-any-return]

    def _end_all(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        for worker in self.workers:
            if worker.status == "running":
                worker.send(signal.SIGCONT)
                worker.kill()
        self.redis.teardown()
