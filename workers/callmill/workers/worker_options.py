"""WorkerOptions: what an engine is made with, taken from the settings."""

from __future__ import annotations

from msgspec import Struct

from callmill.config.embedded_server import broker_url, limiter_url, redis_url
from callmill.config.settings import Settings
from callmill.workers.memory_limits import MemoryLimits


class WorkerOptions(Struct, frozen=True, kw_only=True):
    """Addresses and sizes of one worker process.

    Attributes:
        chunks_at_once: Threads of the pool, each with a chunk.
        calls_in_flight: Calls of one API in flight at once.
        shutdown_grace_s: Seconds that calls in flight get when the worker is asked to stop.
        lease_ms: How long a chunk stays this worker's without a renewal.
        memory_watermark: Share of Redis's maxmemory from which on producers wait, and workers soon after.
        wait_replicas: Replicas that must have an outcome before it is recorded.
        allow_unsafe_redis: Work on a Redis that would lose jobs.
        open_batch_s: How long a batch that is not sealed is kept without a word from its producer.
        only_batch: The only batch that it executes; empty: every batch.
        memory: What its memory is for.
    """

    redis_url: str
    broker_url: str
    limiter_url: str
    chunks_at_once: int
    calls_in_flight: int
    shutdown_grace_s: float
    lease_ms: int
    memory_watermark: float
    wait_replicas: int
    allow_unsafe_redis: bool
    open_batch_s: float
    only_batch: str = ""
    memory: MemoryLimits = MemoryLimits()

    @classmethod
    def of(cls, settings: Settings, *, calls_in_flight: int | None = None) -> WorkerOptions:
        """Take the options from the settings, within what this machine can do.

        Args:
            settings: As the environment has them.
            calls_in_flight: Calls of one API at once, if the machine allows fewer than the settings.

        Raises:
            ServerNotFoundError: No Redis is configured and no embedded server runs.
        """
        return cls(
            redis_url=redis_url(settings),
            broker_url=broker_url(settings),
            limiter_url=limiter_url(settings),
            chunks_at_once=settings.chunks_per_process,
            calls_in_flight=settings.calls_in_flight if calls_in_flight is None else calls_in_flight,
            shutdown_grace_s=settings.shutdown_grace_s,
            lease_ms=int(settings.lease_s * 1000),
            memory_watermark=settings.memory_watermark,
            wait_replicas=settings.wait_replicas,
            allow_unsafe_redis=settings.allow_unsafe_redis,
            open_batch_s=settings.open_batch_hours * 3600,
            only_batch=settings.only_batch or "",
            memory=MemoryLimits.of_this_process(),
        )
