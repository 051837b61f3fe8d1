"""CallmillConsumer: Celery's consumer, for which no message is the end.

It takes messages that ``task_messages`` lets through, drops others, and answers what the dashboard asks and no other
remote control. Workers do not talk to each other through Celery: the ledger does what mingle and gossip are for.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.worker.consumer import Consumer
from redis.exceptions import RedisError

from callmill.config.dropped_messages import dropped_messages
from callmill.workers.task_messages import why_refused

log = logging.getLogger(__name__)

_CONTROL = "celery.worker.consumer.control:Control"
_OUR_CONTROL = "callmill.workers.remote_control:RemoteControlStep"
_ALONE = {"without_mingle": True, "without_gossip": True}


class CallmillConsumer(Consumer):  # type: ignore[misc] # celery ships no types
    """Consumes the queues of this process."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc] # as above
        """Its steps: Celery's, with a remote control of ours."""

        default_steps = [_OUR_CONTROL if step == _CONTROL else step for step in Consumer.Blueprint.default_steps]  # noqa: RUF012 - Celery's

    def __init__(self, *args: Any, worker_options: dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, worker_options={**(worker_options or {}), **_ALONE}, **(kwargs | _ALONE))

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """Return what takes a message from a queue."""
        take = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> None:
            why = why_refused(message)
            if why is None:
                try:
                    take(message)
                except (RedisError, OSError):
                    raise  # the consumer connects anew
                except Exception:
                    log.exception(
                        "a message was not taken, which is a bug in Callmill", extra={"action": "message_failed"}
                    )
                    why = "it was not taken"
            if why is not None:
                self._drop(message, why)

        return on_task_received

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Drop what kombu cannot decode."""
        self._drop(message, str(exc))

    def _drop(self, message: Any, why: str) -> None:
        dropped_messages.note(f"queue {(message.delivery_info or {}).get('routing_key')}", why)
        if not message.acknowledged:
            message.reject_log_error(log, self.connection_errors)
