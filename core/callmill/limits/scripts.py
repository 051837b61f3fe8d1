"""The limiter's scripts: what each takes, reads and returns, by the names that stand in the script as well.

What they mean is told in the contract on top of each ``lua/NAME.lua``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from callmill.config.lua_script import LuaScript
from callmill.limits.costs import Tally
from callmill.limits.keys import PermitKeys
from callmill.limits.permits import Answers, Lease
from callmill.limits.reservation import Grant, Request

FORMAT = 1
"""Version of an API's limiter state. Two limiters that disagree on it would together break the limit: so who is newer
brings the state up to its own version, and who is older then grants nothing more."""

_LUA, _FORMAT = "callmill.limits", {"FORMAT": FORMAT}

_CLOCK = {"clock": ("now", "skew", "format")}
_ADAPT = {
    "learned": (
        *("good", "sure", "top", "hold", "since", "drop", "most", "reach", "growth", "learned_at", "period"),
        "refused",
    )
}
_IN_FLIGHT = {
    "in_flight": (
        *("most", "mode", "before", "since", "top", "wait", "count", "sum", "squares", "base", "error", "full"),
        *("taken", "taken_from", "minute", "minute_from", "sure", "learned_at", "worst", "among", "why"),
    )
}
_TAKEN = {
    "taken": (
        *("taken", "taken_from", "waited", "row_at", "row_until", "row_wave", "seen", "row_blind", "row_factor"),
        *("row_taken", "row_from", "row_minute", "row_minute_from"),
    )
}


class ReserveKeys(Struct, frozen=True):
    """What a reservation is made in: the limits, and what they have in common."""

    meta: str
    classes: str
    workers: str
    queue: str
    limits: Sequence[str]


class ReserveArguments(Struct, frozen=True, kw_only=True):
    """A request, who makes it, and for which calls."""

    request: Request
    worker: str
    channel: str
    horizon_us: int
    longest_cold_wait_us: int
    traffic: str
    weight: str
    owners: Sequence[int]
    scopes: Sequence[str]


RESERVE = LuaScript(
    _LUA,
    *("clock", "quotas", "paces", "adapt", "reserve"),
    keys=ReserveKeys,
    arguments=ReserveArguments,
    answer=Grant,
    reads={
        **_CLOCK,
        **_ADAPT,
        "meta": (
            *("boot", "seq", "floor", "last", "pause", "reason", "guard", "guard_before", "guard_since", "extra"),
            *("extra_at", "server", "resumed"),
        ),
        "limit": (
            *("window", "amount", "gain", "slack", "column", "quota", "block", "aligned", "blur", "tat", "credit"),
            *("total", "oldest", "newest", "turn", "count", "slow", "slow_until", "factor", "mode", "holes", "charge"),
            *("busy", "life", "aligned_at", "latest", "blocked_at", "log", "heavy_at", "taken", "taken_from"),
        ),
    },
    constants=_FORMAT,
)


class PauseKeys(Struct, frozen=True):
    """Which limits a pause is about, and which models are paused."""

    meta: str
    paused: str
    limits: Sequence[str] = ()


class PauseArguments(Struct, frozen=True, kw_only=True):
    """A pause."""

    pause_us: int
    said_us: int
    reason: str
    channel: str
    scope: str
    claim_us: int = 0
    started_us: int = 0
    witness: str = ""
    guessed_us: int = 0
    refused: str = ""


PAUSE = LuaScript(
    _LUA,
    *("clock", "pause"),
    keys=PauseKeys,
    arguments=PauseArguments,
    reads={**_CLOCK, "meta": ("last",), "limit": ("tat", "charge", "column")},
    constants=_FORMAT,
)


class EaseKeys(Struct, frozen=True):
    """What is paused."""

    meta: str


class EaseArguments(Struct, frozen=True, kw_only=True):
    """A pause that may be a guess."""

    channel: str
    scope: str
    least_us: int
    waits: str


EASE = LuaScript(
    _LUA,
    *("clock", "ease"),
    keys=EaseKeys,
    arguments=EaseArguments,
    reads={**_CLOCK, "meta": ()},
    constants=_FORMAT,
)


class ForgiveKeys(Struct, frozen=True):
    """Limits of which something was learned in vain."""

    meta: str
    limits: Sequence[str]


class ForgiveArguments(Struct, frozen=True, kw_only=True):
    """Refusals that were no matter of the API."""

    channel: str
    began_us: int


FORGIVE = LuaScript(
    _LUA,
    *("clock", "forgive"),
    keys=ForgiveKeys,
    arguments=ForgiveArguments,
    reads={**_CLOCK, "limit": ("mode", "quota", "most", "row_factor", "row_at", "learned_at", "factor")},
    constants=_FORMAT,
)


class RefusedKeys(Struct, frozen=True):
    """Limits of which one was perhaps the reason."""

    meta: str
    permits: str
    in_use: str
    limits: Sequence[str]


class RefusedArguments(Struct, frozen=True, kw_only=True):
    """A refusal, as ``store.Refusal`` has it, with times in microseconds."""

    worker: str
    channel: str
    started_us: int
    refused_us: int
    in_flight: int
    permits: int
    taken_per_s: float
    what: str
    begins: int
    fastest: float
    in_a_row: int
    taken: int
    crowded: bool
    asked_us: int
    wanted: bool


REFUSED = LuaScript(
    _LUA,
    *("clock", "adapt", "in_flight", "taken", "refused"),
    keys=RefusedKeys,
    arguments=RefusedArguments,
    reads={
        **_CLOCK,
        **_ADAPT,
        **_IN_FLIGHT,
        **_TAKEN,
        "meta": ("epoch", "guard", "guard_before", "extra", "extra_at", "calm"),
        "limit": ("tat", "column", "quota", "factor", "mode", "window", "gain", "slack", "amount"),
    },
    constants=_FORMAT,
)


class FeedKeys(Struct, frozen=True):
    """Limits of which something is told."""

    meta: str
    limits: Sequence[str]


class ToldFact(Struct, frozen=True, kw_only=True):
    """A fact, as ``store.Fact`` has it; ``limit``: its place among the keys, from 1."""

    limit: int
    kind: Literal["slow", "block", "aligned", "most"]
    first: float
    second: float


class FeedArguments(Struct, frozen=True, kw_only=True):
    """What answers said about limits."""

    channel: str
    facts: Sequence[ToldFact]


FEED = LuaScript(
    _LUA,
    *("clock", "feed"),
    keys=FeedKeys,
    arguments=FeedArguments,
    reads={
        **_CLOCK,
        "meta": ("boot", "resumed"),
        "limit": (
            *("window", "amount", "aligned", "blur", "slow", "slow_until", "block", "mode", "most", "tat", "life"),
            *("aligned_at", "blocked_at", "claimed", "claim_again"),
        ),
    },
    constants=_FORMAT,
)


class RestoreKeys(Struct, frozen=True):
    """Quotas to be restored."""

    meta: str
    quotas: Sequence[str]


class ToldGrant(Struct, frozen=True, kw_only=True):
    """What was granted of a quota; ``quota``: its place among the keys, from 1."""

    quota: int
    age_us: int
    units: int


class RestoreArguments(Struct, frozen=True, kw_only=True):
    """What a worker was granted before the state was lost."""

    boot: str
    grants: Sequence[ToldGrant]


RESTORE = LuaScript(
    _LUA,
    *("clock", "restore"),
    keys=RestoreKeys,
    arguments=RestoreArguments,
    reads={**_CLOCK, "quota": ("window", "oldest", "newest")},
    constants=_FORMAT,
)


class LeaseKeys(Struct, frozen=True):
    """Beside the keys of the permits: what the limiter has in common."""

    limiter: str


class LeaseArguments(Struct, frozen=True, kw_only=True):
    """What a worker holds and wants of permits."""

    scope: str = ""
    worker: str
    want: int
    used: int
    held: int
    lease_us: int
    limit: int
    channel: str
    answers: Answers | None
    kept_ms: int = 2_764_800_000


PERMITS = LuaScript(
    _LUA,
    *("in_flight", "permits"),
    first_keys=PermitKeys._fields,
    keys=LeaseKeys,
    arguments=LeaseArguments,
    answer=Lease,
    reads={**_IN_FLIGHT, "meta": ("now", "skew", "born", "server", "format")},
    constants=_FORMAT,
)


class ControlKeys(Struct, frozen=True):
    """Where changes are noted."""

    control: str
    history: str
    meta: str


class ControlArguments(Struct, frozen=True, kw_only=True):
    """A change that a person makes."""

    channel: str
    by: str
    what: str
    name: str
    limits: str
    pause_us: int
    reason: str
    history_entries: int
    endless_us: int


class Controlled(Struct, frozen=True):
    """What came of it."""

    generation: int
    changed: int


CONTROL = LuaScript(
    _LUA,
    "control",
    keys=ControlKeys,
    arguments=ControlArguments,
    answer=Controlled,
    reads={"meta": ("now", "skew")},
)


class CostsKeys(Struct, frozen=True):
    """Where tallies are kept."""

    costs: str


class ToldTally(Struct, frozen=True):
    """What calls of a kind cost."""

    kind: str
    sums: Tally


class CostsArguments(Struct, frozen=True, kw_only=True):
    """Tallies, and how they are kept."""

    most_calls: int
    most_tallies: int
    kept_s: int
    tallies: Sequence[ToldTally]


COSTS = LuaScript(_LUA, "costs", keys=CostsKeys, arguments=CostsArguments)

SCRIPTS = (RESERVE, PAUSE, EASE, FORGIVE, REFUSED, FEED, RESTORE, PERMITS, CONTROL, COSTS)
