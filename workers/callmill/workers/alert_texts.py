"""Alerts in words: for people, in chats that read markup and mention everybody at a sign of it. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from callmill.config.alert_policy import AlertEvent
from callmill.config.redaction import without_secrets
from callmill.ledger.alert_log import Alert, AlertBatch, AlertState
from callmill.ledger.records import BatchRecord, BatchState
from callmill.workers.alert_conditions import RULES, Condition, Kind

_LONGEST_TEXT = 500
_SPANS = ((86_400, "d"), (3600, "h"), (60, "min"))
_MARKUP: dict[int, str] = {
    **dict.fromkeys(range(32), " "),
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord("@"): "@\u200b",
}


def of_condition(condition: Condition, state: AlertState, now_ms: int) -> Alert:
    """Return the alert of a condition that begins or is over, by its new state."""
    rule = RULES[condition.kind]
    event = rule.begins if state.told else rule.ends
    lasted_s = None if state.told else round((now_ms - state.began_ms) / 1000, 1)
    batch, reason = condition.batch, _plain(condition.reason)
    is_api = condition.kind in {Kind.LANE, Kind.API}
    return Alert(
        id=f"{event}-{condition.subject or 'redis'}-{now_ms}",
        event=event.value,
        at=_iso(now_ms),
        text=f"Callmill: {_words(event, condition, reason, _span(lasted_s or 0.0))}",
        api=condition.subject if is_api else None,
        batch=None if batch is None else _facts(batch),
        reason=reason if state.told else None,
        lasted_s=lasted_s,
    )


def _words(event: AlertEvent, condition: Condition, reason: str, lasted: str) -> str:
    subject = _code(condition.subject) if condition.batch is None else _named(condition.batch)
    return {
        AlertEvent.LANE_PAUSED: f"{subject} is paused {reason}",
        AlertEvent.LANE_RESUMED: f"{subject} is paused no more, after {lasted}",
        AlertEvent.API_DOWN: f"{subject} is down, its jobs wait: {reason}",
        AlertEvent.API_UP: f"{subject} is up again, after {lasted}",
        AlertEvent.BATCH_STUCK: f"{subject} is stuck, nothing comes of it: {reason}",
        AlertEvent.BATCH_HELD: f"{subject} is held: {reason}",
        AlertEvent.BATCH_GOES_ON: f"{subject} goes on, after {lasted}",
        AlertEvent.MEMORY_FULL: f"no room, submitting waits: {reason}",
        AlertEvent.MEMORY_FREE: f"Redis has room again, after {lasted}",
    }[event]


def of_end(batch: BatchRecord) -> Alert:
    """Return the alert of a batch that ended."""
    event, seconds = AlertEvent.BATCH_DONE, (batch.ended_ms - batch.began_ms) / 1000
    words = f"is done: {batch.succeeded:,} succeeded, in {_span(seconds)}"
    if batch.state is BatchState.CANCELLED:
        event = AlertEvent.BATCH_CANCELLED
        words = f"was cancelled: {batch.recorded:,} of {batch.total:,} done"
    elif batch.failed:
        event = AlertEvent.BATCH_FAILED
        words = f"is over: {batch.failed:,} failed, {batch.succeeded:,} succeeded, in {_span(seconds)}"
    reason = _plain(batch.reason)
    return Alert(
        id=f"{event}-{batch.id}-{batch.ended_ms}",
        event=event.value,
        at=_iso(batch.ended_ms),
        text=f"Callmill: {_named(batch)} {words}{f': {reason}' if reason else ''}",
        batch=_facts(batch),
        reason=reason or None,
        lasted_s=round(seconds, 1),
    )


def of_test(name: str, now_ms: int) -> Alert:
    """Return an alert that somebody sends to see whether alerts arrive."""
    text = f"Callmill: a test, sent from {_code(name)}; alerts arrive here"
    return Alert(id=f"test-{name}-{now_ms}", event="test", at=_iso(now_ms), text=text)


def _facts(batch: BatchRecord) -> AlertBatch:
    return AlertBatch(
        id=batch.id,
        name=batch.name,
        state=batch.state.value,
        total=batch.total,
        succeeded=batch.succeeded,
        failed=batch.failed,
    )


def _named(batch: BatchRecord) -> str:
    return f"batch {_code(batch.name)} ({batch.id})" if batch.name else f"batch {_code(batch.id)}"


def _code(name: str) -> str:
    return f"`{_plain(name.replace('`', chr(39)))}`"


def _plain(text: str) -> str:
    """Take out what a chat would read as markup or as a mention, and secrets."""
    plain = without_secrets(text)
    return (plain if len(plain) <= _LONGEST_TEXT else plain[:_LONGEST_TEXT] + "...").translate(_MARKUP)


def _span(seconds: float) -> str:
    size_s, unit = next((span for span in _SPANS if seconds >= 2 * span[0]), (1, "s"))
    return f"{seconds / size_s:.0f} {unit}"


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
