"""A worker and APIs whose answers break HTTP or cannot be parsed: over both transports nothing is lost or mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from celery import Celery
from faulty_server import Exchange, FaultyServer, faulty_server
from local_nodes import LocalWorker, WorkerProcess, write_profiles
from misbehaving_server import KINDS, body_for, misbehave
from transport_cases import NAMES

from callmill.config.celery import CALLS_QUEUE, KEY_PREFIX, app
from callmill.producer import Client, Job, Outcome
from callmill.workers import tasks

LEVELS = 100_000
DEEP = b"[" * LEVELS + b"]" * LEVELS


@dataclass
class Site:
    """A worker with an API for each transport, and a client."""

    client: Client
    redis_url: str
    worker: LocalWorker
    server: FaultyServer

    def run(self, *jobs: Job) -> dict[str, Outcome]:
        """Submit jobs and return their outcomes by id."""
        batch = self.client.submit(jobs)
        return {outcome.id: outcome for outcome in batch.outcomes()}


async def answer(exchange: Exchange) -> None:
    """Answer ``/levels/N`` with JSON nested so deeply, ``/once/KIND/NONCE`` with misbehaviour at first."""
    match exchange.target.split("/")[1:]:
        case ["levels", levels]:
            body = b"[" * int(levels) + b"]" * int(levels)
            await exchange.answer(headers="Content-Type: application/json\r\n", body=body)
        case ["deep-refusal"]:
            await exchange.answer("400 Bad Request", "Content-Type: application/problem+json\r\n", DEEP[:60_000])
        case _:
            await misbehave(exchange)


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory) -> Iterator[Site]:
    """Start a worker for the module."""
    folder = tmp_path_factory.mktemp("odd")
    with faulty_server(answer) as server, Client(redis_server.url) as client:
        profile = [
            f'base_url = "{server.url("").rstrip("/")}"',
            "retry = { attempts = 3, base = 0.01, cap = 0.05 }",
            'limits = ["100000000 tokens/minute"]',
            'usage = "/usage/total_tokens"',
            'throttle = { statuses = [400], rate = { "/error/code" = ["slow_down"] } }',
            "timeout = 5",
            "breaker = false",
        ]
        profiles = {name: [*profile, f'transport = "{name}"'] for name in NAMES}
        apis = write_profiles(folder / "apis.toml", profiles)
        worker = LocalWorker(WorkerProcess(folder, redis_server.url, apis, {}).start(), app)
        try:
            worker.ready()
            yield Site(client, redis_server.url, worker, server)
        finally:
            worker.teardown()


@pytest.mark.parametrize("name", NAMES)
def test_early_hints_mix_up_nothing(site, name):
    """Forty jobs whose API sends early hints, then the answer, all succeed, each with its own answer."""
    jobs = [Job("GET", f"/103-late/n{n}", api=name, id=f"n{n}") for n in range(40)]
    outcomes = site.run(*jobs)
    assert {id_: (outcome.ok, outcome.body) for id_, outcome in outcomes.items()} == {
        f"n{n}": (True, body_for(f"n{n}")) for n in range(40)
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["lengths-differ", "two-lengths", "chunk-negative", "101"])
def test_malformed_answer_is_retried(site, name, kind):
    """A malformed answer is the API's fault: the call was made, is made again, and fails as that in the end."""
    outcome = site.run(Job("GET", f"/{kind}/x-{name}", api=name, id="x"))["x"]
    assert outcome.error is not None
    assert (outcome.error.code, outcome.attempts) == ("protocol", 3)
    assert "cannot be made" not in outcome.error.message
    assert sum(seen.target == f"/{kind}/x-{name}" for seen in site.server.requests) == 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "target"), [("location-port", "http://x:99999/"), ("location-junk", "http://[::1/")])
def test_redirect_to_no_url_keeps_the_answer(site, name, kind, target):
    """A redirect whose target is no URL fails as one that is not followed, names the target and keeps the answer."""
    assert KINDS[kind].own_answer
    outcome = site.run(Job("GET", f"/{kind}/x", api=name, id="x"))["x"]
    assert outcome.error is not None
    assert (outcome.error.code, outcome.status, outcome.attempts) == ("redirect", 302, 1)
    assert target in outcome.error.message
    assert outcome.body == body_for("x")


@pytest.mark.parametrize("name", NAMES)
def test_deep_answer_is_kept(site, name):
    """An answer of JSON 100 000 levels deep is kept to the last byte, though nothing can look into it."""
    outcomes = site.run(
        Job("GET", f"/levels/{LEVELS}", api=name, id="answer"), Job("GET", "/deep-refusal", api=name, id="refusal")
    )
    answered, refused = outcomes["answer"], outcomes["refusal"]
    assert (answered.ok, answered.body) == (True, DEEP)
    with pytest.raises(ValueError, match="nested too deeply"):
        answered.json()
    assert refused.error is not None
    assert (refused.error.code, refused.body) == ("http_400", DEEP[:60_000])


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # celery 5.7 with redis-py 8
@pytest.mark.parametrize("levels", [150, 900, 980, LEVELS])
def test_plain_task_passes_a_deep_answer_on(site, levels):
    """The plain task's result has an answer parsed where that can be passed on, else as text; it never fails for it."""
    body = "[" * levels + "]" * levels
    with Celery("theirs", broker=site.redis_url, backend=site.redis_url, set_as_current=False) as theirs:
        theirs.conf.broker_transport_options = {"global_keyprefix": KEY_PREFIX}
        theirs.conf.result_backend_transport_options = {"global_keyprefix": KEY_PREFIX}
        job = {"method": "GET", "url": f"/levels/{levels}", "api": "pyreqwest"}
        result = theirs.send_task(tasks.CALL, (job,), queue=CALLS_QUEUE).get(timeout=20)
        theirs.backend.client.close()
    assert result["ok"]
    assert (result["body"] == body) == (levels > 200)
    assert isinstance(result["body"], list) == (levels <= 200)


def test_no_bug_was_met(site):
    """Nothing of this was an error of the worker's own."""
    log = site.worker.logs()
    for words in ("Traceback", "met a bug", "a runner died"):
        assert words not in log
