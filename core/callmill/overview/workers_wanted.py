"""WorkersWanted: how many worker processes the work that is there needs, and its limits can use. Pure.

For each API, calls per second are wanted: enough to begin all that waits within ``target_wait_s``, or as many as are
made now where that is more; never more than its tightest limit grants. What they take of a process follows from what
was measured: CPU per call, and calls at once by Little's law (calls per second x latency). One process serves every
API, so CPU adds up; calls at once do not, for each API has its own room in a process.

That calls are made now keeps processes, and never adds one: a fleet at its full load would ask for more than it has,
get it, go faster, and ask again. So it grows for what waits, and shrinks to what is used; between the two lies a band
in which nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

_EPSILON = 1e-6
_AT_LIMIT = 0.95
"""Who has this share of a limit has all of it: no further worker would change much."""

_SMOOTHING_CALLS_PER_S = 50.0
"""So many calls a second weigh as much as what a call costs by default: at fewer, idle CPU would count as theirs."""

_NOTHING_TO_DO = "nothing to do"


class ScalingRules(Struct, frozen=True, kw_only=True):
    """What is aimed at.

    Attributes:
        least: Never fewer processes.
        most: Never more; None: as many as the work needs.
        core_share: Share of a core that calls may take of a process.
        target_wait_s: Seconds within which all that waits is to begin, where limits allow it.
        cpu_us_per_call: What a call costs until that is measured.
    """

    least: int = 0
    most: int | None = None
    core_share: float = 0.8
    target_wait_s: float = 30.0
    cpu_us_per_call: float = 200.0


class ApiLoad(Struct, frozen=True, kw_only=True):
    """The work of one API, and what is known of it.

    Attributes:
        waiting: Jobs that no call is made for yet, wherever they wait.
        in_flight: Calls under way.
        held: Whether living workers hold chunks of it, be it that all their jobs wait for a retry.
        takeable: Whether chunks wait that no worker has fetched: where all are fetched, a further one finds nothing.
        calls_per_s: Calls per second now.
        latency_s: Mean; None: no call was ever measured.
        limit_per_s: Calls per second that its tightest limit grants; None: no limit, or it cannot be told.
        limit: That limit.
        calls_at_once: Calls that it may have under way at once, over all workers; None: no such limit.
        room: Calls that one process has under way at once at most; None: not told.
        stopped: Why no call may start for long; empty: they may.
        down: That it is down: calls start only to try it; empty: it is up.
    """

    api: str
    waiting: float = 0.0
    in_flight: int = 0
    held: bool = False
    takeable: bool = True
    calls_per_s: float = 0.0
    latency_s: float | None = None
    limit_per_s: float | None = None
    limit: str = ""
    calls_at_once: int | None = None
    room: float | None = None
    stopped: str = ""
    down: str = ""


class FleetLoad(Struct, frozen=True, kw_only=True):
    """The work of all APIs, and the workers.

    Attributes:
        workers: Processes that take work.
        calls_per_s: Calls per second of all of them.
        cpu_us_per_call: CPU microseconds per call, the mean over those calls; None: none is made.
        upkeep: What else some worker has to do, in words; empty: nothing.
        hold: Why workers take nothing new, so that more of them would not help; empty: they do.
    """

    apis: Sequence[ApiLoad]
    workers: int = 0
    calls_per_s: float = 0.0
    cpu_us_per_call: float | None = None
    upkeep: str = ""
    hold: str = ""


class ApiWanted(Struct, frozen=True, kw_only=True):
    """What one API needs of the fleet.

    Attributes:
        wanted_per_s: Calls per second that are wanted, and that its limits grant.
        processes: How many processes that takes; a share of one where it is less.
        why: What it follows from.
    """

    api: str
    waiting: int
    in_flight: int
    calls_per_s: float
    limit_per_s: float | None
    wanted_per_s: float
    processes: float
    why: str


class WorkersWanted(Struct, frozen=True, kw_only=True):
    """How many worker processes are wanted now.

    Attributes:
        why: In a few words.
        workers: Processes that take work now.
    """

    wanted: int
    why: str
    workers: int
    cpu_us_per_call: float
    apis: list[ApiWanted]


class _Need(Struct, frozen=True):
    """Calls per second of one API, and what they take: ``cpu`` of processes that others share, ``room`` of its own."""

    per_s: float = 0.0
    cpu: float = 0.0
    room: float = 0.0

    @property
    def processes(self) -> float:
        return max(self.cpu, self.room)

    def without_spare(self, rules: ScalingRules) -> _Need:
        return _Need(self.per_s, self.cpu * rules.core_share, self.room)


def workers_wanted(load: FleetLoad, rules: ScalingRules) -> WorkersWanted:
    """Return how many worker processes are wanted for this load."""
    cpu_us = _cpu_us_per_call(load, rules)
    to_begin = [_to_begin(api, cpu_us, rules) for api in load.apis]
    to_go_on = [_to_go_on(api, cpu_us, rules, workers=load.workers) for api in load.apis]
    faster = [begin.per_s > api.calls_per_s for api, begin in zip(load.apis, to_begin, strict=True)]
    needs = [begin if more else go_on for more, begin, go_on in zip(faster, to_begin, to_go_on, strict=True)]
    # What runs keeps the processes that it uses, with room to spare; it is no reason for another one.
    needed = min(load.workers, _whole(to_go_on))
    if any(faster):
        grown = [need if more else need.without_spare(rules) for more, need in zip(faster, needs, strict=True)]
        needed = max(needed, _whole(grown))
    if load.upkeep or any(_is_work(api) for api in load.apis):
        needed = max(needed, 1)
    wanted, why = _bounded(needed, _reason(load, needs, faster, needed=needed), load, rules)
    return WorkersWanted(
        wanted=wanted,
        why=why,
        workers=load.workers,
        cpu_us_per_call=cpu_us,
        apis=[_told(api, need, rules) for api, need in zip(load.apis, needs, strict=True)],
    )


def _bounded(needed: int, why: str, load: FleetLoad, rules: ScalingRules) -> tuple[int, str]:
    if load.hold and needed > max(1, load.workers):
        needed, why = max(1, load.workers), f"workers take nothing new: {load.hold}"
    if rules.most is not None and needed > rules.most:
        return rules.most, f"{why}; {rules.most} at most"
    if needed < rules.least:
        return rules.least, f"{why}; {rules.least} at least"
    return needed, why


def _cpu_us_per_call(load: FleetLoad, rules: ScalingRules) -> float:
    if load.cpu_us_per_call is None:
        return rules.cpu_us_per_call
    measured = load.calls_per_s * load.cpu_us_per_call
    guessed = _SMOOTHING_CALLS_PER_S * rules.cpu_us_per_call
    return (measured + guessed) / (load.calls_per_s + _SMOOTHING_CALLS_PER_S)


def _to_begin(api: ApiLoad, cpu_us: float, rules: ScalingRules) -> _Need:
    """Return what it takes to begin all that waits in time; nothing where workers could not be any faster."""
    if not (api.waiting and api.takeable) or api.stopped or api.down or _is_at_limit(api, api.calls_per_s):
        return _Need()
    return _need(api, api.waiting / rules.target_wait_s, cpu_us, rules)


def _to_go_on(api: ApiLoad, cpu_us: float, rules: ScalingRules, *, workers: int) -> _Need:
    """Return what it takes to go on as now; the rate, a mean of the last seconds, outlasts the last call."""
    if not _is_work(api):
        return _Need()
    need = _need(api, api.calls_per_s, cpu_us, rules)
    # Calls under way are reported at another moment than the workers are counted, and need no more than there are.
    return _Need(need.per_s, need.cpu, min(api.in_flight / api.room, max(1, workers)) if api.room else 0.0)


def _need(api: ApiLoad, per_s: float, cpu_us: float, rules: ScalingRules) -> _Need:
    per_s = min(per_s, math.inf if (limit := _limit_per_s(api)) is None else limit)
    cpu = per_s * cpu_us / (rules.core_share * 1e6)
    if api.latency_s is None:
        return _Need(per_s, min(1.0, cpu))  # one process finds out what a call takes
    at_once = min(per_s * api.latency_s, api.waiting + api.in_flight)
    return _Need(per_s, cpu, at_once / api.room if api.room else 0.0)


def _limit_per_s(api: ApiLoad) -> float | None:
    """Return what the tightest limit grants; of calls at once by Little's law."""
    known = [limit for limit in (api.limit_per_s, _at_once_per_s(api)) if limit is not None]
    return min(known) if known else None


