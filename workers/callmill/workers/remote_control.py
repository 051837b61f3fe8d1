"""The remote control that a worker keeps of Celery's: what the dashboard asks, and nothing that changes anything.

Whoever may publish on Celery's control channel reaches every worker. Workers are stopped and counted by those who
started them, with signals; batches are steered through the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from celery import bootsteps
from celery.worker import control, state
from celery.worker.consumer.tasks import Tasks
from celery.worker.pidbox import Pidbox
from msgspec import Meta, Struct
from redis.exceptions import ResponseError

from callmill.config.broker_messages import UNREADABLE
from callmill.config.dropped_messages import dropped_messages

CHANNEL = "celery.pidbox"
_REPLY_EXCHANGE = "reply.celery.pidbox"
_REPLY_KEPT_MS = 60_000
_MOST_A_SECOND = 50

_Word = Annotated[str, Meta(max_length=255)]


class _ReplyTo(Struct):
    exchange: _Word
    routing_key: Annotated[str, Meta(pattern=r"\A[0-9a-f-]{32,36}\Z")]


class _Command(Struct):
    method: _Word
    arguments: dict[str, Any] | None = None
    destination: list[_Word] | None = None
    pattern: None = None
    matcher: None = None
    reply_to: _ReplyTo | None = None
    ticket: _Word | None = None


def _reserved(of: Any) -> list[Any]:
    waiting = of.tset(state.reserved_requests) - of.tset(state.active_requests)
    return [request.info(safe=True) for request in waiting]


def _scheduled(of: Any) -> list[Any]:
    # Not their arguments, with the bodies of plain calls: only what the sender shows of them.
    found = [waiting.entry.args for waiting in of.consumer.timer.schedule.queue]
    requests = [args[0] for args in found if args and isinstance(args[0], control.Request)]
    return [{"eta": one.eta and one.eta.isoformat(), "request": one.info(safe=True)} for one in requests]


ANSWERS: Mapping[str, Callable[[Any], Any]] = {
    "ping": control.ping,
    "stats": control.stats,
    "conf": control.conf,
    "registered": control.registered,
    "active_queues": control.active_queues,
    "active": lambda of: control.active(of, safe=True),
    "reserved": _reserved,
    "scheduled": _scheduled,
    "revoked": lambda _: [],
}
"""What a worker answers: what the pages of workers show, and whether it is there."""

_IGNORED = {"enable_events", "heartbeat", "hello"}
"""What Flower and Celery's own workers send to everybody, and what needs no answer of ours."""


class RemoteControl(Pidbox):  # type: ignore[misc] # celery ships no types
    """Answers what comes on Celery's control channel, and never raises."""

    def __init__(self, c: Any) -> None:
        super().__init__(c)
        self._second, self._taken = 0, 0

    def on_message(self, body: Any, message: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Take a command."""
        try:
            command = msgspec.convert(body, _Command)
        except UNREADABLE as error:
            dropped_messages.note(f"channel {CHANNEL}", error)
            return
        if command.method in _IGNORED or (command.destination and self.hostname not in command.destination):
            return
        if not self._has_time():
            dropped_messages.note(f"channel {CHANNEL}", f"more than {_MOST_A_SECOND} commands a second")
            return
        answer = ANSWERS.get(command.method)
        if answer is None:
            why = f"workers do not take the command {command.method!r}; stop them with SIGTERM"
            dropped_messages.note(f"channel {CHANNEL}", why)
            self._reply(command, {"error": why})
            return
        self._reply(command, answer(self.node.state))

    def _has_time(self) -> bool:
        second = int(time.monotonic())
        self._second, self._taken = second, self._taken + 1 if second == self._second else 1
        return self._taken <= _MOST_A_SECOND

    def _reply(self, command: _Command, answer: Any) -> None:
        """Put an answer where whoever asked waits for it, and nowhere else, whatever the command says."""
        if command.reply_to is None or command.reply_to.exchange != _REPLY_EXCHANGE:
            return
        queue = f"{command.reply_to.routing_key}.{_REPLY_EXCHANGE}"
        try:
            self._put(queue, command.ticket, answer)
        except ResponseError as error:  # whoever asked put something else there
            dropped_messages.note(f"channel {CHANNEL}", error)

    def _put(self, queue: str, ticket: str | None, answer: Any) -> None:
        channel, mailbox = self.node.channel, self.node.mailbox
        with mailbox.producer_or_acquire(None, channel) as producer:
            producer.publish(
                {self.node.hostname: answer},
                exchange="",
                routing_key=queue,
                headers={"ticket": ticket, "clock": mailbox.clock.forward()},
                serializer="json",
                declare=(),
            )
        with channel.conn_or_acquire() as client:
            client.pexpire(queue, _REPLY_KEPT_MS)  # if nobody waits any more


class RemoteControlStep(bootsteps.StartStopStep):  # type: ignore[misc] # celery ships no types
    """Listens as long as the consumer runs."""

    label = "Remote control"
    requires = (Tasks,)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._box = RemoteControl(parent)

    def start(self, parent: Any) -> None:
        """Listen."""
        self._box.start(parent)

    def stop(self, parent: Any) -> None:
        """Listen no more."""
        self._box.stop(parent)

    def shutdown(self, parent: Any) -> None:
        """Listen no more, and close the channel."""
        self._box.shutdown(parent)

    def include_if(self, parent: Any) -> bool:
        """Say whether it is wanted."""
        return bool(parent.app.conf.worker_enable_remote_control)
