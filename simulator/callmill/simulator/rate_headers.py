"""Rate limit headers as API servers write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from callmill.config.limit_spec import Unit
from callmill.simulator.gate import Standing
from callmill.simulator.options import HeaderStyle

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000

Headers = list[tuple[str, str]]
_OPENAI_NAMES = tuple(
    (unit, *(f"x-ratelimit-{what}-{unit.value}" for what in ("limit", "remaining", "reset")))
    for unit in (Unit.REQUESTS, Unit.TOKENS)
)
_Writer = Callable[[Sequence[Standing], int], Headers]


def rate_headers(
    style: HeaderStyle, standings: Sequence[Standing], *, now_ns: int, retry_after_ns: int | None
) -> Headers:
    """Return the headers of an answer.

    Args:
        style: Whose headers.
        standings: Where the limits stand after the call.
        now_ns: Unix time.
        retry_after_ns: For a 429, how long to wait; None for any other answer.
    """
    if style is HeaderStyle.NONE:
        return []
    headers = _WRITERS[style](standings, now_ns)
    if retry_after_ns is not None:
        headers.append(("retry-after", str(max(1, _ceil(retry_after_ns, _NS_PER_S)))))
    return headers


def go_duration(ns: int) -> str:
    """Write a time as Go does (``6m0s``, ``1.5s``, ``20ms``), rounded up to milliseconds."""
    ms = _ceil(ns, _NS_PER_MS)
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    minutes, ms = divmod(ms, 60_000)
    seconds = f"{ms // 1000}.{ms % 1000:03d}".rstrip("0").rstrip(".") + "s"
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes_left}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _openai(standings: Sequence[Standing], now_ns: int) -> Headers:  # noqa: ARG001 - writers share one shape
    headers: Headers = []
    for unit, limit_name, remaining_name, reset_name in _OPENAI_NAMES:
        if (tightest := _tightest([s for s in standings if s.limit.unit is unit])) is not None:
            headers += [
                (limit_name, str(tightest.limit.amount)),
                (remaining_name, str(tightest.remaining)),
                (reset_name, go_duration(tightest.reset_ns)),
            ]
    return headers


def _github(standings: Sequence[Standing], now_ns: int) -> Headers:
    tightest = _tightest([s for s in standings if s.limit.unit is not Unit.CONCURRENT])
    if tightest is None:
        return []
    return [
        ("x-ratelimit-limit", str(tightest.limit.amount)),
        ("x-ratelimit-remaining", str(tightest.remaining)),
        ("x-ratelimit-used", str(tightest.limit.amount - tightest.remaining)),
        ("x-ratelimit-reset", str(_ceil(now_ns + tightest.reset_ns, _NS_PER_S))),
        ("x-ratelimit-resource", "core"),
    ]


def _ietf(standings: Sequence[Standing], now_ns: int) -> Headers:  # noqa: ARG001 - as above
    """https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/10/: two lists of structured fields."""
    policies, states = [], []
    for standing in standings:
        limit = standing.limit
        if limit.unit is Unit.CONCURRENT:
            policies.append(f'"concurrent";q={limit.amount};qu="concurrent-requests"')
            states.append(f'"concurrent";r={standing.remaining}')
            continue
        name = f'"{limit.unit.value}-{limit.window_s}s"'
        unit = ';qu="tokens"' if limit.unit is Unit.TOKENS else ""
        policies.append(f"{name};q={limit.amount}{unit};w={limit.window_s}")
        states.append(f"{name};r={standing.remaining};t={_ceil(standing.reset_ns, _NS_PER_S)}")
    if not policies:
        return []
    return [("ratelimit-policy", ", ".join(policies)), ("ratelimit", ", ".join(states))]


_WRITERS: Mapping[HeaderStyle, _Writer] = {
    HeaderStyle.OPENAI: _openai,
    HeaderStyle.GITHUB: _github,
    HeaderStyle.IETF: _ietf,
}


def _tightest(standings: Sequence[Standing]) -> Standing | None:
    if len(standings) == 1:
        return standings[0]
    return min(standings, key=lambda standing: standing.remaining / standing.limit.amount, default=None)


def _ceil(ns: int, unit_ns: int) -> int:
    return -(-ns // unit_ns)
