"""Hints: the Celery messages that tell workers which chunks wait for them.

A hint carries no payload and may be lost or come twice: the ledger is the truth, a claim decides, and the reconciler
publishes again what was lost.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from kombu.exceptions import BatchPublishError, OperationalError

from callmill.config.broker_connection import TAKEN_NEXT
from callmill.config.celery import app, lane_queue
from callmill.errors import RedisUnavailableError
from callmill.ledger.hint_labels import labels
from callmill.ledger.keys import ChunkRef

RUN_CHUNK = "callmill.run_chunk"
"""Name of the task that executes a chunk; its arguments are batch id, chunk number and line."""

_AT_ONCE = 500


class HintPublisher:
    """Publishes hints over a broker connection of its own. Blocking; safe to use from several threads."""

    def __init__(self, broker_url: str) -> None:
        self._lock = threading.Lock()
        # No retries: kombu would sleep between them for seconds, and everybody else who publishes with it.
        self._connection = app.connection_for_write(broker_url, transport_options={"max_retries": 0})

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

    def close(self) -> None:
        """Close the connection. It opens again when used again."""
        self._connection.close()

    @staticmethod
    def _send(producer: object, ref: ChunkRef, shown: str, *, first: bool) -> None:
        message = app.amqp.as_task_v2(
            f"{ref.batch_id}:{ref.number}",
            RUN_CHUNK,
            args=(ref.batch_id, ref.number, ref.line),
            argsrepr=shown,
            kwargsrepr="",
            ignore_result=True,
        )
        if first:
            message.headers[TAKEN_NEXT] = True
        app.amqp.send_task_message(producer, RUN_CHUNK, message, queue=lane_queue(ref.line), declare=(), retry=False)
