"""Learning: what an API's refusals and the headers of its answers teach about its limits."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any

from msgspec.structs import replace

from callmill.config.cancelling import end_tasks
from callmill.errors import RedisUnavailableError
from callmill.limits.group import Group, tell_if_died
from callmill.limits.pauses import WHOLE_API, Pauses
from callmill.limits.slots import Slot
from callmill.limits.store import Fact, LimitStore

FIRST_PAUSE_S, LONGEST_GUESS_S = 0.25, 60.0
"""Pauses after refusals that do not say how long: doubled with each one in a row."""

TELL_EVERY_S = 0.250


class Learning:
    """Passes on what answers teach, each refusal at once and everything else a few times a second."""

    def __init__(self, store: LimitStore, pauses: Pauses) -> None:
        self._store = store
        self._pauses = pauses
        self._tasks: set[asyncio.Task[None]] = set()
        self._facts: dict[tuple[str, str], tuple[float, Fact]] = {}
        self._refused_at = 0.0
        self._in_a_row = 0

    def refused(self, group: Group, slot: Slot, after_s: float | None, reason: str, *, learn: bool) -> None:
        """The API refused a call because of its limits; ``learn``: because they come too fast.

        Refusals of calls that started before the last pause are one event with it.
        """
        now = monotonic()
        if slot.start > self._refused_at:
            self._in_a_row = self._in_a_row + 1 if slot.start - self._refused_at < LONGEST_GUESS_S else 1
            self._refused_at = now
            if learn and group.layout.nodes:
                self.in_background(self._store.throttled(group.layout, slot.key + 1, now - slot.start))
        if after_s is None:
            after_s = min(FIRST_PAUSE_S * 2.0 ** (self._in_a_row - 1), LONGEST_GUESS_S)
        if after_s > 0:
            self._pauses.hold(after_s, reason, _whom(group, slot))  # now: the next call may start before any task runs
            self.in_background(self._pauses.tell())

    def accepted(self, slot: Slot) -> None:
        """The API took a call: refusals before it are over."""
        if slot.start > self._refused_at:
            self._in_a_row = 0

    def take(self, facts: list[Fact]) -> None:
        """Pass on facts about limits soon; of two about the same the later one counts."""
        begin, now = not self._facts, monotonic()
        for fact in facts:
            self._facts[fact.node.key, fact.kind] = now, fact
        if begin and facts:
            self.in_background(self._tell_facts())

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that nobody waits for; where Redis is away, it is given up."""
        task = asyncio.ensure_future(_unless_away(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(tell_if_died)

    async def aclose(self) -> None:
        """Stop."""
        for task in list(self._tasks):
            await end_tasks([task])

    async def _tell_facts(self) -> None:
        await asyncio.sleep(TELL_EVERY_S)
        facts, self._facts = list(self._facts.values()), {}
        now = monotonic()
        aged = [_aged(fact, (now - since) * 1e6) for since, fact in facts]
        await self._store.feed([fact for fact in aged if fact.kind != "slow" or fact.second > 0])


async def _unless_away(work: Coroutine[Any, Any, None]) -> None:
    with suppress(RedisUnavailableError):
        await work


def _aged(fact: Fact, age_us: float) -> Fact:
    """The same fact, told later: its times count from when it is told."""
    if fact.kind == "slow":
        return replace(fact, second=fact.second - age_us)
    return replace(fact, first=fact.first - age_us) if fact.kind in {"block", "aligned"} else fact


def _whom(group: Group, slot: Slot) -> str:
    """What a refusal is about, as far as can be told: one credential of several, a model, or the whole API."""
    model, *keys = group.layout.scopes
    if len(keys) > 1:
        return keys[slot.key]
    return model or WHOLE_API
