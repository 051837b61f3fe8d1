"""Learning: what an API's refusals and the headers of its answers teach about its limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any, Literal

from msgspec.structs import replace

from callmill.config.cancelling import end_tasks
from callmill.errors import RedisUnavailableError, UnknownFormatError
from callmill.jobs.traffic import TrafficClass
from callmill.limits.control import current_states
from callmill.limits.easing import Easing
from callmill.limits.group import Group
from callmill.limits.layout import OF_API, learned_nodes
from callmill.limits.pauses import WHOLE_API, Pauses
from callmill.limits.permit_leases import PermitLeases
from callmill.limits.permits import UNLIMITED, Permits
from callmill.limits.refill import tell_if_died
from callmill.limits.rules import LimitRules
from callmill.limits.slots import Slot
from callmill.limits.store import Claim, Fact, LimitStore, Refusal
from callmill.limits.taken_lately import TakenLately, Untold

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_GUESS_S = 0.25, 60.0
"""Pauses after refusals that do not say how long: doubled with each one in a row."""

LEAST_PAUSE_S, PAUSE_CALLS = 0.05, 3
"""At a fast pace that is learned the first pause costs no more than so many calls, or is as short as this."""

LEAST_BELIEVED_S = 60.0
"""For so long one answer is believed by the class of calls that it told, though no window of the limits is as long."""

FORGOTTEN_S = 600.0
"""Refusals that are further apart are in no row."""

TELL_EVERY_S = 0.250
_WAVE_S = 0.020
"""Refusals that come so soon after the first one are told with it."""

_HEARD_S = 0.030
"""Until every worker has heard of a refusal, and what it changed."""

Cause = Literal["", "rate", "concurrency", "quota"]
"""What an API says there was too much of; empty: it does not say."""


class Learning:
    """Passes on what answers teach, each refusal at once and everything else a few times a second."""

    def __init__(
        self,
        store: LimitStore,
        pauses: Pauses,
        leases: PermitLeases,
        rules: Callable[[], LimitRules],
        keys: int,
        *,
        easing: Easing,
    ) -> None:
        self._store = store
        self._pauses = pauses
        self._leases = leases
        self._rules = rules
        self._tasks: set[asyncio.Task[None]] = set()
        self._facts: dict[tuple[str, str], tuple[float, Fact]] = {}
        self._refused_at = 0.0
        self._in_a_row, self._row_at = 0, 0.0
        self._paused = False
        self._telling = False
        self._in_flight = 0
        self._taken = TakenLately()
        self.untold = Untold(keys)
        self.easing = easing

    def refused(
        self,
        group: Group,
        slot: Slot,
        after_s: float | None,
        reason: str,
        *,
        cause: Cause,
        rate_per_s: float,
        witness: str = "",
    ) -> None:
        """The API refused a call because of its limits; ``rate_per_s``: how many of its group start a second.

        Refusals of calls that started before the last one are one event with it.
        """
        now, permits = monotonic(), self._leases.learner(slot.key)
        first, others = slot.start > self._refused_at, permits.used - (slot.permits is not None)
        if first:
            self.in_a_row(self._in_a_row + 1 if slot.start - self._row_at < FORGOTTEN_S else 1)
        in_flight = self._in_flight = min(self._in_flight, others)
        if first:
            self.in_background(self._store.publish(f"row {self._in_a_row}"))
        self.refused_class(group.layout.traffic)
        refused = str(group.layout.traffic)
        if not self._telling:
            self._telling = True
            learns = first and cause != "quota" and self._rules().learns
            refusal = self._refusal(group, slot, cause, permits, after_s or 0.0) if learns else None
            self.in_background(self._tell_refusal(refusal, slot, now, permits))
        permits.refused(others)
        slot.refused = True
        first_s = self._first_pause_s(rate_per_s * permits.workers)
        # 2.0 ** 1024 overflows, and an API that refuses for a day gets there.
        guess_s = min(first_s * 2.0 ** min(self._in_a_row - 1, 64), LONGEST_GUESS_S)
        if not after_s and self._in_a_row == 1 and permits.learns and in_flight:
            self._paused = False
            return  # others take its place as they end, and Redis says how many there may be
        self._paused = True
        window_s, asked_s = group.layout.plausible_pause_s(slot.key + 1), after_s or 0.0
        believed_s = min(asked_s, max(window_s, LEAST_BELIEVED_S))
        pause_s = max(believed_s, guess_s if not after_s or self._in_a_row > 1 else 0.0)
        claim = Claim(now + after_s, slot.start, witness) if after_s and after_s > pause_s else None
        # Now: the next call may start before any task runs.
        guessed_s = pause_s - min(asked_s, window_s)  # beyond that, calls of other classes may show that it is not so
        self._pauses.hold(pause_s, reason, _whom(group, slot), claim=claim, guessed_s=guessed_s, refused=refused)
        self.in_background(self._pauses.tell())

    def own(self, group: Group, slot: Slot, forgive_s: float | None) -> None:
        """The API refused a call, and that is no matter of its limits; what was learned since so long ago was wrong."""
        slot.refused = True
        if forgive_s is not None:
            nodes = [node for node in group.layout.nodes if node.owner <= OF_API or node.owner == slot.key + 1]
            if self._rules().learns_pace and not self._rules().learned_pace:
                nodes += learned_nodes(self._rules(), self._store.keys)
            self.in_background(self._store.forgive(nodes, forgive_s))

    def _first_pause_s(self, rate_per_s: float) -> float:
        """A pause costs calls: at a fast pace that is learned it is short."""
        if not self._rules().learned_pace or rate_per_s <= 0:
            return FIRST_PAUSE_S
        return max(LEAST_PAUSE_S, min(FIRST_PAUSE_S, PAUSE_CALLS / rate_per_s))

    def refused_class(self, traffic: TrafficClass) -> None:
        """A call of a class was refused: calls of others need not wait as long."""
        if self.easing.refused(str(traffic)):
            self.in_background(self._store.publish(f"refused {traffic}"))

    def accepted(self, slot: Slot) -> bool:
        """The API took a call: refusals before it are over; say whether there were any."""
        self._taken.add(monotonic())
        self.untold.add(slot.key)
        if self.easing.refused_classes and slot.group is not None:
            self.easing.taken(str(slot.group.layout.traffic))
        if not self._in_a_row:
            return False
        if slot.start > self._refused_at:
            self.in_a_row(0)
            self.in_background(self._store.taken("" if slot.group is None else _whom(slot.group, slot)))
        return True

    def heard(self, refusals: int) -> None:
        """A worker, perhaps this one, tells how many waves of refusals came one after the other."""
        if not refusals or refusals != self._in_a_row:
            self.in_a_row(refusals)

    def heard_late(self) -> None:
        """Take a refusal that came before this process did as the first of a row."""
        if not self._in_a_row:
            self.in_a_row(1)

    def heard_pause(self) -> None:
        """The API is paused: where that is because it refused calls, one call asks whether it takes some again."""
        if self._in_a_row and not self._paused:
            self._paused = True
            self._leases.try_with(1)

    def in_a_row(self, refusals: int) -> None:
        """So many waves of refusals came one after the other, here or elsewhere; 0: the API takes calls again."""
        self._in_a_row, self._row_at = refusals, monotonic()
        if refusals:
            self._refused_at, self._in_flight = self._row_at + _HEARD_S, UNLIMITED
        if not refusals:
            self.easing.over()
            if self._paused:
                self._paused = False
                self._leases.try_with(UNLIMITED)

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

    def _refusal(self, group: Group, slot: Slot, cause: Cause, permits: Permits, asked_s: float) -> Refusal:
        """What is known when a call is refused; the rest shows when its wave is over."""
        begins = None
        if self._rules().learns_pace:
            nodes = learned_nodes(self._rules(), self._store.keys)
            begins = next(node for node in nodes if node.owner in {OF_API, slot.key + 1})
        return Refusal(
            layout=group.layout,
            key=slot.key + 1,
            scope=permits.scope,
            permits=permits.granted if permits.learns else 0,
            workers=permits.workers,
            what=cause,
            in_a_row=self._in_a_row,
            crowded=self._leases.is_crowded(permits),
            wanted=group.calls.wanting + group.backlog() > 0,
            asked_s=asked_s,
            begins=begins,
        )

    async def _tell_refusal(self, refusal: Refusal | None, slot: Slot, refused_at: float, permits: Permits) -> None:
        await asyncio.sleep(_WAVE_S)
        self._telling = False
        try:
            if refusal is not None:
                now = monotonic()
                refusal.started_s, refusal.refused_s = now - slot.start, now - refused_at
                refusal.in_flight, refusal.taken = self._in_flight, self._untold(slot, permits)
                refusal.taken_per_s = self._taken.per_s(now, self._in_flight)
                if await self._store.refused(refusal):
                    self.in_background(self._log_learned())
        finally:
            # Of every credential: others were refused in the same wave, and nobody else lets them go on.
            if self._paused and self._in_a_row:
                self._leases.try_with(1)
                self._leases.sync()
            else:
                self._leases.lift()

    async def _log_learned(self) -> None:
        api, limits = self._store.name, self._rules().limits
        with suppress(UnknownFormatError):
            (state,) = await current_states(self._store.redis, [api])
            for found in state.learned:
                log.warning("%s", found.in_one_line(api, limits), extra={"action": "limit_learned", "api": api})

    def _untold(self, slot: Slot, permits: Permits) -> int:
        """Calls that the API took and that neither a request for slots nor a renewal of permits has told of."""
        paced = self._rules().learned_pace or self._rules().has_pace
        return self.untold.pop(slot.key) if paced else permits.answers.count

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
    if fact.kind == "block":
        return replace(fact, first=fact.first - age_us, second=age_us)
    return replace(fact, first=fact.first - age_us) if fact.kind == "aligned" else fact


def _whom(group: Group, slot: Slot) -> str:
    """What a refusal is about, as far as can be told: one credential of several, a model, or the whole API."""
    model, *keys = group.layout.scopes
    if len(keys) > 1:
        return keys[slot.key]
    return model or WHOLE_API
