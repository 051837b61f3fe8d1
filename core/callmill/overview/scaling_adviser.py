"""ScalingAdviser: the number of worker processes that counts now, looked at again and again."""

from __future__ import annotations

from msgspec import Struct

from callmill.overview.scaling_window import DOWN_AFTER_S, ScalingWindow
from callmill.overview.workers_wanted import ApiWanted, FleetLoad, ScalingRules, workers_wanted


class ScalingAdvice(Struct, frozen=True, kw_only=True):
    """How many worker processes there should be.

    Attributes:
        wanted: That number; it goes up at once, and down when fewer were enough for a while.
        wanted_now: What is wanted at this moment alone.
        why: In a few words.
        workers: Processes that take work now.
        cpu_us_per_call: What a call is taken to cost, in CPU microseconds.
    """

    wanted: int
    wanted_now: int
    why: str
    workers: int
    cpu_us_per_call: float
    apis: list[ApiWanted]


class ScalingAdviser:
    """Says how many there should be, and remembers what it said.

    Args:
        rules: What is aimed at.
        down_after_s: Fewer are enough when they were all through this time.
    """

    def __init__(self, rules: ScalingRules, down_after_s: float = DOWN_AFTER_S) -> None:
        self._rules = rules
        self._window = ScalingWindow(down_after_s)
        self._down_after_s = down_after_s

    def advise(self, load: FleetLoad, now_s: float) -> ScalingAdvice:
        """Return the number for a load; ``now_s``: seconds, from any beginning."""
        now = workers_wanted(load, self._rules)
        running = load.workers if self._rules.most is None else min(load.workers, self._rules.most)
        wanted = self._window.steady(now.wanted, now_s, running=running)
        later = f"; {wanted} until fewer were enough for {self._down_after_s:g} s" if wanted > now.wanted else ""
        return ScalingAdvice(
            wanted=wanted,
            wanted_now=now.wanted,
            why=now.why + later,
            workers=now.workers,
            cpu_us_per_call=now.cpu_us_per_call,
            apis=now.apis,
        )
