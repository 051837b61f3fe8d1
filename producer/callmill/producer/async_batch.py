"""AsyncBatch: one batch, as its producer or any other process steers and reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

from callmill.errors import BatchStateError, WaitTimeoutError
from callmill.jobs import FailedJob, FailureCause, Outcome
from callmill.ledger.batches import FIRST, Batches
from callmill.ledger.failure_filter import FailureFilter
from callmill.overview.progress import Progress, read_progress
from callmill.producer.connection import Connection
from callmill.producer.submission import publish_hints, start_parked
from callmill.producer.unserved import UnservedWarning, warned_of

_POLL_S = 0.1


def in_seconds(timeout: float | timedelta | None) -> float | None:
    """Return a time limit in seconds; None where there is none."""
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


class AsyncBatch:
    """A submitted batch.

    Attributes:
        id: Names the batch in other processes and on other days.
        name: As given to ``submit``.
    """

    def __init__(self, connection: Callable[[], Connection], batch_id: str, name: str) -> None:
        self.id = batch_id
        self.name = name
        self._connection = connection

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.name!r}>"

    async def progress(self) -> Progress:
        """Return how far the batch is, and what limits it now.

        Raises:
            BatchNotFoundError: It was deleted, or its retention is over.
        """
        connection = self._connection()
        return await read_progress(connection.batches, connection.fleet, connection.memory, self.id)

    async def wait(self, timeout: float | timedelta | None = None) -> Progress:  # noqa: ASYNC109 - the public contract
        """Wait until the batch is over and return its last progress.

        While no worker serves its APIs, the log says so.

        Args:
            timeout: Seconds; None waits for ever.

        Raises:
            WaitTimeoutError: It was not over in time; it goes on.
        """
        seconds = in_seconds(timeout)
        try:
            async with asyncio.timeout(seconds), UnservedWarning(self._connection, self.id):
                while not (await self._batches.record(self.id)).ended:  # noqa: ASYNC110 - the event is in another process
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            why = (await self.progress()).limited_by
            raise WaitTimeoutError(f"batch {self.id} is not over after {seconds} s: {why}; it goes on") from error
        return await self.progress()

    async def outcomes(self, after: str | None = None, *, release: bool = False) -> AsyncIterator[Outcome]:
        """Yield the newest outcome of every job, as they are recorded, until the batch is over.

        Where failed jobs run again, what they came to before is left out; who had read it already gets the new outcome
        later, and that one counts.

        While no worker serves its APIs, the log says so.

        Args:
            after: ``Outcome.cursor`` of the last outcome that is known; from the beginning when left out.
            release: Drop outcomes from Redis once further ones are asked for: it stays small, and they cannot be read
                again. What is read last before a crash may be dropped already: keep what you need first.
        """
        bundles = self.bundles(after, release=release)
        async for bundle in warned_of(bundles, self._connection, self.id):
            for outcome in bundle:
                yield outcome

    async def bundles(self, after: str | None = None, *, release: bool = False) -> AsyncIterator[list[Outcome]]:
        """Yield outcomes as ``outcomes`` does, as many at a time as were recorded together."""
        async for bundle in self._batches.outcomes(self.id, after or FIRST, release=release):
            yield bundle

    async def release(self, cursor: str) -> None:
        """Drop the outcomes up to ``Outcome.cursor`` from Redis, so that it stays small. They cannot be read again."""
        if await self._batches.release(self.id, cursor):
            await start_parked(self._batches, self._connection().hints, self.id, self.name)

    async def pause(self) -> None:
        """Start no further calls of this batch; those in flight finish and are recorded."""
        await self._control("paused")

    async def resume(self) -> None:
        """Go on after a pause."""
        await self._control("run")
        await start_parked(self._batches, self._connection().hints, self.id, self.name)

    async def cancel(self) -> None:
        """End the batch: calls in flight finish and are recorded, the rest never start. Final."""
        await self._control("cancelled")

    async def seal(self) -> int:
        """Close a batch that its producer left open, start what waits for that, and return its number of jobs.

        Raises:
            BatchStateError: It was cancelled.
        """
        jobs = await self._batches.seal(self.id)
        await start_parked(self._batches, self._connection().hints, self.id, self.name)
        return jobs

    async def retry_failed(self, where: str = "") -> int:
        """Run failed jobs again and return how many; each gets a new outcome in place of the old one.

        Attempts are counted anew; ``failed_jobs`` keeps what the jobs failed of before. Jobs that a worker holds in one
        chunk with others run when it has given that up, within 30 s.

        Args:
            where: Which: ``status=500``, ``status=5xx``, ``code=timeout``, ``cause=...`` (as ``failures`` has it),
                ``api=...`` or ``id=...``; several with commas between them must all hold. All when left out.

        Raises:
            BatchStateError: The batch was cancelled.
            UsageError: ``where`` is none of these.
        """
        jobs, refs = await self._batches.retry_failed(self.id, FailureFilter(where))
        await publish_hints(self._connection().hints, refs, self.name)
        return jobs

    async def failures(self, where: str = "") -> list[FailureCause]:
        """Return why jobs failed: those that failed alike have one cause; the most frequent one comes first.

        Args:
            where: Which jobs; see ``retry_failed``.

        Raises:
            UsageError: ``where`` is no condition.
        """
        chosen = FailureFilter(where)
        await self._batches.record(self.id)
        return await self._batches.failures.causes(self.id, chosen)

    async def failed_jobs(self, where: str = "", *, include_retried: bool = False) -> AsyncIterator[FailedJob]:
        """Yield every failed job with each of its failures, in no order.

        Args:
            where: Which jobs; see ``retry_failed``.
            include_retried: Behind them, those that were run again and have not failed since.

        Raises:
            UsageError: ``where`` is no condition.
        """
        async for page in self.failed_pages(where, include_retried=include_retried):
            for job in page:
                yield job

    async def failed_pages(self, where: str = "", *, include_retried: bool = False) -> AsyncIterator[list[FailedJob]]:
        """Yield failed jobs as ``failed_jobs`` does, as many at a time as are read together."""
        chosen = FailureFilter(where)
        await self._batches.record(self.id)
        async for page in self._batches.failures.jobs(self.id, chosen):
            yield page
        if include_retried:
            async for page in self._batches.failures.retried(self.id, chosen):
                yield page

    async def delete(self) -> None:
        """Remove the batch, its jobs and its outcomes from Redis. Calls in flight are not recorded."""
        await self._batches.delete(self.id)

    @property
    def _batches(self) -> Batches:
        return self._connection().batches

    async def _control(self, control: str) -> None:
        if not await self._batches.control(self.id, control):
            raise BatchStateError(f"batch {self.id} is over; it cannot be changed to {control!r}")
