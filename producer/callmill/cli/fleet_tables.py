"""Batches, APIs and workers as tables that fit any terminal, what matters most first."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from callmill.cli.figures import bar, byte_size, per_second, printable, short_count, short_rate, short_time
from callmill.cli.fitted_table import Cell, Column, FittedTable, Row, cell
from callmill.cli.limits_view import learned_line, pause_in_words, percent
from callmill.cli.progress_view import total_text
from callmill.cli.run_report import latency, seconds
from callmill.jobs.traffic import NORMAL
from callmill.ledger.fleet import WorkerStatus
from callmill.ledger.records import BatchState
from callmill.overview.api_now import ApiNow
from callmill.overview.api_view import ApiView
from callmill.overview.progress import Progress

_LONG_BAR, _SHORT_BAR = 20, 8
_ID_WIDTH = 13
_NOTHING = cell("-", style="dim")
_STATES = {BatchState.RUNNING: 0, BatchState.SUBMITTING: 0, BatchState.PAUSED: 1}
_LATE_LOOP_S = 0.25

_BATCHES = (
    Column("batch", name=True),
    Column("id", leave_out=1),
    Column("", leave_out=3),
    Column("done", right=True),
    Column("of", right=True),
    Column("failed", right=True),
    Column("retries", right=True, leave_out=5),
    Column("rate", right=True, leave_out=2),
    Column("state"),
    Column("since", right=True, leave_out=4),
)
_APIS = (
    Column("API", name=True),
    Column("rate", right=True),
    Column("used", right=True),
    Column("in flight", right=True, leave_out=2),
    Column("waiting", right=True, leave_out=3),
    Column("p50", right=True, leave_out=4),
    Column("p99", right=True, leave_out=1),
    Column("429", right=True),
    Column("failed", right=True, leave_out=5),
)
_WORKERS = (
    Column("worker", name=True),
    Column("rate", right=True),
    Column("in flight", right=True, leave_out=2),
    Column("CPU/call", right=True, leave_out=3),
    Column("loop lag", right=True, leave_out=1),
    Column("memory", right=True, leave_out=4),
    Column("since", right=True, leave_out=5),
)


def batches_table(batches: Sequence[Progress]) -> FittedTable:
    """Return the batches, those that run first."""
    ordered = sorted(batches, key=lambda batch: 2 if batch.ended else _STATES.get(batch.state, 1))
    return FittedTable(_BATCHES, [_batch(batch) for batch in ordered], "limited by")


def apis_table(apis: Sequence[ApiView]) -> FittedTable:
    """Return the APIs: those that stand first, then those with the most to do."""
    ordered = sorted(apis, key=lambda api: (not _stands(api.now), -api.now.in_flight - api.now.waiting, api.now.api))
    return FittedTable(_APIS, [_api(api) for api in ordered], "limited by")


def workers_table(workers: Sequence[WorkerStatus], now_ms: int) -> FittedTable:
    """Return the workers: those that take nothing first, then by host and process."""
    ordered = sorted(workers, key=lambda worker: (not worker_remark(worker), worker.host, worker.pid))
    return FittedTable(_WORKERS, [_worker(worker, now_ms) for worker in ordered], "serves")


def _batch(batch: Progress) -> Row:
    counts = {"succeeded": batch.succeeded, "failed": batch.failed, "total": batch.total}
    total = total_text(batch)
    remarks = [str(batch.traffic)] if batch.traffic != NORMAL else []
    if not batch.ended:
        remarks.append(batch.limited_by)
    return Row(
        [
            cell(printable(batch.name or batch.id), style="dim" if batch.ended else "bold"),
            cell(batch.id, batch.id if len(batch.id) <= _ID_WIDTH else f"{batch.id[: _ID_WIDTH - 1]}…"),
            Cell(bar(_LONG_BAR, **counts), bar(_SHORT_BAR, **counts)),
            _count(batch.done),
            cell(total, short_count(batch.total) + total.lstrip("0123456789,")),
            _count(batch.failed, style="red" if batch.failed else ""),
            _count(batch.retries),
            _NOTHING if batch.ended else cell(per_second(batch.rate), short_rate(batch.rate)),
            _state(batch),
            cell(seconds(batch.elapsed), short_time(batch.elapsed)),
        ],
        Text(printable("; ".join(remarks)), "dim"),
    )


def _state(batch: Progress) -> Cell:
    if batch.state in {BatchState.RUNNING, BatchState.SUBMITTING} and batch.eta is not None:
        return cell(f"{seconds(batch.eta)} left", f"{short_time(batch.eta)} left", style="green")
    style = "yellow" if batch.state is BatchState.PAUSED else "dim" if batch.ended else "green"
    return cell(batch.state.value, style=style)


def _stands(api: ApiNow) -> bool:
    return api.paused or bool(api.down or api.held) or not api.workers


def _api(view: ApiView) -> Row:
    now, traffic = view.now, view.traffic.now
    used, rate = _used(view), view.calls_per_s
    limits = ", ".join(f"{limit} {percent(used[limit])}" if limit in used else limit for limit in now.limits)
    why = (
        f"paused {pause_in_words(now.paused_s, now.pause_reason, now.paused_by)}"
        if now.paused and not now.held
        else view.limits_by
    )
    remark = "; ".join([f"{why} ({limits})" if limits else why, *map(learned_line, now.learned)])
    return Row(
        [
            cell(printable(now.api), style="bold"),
            cell(per_second(rate), short_rate(rate)),
            cell(percent(max(used.values()))) if used else _NOTHING,
            _count(now.in_flight),
            _count(now.waiting),
            _latency(traffic.latency.p50),
            _latency(traffic.latency.p99),
            _count(traffic.throttled, style="yellow" if traffic.throttled else ""),
            _count(traffic.failed, style="red" if traffic.failed else ""),
        ],
        Text(printable(remark), "yellow" if _stands(now) else "dim"),
    )


def _used(view: ApiView) -> dict[str, float]:
    # Of what is granted the last seconds are known; of the rest the last minutes.
    lately = {bound.limit: bound.used for bound in view.now.bounds}
    shares = {
        share.limit: share.now if lately.get(share.limit) is None else lately[share.limit] for share in view.shares
    }
    return {limit: share for limit, share in shares.items() if share is not None}


def _worker(worker: WorkerStatus, now_ms: int) -> Row:
    lag, rss, rate = worker.loop_lag_s, worker.rss_bytes, worker.calls_per_s
    since = max(0, now_ms - worker.started_ms) / 1000
    remark = worker_remark(worker)
    return Row(
        [
            cell(printable(f"{worker.host}/{worker.pid}"), style="bold"),
            cell(per_second(rate), short_rate(rate)),
            _count(sum(lane.in_flight for lane in worker.lanes)),
            _NOTHING if worker.cpu_us_per_call is None else cell(f"{worker.cpu_us_per_call:,.0f} us"),
            _NOTHING if lag is None else cell(latency(lag), style="yellow" if lag > _LATE_LOOP_S else ""),
            _NOTHING if rss is None else cell(byte_size(rss)),
            cell(seconds(since), short_time(since)),
        ],
        Text(printable(remark), "yellow") if remark else Text(),
    )


def worker_remark(worker: WorkerStatus) -> str:
    """Say why a worker takes nothing new; empty where it does."""
    if worker.held:
        return f"holds: {worker.held}"
    if worker.unreadable:
        return "newer than this program, which cannot read what it reports"
    return "draining: finishes what it has, takes nothing new" if worker.draining else ""


def _count(count: int, *, style: str = "") -> Cell:
    return cell(f"{count:,}", short_count(count), style=style)


def _latency(value_s: float | None) -> Cell:
    return _NOTHING if value_s is None else cell(latency(value_s))