def _is_at_limit(api: ApiLoad, per_s: float) -> bool:
    limit = _limit_per_s(api)
    return limit is not None and per_s >= _AT_LIMIT * limit


def _at_once_per_s(api: ApiLoad) -> float | None:
    return None if api.calls_at_once is None or not api.latency_s else api.calls_at_once / api.latency_s


def _whole(needs: Sequence[_Need]) -> int:
    return math.ceil(max(sum(need.cpu for need in needs), max((need.room for need in needs), default=0.0)) - _EPSILON)


def _is_work(api: ApiLoad) -> bool:
    # Calls under way are finished whatever happened since; a stopped API's jobs need nobody until it goes on.
    return bool(api.in_flight or (not api.stopped and (api.waiting or api.held)))


def _reason(load: FleetLoad, needs: Sequence[_Need], faster: Sequence[bool], *, needed: int) -> str:
    if not needed:
        stopped = next((f"{api.api} is {api.stopped}" for api in load.apis if api.waiting and api.stopped), "")
        return stopped or _NOTHING_TO_DO
    rows = [(more, need.processes, at) for at, (more, need) in enumerate(zip(faster, needs, strict=True))]
    more, processes, at = max(rows, default=(False, 0.0, 0))
    if not processes:
        down = next((f"{api.api}: {api.down}" for api in load.apis if _is_work(api) and api.down), "")
        return down or load.upkeep or "the chunks that workers have"
    others = sum(bool(need.processes) for need in needs) - 1
    beside = f", with {others} more API{'s' if others > 1 else ''}" if others else ""
    return f"{_cause(load.apis[at], needs[at], faster=more)} needs {needed}{beside}"


