"""AsyncClient: submits jobs and finds batches again. The one implementation; Client is its synchronous face."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Literal, Self

from callmill.config.embedded_server import redis_url as find_redis_url
from callmill.config.forks import notice_fork
from callmill.config.redis_connections import connect
from callmill.config.settings import load_settings
from callmill.config.short_texts import MOST_OF_NAME, checked_length
from callmill.errors import BatchStateError, UsageError
from callmill.jobs import Job, Outcome
from callmill.jobs.formats import FORMAT
from callmill.jobs.line import traffic_class
from callmill.jobs.traffic import Priority, TrafficClass
from callmill.ledger.batches import Batches, already_there
from callmill.ledger.fleet import Fleet
from callmill.ledger.hints import HintPublisher
from callmill.ledger.memory import MemoryGauge
from callmill.ledger.session import LedgerSession
from callmill.overview.progress import Progress, read_progress
from callmill.producer.async_batch import AsyncBatch, in_seconds
from callmill.producer.connection import Connection
from callmill.producer.known_apis import KnownApis
from callmill.producer.one_call import one_call
from callmill.producer.submission import Submission

Start = Literal["sealed", "at once"]
"""When jobs start to run: once all of them are accepted, or as soon as each is written."""

Urgency = Priority | Literal["interactive", "normal", "bulk"]
"""How urgent the jobs of a batch are, beside those of other batches of the same API."""

_KNOWN_APIS_FOR_S = 5.0
_BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class AsyncClient:
    """A producer's connection to Callmill, for one event loop at a time.

    A forked process needs its own event loop: a running one does not survive a fork.

    Args:
        redis_url: The ledger's Redis; ``CALLMILL_REDIS_URL`` when left out, else the embedded server if it runs.
        own_workers: Its own workers, which serve the local profiles, execute what it submits; what others serve under
            the same names does not matter.

    Raises:
        ServerNotFoundError: Neither is there.
        ConfigurationError: A setting is wrong.
    """

    def __init__(self, redis_url: str | None = None, *, own_workers: bool = False) -> None:
        self._settings = load_settings(redis_url=redis_url)
        self._redis_url = find_redis_url(self._settings)
        self._hints = HintPublisher(self._settings.broker_url or self._redis_url)
        self._pid = os.getpid()
        self._connection: Connection | None = None
        self._own_workers = own_workers
        self._known_apis: tuple[float, KnownApis] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def submit(
        self,
        jobs: Iterable[Job] | AsyncIterable[Job],
        *,
        name: str = "",
        max_pending: int | None = None,
        start: Start = "sealed",
        batch_id: str | None = None,
        priority: Urgency = "normal",
        tenant: str = "",
        max_unread_mb: float | None = None,
        deadline: datetime | None = None,
    ) -> AsyncBatch:
        """Submit jobs as one batch, in constant memory however many they are.

        Args:
            jobs: Any iterable, or asynchronous iterable.
            name: For people: shown by ``status``, ``watch`` and the dashboard. At most 200 characters.
            max_pending: Hold back while more jobs than this wait for their outcome; jobs then start at once.
            start: ``"sealed"``: no job runs before all are accepted. ``"at once"``: each as soon as it is written.
            batch_id: Id of the new batch, to know it beforehand: letters, digits, ``_`` and ``-``.
            priority: While an API cannot take all calls: 8 interactive ones go with 4 normal and 1 bulk.
            tenant: On whose behalf the calls are made: tenants share each priority evenly, or by the weights of the
                API's profile. Letters, digits, ``_``, ``.`` and ``-``.
            max_unread_mb: MiB of its outcomes that Redis keeps unread before the batch is held until they are released;
                0, or more than that: half of Redis's ``maxmemory``. ``CALLMILL_MAX_UNREAD_OUTCOMES_MB`` when left out.
            deadline: Aware datetime after which no call of the batch starts; jobs left then fail with ``"deadline"``.

        While Redis's memory is full to the watermark, this waits.

        Raises:
            BatchStateError: There is a batch with this id already.
            UsageError: There is no such priority, the tenant's name cannot be one, the deadline has no time zone, or
                the name is too long.
            ApiMismatchError: The workers serve another API under a job's name than the local profiles describe.
            JobError: A job is wrong. With ``start="sealed"``, or where no job was written yet, nothing ran and nothing
                is kept.
            RedisUnavailableError: Redis stayed away.
        """
        submission = await self.open_submission(
            name=name,
            max_pending=max_pending,
            start=start,
            batch_id=batch_id,
            priority=priority,
            tenant=tenant,
            max_unread_mb=max_unread_mb,
            deadline=deadline,
        )
        try:
            if isinstance(jobs, AsyncIterable):
                async for job in jobs:
                    if submission.add(job):
                        await submission.flush()
            else:
                for job in jobs:
                    if submission.add(job):
                        await submission.flush()
            await submission.seal()
        except BaseException:
            await submission.discard()
            raise
        return AsyncBatch(self.connection, submission.batch_id, name)

    async def open_submission(
        self,
        *,
        name: str = "",
        max_pending: int | None = None,
        start: Start = "sealed",
        batch_id: str | None = None,
        priority: Urgency = "normal",
        tenant: str = "",
        max_unread_mb: float | None = None,
        deadline: datetime | None = None,
        own_lines: bool = False,
    ) -> Submission:
        """Begin a batch that is filled step by step; the arguments are those of ``submit``.

        With ``own_lines`` workers can be started for this batch alone. It is in Redis once its first jobs are written,
        or ``Submission.create`` was called.
        """
        if batch_id is not None and not _BATCH_ID.fullmatch(batch_id):
            raise BatchStateError(f"{batch_id!r} is no batch id: 1 to 64 letters, digits, _ and -")
        checked_length(name, MOST_OF_NAME, "the batch's name")
        traffic = traffic_class(priority, tenant)
        connection = self.connection()
        retention_ms = int(self._settings.outcome_retention_hours * 3_600_000)
        max_unread_bytes = await self._max_unread_bytes(max_unread_mb)
        deadline_ms = 0 if deadline is None else _unix_ms(deadline)
        if batch_id is not None and await connection.batches.exists(batch_id):
            raise already_there(batch_id)
        new_id = batch_id or secrets.token_hex(6)
        return await self._submission(
            new_id,
            name,
            max_pending,
            start,
            traffic=traffic,
            format=FORMAT,
            create=lambda: connection.batches.create(
                name,
                retention_ms=retention_ms,
                batch_id=new_id,
                traffic=traffic,
                deadline_ms=deadline_ms,
                max_unread_bytes=max_unread_bytes,
                own_lines=own_lines,
            ),
            own_lines=own_lines,
        )

    async def _max_unread_bytes(self, asked_mb: float | None) -> int:
        """Return the bound of a batch's unread outcomes; no batch alone may fill Redis."""
        asked_mb = self._settings.max_unread_outcomes_mb if asked_mb is None else asked_mb
        if not 0 <= asked_mb < float("inf"):
            raise UsageError(f"max_unread_mb is {asked_mb}: give MiB, or 0 for half of Redis's memory")
        asked_bytes, half = int(asked_mb * 2**20), await self.connection().memory.most_bytes() // 2
        return min(asked_bytes or half, half or asked_bytes)

    async def resume_submission(
        self, batch_id: str, *, max_pending: int | None = None, start: Start = "sealed"
    ) -> Submission:
        """Go on with a batch that was left open; what it has is a prefix of what was given to it.

        Raises:
            BatchStateError: It is not open any more.
            BatchNotFoundError: There is no such batch.
        """
        record = await self.connection().batches.record(batch_id)
        if record.sealed or record.ended:
            raise BatchStateError(f"batch {batch_id} is {record.state}: it takes no more jobs")
        return await self._submission(
            batch_id,
            record.name,
            max_pending,
            start,
            traffic=record.traffic,
            format=record.format,
            own_lines=record.own_lines,
            written_jobs=record.total,
            written_chunks=record.chunks,
        )

    async def _submission(
        self,
        batch_id: str,
        name: str,
        max_pending: int | None,
        start: Start,
        *,
        traffic: TrafficClass,
        format: int,  # noqa: A002 - the word of the ledger
        own_lines: bool,
        create: Callable[[], Awaitable[str]] | None = None,
        **written: int,
    ) -> Submission:
        connection = self.connection()
        return Submission(
            connection,
            await self.known_apis(),
            batch_id,
            name=name,
            traffic=traffic,
            format=format,
            own_lines=own_lines,
            start_at_once=start == "at once",
            max_pending=max_pending,
            create=create,
            **written,
        )

    async def batch(self, batch_id: str) -> AsyncBatch:
        """Attach to a batch from another process or another day.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        record = await self.connection().batches.record(batch_id)
        return AsyncBatch(self.connection, record.id, record.name)

    async def batches(self, limit: int = 20) -> list[Progress]:
        """Return the progress of the newest batches."""
        batches, fleet, memory = (connection := self.connection()).batches, connection.fleet, connection.memory
        return [await read_progress(batches, fleet, memory, record.id) for record in await batches.recent(limit)]

    async def call(
        self,
        job: Job,
        *,
        priority: Urgency = "normal",
        tenant: str = "",
        timeout: float | timedelta | None = None,  # noqa: ASYNC109 - the public contract
    ) -> Outcome:
        """Make one call: submit it, wait, and return its outcome. Nothing of it stays in Redis.

        While no worker serves its API, the log says so. If anything ends the wait early, the call is withdrawn: it
        never starts. If it is under way already, it may still be executed, and its outcome is lost.

        Args:
            job: The call.
            priority: As ``submit`` has it.
            tenant: As ``submit`` has it.
            timeout: Seconds in all, including the wait for limits and workers; None waits forever.

        Raises:
            WaitTimeoutError: There was no outcome in time; the message says what the call waited for.
            BatchStateError: Someone else cancelled it.
            JobError: The job is wrong.
            RedisUnavailableError: Redis stayed away.
        """

        async def submit(batch_id: str) -> AsyncBatch:
            return await self.submit(
                [job], name="call", start="at once", batch_id=batch_id, priority=priority, tenant=tenant
            )

        return await one_call(job, submit, self.connection, timeout_s=in_seconds(timeout))

    async def aclose(self) -> None:
        """Close the connections. The client connects again when used again."""
        self._hints.close()
        connection, self._connection = self._connection, None
        if connection is not None and self._pid == os.getpid():
            await connection.redis.aclose()

    def connection(self) -> Connection:
        """Return the connection that belongs to the running event loop.

        Raises:
            UsageError: This process was forked while an event loop was running.
        """
        forked = self._pid != os.getpid()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            if not forked:
                raise
            raise UsageError(
                "this process was forked while an event loop was running, which does not work in the child: call "
                "asyncio.run() there, outside the inherited loop, or start processes with multiprocessing's 'spawn'"
            ) from error
        if forked:
            notice_fork()
            self._pid = os.getpid()
        if self._connection is None or self._connection.loop is not loop:
            redis = connect(self._redis_url)
            session = LedgerSession(redis, wait_replicas=self._settings.wait_replicas)
            memory = MemoryGauge(session, self._settings.memory_watermark)
            self._connection = Connection(loop, redis, session, Batches(session), Fleet(session), self._hints, memory)
        return self._connection

    async def known_apis(self) -> KnownApis:
        """Return the APIs that jobs may be for; a few seconds old at most."""
        now = time.monotonic()
        if self._known_apis is None or now - self._known_apis[0] > _KNOWN_APIS_FOR_S:
            session = self.connection().session
            known = await KnownApis.load(session, self._settings, own_workers=self._own_workers)
            self._known_apis = (now, known)
        return self._known_apis[1]


def _unix_ms(deadline: datetime) -> int:
    if deadline.tzinfo is None:
        raise UsageError(f"deadline {deadline.isoformat()} has no time zone: use datetime.now(UTC) + timedelta(...)")
    return int(deadline.timestamp() * 1000)
