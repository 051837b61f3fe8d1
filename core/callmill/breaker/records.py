"""What a process tells of its calls, and what it learns of their API."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class BreakerState(StrEnum):
    """Whether calls of an API may start."""

    CLOSED = "closed"
    """They may."""
    OPEN = "open"
    """The API is down: none may."""
    HALF_OPEN = "half-open"
    """One process tries whether it is up again."""


class Evidence(Struct, frozen=True, kw_only=True):
    """What calls prove about their API.

    Attributes:
        ok: Calls that the API answered.
        bad: Calls that the API could not serve; answers count once per job.
        streak: Such failures since the last answered call, and seconds since the first of them.
        witnesses: Different jobs among them; a failed connection counts as ``WITNESSES``, as no job causes it.
        doubts: Different jobs that failed since the last answered call in ways that may be their own fault.
    """

    ok: int = 0
    bad: int = 0
    streak: int = 0
    streak_s: float = 0.0
    witnesses: int = 0
    doubts: int = 0


class BreakerRules(Struct, frozen=True, kw_only=True):
    """When a breaker opens, and how many retries an API takes.

    Attributes:
        errors: Share of calls the API could not serve that opens it; above 1: never.
        calls: Calls within the window that tell something.
        window_s: Seconds over which calls are counted.
        streak: Calls in a row the API could not serve that open it, however few there are; 0: never.
        jobs: It opens when more different jobs than this fail in a row in ways that may be their own fault; 0: never.
        probe_s: Seconds until the first probe, doubled with every one that fails.
        cap_s: Seconds that a wait never exceeds.
        retry_share: The part of all calls that may be retries while the API fails; 1: any.
    """

    errors: float = 0.5
    calls: int = 20
    window_s: float = 10.0
    streak: int = 4
    jobs: int = 64
    probe_s: float = 2.0
    cap_s: float = 60.0
    retry_share: float = 0.2

    def opens(self, seen: Evidence) -> bool:
        """Say whether this evidence opens the breaker; the same rule as in ``lua/exchange.lua``."""
        all_calls = seen.ok + seen.bad
        shared = 0 < seen.bad >= self.errors * all_calls and all_calls >= self.calls
        streak = 0 < self.streak <= seen.streak and seen.streak_s >= STREAK_S and seen.witnesses >= WITNESSES
        return shared or streak or 0 < self.jobs < seen.doubts


STREAK_S = 1.0
"""A streak that is shorter than this may be chance: many calls may have failed at one moment for one reason."""

WITNESSES = 2
"""Different jobs that a streak must consist of: one job alone proves nothing about its API."""


class Report(Struct, kw_only=True):
    """What happened in one process since its last exchange.

    The first six are evidence, as in ``Evidence``.

    Attributes:
        settled: Jobs that failed for good after retries: the fault was theirs, so they no longer count as doubts.
        why: What the last failure was.
        calls: Calls started.
        failed: Calls that another attempt may mend.
        retries_wanted: Retries that wait for the budget.
        probes_good: Probes that the API answered.
        probes_bad: Probes that the API could not serve.
        probes_doubtful: Probes that failed in a way that may be the job's fault.
        probing: Whether probes are under way, or about to start.
        would_probe: Whether a call waits that could be the probe.
        probe_is_new: Whether one waits whose batch or class has not failed here: it need not wait long.
    """

    ok: int = 0
    bad: int = 0
    streak: int = 0
    streak_s: float = 0.0
    witnesses: int = 0
    doubts: int = 0
    settled: int = 0
    why: str = ""
    calls: int = 0
    failed: int = 0
    retries_wanted: int = 0
    probes_good: int = 0
    probes_bad: int = 0
    probes_doubtful: int = 0
    probing: bool = False
    would_probe: bool = False
    probe_is_new: bool = False


class BreakerView(Evidence, frozen=True, kw_only=True):
    """An API's breaker as it was at the last exchange, with the evidence of the whole fleet.

    Attributes:
        epoch: Another number after every change of the state but to half-open and back.
        probe_in_s: Seconds until the next probe; 0 when closed.
        probes: Calls that this process may make now to try the API.
        retries: Retries that this process may make.
        reason: Why it is not closed; empty where it is.
    """

    state: BreakerState = BreakerState.CLOSED
    epoch: int = 0
    probe_in_s: float = 0.0
    probes: int = 0
    retries: int = 0
    reason: str = ""
