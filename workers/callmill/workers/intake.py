"""Intake: how much work a lane takes in, and in which way its calls get their slots."""

from __future__ import annotations

import asyncio

from callmill.config.limit_spec import Unit
from callmill.limits import Limiter, LimitRules
from callmill.workers.fair_queue import ClassLine, FairQueue

_RATE_FOR_S = 0.05
"""How long the rate that was granted lately is taken for the rate now."""

_AHEAD_S = 2.0
"""Work that a paced lane takes in ahead, in seconds of what each class gets: longer than a queue takes to be consumed
again."""


class Intake:
    """What follows from a lane's limits, which may be changed at run time, for the work that it takes in.

    Attributes:
        paced: Whether limits decide when calls start.
        slot_first: Whether a slot is for any call: then it is acquired first, and the call chosen when it may start.
    """

    def __init__(self, limiter: Limiter, queue: FairQueue, *, max_in_flight: int) -> None:
        self._limiter = limiter
        self._queue = queue
        self._max_in_flight = max_in_flight
        self._now = asyncio.get_running_loop().time
        self._rules: LimitRules | None = None
        self._rate, self._rate_read_s = 0.0, float("-inf")
        self.paced = self.slot_first = False
        self.adopt_rules()

    def adopt_rules(self) -> None:
        """Take note of the limits of now."""
        rules = self._limiter.rules
        if rules is self._rules:
            return
        specs = rules.all()
        self._rules, self.paced = rules, bool(specs) or rules.learned_pace
        self.slot_first = not (rules.limits_models or rules.learned_pace) and all(
            spec.unit is Unit.CONCURRENT for spec in specs
        )
        self._at_first = min((s.amount / s.window_s for s in specs if s.unit is Unit.REQUESTS), default=0.0)

    def has_room(self, line: ClassLine) -> bool:
        """Say whether more work of a class should be taken in: some seconds of what it gets, or what fits in flight."""
        self.adopt_rules()
        if not self.paced:
            return line.waiting < self._max_in_flight
        if not line.waiting:
            return True
        now_s = self._now()
        if now_s - self._rate_read_s > _RATE_FOR_S:
            self._rate, self._rate_read_s = self._limiter.status().rate or self._at_first, now_s
        rate = max(
            self._rate * self._queue.share(line), self._limiter.rate(line.traffic), line.pace.per_s(line.started, now_s)
        )
        return line.waiting < _AHEAD_S * rate
