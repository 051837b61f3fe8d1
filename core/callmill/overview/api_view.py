"""ApiView: one API as its page shows it: what it is allowed, what it does, and what limits it now."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from msgspec import Struct

from callmill.config.limit_spec import LimitSpec, Scope, Unit, parse_limit
from callmill.ledger.fleet import WorkerStatus, pause_in_words
from callmill.overview.api_now import ApiNow
from callmill.overview.progress import what_limits_lanes
from callmill.overview.served import WaitsElsewhere
from callmill.overview.traffic import ApiTraffic, Traffic


class LimitShare(Struct, frozen=True, kw_only=True):
    """How much of a limit was used; None where that cannot be told.

    Attributes:
        now: Share used over the last seconds, of tokens over the last one to two minutes; of a limit on calls at once,
            share in flight now.
        hour: Share used over the last hour; of longer windows, share of the whole window.
    """

    limit: str
    now: float | None
    hour: float | None


class ApiView(Struct, frozen=True, kw_only=True):
    """An API in detail.

    Attributes:
        queued_chunks: Chunks that wait for a worker.
        oldest_chunk_age_s: Since when the oldest of them waits; None where none does.
        limits_by: What limits it now, in words.
        shares: How much of each limit was used.
        elsewhere: What waits for another API of that name that no running worker serves.
    """

    now: ApiNow
    traffic: ApiTraffic
    queued_chunks: int
    oldest_chunk_age_s: float | None
    limits_by: str
    shares: list[LimitShare]
    elsewhere: list[WaitsElsewhere] = []

    @property
    def calls_per_s(self) -> float:
        """Calls per second: as granted over the last seconds; where nothing paces them, as made in about a minute."""
        busy = self.now.in_flight or self.now.waiting
        return self.now.rate or (self.traffic.now.rate if busy else 0.0)


def what_limits_api(now: ApiNow, queued_chunks: int, workers: Sequence[WorkerStatus], memory: str = "") -> str:
    """Say in a few words what limits an API now; ``memory`` is why Redis has no room, where it has none."""
    if stopped := now.held or _paused_by_people(now):
        return stopped
    serving = [worker for worker in workers if now.api in worker.apis]
    wanted = queued_chunks or now.in_flight or now.waiting
    if wanted and memory:
        return memory
    if not serving:
        return f"no worker serves {now.api}: start one with `callmill worker`" if wanted else "nothing to do, no worker"
    if wanted and (held := next((worker.held for worker in serving if worker.held), "")):
        return f"workers hold: {held}"
    lanes = [lane for worker in serving for lane in worker.lanes if lane.api == now.api]
    if words := what_limits_lanes(lanes):
        more_waits = queued_chunks and words == "the API's latency"
        return "workers: more would help" if more_waits else words
    return "workers: chunks wait to be taken" if queued_chunks else "nothing to do"


def _paused_by_people(now: ApiNow) -> str:
    if not now.paused or now.paused_by is None:
        return ""
    until = pause_in_words(inf if now.paused_s is None else now.paused_s)
    return f"paused by {now.paused_by} {until}: {now.pause_reason or 'no reason given'}"


def shares_of(now: ApiNow, traffic: ApiTraffic) -> list[LimitShare]:
    """Return how much of each limit of an API was used."""
    return [_share(parse_limit(text), now, traffic) for text in now.limits]


def _share(spec: LimitSpec, now: ApiNow, traffic: ApiTraffic) -> LimitShare:
    limit = str(spec)
    owners = {Scope.API: 1, Scope.KEY: max(1, len(now.keys)), Scope.MODEL: 0}[spec.scope]
    amount = spec.amount * owners
    if not amount:  # to be found, or of models, which are not counted each by itself
        return LimitShare(limit=limit, now=None, hour=None)
    if spec.unit is Unit.CONCURRENT:
        return LimitShare(limit=limit, now=now.in_flight / amount, hour=None)
    granted = next((bound.used for bound in now.bounds if bound.limit == limit), None)
    used = _used(spec, amount, traffic.now) if granted is None else granted
    return LimitShare(limit=limit, now=used, hour=_used(spec, amount, traffic.hour))


def _used(spec: LimitSpec, amount: int, traffic: Traffic) -> float | None:
    if spec.unit not in {Unit.REQUESTS, Unit.TOKENS}:
        return None
    units = traffic.calls if spec.unit is Unit.REQUESTS else traffic.tokens
    # Of a window that is longer than the span, what the span took of it: the rest of the window may have taken more.
    return units / (amount * max(1.0, traffic.span_s / spec.window_s))
