"""Pauses: what may not start calls now, as this process knows it, and what Redis has yet to be told of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from time import monotonic

from msgspec import Struct

from callmill.errors import RedisUnavailableError
from callmill.limits.key_ring import KeyRing
from callmill.limits.layout import Layout
from callmill.limits.store import Claim, Grant, LimitStore

LONGEST_PAUSE_S = 100 * 365 * 86400.0
WHOLE_API = ""
AGREED_S = 0.1
"""Pauses that end as close together as this are one."""


class Pause(Struct):
    """One pause; times are those of ``time.monotonic()``.

    Attributes:
        said: When the reason for it was given.
        known_from: Since when Redis knows of it; None: it has to be told.
        claim: What was asked for beyond that; Redis says whether it is believed.
        guessed_s: So much of it, at its end, nobody asked for.
        refused: The class of the call that was refused.
    """

    said: float
    until: float
    reason: str
    known_from: float | None
    claim: Claim | None = None
    guessed_s: float = 0.0
    refused: str = ""


class Pauses:
    """The pauses of one API: of all of it (''), of a model ('model:NAME'), of a credential ('key:NAME')."""

    def __init__(
        self,
        store: LimitStore,
        ring: KeyRing,
        layouts: Callable[[], Iterable[Layout]],
        *,
        on_paused: Callable[[str], None],
        on_resumed: Callable[[str], None],
    ) -> None:
        self._store = store
        self._ring = ring
        self._layouts = layouts
        self._on_paused = on_paused
        self._on_resumed = on_resumed
        self._pauses: dict[str, Pause] = {}

    def in_force(self) -> list[str]:
        """The scopes that are paused, as Redis knows."""
        now = monotonic()
        return [
            scope
            for scope, pause in self._pauses.items()
            if pause.until > now and pause.known_from is not None and pause.known_from <= now
        ]

    def of(self, scope: str) -> Pause | None:
        """The pause in force, if there is one."""
        pause = self._pauses.get(scope)
        return pause if pause is not None and pause.until > monotonic() else None

    def hold(
        self,
        seconds: float,
        reason: str,
        scope: str = WHOLE_API,
        *,
        told: bool = False,
        claim: Claim | None = None,
        guessed_s: float = 0.0,
        refused: str = "",
    ) -> None:
        """Start nothing here for ``seconds``; what is paused for longer stays so."""
        now = monotonic()
        until = now + min(seconds, LONGEST_PAUSE_S)
        current = self.of(scope)
        if current is None or until > current.until + (AGREED_S if told else 0.0):
            self._pauses[scope] = Pause(now, until, reason, now if told else None, claim, guessed_s, refused)
            self._apply(scope, until, reason)
        elif told and until >= current.until - AGREED_S:
            current.known_from = now

    def resume(self, scope: str = WHOLE_API) -> None:
        """Start calls again here."""
        if self._pauses.pop(scope, None) is None and scope != WHOLE_API:
            return  # of the whole API, what answers blocked without a pause is free now
        kind, _, name = scope.partition(":")
        if kind == "key" and name in self._ring.names:
            self._ring.take_back(self._ring.names.index(name))
        self._on_resumed(scope)

    def until(self, model_scope: str) -> float:
        """Until when calls of a model ('model:NAME', '' for none) are paused; a time that has passed: they are not."""
        pauses = (self._pauses.get(scope) for scope in {WHOLE_API, model_scope})
        return max((pause.until for pause in pauses if pause is not None), default=0.0)

    async def tell(self) -> None:
        """Tell Redis the pauses that it does not know; what was resumed since they began goes on here as well.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; they are told later.
        """
        for scope, pause in list(self._pauses.items()):
            now = monotonic()
            left_s = pause.until - now
            if left_s <= 0:
                del self._pauses[scope]
            elif pause.known_from is None:
                pause.known_from = math.inf  # being told: once is enough
                try:
                    is_paused = await self._store.pause(
                        list(self._layouts()),
                        left_s,
                        pause.reason,
                        scope,
                        said_s=now - pause.said,
                        claim=pause.claim,
                        guessed_s=pause.guessed_s,
                        refused=pause.refused,
                    )
                except RedisUnavailableError:
                    pause.known_from = None
                    raise
                pause.known_from = monotonic()
                if not is_paused and self._pauses.get(scope) is pause:
                    self.resume(scope)

    def heard(self, layout: Layout, grant: Grant, sent: float, here: float) -> None:
        """An exchange told which pauses are in force; ``sent``, ``here``: when it was asked, and when it answered."""
        told = [(WHOLE_API, grant.pause_us, grant.pause_reason)]
        told += [(scope, us, reason) for scope, (us, reason) in zip(layout.scopes, grant.scopes, strict=False) if scope]
        for scope, left_us, reason in told:
            if left_us:
                self.hold(here + left_us / 1e6 - monotonic(), reason, scope, told=True)
            elif (current := self.of(scope)) and _ended_meanwhile(current, sent):
                self.resume(scope)  # and the message was lost

    def _apply(self, scope: str, until: float, reason: str) -> None:
        kind, _, name = scope.partition(":")
        if kind == "key" and name in self._ring.names:
            self._ring.set_aside(self._ring.names.index(name), until, reason)
        self._on_paused(scope)


def _ended_meanwhile(pause: Pause, asked: float) -> bool:
    """Whether somebody ended a pause, if Redis, asked at that time, knows nothing of it."""
    return pause.known_from is not None and asked > pause.known_from and pause.until > monotonic() + AGREED_S
