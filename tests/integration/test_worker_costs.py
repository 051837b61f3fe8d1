"""One worker, a simulated API that draws what calls cost: estimates, settling, and limits of models, end to end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import redis
from local_nodes import LocalWorker, WorkerProcess, write_profiles

from callmill.config.celery import app
from callmill.config.limit_spec import parse_limit
from callmill.errors import JobError
from callmill.limits.keys import Keys
from callmill.producer import Client, Job, Outcome
from callmill.simulator import SimulatorOptions, SimulatorProcess
from callmill.simulator.latency import parse_latency
from callmill.simulator.options import EnforcerKind
from callmill.simulator.tokens import Charging, TokenDraw

USAGE = 'usage = { total = "/usage/total_tokens", input = "/usage/prompt_tokens", output = "/usage/completion_tokens" }'
MODELS = 'models = { slow = ["10/second"], tiny = ["500 tokens/minute"] }'


@dataclass
class Fleet:
    """A worker, its APIs by name, and a client."""

    client: Client
    redis: redis.Redis
    servers: dict[str, SimulatorProcess] = field(default_factory=dict)

    def run(self, *jobs: Job) -> list[Outcome]:
        """Submit jobs and return their outcomes in order."""
        return sorted(self.client.submit(jobs).outcomes(), key=lambda outcome: outcome.index)

    def stats(self, api: str) -> dict[str, Any]:
        """Return what the API's server counted."""
        return msgspec.to_builtins(self.servers[api].stats())

    def learned(self, api: str, kind: str) -> list[float]:
        """Return the sums that the fleet keeps of a kind of calls."""
        return [float(number) for number in self.redis.hget(Keys(api).costs, kind).split()]


def server(tokens: str, draw: TokenDraw, charge: Charging) -> SimulatorProcess:
    """Return a bucket server."""
    return SimulatorProcess(
        SimulatorOptions(
            limits=(parse_limit(tokens),),
            enforcer=EnforcerKind.BUCKET,
            tokens=draw,
            charge=charge,
            latency=parse_latency("20ms"),
            seed=1,
        )
    )


@pytest.fixture(scope="module")
def fleet(redis_server, tmp_path_factory) -> Iterator[Fleet]:
    """Start everything once for the module."""
    folder = tmp_path_factory.mktemp("worker")
    with (
        redis.Redis.from_url(redis_server.url, decode_responses=True) as connection,
        server("900000 tokens/minute", TokenDraw(100, 1.0), Charging.ANSWER) as random,
        server("60000 tokens/minute", TokenDraw(100), Charging.ANSWER) as steady,
        SimulatorProcess(SimulatorOptions(seed=1)) as echo,
    ):
        connection.flushall()
        bucket = 'enforcer = "bucket"'
        deep = 'enforcer = "bucket"\nburst = 10'
        profiles = {
            "random": [f'base_url = "{random.url}"', 'limits = ["900000 tokens/minute"]', bucket, USAGE],
            "steady": [f'base_url = "{steady.url}"', 'limits = ["60000 tokens/minute", "20/second"]', deep, USAGE],
            "models": [f'base_url = "{echo.url}"', 'limits = ["500/second"]', bucket, 'model = "/model"', MODELS],
        }
        apis = write_profiles(folder / "apis.toml", profiles)
        worker = LocalWorker(WorkerProcess(folder, redis_server.url, apis, {}).start(), app)
        try:
            with Client(redis_server.url) as client:
                worker.ready()
                yield Fleet(client, connection, {"random": random, "steady": steady, "models": echo})
        finally:
            worker.teardown()


def test_random_costs_are_learned_and_keep_the_limit(fleet):
    """Calls of which nothing is stated use what a limit in tokens has, never break it, and teach what they cost."""
    outcomes = fleet.run(*[Job("POST", f"/{n}", api="random", json={}) for n in range(900)])
    costs = [outcome.json()["usage"]["total_tokens"] for outcome in outcomes]
    stats = fleet.stats("random")
    assert (stats["rejected"], stats["tokens"]) == (0, sum(costs))
    late = sorted(outcome.started_at for outcome in outcomes)[450:]
    used = sum(cost for cost, outcome in zip(costs, outcomes, strict=True) if outcome.started_at >= late[0])
    assert (
        used / (late[-1] - late[0]) >= 0.8 * 15_000
    )  # refunds may make it more for a while; the server saw to the rest
    count, tokens, _, _, parted, output = fleet.learned("random", "all:")
    assert count >= 100
    assert tokens / count == pytest.approx(100, rel=0.3)
    assert parted == pytest.approx(tokens)
    assert output / parted == pytest.approx(0.5, abs=0.1)


def test_given_estimates_are_settled_and_corrected(fleet):
    """Calls given a tenth of what they cost are charged in full; what was given and what it cost is learned."""
    outcomes = fleet.run(*[Job("POST", "/", api="steady", json={}, tokens=10) for _ in range(30)])
    assert all(outcome.ok for outcome in outcomes)
    assert fleet.stats("steady")["rejected"] == 0
    count, tokens, _, stated, *_ = fleet.learned("steady", "given:")
    assert count >= 2
    assert tokens / stated == pytest.approx(10)


def test_a_call_dearer_than_the_burst_passes(fleet):
    """A call that weighs more than a bucket holds, or costs all that a window has, starts when nothing is owed."""
    for job in (
        Job("POST", "/", api="steady", json={}, weight=20),
        Job("POST", "/", api="steady", json={}, tokens=60_000),  # last: what comes next waits a minute
    ):
        (outcome,) = fleet.run(job)
        assert outcome.ok


def test_a_call_dearer_than_a_window_is_refused(fleet):
    """What no window has is refused at submission, in the words of what the worker announced."""
    for fields, field_name, words in (
        ({"tokens": 60_001}, "tokens", "'60000 tokens/minute' of API 'steady'"),
        ({"weight": 21}, "weight", "'20/second'"),
    ):
        with pytest.raises(JobError, match=words) as refusal:
            fleet.client.submit([Job("GET", "/", api="steady"), Job("GET", "/", api="steady", **fields)])
        assert (refusal.value.position, refusal.value.field) == (1, field_name)
    with pytest.raises(JobError, match="model 'tiny'"):
        fleet.client.submit([Job("POST", "/", api="models", json={"model": "tiny"}, tokens=501)])


def test_limits_of_one_model(fleet):
    """A model's own limit holds back its calls, whoever names the model, and nobody else's."""
    slow = [Job("POST", "/", api="models", json={"model": "slow"}) for _ in range(10)]
    named = [Job("POST", "/", api="models", json={"model": "fast"}, model="slow") for _ in range(5)]
    fast = [Job("POST", "/", api="models", json={"model": "fast"}) for _ in range(60)]
    outcomes = fleet.run(*slow, *named, *fast)
    starts = sorted(outcome.started_at for outcome in outcomes[:15])
    assert starts[-1] - starts[0] >= 14 * 0.1 * 0.97
    assert max(outcome.started_at for outcome in outcomes[15:]) < starts[-1]
