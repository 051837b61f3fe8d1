"""Messages in queues: of whatever stands there, a worker takes hints and plain calls, and it goes on."""

from __future__ import annotations

import copy
import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import strategy
from fuzzing import fuzz
from hostile_messages import QUEUE_MESSAGES
from hypothesis import strategies as st
from kombu.transport import virtual

from callmill.config.broker_messages import CheckedMessage, MalformedMessageError, read_message
from callmill.config.celery import app
from callmill.ledger.hints import RUN_CHUNK
from callmill.workers import consumer as consumer_module
from callmill.workers import tasks
from callmill.workers.consumer import CallmillConsumer
from callmill.workers.task_messages import CALL

logging.getLogger("callmill.config.dropped_messages").setLevel(logging.CRITICAL)

WORDS = st.sampled_from(
    [
        *("task", "id", "args", "kwargs", "callbacks", "errbacks", "chain", "chord", "options", "queue", "routing_key"),
        *("callmill.run_chunk", "callmill.call", "celery.group", "application/json", "utf-8", "base64", "due", "calls"),
        *("__type__", "__value__", "datetime", "uuid", "decimal", "2026-01-01T00:00:00", "9999-12-31T23:59:59Z"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | WORDS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=8), inner, max_size=4)
)
_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
_HEADERS = {"lang": "py", "id": "b:0", "root_id": "b:0", "parent_id": None, "group": None, "retries": 0, "eta": None}
_MORE_HEADERS = {
    "timelimit": [None, None],
    "expires": None,
    "argsrepr": "",
    "kwargsrepr": "",
    "origin": "x",
    "stamps": {},
}
_FOLLOWING = [{"task": "callmill.call", "args": [], "kwargs": {}, "options": {"queue": "mine", "link": []}}]
GOOD = [
    (RUN_CHUNK, [["b", 0, "near"], {}, _EMBED]),
    (CALL, [[{"method": "GET", "url": "/", "api": "near"}], {}, _EMBED]),
    (CALL, [[], {"job": {}}, _EMBED | {"chain": _FOLLOWING, "callbacks": _FOLLOWING, "chord": _FOLLOWING[0]}]),
]


def envelope(task: str, payload: Any) -> dict[str, Any]:
    """Return a good message; its body is not encoded yet."""
    return {
        "body": copy.deepcopy(payload),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": task} | copy.deepcopy(_HEADERS | _MORE_HEADERS),
        "properties": {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": "x"}, "priority": 0},
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every part of a value."""
    if not isinstance(value, dict | list):
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(way for key, inner in items for way in places(inner, (*path, key)))]


@st.composite
def nearly_good(draw: st.DrawFn) -> bytes:
    """Return a good message with a few of its parts replaced, left out, or added."""
    message: Any = envelope(*draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 3))):
        *way, last = draw(st.sampled_from(places(message)[1:]))
        part = message
        for key in way:
            part = part[key]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                part[last] = draw(VALUES)
            case "remove":
                del part[last]
            case _ if isinstance(part, dict):
                part[draw(WORDS)] = draw(VALUES)
            case _:
                part.append(draw(VALUES))
    if "body" in message and draw(st.integers(0, 9)):
        message["body"] = json.dumps(message["body"])
    return json.dumps(message).encode()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return one of the messages that once did harm, with some bytes of it replaced."""
    message = bytearray(draw(st.sampled_from([each for each in QUEUE_MESSAGES if len(each) < 5_000])))
    at = draw(st.integers(0, len(message)))
    message[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(message)


MESSAGES = nearly_good() | damaged() | st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode())


class _Channel:
    """What a message needs of its channel, and how its consumer dealt with it."""

    no_ack_consumers = None
    codecs = virtual.Channel.codecs
    decode_body = virtual.Channel.decode_body

    def __init__(self) -> None:
        self.settled = 0

    def basic_reject(self, _tag: str, *, requeue: bool = False) -> None:
        """Note that a message was dropped."""
        assert not requeue
        self.settled += 1


class _Log:
    """Fails where a message was not foreseen."""

    def exception(self, message: str, **_: Any) -> None:
        """Tell of the bug."""
        raise AssertionError(message)


def _consumer(taken: list[Any]) -> CallmillConsumer:
    """Return a real consumer with real strategies; what they give to the pool is kept."""
    consumer = object.__new__(CallmillConsumer)
    known = {
        "app": app,
        "hostname": "w@h",
        "connection_errors": (OSError,),
        "event_dispatcher": None,
        "restart_count": 0,
    }
    revoked: set[str] = set()
    known |= {
        "_maximum_prefetch_restored": True,
        "on_task_message": set(),
        "disable_rate_limits": True,
        "task_buckets": {},
        "pool": SimpleNamespace(apply_async=None),
        "timer": SimpleNamespace(call_at=lambda _at, _call, args, **_: taken.append(args[0])),
        "qos": SimpleNamespace(increment_eventually=lambda: None),
        "controller": SimpleNamespace(state=SimpleNamespace(revoked=revoked)),
        "on_task_request": taken.append,
        "call_soon_ack": lambda p, *args: p(*args),
    }
    vars(consumer).update(known)
    consumer.strategies = {name: strategy.default(app.tasks[name], app, consumer) for name in (RUN_CHUNK, CALL)}
    return consumer


app.tasks.setdefault(CALL, tasks.call)
TAKEN: list[Any] = []
CONSUMER = _consumer(TAKEN)
HANDLE = CONSUMER.create_task_handler()


@fuzz(MESSAGES)
def test_no_message_ends_a_worker(item: bytes) -> None:
    """A message is dropped, or it is a hint or a plain call, that goes back to where it was found if at all."""
    consumer_module.log = _Log()  # type: ignore[assignment]
    channel = _Channel()
    TAKEN.clear()
    try:
        message = CheckedMessage(read_message(item, "", "lane.near", most_bytes=64 * 1024), channel)
    except MalformedMessageError:
        return
    HANDLE(message)
    assert len(TAKEN) + channel.settled == 1
    for request in TAKEN:
        assert request.type in {RUN_CHUNK, CALL}
        assert request.delivery_info["routing_key"] == "lane.near"
        if request.type == RUN_CHUNK:
            batch, number, line = request.args
            assert isinstance(number, int)
            assert "/" not in batch + line
            assert not request.kwargs
            assert request.eta is None
        following = [request.request_dict.get(name) for name in ("callbacks", "errbacks", "chain", "chord")]
        assert not any(following), "from the headers"


@pytest.mark.parametrize("good", GOOD, ids=["hint", "call", "call with what follows"])
def test_good_messages_are_taken(good: tuple[str, Any]) -> None:
    """What the fuzz test starts from is taken as it is: otherwise it would try nothing."""
    message = envelope(*good)
    message["body"] = json.dumps(message["body"])
    channel = _Channel()
    TAKEN.clear()
    HANDLE(CheckedMessage(read_message(json.dumps(message).encode(), "", "calls", most_bytes=64 * 1024), channel))
    assert [request.type for request in TAKEN] == [good[0]]
