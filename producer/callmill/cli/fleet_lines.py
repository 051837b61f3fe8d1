"""Everything as plain lines, each of which stands for itself: for a pipe, a file, a terminal that cannot be steered."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from callmill.cli.figures import printable
from callmill.cli.fleet_now import FleetNow
from callmill.cli.fleet_screen import away_in_words, summary
from callmill.cli.fleet_tables import worker_remark
from callmill.cli.progress_view import progress_line
from callmill.cli.run_report import latency
from callmill.ledger.fleet import WorkerStatus
from callmill.overview.api_view import ApiView


def fleet_lines(now: FleetNow, at: datetime) -> list[str]:
    """Return the lines, each with the time: a sum, what is wrong, what is unfinished, every API, every worker."""
    time = f"{at.astimezone():%Y-%m-%d %H:%M:%S}"
    return [f"{time}  {printable(line)}" for line in _lines(now)]


def _lines(now: FleetNow) -> Iterator[str]:
    if now.away:
        yield f"problem  {away_in_words(now)}"
        return
    yield f"all  {summary(now)}"
    for problem in now.problems:
        yield f"problem  {problem.text}"
    for batch in now.batches:
        if not batch.ended:
            name = f" {batch.name}" if batch.name else ""
            yield f"batch  {batch.id}{name}: {batch.state}, {progress_line(batch)}"
    for api in now.apis:
        yield f"API  {_api(api)}"
    for worker in now.workers:
        yield f"worker  {_worker(worker)}"


def _api(view: ApiView) -> str:
    now, traffic = view.now, view.traffic.now
    parts = [
        f"{view.calls_per_s:,.1f}/s",
        f"{now.in_flight:,} in flight",
        f"{now.waiting:,} waiting",
        f"p50 {latency(traffic.latency.p50)}",
        f"p99 {latency(traffic.latency.p99)}",
        f"{traffic.throttled:,} x 429",
    ]
    return f"{now.api}: {', '.join(parts)}; {view.limits_by}"


def _worker(worker: WorkerStatus) -> str:
    parts = [f"{worker.calls_per_s:,.1f}/s", f"{sum(lane.in_flight for lane in worker.lanes):,} in flight"]
    if worker.cpu_us_per_call is not None:
        parts.append(f"{worker.cpu_us_per_call:,.0f} us of CPU per call")
    if worker.loop_lag_s is not None:
        parts.append(f"loop lag {latency(worker.loop_lag_s)}")
    remark = worker_remark(worker)
    return f"{worker.host}/{worker.pid}: {', '.join(parts)}{f'; {remark}' if remark else ''}"
