"""Group: the calls of one class of traffic and one model, that share a line and the limits that hold for them."""

from __future__ import annotations

import asyncio
import logging

from callmill.config.cancelling import end_tasks
from callmill.limits.layout import Layout
from callmill.limits.refill import Refill
from callmill.limits.slots import Dispatcher

log = logging.getLogger(__name__)


class Group:
    """One line of calls: who waits, what is granted, and the task that reserves more."""

    def __init__(self, layout: Layout, dispatcher: Dispatcher, refill: Refill) -> None:
        self.layout = layout
        self.dispatcher = dispatcher
        self.refill = refill
        self._task: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits, is held or is owed."""
        return not self.dispatcher.waiting and not self.dispatcher.held and self.refill.idle

    @property
    def next_start(self) -> float | None:
        """When the next call that waits will start, as far as is known."""
        held = self.dispatcher.next_start
        return held if held is not None or not self.dispatcher.waiting else self.refill.upcoming

    def start(self) -> None:
        """Reserve slots from now on."""
        self._task = asyncio.create_task(self.refill.run())
        self._task.add_done_callback(tell_if_died)

    def use(self, layout: Layout) -> None:
        """Let other limits hold from now on; what waits goes on waiting, what is granted stays granted."""
        self.layout = layout
        self.refill.use(layout)
        self.refill.forget_guard()
        self.dispatcher.paced = bool(layout.nodes)
        self.refill.sync(ask_again=True)
        self.dispatcher.dispatch()

    async def aclose(self) -> None:
        """Stop; what waits is cancelled, what is owed reaches Redis if it can. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks([task])
        self.dispatcher.close()
        if task is not None:
            await self.refill.exchange()


def tell_if_died(task: asyncio.Task[None]) -> None:
    """Log the bug that ended a task that nobody awaits: its calls would wait without anybody knowing why."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a part of the limiter died", exc_info=error, extra={"action": "limiter_died"})
