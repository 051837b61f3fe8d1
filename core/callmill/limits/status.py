"""What a limiter tells about itself."""

from __future__ import annotations

from msgspec import Struct


class KeyStatus(Struct, frozen=True):
    """One credential of a pool.

    Attributes:
        name: What people call it.
        paused_s: Seconds until it is used again; 0 when it is in use.
        reason: Why it is set aside.
    """

    name: str
    paused_s: float = 0.0
    reason: str | None = None


class LimiterStatus(Struct, frozen=True):
    """What a limiter does now, as this process sees it.

    Attributes:
        waiting: Calls that wait for a slot.
        held: Slots granted and not yet due.
        granted: Slots granted since the start.
        fired: Slots given to calls since the start.
        slots_missed: Slots dropped because this process was late, though a call waited: host noise, lost rate.
        round_trips: Exchanges with Redis since the start.
        next_start_in_s: Seconds until the next call starts; None when nothing waits, or nobody knows.
        paused_for_s: Seconds of pause left; 0 when not paused.
        pause_reason: Why it is paused; None when not paused.
        limited_by: The limit with the least slack at the last grant; None when no limit held a call back.
        rate: Calls per second granted to this process over the last 5 s.
        guard_s: Timing uncertainty that the pace of all workers allows for now.
        lateness_s: How late this process fires slots (99.9 %): part of the guard that it needs.
        way_s: What the way to Redis adds to that guard.
        in_flight: Calls started and not settled.
        permits: Concurrency permits of the API that this process holds; None without such a limit.
        generation: The change of limits at run time that this process has adopted; 0: none was made.
        keys: The credentials; empty where there is only one.
    """

    waiting: int
    held: int
    granted: int
    fired: int
    slots_missed: int
    round_trips: int
    next_start_in_s: float | None
    paused_for_s: float
    pause_reason: str | None
    limited_by: str | None
    rate: float
    guard_s: float
    lateness_s: float
    way_s: float
    in_flight: int
    permits: int | None
    generation: int
    keys: list[KeyStatus]
