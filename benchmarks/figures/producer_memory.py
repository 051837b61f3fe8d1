"""Memory that a producer grows by while it submits a large batch from a generator."""

from __future__ import annotations

from child import run_script
from figure import Figure
from redis_server import flush
from scale import Scale
from stage import Stage


def measure(scale: Scale) -> list[Figure]:
    """Submit in a process of its own, without ids and with own ids."""
    with Stage() as stage:
        without_ids = run_script("producer_program", scale.submitted, "/ok", env=stage.env)
        flush(stage.redis_url)
        with_ids = run_script("producer_program", scale.submitted, "/ok", "--own-ids", env=stage.env)
    note = f"{scale.submitted:,} jobs"
    bytes_per_id = (with_ids["growth_mb"] - without_ids["growth_mb"]) * 1e6 / scale.submitted
    return [
        Figure(name="producer memory growth", unit="MB", runs=(without_ids["growth_mb"],), must=60, aim=30, note=note),
        Figure(name="producer memory growth, own ids", unit="MB", runs=(with_ids["growth_mb"],), note=note),
        Figure(name="producer memory per own id", unit="B", runs=(bytes_per_id,), note="to find an id given twice"),
    ]
