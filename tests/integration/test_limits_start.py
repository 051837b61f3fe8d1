"""Workers that start while there is work: the first calls are the late ones."""

from __future__ import annotations

import json

import pytest
from limits_kit import worst_window
from local_nodes import WorkerProcess, until, write_profiles

from callmill.config.limit_spec import parse_limit
from callmill.producer import Job
from callmill.simulator import SimulatorOptions, SimulatorProcess
from callmill.simulator.options import EnforcerKind

JOBS = 300


@pytest.fixture
def strict_api(tmp_path):
    """Run an API that takes 100 calls in any second, and logs arrivals."""
    limits = (parse_limit("100/second"),)
    options = SimulatorOptions(limits=limits, enforcer=EnforcerKind.SLIDING, log=tmp_path / "arrivals.jsonl")
    with SimulatorProcess(options) as process:
        yield process


def test_workers_that_start_under_load_keep_a_strict_limit(redis_url, client, strict_api, tmp_path):
    """Workers that start under load, one of them when the other calls already, never exceed a strict limit."""
    profile = [f'base_url = "{strict_api.url}"', 'limits = ["100/second"]']
    apis = write_profiles(tmp_path / "apis.toml", {"strict": profile})
    jobs = [Job("POST", f"/items/{n}", api="strict", id=str(n), json={"n": n}) for n in range(JOBS)]
    workers = [WorkerProcess(tmp_path, redis_url, apis, {}) for _ in range(2)]
    try:
        batch = client.submit(jobs)
        workers[0].start()
        until(lambda: strict_api.stats()["accepted"], what="the first call")
        workers[1].start()
        assert sum(outcome.ok for outcome in batch.outcomes()) == JOBS
        assert batch.progress().throttled == 0
        stats = strict_api.stats()
    finally:
        for worker in workers:
            worker.teardown()
    arrivals = (tmp_path / "arrivals.jsonl").read_text().splitlines()
    assert worst_window([json.loads(line)["time"] * 1e6 for line in arrivals], 1_000_000) <= 100
    assert (stats["accepted"], stats["rejected"]) == (JOBS, 0)
