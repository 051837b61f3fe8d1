"""Traffic: what was called of an API, and what came of it, over the last minutes, the last hour, and ever.

Workers count, and report what they counted every second; the counts of a minute, and those of ever, are exact but for
the last second of a worker that was killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from callmill.ledger.keys import ApiKeys
from callmill.ledger.latency import quantile_s
from callmill.ledger.session import LedgerSession

_MINUTE_S, _HOUR_MINUTES = 60, 60
_RESULT, _LATENCY, _WAIT = "r:", "l:", "w:"


class Quantiles(Struct, frozen=True, kw_only=True):
    """Seconds below which so many of a hundred lie, within 2.5 %; None where there was nothing."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Traffic(Struct, frozen=True, kw_only=True):
    """What happened within a span of time.

    Attributes:
        calls: HTTP calls that ended.
        results: How they ended: ``2xx``, ``3xx``, ``4xx``, ``5xx``, ``429``, or the fault's name (``timeout``,
            ``connect``, ...) -> calls.
        succeeded: Jobs recorded as succeeded.
        failed: Jobs recorded as failed.
        retries: Calls after which another attempt was wanted.
        throttled: Calls that the API refused because of its limits.
        tokens: What the calls cost in tokens, as far as is known.
        span_s: How long the span is.
        latency: From the start of a call to its end.
        limiter_wait: From when a call could have started to when the limiter let it.
    """

    calls: int = 0
    results: dict[str, int] = {}
    succeeded: int = 0
    failed: int = 0
    retries: int = 0
    throttled: int = 0
    tokens: int = 0
    span_s: float
    latency: Quantiles = Quantiles()
    limiter_wait: Quantiles = Quantiles()

    @property
    def rate(self) -> float:
        """Calls per second."""
        return self.calls / self.span_s


class MinutePoint(Struct, frozen=True, kw_only=True):
    """One minute; ``at``: Unix time in seconds at which it began. The rest is as in ``Traffic``."""

    at: int
    calls: int = 0
    results: dict[str, int] = {}
    succeeded: int = 0
    failed: int = 0
    retries: int = 0
    throttled: int = 0
    tokens: int = 0
    latency: Quantiles = Quantiles()


class Totals(Struct, frozen=True, kw_only=True):
    """What happened since ever; every number only grows, until nobody has reported the API for 30 days.

    Attributes:
        latency_s: The sum of all latencies.
        wait_s: The sum of all times that the limiter let calls wait.
        latency_buckets: Bucket (``callmill.ledger.latency``) -> calls.
        wait_buckets: Bucket -> calls.
    """

    calls: int = 0
    results: dict[str, int] = {}
    succeeded: int = 0
    failed: int = 0
    retries: int = 0
    throttled: int = 0
    tokens: int = 0
    latency_s: float = 0.0
    wait_s: float = 0.0
    latency_buckets: dict[int, int] = {}
    wait_buckets: dict[int, int] = {}


class ApiTraffic(Struct, frozen=True, kw_only=True):
    """The traffic of an API.

    Attributes:
        now: Of this minute and the one before, so of the last 60 to 120 seconds.
        hour: Of the last hour.
        minutes: Minute by minute, the oldest first, without gaps: 60, of which the last one is not over.
        total: Since ever.
    """

    api: str
    now: Traffic
    hour: Traffic
    minutes: list[MinutePoint]
    total: Totals


_Counts = Mapping[str, int]
_minute_decoder = msgspec.msgpack.Decoder(dict[str, int])


async def read_traffic(session: LedgerSession, api: str) -> ApiTraffic:
    """Return the traffic of an API, all of it zero where none was ever reported.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    names = ApiKeys(api)
    pipeline = session.redis.pipeline(transaction=False)
    pipeline.time()
    pipeline.hgetall(names.total)
    pipeline.hvals(names.minutes)
    (now_s, micros), total, minutes = await session.answer(pipeline.execute())
    return traffic_of(api, total, minutes, now_s + micros / 1e6)


def traffic_of(api: str, total: Mapping[bytes, bytes], minutes: Iterable[bytes], now_s: float) -> ApiTraffic:
    """Return the traffic that the keys of an API hold; ``now_s`` is Unix time in seconds, on the clock of Redis."""
    this = int(now_s) // _MINUTE_S
    by_minute = {counts["at"]: counts for counts in map(_minute_decoder.decode, minutes)}
    hour = [by_minute.get(minute, {}) for minute in range(this - _HOUR_MINUTES + 1, this + 1)]
    of_this_s = now_s - this * _MINUTE_S
    return ApiTraffic(
        api=api,
        now=_traffic(hour[-2:], _MINUTE_S + of_this_s),
        hour=_traffic(hour, (_HOUR_MINUTES - 1) * _MINUTE_S + of_this_s),
        minutes=[_minute(minute * _MINUTE_S, counts) for minute, counts in enumerate(hour, this - _HOUR_MINUTES + 1)],
        total=_totals({name.decode(): int(count) for name, count in total.items()}),
    )


def _traffic(minutes: Iterable[_Counts], span_s: float) -> Traffic:
    counts: dict[str, int] = {}
    for minute in minutes:
        for name, count in minute.items():
            counts[name] = counts.get(name, 0) + count
    return Traffic(
        **_plain(counts),
        span_s=span_s,
        latency=_quantiles(_buckets(counts, _LATENCY)),
        limiter_wait=_quantiles(_buckets(counts, _WAIT)),
    )


def _minute(at: int, counts: _Counts) -> MinutePoint:
    return MinutePoint(at=at, **_plain(counts), latency=_quantiles(_buckets(counts, _LATENCY)))


def _totals(counts: _Counts) -> Totals:
    return Totals(
        **_plain(counts),
        latency_s=counts.get("latency_us", 0) / 1e6,
        wait_s=counts.get("wait_us", 0) / 1e6,
        latency_buckets=_buckets(counts, _LATENCY),
        wait_buckets=_buckets(counts, _WAIT),
    )


def _plain(counts: _Counts) -> dict[str, Any]:
    plain: dict[str, Any] = {
        name: counts.get(name, 0) for name in ("calls", "succeeded", "failed", "retries", "throttled", "tokens")
    }
    plain["results"] = {
        name.removeprefix(_RESULT): count for name, count in sorted(counts.items()) if name.startswith(_RESULT)
    }
    return plain


def _buckets(counts: _Counts, kind: str) -> dict[int, int]:
    return {int(name[len(kind) :]): count for name, count in counts.items() if name.startswith(kind)}


def _quantiles(buckets: Mapping[int, int]) -> Quantiles:
    p50, p95, p99 = (quantile_s(buckets, share) for share in (0.5, 0.95, 0.99))
    return Quantiles(p50=p50, p95=p95, p99=p99)
