"""Hints: the Celery messages that tell workers which chunks wait for them.

A hint carries no payload and may be lost or come twice: the ledger is the truth, a claim decides, and the reconciler
publishes again what was lost.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from kombu.exceptions import BatchPublishError, OperationalError
from redis.exceptions import RedisError

from callmill.config.broker_connection import TAKEN_NEXT
from callmill.config.celery import app, lane_queue, lane_queue_key
from callmill.config.redis_connections import connect_blocking
from callmill.errors import RedisUnavailableError
from callmill.ledger.hint_labels import labels
from callmill.ledger.keys import ChunkRef

RUN_CHUNK = "callmill.run_chunk"
"""Name of the task that executes a chunk; its arguments are batch id, chunk number and line."""

_AT_ONCE = 500
_LATEST = 200
"""How many of a queue's latest hints are searched for one to withdraw."""


class HintPublisher:
    """Publishes hints over a broker connection of its own. Blocking; for any number of threads, and after forks."""

    def __init__(self, broker_url: str) -> None:
        self._broker_url = broker_url
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        # No retries: kombu would sleep between them for seconds, and everybody else who publishes with it.
        self._connection = app.connection_for_write(self._broker_url, transport_options={"max_retries": 0})

    def publish(self, refs: Sequence[ChunkRef], *, label: str = "", first: bool = False) -> None:
        """Publish one hint per chunk, pipelined.

        Args:
            refs: The chunks.
            label: The batch's name, which Flower shows in front of the chunk; left out where it is not at hand.
            first: Whether these chunks go before those whose hints are out, because they have waited already.

        Raises:
            RedisUnavailableError: The broker cannot be reached, or refused; some hints may be out.
        """
        if not refs:
            return
        self._own()
        with self._lock:
            try:
                with app.amqp.Producer(self._connection, auto_declare=False) as producer, producer.batch(_AT_ONCE):
                    for ref in reversed(refs) if first else refs:  # each goes before those sent until then
                        self._send(producer, ref, labels.text(ref, label), first=first)
            except (
                BatchPublishError,  # what kombu makes of either, and of a broker whose memory is full, in a pipeline
                OperationalError,  # what it makes of either while it connects
                *self._connection.connection_errors,
                *self._connection.channel_errors,
            ) as error:
                self._connection.close()  # the next publish connects afresh
                why = error.__cause__ if isinstance(error, (BatchPublishError, OperationalError)) else error
                raise RedisUnavailableError(f"the broker cannot be reached, or refused: {why}") from error

    def withdraw(self, ref: ChunkRef) -> None:
        """Withdraw the hint for a chunk if it is among the latest of its queue; an older one does no harm.

        Raises:
            RedisUnavailableError: The broker cannot be reached, or refused.
        """
        queue, name = lane_queue_key(ref.line), _task_id(ref).encode()
        with closing(connect_blocking(self._broker_url)) as broker:
            try:
                latest: Any = broker.lrange(queue, 0, _LATEST - 1)
                for message in latest:
                    if name in message:
                        broker.lrem(queue, 1, message)
            except (RedisError, OSError) as error:
                raise RedisUnavailableError(f"the broker cannot be reached, or refused: {error}") from error

    def close(self) -> None:
        """Close the connection. It opens again when used again."""
        self._own()
        self._connection.close()

    def _own(self) -> None:
        """After a fork, leave the parent's connection alone, and its lock, which a thread may have held."""
        if self._pid != os.getpid():
            self._begin()

    @staticmethod
    def _send(producer: object, ref: ChunkRef, shown: str, *, first: bool) -> None:
        message = app.amqp.as_task_v2(
            _task_id(ref),
            RUN_CHUNK,
            args=(ref.batch_id, ref.number, ref.line),
            argsrepr=shown,
            kwargsrepr="",
            ignore_result=True,
        )
        if first:
            message.headers[TAKEN_NEXT] = True
        app.amqp.send_task_message(producer, RUN_CHUNK, message, queue=lane_queue(ref.line), declare=(), retry=False)


def _task_id(ref: ChunkRef) -> str:
    return f"{ref.batch_id}:{ref.number}"
