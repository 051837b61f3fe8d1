"""The Celery tasks: a chunk of a batch, and the plain call for people's own canvases."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from celery.signals import before_task_publish

from callmill.config.broker_connection import TAKEN_NEXT
from callmill.config.celery import app
from callmill.errors import UsageError
from callmill.jobs import Job, Outcome
from callmill.jobs.readable_body import text_or_base64
from callmill.jobs.trace_context import TraceContext
from callmill.ledger import ChunkRef
from callmill.ledger.hint_labels import labels
from callmill.ledger.hints import RUN_CHUNK
from callmill.workers import process
from callmill.workers.single_call import CallNotDoneError
from callmill.workers.task_messages import CALL

_MOST_LEVELS = 200
"""Maximum nesting of a body that is returned parsed: serialisers of results give up earlier than the parser, and the
answer would be lost."""


@app.task(name=RUN_CHUNK, bind=True, ignore_result=True)  # type: ignore[untyped-decorator] # celery ships no types
def run_chunk(self: Any, batch_id: str, number: int, line: str) -> str:
    """Execute a chunk; return what came of it, for people."""
    ref = ChunkRef(batch_id, number, line)
    labels.learn(ref, self.request.argsrepr or "")
    return process.engine().run_chunk(ref, first=bool(self.request.get(TAKEN_NEXT)))


@shared_task(  # type: ignore[untyped-decorator] # celery ships no types
    name=CALL,
    bind=True,
    ignore_result=False,
    acks_late=True,
    autoretry_for=(CallNotDoneError,),
    retry_backoff=True,
    retry_backoff_max=60,
    retry_jitter=True,
    max_retries=5,
)
def call(self: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Make one call under its API's limits and return its outcome.

    Registered with every Celery app of the process: import this module in a worker of your own, or send the task to
    ours. Celery retries what another attempt may mend; what none mends comes back as an outcome with ``ok`` false.

    Args:
        self: The task.
        job: The fields of ``Job``.

    Returns:
        The fields of ``Outcome``; ``body`` is parsed if it is JSON of at most 200 levels, otherwise text; what is no
        text comes as ``{"base64": ..., "content_type": ...}``.
    """
    try:
        wanted = Job.from_dict(job)
    except ValueError as error:
        raise UsageError(f"callmill.call: {error}") from error
    trace = TraceContext.current() or TraceContext.read(self.request)
    retries = self.request.retries
    return _as_dict(process.host().call(wanted, self.request.id, trace, repeated=retries > 0), retries + 1)


@before_task_publish.connect(sender=CALL)  # type: ignore[untyped-decorator] # celery ships no types
def send_trace_along(headers: dict[str, Any], **_: Any) -> None:
    """Let the message of a call say which trace it belongs to, unless OpenTelemetry's own instrumentation did."""
    trace = TraceContext.current()
    if trace is not None and TraceContext.read(headers) is None:
        headers.update(trace.headers())


def _as_dict(outcome: Outcome, attempts: int) -> dict[str, Any]:
    return {
        "id": outcome.id,
        "ok": outcome.ok,
        "status": outcome.status,
        "body": _readable(outcome),
        "headers": outcome.headers,
        "error": None if outcome.error is None else {"code": outcome.error.code, "message": outcome.error.message},
        "attempts": attempts,
        "started_at": outcome.started_at,
        "latency": outcome.latency,
    }


def _readable(outcome: Outcome) -> Any:
    try:
        body = outcome.json()
    except ValueError:
        return text_or_base64(outcome)
    brackets = outcome.body.count(b"[") + outcome.body.count(b"{")
    return text_or_base64(outcome) if brackets > _MOST_LEVELS and _is_deeper(body, _MOST_LEVELS) else body


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        containers = [inner.values() if isinstance(inner, dict) else inner for inner in layer if _holds(inner)]
        layer = [inner for container in containers for inner in container]
        if not layer:
            return False
    return any(map(_holds, layer))


def _holds(value: Any) -> bool:
    return isinstance(value, dict | list)
