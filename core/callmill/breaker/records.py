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


class BreakerRules(Struct, frozen=True, kw_only=True):
    """When a breaker opens, and how many retries an API takes.

    Attributes:
        errors: Share of failed calls that opens it; above 1: none does.
        calls: Calls within the window that tell something.
        window_s: Seconds over which calls are counted.
        streak: Failures in a row that open it however few the calls are; 0: none do.
        probe_s: Seconds until the first probe, doubled with every one that fails.
        cap_s: Seconds that a wait never exceeds.
        retry_share: The part of all calls that may be retries while the API fails; 1: any.
    """

    errors: float = 0.5
    calls: int = 20
    window_s: float = 10.0
    streak: int = 4
    probe_s: float = 2.0
    cap_s: float = 60.0
    retry_share: float = 0.2

    def opens(self, ok: int, bad: int, streak: int, streak_s: float) -> bool:
        """Say whether such calls open the breaker; the same rule as in ``lua/exchange.lua``."""
        shared = ok + bad >= self.calls and bad >= self.errors * (ok + bad)
        return bad > 0 and (shared or (0 < self.streak <= streak and streak_s >= STREAK_S))


STREAK_S = 1.0
"""A streak that is shorter than this may be chance: many calls may have failed at one moment for one reason."""


class Report(Struct, kw_only=True):
    """What happened in one process since its last exchange.

    Attributes:
        ok: Calls that the API answered.
        bad: Calls that failed.
        streak: Failures since the last call that the API answered, and seconds since the first of them.
        why: What the last failure was.
        calls: Calls started.
        failed: Calls that another attempt may mend.
        retries_wanted: Retries that wait for the budget.
        probes_good: Probes that the API answered.
        probes_bad: Probes that failed.
        probing: Whether probes are under way, or about to start.
        would_probe: Whether a call waits that could be the probe.
    """

    ok: int = 0
    bad: int = 0
    streak: int = 0
    streak_s: float = 0.0
    why: str = ""
    calls: int = 0
    failed: int = 0
    retries_wanted: int = 0
    probes_good: int = 0
    probes_bad: int = 0
    probing: bool = False
    would_probe: bool = False


class BreakerView(Struct, frozen=True, kw_only=True):
    """An API's breaker as it was at the last exchange.

    Attributes:
        epoch: Another number after every change of the state but to half-open and back.
        ok: Calls of the whole fleet, within the window, that the API answered.
        bad: Those that failed.
        streak: Failures in a row, and seconds since the first of them.
        probe_in_s: Seconds until the next probe; 0 when closed.
        probes: Calls that this process may make now to try the API.
        retries: Retries that this process may make.
        reason: Why it is not closed; empty where it is.
    """

    state: BreakerState = BreakerState.CLOSED
    epoch: int = 0
    ok: int = 0
    bad: int = 0
    streak: int = 0
    streak_s: float = 0.0
    probe_in_s: float = 0.0
    probes: int = 0
    retries: int = 0
    reason: str = ""
