"""LaneHost: the event loop of a worker process and the lanes on it. Enough to make calls; chunks are the engine's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from callmill.config.profiles import ApiProfile
from callmill.config.redis_connections import connect
from callmill.errors import UnknownApiError
from callmill.jobs import Job, Outcome
from callmill.jobs.packing import JobPacker
from callmill.jobs.trace_context import TraceContext
from callmill.workers.lane import Lane
from callmill.workers.lanes import open_lanes
from callmill.workers.loop_thread import LoopThread
from callmill.workers.single_call import SingleCall
from callmill.workers.worker_options import WorkerOptions


class LaneHost:
    """Lanes for every API of the profiles. Its methods may be called from any thread but the loop's."""

    def __init__(self, worker: str, options: WorkerOptions, profiles: Mapping[str, ApiProfile]) -> None:
        self.profiles = profiles
        self.thread = LoopThread()
        self.lanes: dict[str, Lane] = self.thread.run(self._open(worker, options))

    def call(self, job: Job, key: str, trace: TraceContext | None = None) -> Outcome:
        """Make one call under the API's limits and return its outcome.

        Args:
            job: The call.
            key: Its idempotency key, where it brings none: the same for every attempt.
            trace: The trace that it belongs to.

        Raises:
            JobError: The job is wrong.
            CallNotDoneError: It failed in a way that another attempt may mend.
        """
        wire, _ = JobPacker(self._public_facts).pack(job, 0)
        return self.thread.run(self._call(job.api, wire, key, trace))

    def stop(self) -> None:
        """Close every connection and end the loop."""
        self.thread.run(self._close())
        self.thread.stop()

    async def _open(self, worker: str, options: WorkerOptions) -> dict[str, Lane]:
        self._limiter_redis = connect(options.limiter_url)
        return await open_lanes(
            self.profiles, self._limiter_redis, worker=worker, calls_in_flight=options.calls_in_flight
        )

    async def _call(self, api: str, wire: Any, key: str, trace: TraceContext | None) -> Outcome:
        single = SingleCall(wire, self.lanes[api], key, trace)
        single.begin()
        try:
            return (await single.outcome).to_outcome(key, cursor="")
        except asyncio.CancelledError:
            single.outcome.cancel()
            raise

    async def _close(self) -> None:
        for lane in self.lanes.values():
            await lane.aclose()
        await self._limiter_redis.aclose()

    def _public_facts(self, name: str, position: int) -> Any:
        profile = self.profiles.get(name)
        if profile is None:
            known = ", ".join(sorted(self.profiles))
            raise UnknownApiError(
                f"{name!r} is not in the API profiles; known: {known}", position=position, field="api"
            )
        return profile.public_facts()
