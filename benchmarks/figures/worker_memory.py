"""Growth of a worker's memory over very many calls, while outcomes are read and released as they come."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from child import Child, run_script
from figure import Figure
from proc import rss_mb
from scale import Scale
from stage import Stage

from callmill.producer import Batch, Client

_MAX_PENDING = 20_000
_RELEASE_EVERY = 5_000
_APPEARS_S = 60.0


def measure(scale: Scale) -> list[Figure]:
    """Compare the worker's memory at the end with that after the first calls."""
    with Stage() as stage, stage.start_worker() as worker, ThreadPoolExecutor(1) as background:
        stage.await_workers(worker)
        options = ["--max-pending", _MAX_PENDING]
        producer = background.submit(run_script, "producer_program", scale.memory_calls, "/ok", *options, env=stage.env)
        settled_mb = _read_all(_await_batch(stage.client), worker, scale)
        producer.result()
        end_mb = rss_mb(worker.pid)
    note = f"{settled_mb:.0f} MB after {scale.memory_settled:,} calls, {end_mb:.0f} MB after {scale.memory_calls:,}"
    return [
        Figure(
            name="worker memory growth",
            unit="%",
            runs=((end_mb / settled_mb - 1) * 100,),
            must=15,
            note=note,
        )
    ]


def _await_batch(client: Client) -> Batch:
    deadline = time.monotonic() + _APPEARS_S
    while time.monotonic() < deadline:
        for progress in client.batches(5):
            if progress.name == "measured":
                return client.batch(progress.id)
        time.sleep(0.1)
    raise RuntimeError(f"the producer submitted nothing within {_APPEARS_S:g} s")


def _read_all(batch: Batch, worker: Child, scale: Scale) -> float:
    settled_mb, count = 0.0, 0
    for count, outcome in enumerate(batch.outcomes(), 1):
        if not outcome.ok:
            raise RuntimeError(f"job {outcome.id} failed: {outcome.error}")
        if count % _RELEASE_EVERY == 0:
            batch.release(outcome.cursor)
        if count == scale.memory_settled:
            settled_mb = rss_mb(worker.pid)
    if count != scale.memory_calls:
        raise RuntimeError(f"{count} outcomes of {scale.memory_calls} jobs")
    return settled_mb
