"""What a lane tells of itself."""

from __future__ import annotations

from callmill.ledger.fleet import KeyStatus, LaneStatus
from callmill.limits import LimiterStatus
from callmill.workers.breaker_gate import BreakerGate


def lane_report(
    api: str,
    limiter: LimiterStatus,
    breaker: BreakerGate,
    *,
    in_flight: int,
    waiting: int,
    served_by: str,
    most_in_flight: int,
    held: str,
) -> LaneStatus:
    """Return what a lane is doing now.

    Args:
        api: The API.
        limiter: What its limiter does.
        breaker: Its breaker.
        in_flight: Calls under way.
        waiting: Calls that wait.
        served_by: Who makes its calls.
        most_in_flight: The maximum of calls under way.
        held: Why it is held; empty if it is not.
    """
    return LaneStatus(
        api=api,
        in_flight=in_flight,
        waiting=waiting,
        next_start_s=limiter.next_start_in_s,
        paused_s=limiter.paused_for_s,
        pause_reason=limiter.pause_reason,
        limited_by=limiter.limited_by if waiting else None,
        rate=limiter.rate,
        permits=limiter.permits,
        granted=limiter.granted,
        slots_missed=limiter.slots_missed,
        round_trips=limiter.round_trips,
        guard_s=limiter.guard_s,
        lateness_s=limiter.lateness_s,
        way_s=limiter.way_s,
        limits_generation=limiter.generation,
        keys=[KeyStatus(name=key.name, paused_s=key.paused_s, reason=key.reason) for key in limiter.keys],
        breaker=breaker.view.state.value,
        breaker_reason=breaker.view.reason or None,
        next_probe_s=None if breaker.closed else breaker.probe_in_s,
        retries_held=breaker.retries.wanted,
        diverted_to=None if served_by == api else served_by,
        most_in_flight=most_in_flight,
        held=held,
    )
