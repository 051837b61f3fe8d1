"""Jobs that one producer process submits in a second, against the tasks that plain Celery sends, in turns."""

from __future__ import annotations

from baselines.celery_runs import CeleryEnqueue, PlainCelery
from child import run_script
from figure import Figure
from redis_server import flush
from scale import Scale
from stage import Stage


def measure(scale: Scale) -> list[Figure]:
    """Submit without ids and with ids, and send with plain Celery, in turns."""
    without_ids: list[dict[str, float]] = []
    with_ids: list[dict[str, float]] = []
    celery: list[CeleryEnqueue] = []
    with Stage() as stage:
        plain = PlainCelery(stage)
        for _ in range(scale.rounds):
            celery.append(plain.enqueue(scale.celery_enqueued))
            for runs, options in ((without_ids, []), (with_ids, ["--own-ids"])):
                flush(stage.redis_url)
                runs.append(run_script("producer_program", scale.enqueued, "/ok", *options, env=stage.env))
    rates = tuple(run.jobs_per_s for run in celery)
    costs = tuple(run.cpu_us for run in celery)
    return [
        _rate("jobs submitted", without_ids, rates),
        _rate("jobs submitted, own ids", with_ids, rates),
        _cost("producer CPU per job", without_ids, costs),
        _cost("producer CPU per job, own ids", with_ids, costs),
    ]


def _rate(name: str, runs: list[dict[str, float]], celery: tuple[float, ...]) -> Figure:
    return Figure(
        name=name,
        unit="jobs/s",
        runs=tuple(run["jobs_per_s"] for run in runs),
        baseline_name="plain Celery, apply_async",
        baseline_runs=celery,
        judged="ratio",
        better="higher",
        must=60,
        aim=150,
    )


def _cost(name: str, runs: list[dict[str, float]], celery: tuple[float, ...]) -> Figure:
    return Figure(
        name=name,
        unit="us",
        runs=tuple(run["cpu_us"] for run in runs),
        baseline_name="plain Celery, apply_async",
        baseline_runs=celery,
    )
