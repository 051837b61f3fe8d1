"""Which Celery messages a worker of ours takes: hints, and plain calls, and of these nothing but what they are for.

Celery trusts a message: its fields name other tasks, queues and times, and one of another type ends the worker. Pure
checks, before Celery makes a request of the message.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from kombu.exceptions import KombuError
from msgspec import Meta, Struct

from callmill.config.broker_connection import LANE_PREFIX
from callmill.config.broker_messages import UNREADABLE, MalformedMessageError, refuse_many_parts
from callmill.config.celery import CALLS_QUEUE
from callmill.ledger import keys
from callmill.ledger.hints import RUN_CHUNK

CALL = "callmill.call"
"""Name of the plain task."""

_LATEST_START = timedelta(hours=1)
"""The broker hands a message out again that a worker has kept for longer, and it would be called twice."""
_MOST_LEVELS = 20
_MOST_CHUNKS = 2**53
_JSON, _UTF8 = "application/json", {"utf-8", "utf8", "us-ascii", "ascii"}
_QUEUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_BATCH = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OURS = {
    key.removeprefix(keys.PREFIX)
    for key in vars(keys).values()
    if isinstance(key, str) and key.startswith(keys.PREFIX) and key != keys.PREFIX
}
_BROKERS = ("unacked", "_kombu", "celery", LANE_PREFIX)
_OPTIONS = {
    *("task_id", "root_id", "parent_id", "group_id", "group_index", "chord", "chain", "link", "link_error"),
    *("queue", "routing_key", "priority", "countdown", "eta", "expires", "time_limit", "soft_time_limit"),
    *("ignore_result", "shadow", "replaced_task_nesting", "stamped_headers"),
}
"""Of what follows a call: when and as what it runs, and in which queue it waits."""
_OF_THE_BODY = frozenset(
    {"callbacks", "errbacks", "chain", "chord", "called_directly", "is_eager", "_protected", "_children"}
    | {"loglevel", "logfile", "taskset", "args", "kwargs"}
)
"""What Celery would take from the headers as well, where the body does not say it."""

_Word = Annotated[str, Meta(max_length=255)]
_Text = Annotated[str, Meta(max_length=8192)]
_Count = Annotated[int, Meta(ge=0, le=1_000_000)]
_Seconds = Annotated[float, Meta(ge=0, le=10**9)]


class _Headers(Struct):
    task: _Word
    id: Annotated[str, Meta(min_length=1, max_length=255)]
    lang: _Word | None = None
    root_id: _Word | None = None
    parent_id: _Word | None = None
    group: _Word | None = None
    group_index: _Count | None = None
    shadow: _Word | None = None
    eta: _Word | None = None
    expires: _Word | None = None
    retries: _Count | None = 0
    timelimit: tuple[_Seconds | None, _Seconds | None] | None = None
    argsrepr: _Text | None = None
    kwargsrepr: _Text | None = None
    origin: _Word | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: _Count | None = 0
    stamped_headers: list[_Word] | None = None
    stamps: dict[str, Any] | None = None
    headers: dict[str, Any] | None = None


class _Signature(Struct):
    task: _Word
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    options: dict[str, Any] = {}


class _Canvas(Struct):
    callbacks: list[_Signature] | None = None
    errbacks: list[_Signature] | None = None
    chain: list[_Signature] | None = None
    chord: _Signature | None = None


def why_refused(message: Any) -> str | None:
    """Say why a message is none for us; None: it is one.

    Args:
        message: As kombu delivers it.
    """
    try:
        headers = msgspec.convert(message.headers, _Headers)
        if not _OF_THE_BODY.isdisjoint(message.headers):
            return "its headers say what belongs into its body"
        if headers.task == RUN_CHUNK:
            _check_hint(headers, _payload(message))
        elif headers.task == CALL:
            _check_times(headers)
            _check_call(_payload(message))
        else:
            return f"there is no task {headers.task!r}"
    except (KombuError, *UNREADABLE) as error:  # MalformedMessageError and msgspec's are ValueErrors
        return str(error) or type(error).__name__
    return None


def _payload(message: Any) -> Any:
    if message.content_type != _JSON or str(message.content_encoding).lower() not in _UTF8:
        raise MalformedMessageError(f"its body is {message.content_type} in {message.content_encoding}, not JSON")
    body = message.body
    if not isinstance(body, bytes):
        raise MalformedMessageError("it has no body")
    refuse_many_parts(body)
    return message.payload


def _check_hint(headers: _Headers, payload: Any) -> None:
    match payload:
        case [[str(batch), int(number), str(line)], dict(kwargs), embed] if not kwargs:
            pass
        case _:
            raise MalformedMessageError("it names no chunk: batch id, number and line")
    if isinstance(number, bool) or not 0 <= number < _MOST_CHUNKS or not _BATCH.fullmatch(batch) or len(line) > 512:
        raise MalformedMessageError("it names no chunk: batch id, number and line")
    if "/" in line or (embed and any(embed.values())):
        raise MalformedMessageError("a hint carries nothing but its chunk")
    if headers.eta or headers.expires or headers.group or headers.stamps:
        raise MalformedMessageError("a hint does not wait, expires never and is of no group")


def _check_times(headers: _Headers) -> None:
    if headers.eta and _time(headers.eta) > datetime.now(UTC) + _LATEST_START:
        raise MalformedMessageError(f"it is to start at {headers.eta}: a call waits for an hour at most")
    if headers.expires:
        _time(headers.expires)


def _time(written: str) -> datetime:
    at = datetime.fromisoformat(written)
    if not 1970 < at.year < 9000:
        raise MalformedMessageError(f"{written} is no time")
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _check_call(payload: Any) -> None:
    match payload:
        case [list(), dict(), None]:
            return
        case [list(), dict(), dict(embed)]:
            if any(embed.values()):
                _check_canvas(embed, _MOST_LEVELS)
        case _:
            raise MalformedMessageError("its body is not [args, kwargs, what follows]")


def _check_canvas(embed: Any, levels: int) -> None:
    """Let tasks follow that go to a queue of their own or back to ours: a worker may write to all keys."""
    if not levels:
        raise MalformedMessageError("what follows it is nested too deeply")
    canvas = msgspec.convert(embed, _Canvas)
    follows = [*(canvas.callbacks or ()), *(canvas.errbacks or ()), *(canvas.chain or ())]
    for signature in follows if canvas.chord is None else [*follows, canvas.chord]:
        options = signature.options
        if signature.task.startswith("celery."):
            raise MalformedMessageError(f"{signature.task} cannot follow it here; use a worker of your own")
        for queue in (options.get("queue"), options.get("routing_key")):
            if queue is not None and not _may_go_to(queue):
                raise MalformedMessageError(f"what follows it would go to the queue {queue!r}")
        if unknown := [name for name, value in options.items() if name not in _OPTIONS and value]:
            raise MalformedMessageError(f"what follows it has the option {unknown[0]!r}, which is not taken")
        _check_canvas(
            {
                "callbacks": options.get("link"),
                "errbacks": options.get("link_error"),
                "chain": options.get("chain"),
                "chord": options.get("chord"),
            },
            levels - 1,
        )


def _may_go_to(queue: object) -> bool:
    if queue == CALLS_QUEUE:
        return True
    is_name = isinstance(queue, str) and _QUEUE.fullmatch(queue) is not None
    return is_name and queue not in _OURS and not str(queue).startswith(_BROKERS)
