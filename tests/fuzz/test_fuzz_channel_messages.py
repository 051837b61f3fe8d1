"""Messages on channels: the remote control and the limiter's subscription take what they know, and go on."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace
from typing import Any

from fuzzing import fuzz
from hostile_messages import CONTROL_MESSAGES, HARMFUL_COMMANDS, LIMITER_MESSAGES
from hypothesis import strategies as st
from kombu.transport import virtual
from redis.asyncio import Redis

from callmill.config.broker_messages import CheckedMessage, read_message
from callmill.config.limit_spec import parse_limit
from callmill.limits import Limiter, LimitRules
from callmill.limits.pauses import LONGEST_PAUSE_S
from callmill.workers import remote_control
from callmill.workers.remote_control import RemoteControl

logging.getLogger("callmill.config.dropped_messages").setLevel(logging.CRITICAL)

HOST = "callmill@host"
FIELDS = ("method", "arguments", "destination", "pattern", "matcher", "reply_to", "ticket", "exchange", "routing_key")
METHODS = [*remote_control.ANSWERS, "enable_events", *(name for name, _ in HARMFUL_COMMANDS)]
OID = "0f0e0d0c-0000-4000-8000-000000000000"
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(METHODS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
)
COMMANDS = st.fixed_dictionaries(
    {"method": st.sampled_from(METHODS) | VALUES},
    optional={
        "arguments": VALUES,
        "destination": st.none() | st.just([HOST]) | VALUES,
        "pattern": VALUES,
        "matcher": st.sampled_from(["pcre", "glob"]),
        "reply_to": st.just({"exchange": "reply.celery.pidbox", "routing_key": OID}) | VALUES,
        "ticket": st.just("t") | VALUES,
    },
)


def _control_message(body: Any) -> bytes:
    message = {
        "body": json.dumps(body),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"clock": 1},
        "properties": {"delivery_tag": "t", "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""}},
    }
    return json.dumps(message).encode()


@st.composite
def damaged(draw: st.DrawFn, messages: list[bytes]) -> bytes:
    """Return one of the messages that once did harm, with some bytes of it replaced."""
    message = bytearray(draw(st.sampled_from([each for each in messages if len(each) < 5_000])))
    at = draw(st.integers(0, len(message)))
    message[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(message)


class _Channel:
    """What a message needs of its channel."""

    no_ack_consumers = None
    codecs = virtual.Channel.codecs
    decode_body = virtual.Channel.decode_body


class _Control(RemoteControl):
    """Keeps where it would put its answers."""

    def __init__(self) -> None:
        self.hostname, self.node = HOST, SimpleNamespace(state=None)
        self.answered: list[str] = []
        self._second, self._taken = 0, 0

    def _has_time(self) -> bool:
        return True

    def _put(self, queue: str, ticket: str | None, answer: Any) -> None:
        json.dumps(answer)
        assert ticket is None or len(ticket) < 256
        self.answered.append(queue)


DONE: list[str] = []


@fuzz(
    (COMMANDS | VALUES).map(_control_message)
    | damaged(CONTROL_MESSAGES)
    | st.binary(max_size=200)
    | VALUES.map(lambda value: json.dumps(value).encode())
)
def test_no_command_ends_a_worker(item: bytes) -> None:
    """A command is answered to the queue of whoever asked, or dropped; nothing that changes anything runs."""
    control = _Control()
    remote_control.ANSWERS = {name: lambda _, name=name: DONE.append(name) for name in remote_control.ANSWERS}
    DONE.clear()
    try:
        message = CheckedMessage(read_message(item, "celery.pidbox", "", most_bytes=64 * 1024), _Channel())
        message.accept = {"application/json"}
        body = message.decode()
    except Exception:  # noqa: BLE001 - kombu's consumer passes it on to on_decode_error, which drops the message
        return
    control.on_message(body, message)
    assert len(DONE) <= 1
    for queue in control.answered:
        assert queue.endswith(".reply.celery.pidbox")
        assert set(queue.partition(".")[0]) <= set("0123456789abcdef-")


_WORDS = ("boot", "row", "slower", "rules", "learned", "pause", "resume", "-", "key:a", "model:m")
TEXTS = st.lists(st.sampled_from(_WORDS) | st.integers().map(str) | st.text(max_size=12), max_size=5).map(" ".join)


@fuzz(TEXTS.map(lambda text: text.encode(errors="surrogatepass")) | damaged(LIMITER_MESSAGES) | st.binary(max_size=100))
def test_no_message_ends_the_limiters_subscription(data: bytes) -> None:
    """What the limiter does not know is dropped; no pause that it hears of is longer than the longest."""

    async def scenario() -> None:
        limiter = Limiter(Redis(), "near", LimitRules(limits=(parse_limit("10/second"),)), worker="w")
        limiter._channel._take({"type": "message", "data": data})
        for pause in limiter._pauses._pauses.values():
            assert pause.until <= pause.said + LONGEST_PAUSE_S
            assert len(pause.reason) <= 4096

    asyncio.run(scenario())
