"""Bytes of Redis that a waiting job takes, its share of everything that is kept of its batch included."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from baselines.celery_runs import PlainCelery
from figure import Figure
from redis_server import flush, used_memory
from scale import Scale
from stage import Stage
from workload import API, jobs

from callmill.producer import Job

_RANDOM_BYTES = 60


def measure(scale: Scale) -> list[Figure]:
    """Submit batches that no worker takes, and read the server's memory before and after."""
    with Stage() as stage:
        alike = _bytes_per_job(stage, jobs(scale.queued, "/ok"), scale.queued)
        unlike = _bytes_per_job(stage, _incompressible_jobs(scale.queued), scale.queued)
        celery = PlainCelery(stage).enqueue(scale.celery_enqueued)
    return [
        Figure(
            name="Redis memory per waiting job",
            unit="B",
            runs=(alike,),
            baseline_name="plain Celery",
            baseline_runs=(celery.bytes_per_job,),
            must=100,
            aim=30,
            note="bodies of one batch are alike, and compressed together",
        ),
        Figure(
            name="Redis memory per waiting job, random text",
            unit="B",
            runs=(unlike,),
            note=f"each with an id and {_RANDOM_BYTES} random bytes, written as {2 * _RANDOM_BYTES} digits",
        ),
    ]


def _bytes_per_job(stage: Stage, batch: Iterable[Job], count: int) -> float:
    flush(stage.redis_url)
    stage.client.submit(jobs(10, "/ok"), name="first").delete()
    empty = used_memory(stage.redis_url)
    stage.client.submit(batch, name="measured")
    return (used_memory(stage.redis_url) - empty) / count


def _incompressible_jobs(count: int) -> Iterator[Job]:
    noise = random.Random(1)
    for number in range(count):
        body = {"model": "small", "prompt": noise.randbytes(_RANDOM_BYTES).hex()}
        yield Job("POST", "/ok", api=API, id=f"row-{number}", json=body)
