"""Tally: what the calls of one API came to in this process since the last report.

What is noted for a call is as little as can be: the rest is worked out once a second, when the counts are taken.
"""

from __future__ import annotations

from collections import Counter

from callmill.ledger.latency import count_buckets
from callmill.workers.throttling import Throttled
from callmill.workers.transports.port import Response
from callmill.workers.verdict import Failed, Retryable, Verdict

_MOST_TIMES = 10_000
"""Times that wait to be worked out: in a worker of somebody else's nobody ever takes the counts."""

CUT_OFF, BUG = "cut_off", "internal"
_STATUS_CLASSES = {number: f"{number}xx" for number in range(1, 6)}


class Tally:
    """Counts of one lane. Belongs to one event loop.

    Attributes:
        calls: Calls started since ever.
        tokens: What calls cost since the last report.
    """

    __slots__ = ("_counts", "_latencies_us", "_results", "_taken", "_waits_us", "calls", "tokens")

    def __init__(self) -> None:
        self.calls = self.tokens = 0
        self._results: dict[int | str, int] = {}
        self._latencies_us: list[int] = []
        self._waits_us: list[int] = []
        self._counts: Counter[str] = Counter()
        self._taken = 0

    def started(self, waited_s: float) -> None:
        """Count a call that starts; ``waited_s``: how long the limiter let it wait."""
        self.calls += 1
        if waited_s:
            self._waits_us.append(int(waited_s * 1e6))

    def ended(self, verdict: Verdict, answer: Response | None, latency_us: int) -> None:
        """Count a call that ended."""
        if type(verdict) is Throttled:
            result: int | str = 429
            self._counts["throttled"] += 1
        elif answer is not None:
            result = answer.status
        else:
            result = verdict.code if isinstance(verdict, Failed | Retryable) else BUG
        results = self._results
        results[result] = results.get(result, 0) + 1
        self._latencies_us.append(latency_us)
        if len(self._latencies_us) >= _MOST_TIMES or len(self._waits_us) >= _MOST_TIMES:
            self._work_out()

    def broken_off(self, result: str) -> None:
        """Count a call of which nobody knows what became of it."""
        self._results[result] = self._results.get(result, 0) + 1

    def again(self, *, spends_attempt: bool) -> None:
        """Count that a call wants another attempt."""
        self._counts["retries"] += spends_attempt

    def recorded(self, succeeded: int, failed: int) -> None:
        """Count outcomes that are in the ledger."""
        self._counts["succeeded"] += succeeded
        self._counts["failed"] += failed

    def take(self) -> Counter[str]:
        """Return what was counted since the last time, as ``lua/report.lua`` has it, and begin anew."""
        self._work_out()
        counts, self._counts = self._counts, Counter()
        results, self._results = self._results, {}
        for result, calls in results.items():
            counts["calls"] += calls
            counts[f"r:{_class_of(result)}"] += calls
        counts["tokens"] += self.tokens
        self.tokens = 0
        return +counts

    def _work_out(self) -> None:
        _count_times(self._counts, "latency_us", "l", self._latencies_us)
        _count_times(self._counts, "wait_us", "w", self._waits_us)
        self._counts["w:0"] += self.calls - self._taken - len(self._waits_us)
        self._taken = self.calls
        self._latencies_us, self._waits_us = [], []


def _class_of(result: int | str) -> str:
    if isinstance(result, str) or result == 429:
        return str(result)
    return _STATUS_CLASSES.get(result // 100, "other")


def _count_times(counts: Counter[str], total: str, kind: str, times_us: list[int]) -> None:
    counts[total] += sum(times_us)
    for bucket, calls in count_buckets(times_us).items():
        counts[f"{kind}:{bucket}"] += calls
