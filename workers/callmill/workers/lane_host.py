"""LaneHost: the event loop of a worker process and the lanes on it. Enough to make calls; chunks are the engine's."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from redis.exceptions import RedisError

from callmill.config.profiles import ApiProfile
from callmill.config.public_api import PublicApi
from callmill.config.redis_connections import connect
from callmill.errors import RedisUnavailableError, UnknownApiError
from callmill.jobs import Job, Outcome
from callmill.jobs.packing import JobPacker
from callmill.jobs.trace_context import TraceContext
from callmill.limits.owners import with_names
from callmill.workers.lane import Lane
from callmill.workers.lanes import open_lanes
from callmill.workers.loop_thread import LoopThread
from callmill.workers.single_call import SingleCall
from callmill.workers.transports.answer_room import AnswerRoom
from callmill.workers.worker_options import WorkerOptions

log = logging.getLogger(__name__)

_ASK_AGAIN_S = 0.5


class LaneHost:
    """Lanes for every API of the profiles. Its methods may be called from any thread but the loop's.

    Args:
        worker: Names this process.
        options: Addresses and sizes.
        profiles: The profiles, by name.
        while_waiting: Called now and then while the limiter's Redis is away, without which nothing can begin: it raises
            where the process is to end.

    Attributes:
        profiles: The profiles, by name.
        apis: Their public facts, by name.
        lanes: The lanes, by name.
        answers: The room that they have for large answers.
    """

    def __init__(
        self,
        worker: str,
        options: WorkerOptions,
        profiles: Mapping[str, ApiProfile],
        *,
        while_waiting: Callable[[], None],
    ) -> None:
        self.profiles = profiles
        self.answers = AnswerRoom(options.memory.answers_bytes)
        self.thread = LoopThread()
        try:
            self.thread.run(self._connect(options))
            self.apis = self._named_apis(while_waiting)
            self.lanes: dict[str, Lane] = self.thread.run(self._open(worker, options))
        except BaseException:
            self.thread.stop()  # and with it what the lanes began
            raise

    def call(self, job: Job, key: str, trace: TraceContext | None = None, *, repeated: bool = False) -> Outcome:
        """Make one call under the API's limits and return its outcome.

        Args:
            job: The call.
            key: Its idempotency key, where it brings none: the same for every attempt.
            trace: The trace that it belongs to.
            repeated: Whether an earlier attempt failed.

        Raises:
            JobError: The job is wrong.
            CallNotDoneError: It failed in a way that another attempt may mend.
        """
        wire, _ = JobPacker(self._public_facts).pack(job, 0)
        lane = self.lanes[job.api]
        return self.thread.run(
            self._call(lambda: SingleCall(wire, lane, key, trace, repeated=repeated), key, wire.deadline_ms)
        )

    def stop(self) -> None:
        """Close every connection and end the loop."""
        self.thread.run(self._close())
        self.thread.stop()

    async def _connect(self, options: WorkerOptions) -> None:
        self._limiter_redis = connect(options.limiter_url)

    def _named_apis(self, while_waiting: Callable[[], None]) -> dict[str, PublicApi]:
        facts = [profile.public_facts() for profile in self.profiles.values()]
        told = False
        while True:
            try:
                return self.thread.run(with_names(self._limiter_redis, facts))
            except RedisUnavailableError as error:
                if not told:
                    log.warning(
                        "no call starts until the limiter's Redis can be reached: %s",
                        error,
                        extra={"action": "limiter_awaited"},
                    )
                told = True
                while_waiting()
                time.sleep(_ASK_AGAIN_S)

    async def _open(self, worker: str, options: WorkerOptions) -> dict[str, Lane]:
        return await open_lanes(
            self.profiles,
            self.apis,
            self._limiter_redis,
            worker=worker,
            calls_in_flight=options.calls_in_flight,
            answers=self.answers,
        )

    async def _call(self, make: Callable[[], SingleCall], key: str, deadline_ms: int | None) -> Outcome:
        single = make()
        single.begin(None if deadline_ms is None else deadline_ms / 1000 - await self._now_s())
        try:
            return (await single.outcome).to_outcome(key, cursor="")
        except asyncio.CancelledError:
            single.outcome.cancel()
            raise

    async def _now_s(self) -> float:
        """Return Redis's time, which deadlines use; this machine's while Redis is unreachable."""
        try:
            seconds, microseconds = await self._limiter_redis.time()
        except (RedisError, OSError):
            return time.time()
        return float(seconds) + float(microseconds) / 1e6

    async def _close(self) -> None:
        for lane in self.lanes.values():
            await lane.aclose()
        await self._limiter_redis.aclose()

    def _public_facts(self, name: str, position: int) -> Any:
        api = self.apis.get(name)
        if api is None:
            known = ", ".join(sorted(self.profiles))
            raise UnknownApiError(
                f"{name!r} is not in the API profiles; known: {known}", position=position, field="api"
            )
        return api
