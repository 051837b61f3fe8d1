"""Easing: pauses that nobody asked for end early for calls of classes that were not refused.

After refusals that do not say for how long, pauses grow, up to a minute. They may be the matter of one tenant's calls.
So a call of another class need not wait for their end: it soon shows whether the API takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from callmill.errors import RedisUnavailableError
from callmill.limits.pauses import Pauses
from callmill.limits.refill import tell_if_died
from callmill.limits.store import LimitStore

EASED_AFTER_S = 0.5
FREELY_EASED = 8
"""While more classes were refused in the row, others wait longer, in proportion: the API itself may refuse."""


class Easing:
    """Watches the pauses of one API. Belongs to one event loop.

    Attributes:
        refused_classes: Those of which calls were refused, and none was taken since.

    Args:
        store: The limiter's state.
        pauses: Those pauses.
        on_waiting: Called when such calls wait, before a pause ends.
        other_waiting: Given a scope and the refused classes, returns another class whose calls wait there; None: none.
        on_refused: Called when Redis tells of a refusal that this process has not heard of.
    """

    def __init__(
        self,
        store: LimitStore,
        pauses: Pauses,
        other_waiting: Callable[[str, frozenset[str]], str | None],
        *,
        on_waiting: Callable[[], None],
        on_refused: Callable[[], None],
    ) -> None:
        self._store = store
        self._pauses = pauses
        self._on_waiting, self._on_refused = on_waiting, on_refused
        self._other_waiting = other_waiting
        self.refused_classes: frozenset[str] = frozenset()
        self._firm: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def refused(self, traffic: str) -> bool:
        """A call of a class was refused, here or elsewhere; say whether that is the first of its class in the row."""
        is_new = traffic not in self.refused_classes
        if is_new:
            self.refused_classes |= {traffic}
        return is_new

    def taken(self, traffic: str) -> None:
        """A call of a class was taken."""
        self.refused_classes -= {traffic}

    def is_refused(self, traffic: str) -> bool:
        """Say whether a call of a class was refused in the row."""
        return traffic in self.refused_classes

    def others_wait(self, scope: str) -> bool:
        """Say whether calls of a scope wait whose class was not refused."""
        return self._other_waiting(scope, self.refused_classes) is not None

    def over(self) -> None:
        """The API takes calls again."""
        self.refused_classes = frozenset()

    def look(self) -> None:
        """Calls came to wait, or a pause began: end it soon where that may be done."""
        if self._task is None and self._scopes():
            self._task = asyncio.ensure_future(self._run())
            self._task.add_done_callback(self._over)

    def paused(self, scope: str) -> None:
        """A pause of a scope began, or is another one than before."""
        self._firm.discard(scope)
        self.look()

    async def aclose(self) -> None:
        """Stop. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def _scopes(self) -> dict[str, str]:
        """What is paused, perhaps by a guess, each with a class that waits for its end."""
        scopes = {scope: self._other_waiting(scope, self.refused_classes) for scope in self._pauses.in_force()}
        return {scope: waits for scope, waits in scopes.items() if waits is not None and scope not in self._firm}

    async def _run(self) -> None:
        while scopes := self._scopes():
            least_s = EASED_AFTER_S * max(1.0, len(self.refused_classes) / FREELY_EASED)
            waits_us = [await self._ease(scope, least_s, waits) for scope, waits in scopes.items()]
            if (soonest_us := min(waits_us)) > 0:
                await asyncio.sleep(soonest_us / 1e6)

    async def _ease(self, scope: str, least_s: float, waits: str) -> int:
        """End a pause if that may be done; return us until it may be tried again."""
        try:
            left_us, refused = await self._store.ease(scope, least_s, waits)
        except RedisUnavailableError:
            return int(least_s * 1e6)
        if refused:
            self._told_of(refused)
            self._on_waiting()
        if left_us < 0:
            self._firm.add(scope)
        elif left_us == 0:
            self._pauses.resume(scope)
        return 0 if refused == waits else max(0, left_us)  # it is not for calls of that class to ask

    def _told_of(self, refused: str) -> None:
        if not self.refused_classes:
            self._on_refused()
        self.refused(refused)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._task = None
        tell_if_died(task)
