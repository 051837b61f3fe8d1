"""Intake: how much work a lane takes in."""

from __future__ import annotations

import asyncio

from callmill.config.limit_spec import Unit
from callmill.limits import Limiter, LimitRules
from callmill.workers.fair_queue import ClassQueue, FairQueue

_RATE_FOR_S = 0.05
"""How long the rate that was granted lately is taken for the rate now."""

_AHEAD_S = 2.0
"""Work that a paced lane takes in ahead, in seconds of what each class gets: longer than a queue takes to be consumed
again."""


class Intake:
    """What follows from a lane's limits, which may be changed at run time, for the work that it takes in.

    Attributes:
        paced: Whether limits decide when calls start.
    """

    def __init__(self, limiter: Limiter, queue: FairQueue, *, max_in_flight: int) -> None:
        self._limiter = limiter
        self._queue = queue
        self._max_in_flight = max_in_flight
        self._now = asyncio.get_running_loop().time
        self._rules: LimitRules | None = None
        self._rate, self._rate_read_s = 0.0, float("-inf")
        self.paced = False
        self.adopt_rules()

    def adopt_rules(self) -> None:
        """Take note of the limits of now."""
        rules = self._limiter.rules
        if rules is self._rules:
            return
        specs = rules.all()
        self._rules, self.paced = rules, bool(specs) or rules.learned_pace
        self._at_first = min((s.amount / s.window_s for s in specs if s.unit is Unit.REQUESTS), default=0.0)

    def has_room(self, waiting: ClassQueue) -> bool:
        """Say whether more work of a class should be taken in: some seconds of what it gets, or what fits in flight."""
        if not self.paced:
            return len(waiting) < self._max_in_flight
        if not len(waiting):
            return True
        now_s, traffic = self._now(), waiting.traffic
        if now_s - self._rate_read_s > _RATE_FOR_S:
            self._rate, self._rate_read_s = self._limiter.rate() or self._at_first, now_s
        rate = max(
            self._rate * self._queue.share(traffic),
            self._limiter.rate(traffic),
            waiting.pace.per_s(self._limiter.started(traffic), now_s),
        )
        return len(waiting) < _AHEAD_S * rate
