"""Workers that start while there is work: the first calls are the late ones."""

from __future__ import annotations

import json

import pytest
from limits_kit import worst_window
from local_nodes import WorkerProcess, until, write_profiles

from callmill.config.limit_spec import parse_limit
from callmill.limits.timing import UNMEASURED_LATENESS_S
from callmill.producer import Job
from callmill.simulator import SimulatorOptions, SimulatorProcess
from callmill.simulator.options import EnforcerKind

JOBS = 300
ALLOWED_S = UNMEASURED_LATENESS_S
"""How late a call of a worker that has just started may reach the server: for later ones nobody can answer."""


@pytest.fixture
def strict_api(tmp_path):
    """Run an API that takes 100 calls in any second, and logs arrivals."""
    limits = (parse_limit("100/second"),)
    options = SimulatorOptions(limits=limits, enforcer=EnforcerKind.SLIDING, log=tmp_path / "arrivals.jsonl")
    with SimulatorProcess(options) as process:
        yield process


def test_workers_that_start_under_load_keep_a_strict_limit(redis_url, client, strict_api, tmp_path):
    """Workers that start under load, one while the other calls already, exceed a strict limit by late calls alone."""
    profile = [f'base_url = "{strict_api.url}"', 'limits = ["100/second"]']
    apis = write_profiles(tmp_path / "apis.toml", {"strict": profile})
    jobs = [Job("POST", f"/items/{n}", api="strict", id=str(n), json={"n": n}) for n in range(JOBS)]
    workers = [WorkerProcess(tmp_path, redis_url, apis, {}) for _ in range(2)]
    try:
        batch = client.submit(jobs)
        workers[0].start()
        until(lambda: strict_api.stats()["accepted"], what="the first call")
        workers[1].start()
        outcomes = list(batch.outcomes())
        stats = strict_api.stats()
    finally:
        for worker in workers:
            worker.teardown()
    assert [outcome.ok for outcome in outcomes] == [True] * JOBS
    assert stats["accepted"] == JOBS
    started = {f"/items/{outcome.id}": outcome.started_at for outcome in outcomes}
    arrivals = [json.loads(line) for line in (tmp_path / "arrivals.jsonl").read_text().splitlines()]
    late = [call for call in arrivals if call["status"] == 200 and call["time"] - started[call["path"]] > ALLOWED_S]
    assert stats["rejected"] <= len(late)
    assert worst_window([call["time"] * 1e6 for call in arrivals if call not in late], 1_000_000) <= 100
