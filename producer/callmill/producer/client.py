"""Client and Batch: the synchronous face of AsyncClient and AsyncBatch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from callmill.jobs import FailedJob, FailureCause, Job, Outcome
from callmill.overview.progress import Progress
from callmill.producer.async_batch import AsyncBatch
from callmill.producer.async_client import AsyncClient, Start, Urgency
from callmill.producer.event_loop_thread import EventLoopThread
from callmill.producer.unserved import warned_of


class Client:
    """A producer's connection to Callmill, usable from any thread and after a fork.

    Args:
        redis_url: The ledger's Redis; ``CALLMILL_REDIS_URL`` when left out, else the embedded server if it runs.

    Raises:
        ServerNotFoundError: Neither is there.
        ConfigurationError: A setting is wrong.
    """

    def __init__(self, redis_url: str | None = None) -> None:
        self._async_client = AsyncClient(redis_url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(
        self,
        jobs: Iterable[Job],
        *,
        name: str = "",
        max_pending: int | None = None,
        start: Start = "sealed",
        batch_id: str | None = None,
        priority: Urgency = "normal",
        tenant: str = "",
        max_unread_mb: float | None = None,
        deadline: datetime | None = None,
    ) -> Batch:
        """Submit jobs as one batch, in constant memory however many; see ``AsyncClient.submit``.

        The iterable is read in the calling thread.
        """
        client, run = self.async_client(), EventLoopThread.shared().run
        submission = run(
            client.open_submission(
                name=name,
                max_pending=max_pending,
                start=start,
                batch_id=batch_id,
                priority=priority,
                tenant=tenant,
                max_unread_mb=max_unread_mb,
                deadline=deadline,
            )
        )
        try:
            for job in jobs:
                if submission.add(job):
                    run(submission.flush())
            run(submission.seal())
        except BaseException:
            run(submission.discard())
            raise
        return Batch(self, submission.batch_id, name)

    def batch(self, batch_id: str) -> Batch:
        """Attach to a batch from another process or another day.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        batch = EventLoopThread.shared().run(self.async_client().batch(batch_id))
        return Batch(self, batch.id, batch.name)

    def batches(self, limit: int = 20) -> list[Progress]:
        """Return the progress of the newest batches."""
        return EventLoopThread.shared().run(self.async_client().batches(limit))

    def call(
        self,
        job: Job,
        *,
        priority: Urgency = "normal",
        tenant: str = "",
        timeout: float | timedelta | None = None,
    ) -> Outcome:
        """Make one call: submit it, wait, and return its outcome; see ``AsyncClient.call``.

        Raises:
            WaitTimeoutError: There was no outcome in time; the message says what the call waited for.
            BatchStateError: Someone else cancelled it.
        """
        call = self.async_client().call(job, priority=priority, tenant=tenant, timeout=timeout)
        return EventLoopThread.shared().run(call)

    def close(self) -> None:
        """Close the connections. The client connects again when used again."""
        if (thread := EventLoopThread.started()) is not None:  # at the end of a process, none can be started
            thread.run(self.async_client().aclose())

    def async_client(self) -> AsyncClient:
        """Return the client behind this one."""
        return self._async_client


class Batch:
    """A submitted batch; see ``AsyncBatch``."""

    def __init__(self, client: Client, batch_id: str, name: str) -> None:
        self.id = batch_id
        self.name = name
        self._client = client

    @property
    def _batch(self) -> AsyncBatch:
        return AsyncBatch(self._client.async_client().connection, self.id, self.name)

    def __repr__(self) -> str:
        return f"<Batch {self.id} {self.name!r}>"

    def progress(self) -> Progress:
        """Return how far the batch is, and what limits it now."""
        return EventLoopThread.shared().run(self._batch.progress())

    def wait(self, timeout: float | timedelta | None = None) -> Progress:
        """Wait until the batch is over and return its last progress.

        Raises:
            WaitTimeoutError: It was not over in time; it goes on.
        """
        return EventLoopThread.shared().run(self._batch.wait(timeout))

    def outcomes(self, after: str | None = None, *, release: bool = False) -> Iterator[Outcome]:
        """Yield the newest outcome of every job as it is recorded, until the batch is over.

        See ``AsyncBatch.outcomes``.
        """
        bundles = self._batch.bundles(after, release=release)
        warned = warned_of(bundles, self._client.async_client().connection, self.id)
        for bundle in EventLoopThread.shared().iterate(warned):
            yield from bundle

    def release(self, cursor: str) -> None:
        """Drop the outcomes up to ``Outcome.cursor`` from Redis, so that it stays small."""
        EventLoopThread.shared().run(self._batch.release(cursor))

    def pause(self) -> None:
        """Start no further calls of this batch; those in flight finish and are recorded."""
        EventLoopThread.shared().run(self._batch.pause())

    def resume(self) -> None:
        """Go on after a pause."""
        EventLoopThread.shared().run(self._batch.resume())

    def cancel(self) -> None:
        """End the batch: calls in flight finish and are recorded, the rest never start. Final."""
        EventLoopThread.shared().run(self._batch.cancel())

    def seal(self) -> int:
        """Close a batch that its producer left open, start what waits for that, and return its number of jobs."""
        return EventLoopThread.shared().run(self._batch.seal())

    def retry_failed(self, where: str = "") -> int:
        """Run failed jobs again, all or those where conditions hold, and return how many.

        See ``AsyncBatch.retry_failed``.
        """
        return EventLoopThread.shared().run(self._batch.retry_failed(where))

    def failures(self, where: str = "") -> list[FailureCause]:
        """Return why jobs failed, the most frequent cause first; see ``AsyncBatch.failures``."""
        return EventLoopThread.shared().run(self._batch.failures(where))

    def failed_jobs(self, where: str = "", *, include_retried: bool = False) -> Iterator[FailedJob]:
        """Yield every failed job with each of its failures; see ``AsyncBatch.failed_jobs``."""
        pages = self._batch.failed_pages(where, include_retried=include_retried)
        for page in EventLoopThread.shared().iterate(pages):
            yield from page

    def delete(self) -> None:
        """Remove the batch, its jobs and its outcomes from Redis."""
        EventLoopThread.shared().run(self._batch.delete())
