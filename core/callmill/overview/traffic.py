"""Traffic: what was called of an API, and what came of it, over the last minutes, the last hour, and ever.

Workers count, and report what they counted every second; the counts of a minute, and those of ever, are exact but for
the last second of a worker that was killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from callmill.ledger.keys import ApiKeys
from callmill.ledger.latency import mean_s, quantiles_s
from callmill.ledger.session import LedgerSession

_MINUTE_S, _HOUR_MINUTES = 60, 60
_RESULT, _LATENCY, _WAIT = "r:", "l:", "w:"
_PLAIN = ("calls", "succeeded", "failed", "retries", "throttled", "tokens")
_SHARES = (0.5, 0.95, 0.99)
K = TypeVar("K")


class Quantiles(Struct, frozen=True, kw_only=True):
    """Seconds below which so many of a hundred lie, within 2.5 %; None where there was nothing."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Counts(Struct, frozen=True, kw_only=True):
    """What was counted of an API.

    Attributes:
        calls: HTTP calls that ended.
        results: How they ended: ``2xx``, ``3xx``, ``4xx``, ``5xx``, ``429``, or the fault's name (``timeout``,
            ``connect``, ...) -> calls.
        succeeded: Jobs recorded as succeeded.
        failed: Jobs recorded as failed.
        retries: Calls after which another attempt was wanted.
        throttled: Calls that the API refused because of its limits.
        tokens: What the calls cost in tokens, as far as is known.
    """

    calls: int = 0
    results: dict[str, int] = {}
    succeeded: int = 0
    failed: int = 0
    retries: int = 0
    throttled: int = 0
    tokens: int = 0


class Traffic(Counts, frozen=True, kw_only=True):
    """What happened within a span of time.

    Attributes:
        span_s: How long the span is.
        latency: From the start of a call to its end.
        limiter_wait: How long limits held a call back in its worker.
        mean_latency_s: Of its calls, within 2.5 %; None without any.
    """

    span_s: float
    latency: Quantiles = Quantiles()
    limiter_wait: Quantiles = Quantiles()
    mean_latency_s: float | None = None

    @property
    def rate(self) -> float:
        """Calls per second."""
        return self.calls / self.span_s


class MinutePoint(Counts, frozen=True, kw_only=True):
    """One minute; ``at``: Unix time in seconds at which it began."""

    at: int
    latency: Quantiles = Quantiles()


class Totals(Counts, frozen=True, kw_only=True):
    """What happened since ever; every number only grows, until nobody has reported the API for 30 days.

    Attributes:
        latency_s: The sum of all latencies.
        wait_s: The sum of all times that the limiter let calls wait.
        latency_buckets: Bucket (``callmill.ledger.latency``) -> calls.
        wait_buckets: Bucket -> calls.
    """

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


_decoder = msgspec.msgpack.Decoder(dict[str, int])


class _Counted(Struct, frozen=True):
    """Counts of one or more minutes, taken apart."""

    at: int
    plain: dict[str, Any]
    latencies: dict[int, int]
    waits: dict[int, int]
    latency: Quantiles


@lru_cache(maxsize=1024)
def _minute(packed: bytes) -> _Counted:
    """Return a minute; those that are over are the same at every look."""
    return _counted(_decoder.decode(packed))


@lru_cache(maxsize=64)
def _sum(minutes: tuple[bytes, ...]) -> _Counted:
    """Return the sum of minutes; that of those that are over is the same for a whole minute."""
    sums: dict[str, int] = {}
    for packed in minutes:
        for name, count in _decoder.decode(packed).items():
            sums[name] = sums.get(name, 0) + count
    return _counted(sums)


def _counted(counts: Mapping[str, int]) -> _Counted:
    latencies = _buckets(counts, _LATENCY)
    return _Counted(counts.get("at", 0), _plain(counts), latencies, _buckets(counts, _WAIT), _quantiles(latencies))


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
    by_minute = {_minute(packed).at: packed for packed in minutes}
    last = range(this - _HOUR_MINUTES + 1, this + 1)
    hour = [(at, by_minute[at]) for at in last if at in by_minute]
    now = _sum(tuple(packed for at, packed in hour if at >= this - 1))
    before = _sum(tuple(packed for at, packed in hour if at < this - 1))
    of_this_s = now_s - this * _MINUTE_S
    return ApiTraffic(
        api=api,
        now=_traffic([now], _MINUTE_S + of_this_s),
        hour=_traffic([before, now], (_HOUR_MINUTES - 1) * _MINUTE_S + of_this_s),
        minutes=[_point(at, by_minute.get(at)) for at in last],
        total=_totals({name.decode(): int(count) for name, count in total.items()}),
    )


def _traffic(parts: Sequence[_Counted], span_s: float) -> Traffic:
    plain = {name: sum(part.plain[name] for part in parts) for name in _PLAIN}
    latencies = _added([part.latencies for part in parts])
    return Traffic(
        **plain,
        results=_added([part.plain["results"] for part in parts]),
        span_s=span_s,
        latency=_quantiles(latencies),
        mean_latency_s=mean_s(latencies),
        limiter_wait=_quantiles(_added([part.waits for part in parts])),
    )


def _added(parts: Sequence[Mapping[K, int]]) -> dict[K, int]:
    sums: dict[K, int] = {}
    for part in parts:
        for name, count in part.items():
            sums[name] = sums.get(name, 0) + count
    return sums


def _point(minute: int, packed: bytes | None) -> MinutePoint:
    if packed is None:
        return MinutePoint(at=minute * _MINUTE_S)
    counted = _minute(packed)
    return MinutePoint(at=minute * _MINUTE_S, **counted.plain, latency=counted.latency)


def _totals(counts: Mapping[str, int]) -> Totals:
    return Totals(
        **_plain(counts),
        latency_s=counts.get("latency_us", 0) / 1e6,
        wait_s=counts.get("wait_us", 0) / 1e6,
        latency_buckets=_buckets(counts, _LATENCY),
        wait_buckets=_buckets(counts, _WAIT),
    )


def _plain(counts: Mapping[str, int]) -> dict[str, Any]:
    plain: dict[str, Any] = {name: counts.get(name, 0) for name in _PLAIN}
    plain["results"] = {
        name.removeprefix(_RESULT): count for name, count in sorted(counts.items()) if name.startswith(_RESULT)
    }
    return plain


def _buckets(counts: Mapping[str, int], kind: str) -> dict[int, int]:
    return {int(name[len(kind) :]): count for name, count in counts.items() if name.startswith(kind)}


def _quantiles(buckets: Mapping[int, int]) -> Quantiles:
    p50, p95, p99 = quantiles_s(buckets, _SHARES)
    return Quantiles(p50=p50, p95=p95, p99=p99)