def _cause(api: ApiLoad, need: _Need, *, faster: bool) -> str:
    if _is_at_limit(api, need.per_s):
        return f"limit of {api.api}, {_limit_words(api)},"
    if not faster:
        return f"the work of {api.api} under way, {need.per_s:,.4g} calls/s,"
    if api.latency_s is None:
        return f"backlog of {api.api}, {math.ceil(api.waiting):,} jobs, not measured yet,"
    return f"backlog of {api.api}, {math.ceil(api.waiting):,} jobs,"


def _limit_words(api: ApiLoad) -> str:
    at_once = _at_once_per_s(api)
    if at_once is not None and (api.limit_per_s is None or at_once < api.limit_per_s):
        return f"{api.calls_at_once} concurrent at {api.latency_s:.3g} s"
    return api.limit


def _told(api: ApiLoad, need: _Need, rules: ScalingRules) -> ApiWanted:
    return ApiWanted(
        api=api.api,
        waiting=math.ceil(api.waiting),
        in_flight=api.in_flight,
        calls_per_s=api.calls_per_s,
        limit_per_s=_limit_per_s(api),
        wanted_per_s=need.per_s,
        processes=need.processes,
        why=_why(api, need, rules),
    )


def _why(api: ApiLoad, need: _Need, rules: ScalingRules) -> str:
    if api.stopped:
        return api.stopped
    if api.down:
        return f"{api.down}; one worker tries it" if _is_work(api) else api.down
    if not _is_work(api):
        return _NOTHING_TO_DO
    if _is_at_limit(api, need.per_s):
        return f"limit {_limit_words(api)}"
    if api.waiting and need.per_s > api.calls_per_s:
        return f"backlog, to begin within {rules.target_wait_s:g} s"
    return "as many calls as now"
