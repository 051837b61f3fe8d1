"""The public API as a stranger's program uses it: checked by mypy and pyright, never executed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import assert_type

from callmill.errors import CallmillError, JobError, UsageError, WaitTimeoutError
from callmill.limits import BlockingLimiter, Limiter, LimiterStatus, Slot, open_limiter
from callmill.producer import (
    AsyncBatch,
    AsyncClient,
    Batch,
    Client,
    FailedJob,
    Failure,
    FailureCause,
    Job,
    Outcome,
    OutcomeError,
    Progress,
)


def jobs() -> Iterator[Job]:
    """Every field of a job."""
    yield Job("GET", "/users/1", api="crm")
    yield Job(
        "POST",
        "/v1/chat/completions",
        api="openai",
        id="row-1",
        headers={"X-Team": "a"},
        params={"q": ["a", 1]},
        json={"messages": [{"role": "user", "content": "hi"}]},
        timeout=30,
        tokens=350,
        output_tokens=100,
        weight=2,
        model="gpt-4o",
        idempotency_key="k",
        deadline=datetime.now(UTC) + timedelta(hours=1),
    )
    yield Job("POST", "/form", api="crm", data={"a": "b"})
    yield Job("POST", "/files", api="crm", data={"a": True}, files={"f": b"", "g": ("g", b""), "h": ("h", b"", "a/b")})
    yield Job("PUT", "/raw", api="crm", data=b"bytes", json=None)


async def more_jobs() -> AsyncIterator[Job]:
    """Jobs from an asynchronous source."""
    yield Job("GET", "/x", api="crm")


def synchronous(client: Client) -> None:
    """Client and Batch."""
    with Client("redis://localhost") as other:
        assert_type(other, Client)
    batch = client.submit(jobs(), name="translate", max_pending=10_000, start="at once", priority="bulk", tenant="acme")
    assert_type(batch, Batch)
    for outcome in batch.outcomes(after="1-1/1", release=True):
        assert_type(outcome, Outcome)
        assert_type(outcome.ok, bool)
        assert_type(outcome.status, int | None)
        assert_type(outcome.error, OutcomeError | None)
        assert_type(outcome.text(), str)
        assert_type(outcome.is_text, bool)
        assert_type(outcome.content_type, str | None)
        assert_type(outcome.content_encoding, str | None)
        assert_type(outcome.request_id, str | None)
        assert_type(outcome.latency, float)
        batch.release(outcome.cursor)
    assert_type(batch.progress(), Progress)
    assert_type(batch.wait(timeout=600), Progress)
    assert_type(batch.wait(timedelta(minutes=10)), Progress)
    assert_type(batch.progress().eta, float | None)
    assert_type(batch.retry_failed(), int)
    assert_type(batch.retry_failed(where="status=500"), int)
    assert_type(batch.failures(), list[FailureCause])
    for job in batch.failed_jobs(where="code=timeout", include_retried=True):
        assert_type(job, FailedJob)
        assert_type(job.last, Failure)
        assert_type(job.last.status, int | None)
    assert_type(client.batch("id"), Batch)
    assert_type(client.batches(), list[Progress])
    assert_type(client.call(Job("GET", "/users/1", api="crm")), Outcome)
    assert_type(client.call(Job("GET", "/users/1", api="crm"), timeout=2.5), Outcome)
    batch.pause()
    batch.resume()
    batch.cancel()
    batch.delete()
    client.close()


async def asynchronous() -> None:
    """AsyncClient and AsyncBatch."""
    async with AsyncClient() as client:
        assert_type(await client.submit(more_jobs()), AsyncBatch)
        batch = await client.submit(jobs())
        async for outcome in batch.outcomes():
            assert_type(outcome, Outcome)
        async for bundle in batch.bundles():
            assert_type(bundle, list[Outcome])
        assert_type(await batch.wait(1.5), Progress)
        assert_type(await batch.retry_failed("status=5xx"), int)
        assert_type(await batch.failures(where="api=crm"), list[FailureCause])
        async for job in batch.failed_jobs():
            assert_type(job.failures, list[Failure])
        assert_type(await client.call(Job("GET", "/x", api="crm")), Outcome)
        assert_type(await client.call(Job("GET", "/x", api="crm"), timeout=timedelta(minutes=1)), Outcome)


async def limited() -> None:
    """A limiter for asyncio."""
    async with open_limiter("redis://localhost", "crm", ["100/second"], enforcer="bucket", burst=20) as limiter:
        assert_type(limiter, Limiter)
        assert_type(limiter.try_acquire(), Slot | None)
        async with limiter.slot(1200, output_tokens=200, weight=2, model="large") as slot:
            assert_type(slot, Slot)
            assert_type(slot.key, int)
            limiter.settle(slot, 900, 150)
        limiter.refused(await limiter.acquire(), None, "429")
        await limiter.pause(10, "asked to")
        assert_type(limiter.status(), LimiterStatus)


def limited_threads() -> None:
    """A limiter for threads."""
    with BlockingLimiter("redis://localhost", "crm", ["60/minute per key"], keys=["a", "b"], guard=0.02) as limiter:
        assert_type(limiter, BlockingLimiter)
        try:
            assert_type(limiter.acquire(1200, timeout=1.5), Slot)
        except WaitTimeoutError as error:
            late: TimeoutError = error
            raise late from None
        with limiter.slot(model="large") as slot:
            limiter.refused(slot, 2.0, "429", cause="concurrency")
            limiter.accepted(slot)
        limiter.pause(10, "asked to")
        assert_type(limiter.status(), LimiterStatus)


def mistakes(client: Client) -> None:
    """What the type checkers refuse; an ignore that is not needed is an error of its own."""
    Job("GET", "/x")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    Job("GET", "/x", "crm")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    client.submit(jobs(), priority="urgent")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    client.submit(jobs(), start="later")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    client.submit(more_jobs())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    BlockingLimiter("redis://localhost", "crm")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    client.submit(["GET /x"])  # type: ignore[list-item] # pyright: ignore[reportArgumentType]


def errors(client: Client) -> str:
    """What a caller catches."""
    try:
        client.submit(jobs())
    except JobError as error:
        assert_type(error.position, int)
        assert_type(error.field, str)
        wide: UsageError = error
        return str(wide)
    except CallmillError as error:
        return str(error)
    return ""
