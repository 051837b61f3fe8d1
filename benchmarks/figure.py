"""Figure: one measured number, what it is held against, and the verdict."""

from __future__ import annotations

from statistics import median
from typing import Literal

from machine import Load
from msgspec import Struct

MISSED = "MISSED"
NOT_USABLE = "NOT USABLE"

MOST_DRIFT = 0.10
"""By how much the slowest run of a baseline may differ from the fastest."""

MOST_STOLEN = 0.02
MOST_OTHERS_CORES = 0.05

_COUNTED = frozenset({"B", "MB", "jobs", "outcomes", "calls", "keys"})
"""Units of what is counted: that is no less true on a busy machine."""


class Figure(Struct, frozen=True, kw_only=True):
    """One measured number.

    Attributes:
        name: What was measured.
        unit: What the runs are counted in.
        runs: What each run measured, in order.
        baseline_name: What it is compared with.
        baseline_runs: What the baseline took; each run stands beside its neighbour in ``runs``.
        judged: Which of the two ``must`` and ``aim`` speak of.
        better: Which way is better.
        must: Bound that has to hold; None for a figure that only informs.
        aim: Bound that is wished for.
        must_each: Bound that has to hold for every single run too; None where the median speaks for all.
        note: What else was seen, in a few words.
        doubt: What the benchmark itself saw that makes its runs useless; empty: nothing.
        load: What the machine did meanwhile; None where nobody looked.
    """

    name: str
    unit: str
    runs: tuple[float, ...]
    baseline_name: str = ""
    baseline_runs: tuple[float, ...] = ()
    judged: Literal["value", "ratio"] = "value"
    better: Literal["lower", "higher"] = "lower"
    must: float | None = None
    aim: float | None = None
    must_each: float | None = None
    note: str = ""
    doubt: str = ""
    load: Load | None = None

    @property
    def value(self) -> float:
        """The median of the runs."""
        return median(self.runs)

    @property
    def baseline(self) -> float | None:
        """The median of the baseline's runs; None when there is none."""
        return median(self.baseline_runs) if self.baseline_runs else None

    @property
    def ratio(self) -> float | None:
        """The median of the ratios of neighbouring runs: a slow minute of the machine slows both."""
        if not self.baseline_runs:
            return None
        return median(run / baseline for run, baseline in zip(self.runs, self.baseline_runs, strict=True))

    @property
    def drift(self) -> float:
        """By how much the runs of the baseline differ, as a share of the least; 0 where there are not two."""
        return max(self.baseline_runs) / min(self.baseline_runs) - 1 if self.baseline_runs else 0.0

    @property
    def disturbances(self) -> list[str]:
        """Why the runs say nothing; empty where they can be used."""
        if self.unit in _COUNTED:
            return []
        load = self.load or Load(busy=0, stolen=0, others_cores=0)
        looked_at = (
            (self.drift, MOST_DRIFT, "baseline drifted {:.0f} %"),
            (load.stolen, MOST_STOLEN, "{:.0f} % of the time was stolen"),
            (load.others_cores, MOST_OTHERS_CORES, "other programs used {:.0f} % of a core"),
        )
        seen_beside = [words.format(seen * 100) for seen, most, words in looked_at if seen > most]
        return [*filter(None, [self.doubt]), *seen_beside]

    @property
    def verdict(self) -> str:
        """What the bounds say: MISSED, "must" (met), "aim" (met too), or nothing where there is no bound.

        A run that was disturbed says neither: NOT USABLE, and why.
        """
        if self.disturbances:
            return f"{NOT_USABLE}: {', '.join(self.disturbances)}"
        if self.must is None:
            return ""
        judged = self.value if self.judged == "value" else self.ratio
        if judged is None or not self._meets(judged, self.must):
            return MISSED
        if self.must_each is not None and not all(self._meets(run, self.must_each) for run in self.runs):
            return MISSED
        return "aim" if self.aim is not None and self._meets(judged, self.aim) else "must"

    def _meets(self, judged: float, bound: float) -> bool:
        return judged <= bound if self.better == "lower" else judged >= bound
