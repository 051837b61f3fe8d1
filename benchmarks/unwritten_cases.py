"""Cases of limits that nobody wrote down: a server, the least time that its limit allows, and what has to hold."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from msgspec import Struct
from real_limiters import Served, express_rate_limit, limit_conn, limit_req, queueing, refusing, simulated, slowapi

from callmill.simulator import EnforcerKind, HeaderStyle

_LATENCY_S = 0.2
SLOTS = 4
_WINDOW_S = 5
_REFUSING_S = 4.0

Make = Callable[..., AbstractContextManager[Served]]


class Must(Struct, frozen=True, kw_only=True):
    """What has to hold; None: the figure only informs.

    Attributes:
        refused: Refusals in percent of calls, at most.
        times: Multiple of the ideal time, at most.
        most: Refusals of any one job in any run, at most.
        calls: Calls, at most.
        latency: Multiple of the least latency, at most.
    """

    refused: float | None = None
    times: float | None = None
    most: int | None = 5
    calls: int | None = None
    latency: float | None = None


class Case(Struct, frozen=True, kw_only=True):
    """One server and the jobs for it.

    Attributes:
        ideal_s: The least time for so many jobs; None: it is measured, with calls that just come.
        is_drawn: Whether the server draws its times, and each run has a seed of its own.
    """

    name: str
    make: Make
    must: Must
    ideal_s: Callable[[int], float] | None
    jobs: int = 150
    is_drawn: bool = False

    def server(self, run: int) -> Make:
        """Return what starts the server of a run, which counts from 1."""
        return partial(self.make, seed=run) if self.is_drawn else self.make


BLIND = Must(refused=8, times=1.35)
TOLD = Must(refused=4, times=1.2)
"""Where headers tell the limit, or how long to wait."""

CROWD = Must(refused=10, times=1.5)
QUEUE = Must(times=1 / 0.9, latency=2.0)
"""90 % of the best throughput."""


def cases() -> list[Case]:
    """Return all of them."""
    return [*_rates(), *_windows(), *_told(), *_crowds(), *_others()]


def _rates() -> list[Case]:
    return [
        Case(
            name=f"limit_req {rate}/s, burst {burst}, {status}",
            make=partial(limit_req, rate=rate, burst=burst, status=status),
            must=BLIND,
            ideal_s=lambda jobs, rate=rate, burst=burst: (jobs - burst - 1) / rate,
            jobs=jobs,
        )
        for rate, burst, jobs in ((10, 5, 150), (100, 20, 600))
        for status in (429, 503)
    ]


def _window(name: str, make: Make, must: Must, rate: int = 10, jobs: int = 150) -> Case:
    return Case(name=name, make=make, must=must, ideal_s=lambda count: count / rate, jobs=jobs)


def _simulated(kind: EnforcerKind, rate: int = 10, headers: HeaderStyle = HeaderStyle.NONE) -> Make:
    return partial(simulated, limit=f"{rate}/second", kind=kind, headers=headers)


def _express(**headers: object) -> Make:
    return partial(express_rate_limit, limit=10 * _WINDOW_S, window_s=_WINDOW_S, **headers)


def _windows() -> list[Case]:
    return [
        _window("sliding 10/s", _simulated(EnforcerKind.SLIDING), BLIND),
        _window("sliding 100/s", _simulated(EnforcerKind.SLIDING, 100), BLIND, 100, 600),
        _window("fixed 10/s", _simulated(EnforcerKind.FIXED), BLIND),
        _window("slowapi 10/s, moving window", partial(slowapi, limit="10/second"), BLIND),
        _window("express 50 per 5 s", _express(), BLIND),
    ]


def _told() -> list[Case]:
    ietf = HeaderStyle.IETF
    return [
        _window("sliding 10/s, RateLimit headers", _simulated(EnforcerKind.SLIDING, headers=ietf), TOLD),
        _window("fixed 10/s, RateLimit headers", _simulated(EnforcerKind.FIXED, headers=ietf), TOLD),
        _window("slowapi 10/s, X-RateLimit headers", partial(slowapi, limit="10/second", headers=True), TOLD),
        _window("express 50 per 5 s, X-RateLimit headers", _express(legacy_headers=True), TOLD),
        *(
            _window(f"express 50 per 5 s, {draft} headers", _express(standard_headers=draft), TOLD)
            for draft in ("draft-6", "draft-7", "draft-8")
        ),
    ]


def _crowds() -> list[Case]:
    return [
        Case(
            name=f"limit_conn {most}, {status}",
            make=partial(limit_conn, most=most, latency_s=_LATENCY_S, status=status),
            must=CROWD,
            ideal_s=lambda jobs, most=most: jobs * _LATENCY_S / most,
        )
        for most in (4, 16)
        for status in (429, 503)
    ]


def _others() -> list[Case]:
    refused = partial(refusing, seconds=_REFUSING_S, retry_after="0")
    return [
        Case(
            name=f"M/M/{SLOTS}",
            make=partial(queueing, slots=SLOTS, mean_s=_LATENCY_S),
            is_drawn=True,
            must=QUEUE,
            ideal_s=None,
        ),
        *(
            Case(
                name=f"Retry-After: 0 for {_REFUSING_S:g} s, {jobs} job{'s' if jobs > 1 else ''}",
                make=refused,
                must=Must(most=None, calls=calls),
                ideal_s=lambda _jobs: _REFUSING_S,
                jobs=jobs,
            )
            for jobs, calls in ((1, 12), (10, 40))
        ),
    ]
