"""What visitors may do to a batch: pause, resume, cancel, and run its failed jobs again."""

from __future__ import annotations

import logging

import msgspec
from tornado.web import HTTPError

from callmill.dashboard.handlers import JsonHandler
from callmill.producer.async_batch import AsyncBatch

log = logging.getLogger("callmill.dashboard")


class BatchControl(JsonHandler):
    """One thing done to one batch."""

    async def post(self, batch_id: str, action: str) -> None:
        """Do it and say in a sentence what came of it."""
        if (why := self.why_no_control) is not None:
            raise HTTPError(403, why)
        batch = await self.figures.client.batch(batch_id)
        message = await _ACTIONS[action](batch)
        self.figures.changed()
        log.info(
            "batch %s: %s by %s from %s",
            *(batch_id, action, self._who(), self.origin.peer),
            extra={"action": "batch_steered", "batch": batch_id, "did": action, "by": self._who()},
        )
        self.send(msgspec.json.encode({"message": message}))

    def _who(self) -> str:
        return self.current_user if isinstance(self.current_user, str) else "a visitor"


async def _pause(batch: AsyncBatch) -> str:
    await batch.pause()
    return "Paused: calls in flight finish, no further call starts."


async def _resume(batch: AsyncBatch) -> str:
    await batch.resume()
    return "Resumed."


async def _cancel(batch: AsyncBatch) -> str:
    await batch.cancel()
    return "Cancelled: calls in flight finish, the rest never starts."


async def _retry_failed(batch: AsyncBatch) -> str:
    jobs = await batch.retry_failed()
    return f"{jobs:,} failed {'job runs' if jobs == 1 else 'jobs run'} again."


_ACTIONS = {"pause": _pause, "resume": _resume, "cancel": _cancel, "retry-failed": _retry_failed}
ACTIONS = "|".join(_ACTIONS)
"""What the URL of a batch's control may end with, as an alternative of a regular expression."""
