"""The metrics of the fleet, as docs/metrics.md lists them, out of one reading of the overview."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from callmill.dashboard.metrics_buckets import LATENCY, WAIT, Ladder
from callmill.dashboard.scaling_site import scaling_families
from callmill.ledger.fleet import WorkerStatus
from callmill.overview.api_view import ApiView
from callmill.overview.batch_counts import BatchCounts
from callmill.overview.reader import RedisState
from callmill.overview.scaling_adviser import ScalingAdvice

_BREAKER_STATES = ("closed", "open", "half-open")
_ACTIONS = ("put_back", "published_again", "unparked")
_WORKER_STATES = ("working", "held", "draining")


class Reading(Struct, frozen=True, kw_only=True):
    """What the fleet is doing, as it was read at one moment.

    Attributes:
        reconciled: What reconcilers did -> how often, since ever.
        scaling: How many workers there should be.
    """

    apis: Sequence[ApiView]
    workers: Sequence[WorkerStatus]
    batches: BatchCounts
    reconciled: Mapping[str, int]
    redis: RedisState
    scaling: ScalingAdvice


_Rows = Iterable[tuple[tuple[str, ...], float]]


def is_up(up: bool, took_s: float) -> list[Metric]:  # noqa: FBT001 - the metric's value
    """Return whether the overview could be read, and how long that took."""
    return [
        _gauge("callmill_up", "1: the dashboard can read Callmill's Redis; 0: what it would read is missing.", up),
        _gauge("callmill_read_seconds", "How long the dashboard took to read all of this.", took_s),
    ]


def families(reading: Reading) -> list[Metric]:
    """Return everything that is told of the fleet."""
    return [
        *_traffic(reading.apis),
        *_histograms(reading.apis),
        *_limits(reading.apis),
        *_lanes(reading.apis),
        *_queues(reading),
        *_workers(reading.workers),
        *scaling_families(reading.scaling),
        *_redis(reading.redis),
    ]


def _traffic(apis: Sequence[ApiView]) -> Iterator[Metric]:
    totals = [(view.now.api, view.traffic.total) for view in apis]
    yield _counters(
        "callmill_calls",
        "HTTP calls that ended, by how: 2xx, 3xx, 4xx, 5xx, 429, or the name of a fault.",
        ("api", "result"),
        (((api, result), count) for api, total in totals for result, count in total.results.items()),
    )
    yield _counters(
        "callmill_outcomes",
        "Jobs that got their outcome: succeeded or failed.",
        ("api", "result"),
        (
            ((api, result), count)
            for api, total in totals
            for result, count in (("succeeded", total.succeeded), ("failed", total.failed))
        ),
    )
    of_api = ("api",)
    yield _counters(
        "callmill_retries",
        "Calls after which another attempt was wanted.",
        of_api,
        (((api,), total.retries) for api, total in totals),
    )
    yield _counters(
        "callmill_throttled",
        "Calls that the API refused for its limit: 429, or what its profile says means the same.",
        of_api,
        (((api,), total.throttled) for api, total in totals),
    )
    yield _counters(
        "callmill_tokens",
        "What calls cost in tokens, as far as is known.",
        of_api,
        (((api,), total.tokens) for api, total in totals),
    )


def _histograms(apis: Sequence[ApiView]) -> Iterator[Metric]:
    totals = [(view.now.api, view.traffic.total) for view in apis]
    yield _histogram(
        "callmill_call_duration_seconds",
        "From the start of a call to its end.",
        LATENCY,
        ((api, total.latency_buckets, total.latency_s) for api, total in totals),
    )
    yield _histogram(
        "callmill_limiter_wait_seconds",
        "How long limits held a call back in its worker.",
        WAIT,
        ((api, total.wait_buckets, total.wait_s) for api, total in totals),
    )


def _limits(apis: Sequence[ApiView]) -> Iterator[Metric]:
    of_limit = ("api", "limit")
    yield _gauges(
        "callmill_limit_used_ratio",
        "Share of a limit that was used over the last one to two minutes, of calls at once: now. NaN: cannot be told.",
        of_limit,
        (
            ((view.now.api, share.limit), math.nan if share.now is None else share.now)
            for view in apis
            for share in view.shares
        ),
    )
    yield _gauges(
        "callmill_limit_usable_ratio",
        "Share of a limit that can be used without ever breaking it. Missing until somebody has measured.",
        of_limit,
        (
            ((view.now.api, bound.limit), bound.usable)
            for view in apis
            for bound in view.now.bounds
            if bound.usable is not None
        ),
    )
    yield _gauges(
        "callmill_next_start_seconds",
        "Seconds until the next call may start; 0 where nothing waits.",
        ("api",),
        (((view.now.api,), view.now.next_start_s or 0.0) for view in apis),
    )


def _lanes(apis: Sequence[ApiView]) -> Iterator[Metric]:
    of_api = ("api",)
    yield _gauges(
        "callmill_jobs_waiting",
        "Jobs that workers hold and that wait for the limit or for room.",
        of_api,
        (((view.now.api,), view.now.waiting) for view in apis),
    )
    yield _gauges(
        "callmill_calls_in_flight",
        "Calls under way.",
        of_api,
        (((view.now.api,), view.now.in_flight) for view in apis),
    )
    yield _gauges(
        "callmill_retries_held",
        "Retries that wait for the retry budget.",
        of_api,
        (((view.now.api,), view.now.retries_held) for view in apis),
    )
    yield _gauges(
        "callmill_api_workers",
        "Worker processes that serve the API.",
        of_api,
        (((view.now.api,), view.now.workers) for view in apis),
    )
    yield _gauges(
        "callmill_api_paused",
        "1: no call starts, because somebody or the API asked for a pause.",
        of_api,
        (((view.now.api,), view.now.paused) for view in apis),
    )
    yield _gauges(
        "callmill_breaker_state",
        "1 for the state that the API's circuit breaker is in, 0 for the others.",
        ("api", "state"),
        (((view.now.api, state), view.now.breaker == state) for view in apis for state in _BREAKER_STATES),
    )


def _queues(reading: Reading) -> Iterator[Metric]:
    of_api = ("api",)
    yield _gauges(
        "callmill_chunks_queued",
        "Chunks that wait for a worker.",
        of_api,
        (((view.now.api,), view.queued_chunks) for view in reading.apis),
    )
    yield _gauges(
        "callmill_oldest_chunk_age_seconds",
        "How long the oldest of them has waited; 0 where none waits.",
        of_api,
        (((view.now.api,), view.oldest_chunk_age_s or 0.0) for view in reading.apis),
    )
    yield _gauges(
        "callmill_batches",
        "Batches by state; over: those that ended and whose outcomes are still kept.",
        ("state",),
        (((state,), count) for state, count in reading.batches.by_state.items()),
    )
    yield _gauge(
        "callmill_batches_stuck",
        "Batches that have had no outcome for long although nothing that is known holds them back.",
        reading.batches.stuck,
    )
    yield _counters(
        "callmill_reconciler_actions",
        "What was put right: chunks of dead workers and due ones, lost messages, chunks of dead producers.",
        ("action",),
        (((action,), count) for action, count in {**dict.fromkeys(_ACTIONS, 0), **reading.reconciled}.items()),
    )


def _workers(workers: Sequence[WorkerStatus]) -> Iterator[Metric]:
    states = [_worker_state(worker) for worker in workers]
    yield _gauges(
        "callmill_workers",
        "Worker processes that reported within the last seconds, by what they do.",
        ("state",),
        (((state,), states.count(state)) for state in _WORKER_STATES),
    )
    yield _of_workers(
        "callmill_worker_loop_lag_seconds",
        "How late the worker's event loop was at most within the last seconds.",
        ((worker, worker.loop_lag_s) for worker in workers),
    )
    yield _of_workers(
        "callmill_worker_call_cpu_seconds",
        "CPU seconds that the worker spends on a call; missing while it makes none.",
        ((worker, None if worker.cpu_us_per_call is None else worker.cpu_us_per_call / 1e6) for worker in workers),
    )
    yield _of_workers(
        "callmill_worker_resident_memory_bytes",
        "Memory that the worker holds.",
        ((worker, worker.rss_bytes) for worker in workers),
    )


def _worker_state(worker: WorkerStatus) -> str:
    if worker.draining:
        return "draining"
    return "held" if worker.held else "working"


def _redis(state: RedisState) -> Iterator[Metric]:
    yield _gauge("callmill_redis_memory_used_bytes", "Memory in use, as Redis counts it.", state.used_bytes)
    yield _gauge("callmill_redis_memory_max_bytes", "Redis's maxmemory; 0: none.", state.max_bytes)
    yield _gauge(
        "callmill_redis_memory_watermark_ratio",
        "Share of maxmemory from which on producers wait.",
        state.watermark,
    )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _gauges(name: str, text: str, labels: Sequence[str], rows: _Rows) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    # By labels: a series that is there twice makes Prometheus refuse all the rest.
    for values, value in dict(rows).items():
        family.add_metric(values, value)
    return family


def _of_workers(name: str, text: str, rows: Iterable[tuple[WorkerStatus, float | None]]) -> Metric:
    return _gauges(name, text, ("worker",), (((worker.id,), value) for worker, value in rows if value is not None))


def _counters(name: str, text: str, labels: Sequence[str], rows: _Rows) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def _histogram(name: str, text: str, ladder: Ladder, rows: Iterable[tuple[str, Mapping[int, int], float]]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=("api",))
    for api, counts, sum_s in rows:
        family.add_metric((api,), buckets=ladder.cumulative(counts), sum_value=sum_s)
    return family
