"""RunReport: what came of a run, in figures, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from rich.table import Table

from callmill.cli.cause_words import CauseInWords, in_a_line
from callmill.cli.figures import counted
from callmill.overview.progress import Progress


class RunReport(Struct, frozen=True, kw_only=True):
    """What came of a run.

    Attributes:
        batch_id: Its batch.
        state: ``done`` or ``cancelled``.
        jobs: Jobs submitted; bad lines are none.
        bad_lines: Lines of the input that were no jobs.
        retries: Calls repeated after a failure.
        throttled: Calls that the API answered with 429.
        elapsed_s: From the batch's submission, or from when its failed jobs ran again, to its end.
        rate_per_s: Outcomes per second over all of that time.
        p50_s: Latency of its calls, as are the others; None without calls.
        causes: Why jobs failed: the three most frequent causes.
        cpu_us_per_call: CPU time of the local workers per call in microseconds; None where they were not ours.
    """

    batch_id: str
    state: str
    jobs: int
    succeeded: int
    failed: int
    bad_lines: int
    calls: int
    retries: int
    throttled: int
    elapsed_s: float
    rate_per_s: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    cpu_us_per_call: float | None = None
    causes: Sequence[CauseInWords] = ()

    @classmethod
    def of(
        cls,
        progress: Progress,
        *,
        bad_lines: int = 0,
        cpu_us_per_call: float | None = None,
        causes: Sequence[CauseInWords] = (),
    ) -> RunReport:
        """Make the report of a batch that is over."""
        return cls(
            batch_id=progress.id,
            state=progress.state.value,
            jobs=progress.total,
            succeeded=progress.succeeded,
            failed=progress.failed,
            bad_lines=bad_lines,
            calls=progress.calls,
            retries=progress.retries,
            throttled=progress.throttled,
            elapsed_s=progress.elapsed,
            rate_per_s=progress.mean_rate,
            p50_s=progress.p50,
            p95_s=progress.p95,
            p99_s=progress.p99,
            cpu_us_per_call=cpu_us_per_call,
            causes=causes,
        )

    @property
    def all_succeeded(self) -> bool:
        """Whether every line of the input became a job that succeeded."""
        return self.succeeded == self.jobs and not self.bad_lines and self.state == "done"


def render_report(report: RunReport) -> Table:
    """Return the report as a table for people."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in _rows(report):
        table.add_row(name, value)
    return table


def _rows(report: RunReport) -> list[tuple[str, str]]:
    outcome = f"{report.succeeded:,} succeeded, {report.failed:,} failed"
    retries = counted(report.retries, "retry", "retries")
    rows = [
        ("batch", report.batch_id if report.state == "done" else f"{report.batch_id} ({report.state})"),
        ("jobs", f"{report.jobs:,}: {outcome}"),
        ("calls", f"{report.calls:,}: {retries}, {report.throttled:,} answered 429"),
        ("time", f"{seconds(report.elapsed_s)}, {report.rate_per_s:,.1f} jobs/s"),
    ]
    if report.causes:
        rows.insert(2, ("failed", f"{in_a_line(report.causes)}; --retry-failed runs these jobs again"))
    if report.bad_lines:
        rows.insert(2, ("bad lines", f"{report.bad_lines:,}"))
    if report.p50_s is not None:
        shares = (("p50", report.p50_s), ("p95", report.p95_s), ("p99", report.p99_s))
        rows.append(("latency", ", ".join(f"{name} {latency(value)}" for name, value in shares)))
    if report.cpu_us_per_call is not None:
        rows.append(("CPU", f"{report.cpu_us_per_call:,.0f} us per call in the workers"))
    return rows


def seconds(value: float) -> str:
    """Write a time for people: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def latency(value_s: float | None) -> str:
    """Write a latency for people: 4.1 ms, 380 ms, 2.3 s."""
    if value_s is None:
        return "-"
    if value_s >= 1:
        return f"{value_s:.2f} s"
    return f"{value_s * 1000:.1f} ms" if value_s < 0.01 else f"{value_s * 1000:.0f} ms"
