"""A worker and APIs whose answers break HTTP or cannot be parsed: over both transports nothing is lost or mixed up."""

from __future__ import annotations

import gzip
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
BODIES: dict[str, tuple[str, bytes, object]] = {
    "members": ("Content-Encoding: gzip\r\n", gzip.compress(b'{"a":') + gzip.compress(b"1}"), {"a": 1}),
    "marked": ("Content-Type: application/json\r\n", b'\xef\xbb\xbf{"a":1}', {"a": 1}),
    "utf-16": ("", '{"a":"日"}'.encode("utf-16"), {"a": "日"}),
    "latin": ("Content-Type: application/json; charset=ISO-8859-1\r\n", '{"a":"ü"}'.encode("latin-1"), {"a": "ü"}),
    "japanese": ("Content-Type: text/plain; charset=Shift_JIS\r\n", "日本語".encode("shift_jis"), "日本語"),
    "half": ("", b'{"a":"\\ud83d"}', {"a": "\ud83d"}),
    "huge": ("", b"9" * 100_000, "9" * 100_000),
    "picture": ("Content-Type: image/png\r\n", b"\x89PNG\r\n\x1a\n\x00\xff", None),
    "br": ("Content-Type: text/plain\r\nContent-Encoding: br\r\n", b"\x0b\x02\x80hello\x03", None),
}
"""Headers, body, and what is read of it: a value of JSON, else text; None: neither."""


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
        case ["soap"]:
            await exchange.answer()
        case ["body", name]:
            headers, body, _ = BODIES[name]
            await exchange.answer(headers=headers, body=body)
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
            "keep_headers = []",
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


@pytest.mark.parametrize("name", NAMES)
def test_outcomes_say_what_their_bytes_are(site, name):
    """Each body arrives with what a reader needs to know of it, though the profile keeps no headers."""
    outcomes = site.run(*(Job("GET", f"/body/{kind}", api=name, id=kind) for kind in BODIES))
    for kind, (_, sent, read) in BODIES.items():
        outcome = outcomes[kind]
        assert outcome.ok, kind
        assert outcome.body == (gzip.decompress(sent) if kind == "members" else sent)
        assert outcome.is_text == (read is not None), kind
        if isinstance(read, dict):
            assert outcome.json() == read
        else:
            assert read is None or outcome.text() == read
            with pytest.raises(ValueError, match="the body is"):
                outcome.json()
    assert outcomes["br"].headers == {"content-type": "text/plain", "content-encoding": "br"}
    assert outcomes["picture"].headers == {"content-type": "image/png"}
    assert outcomes["marked"].headers == {}


@pytest.mark.parametrize("name", NAMES)
def test_soap_action_goes_out_as_written(site, name):
    """A profile need not say anything for SOAPAction to keep its case, and the key of the call goes with it."""
    outcome = site.run(Job("POST", "/body/members", api=name, id="a", data=b"<x/>", headers={"SOAPAction": "urn:x"}))[
        "a"
    ]
    arrived = site.server.requests[-1]
    assert (outcome.ok, "SOAPAction" in arrived.names, arrived.body) == (True, True, b"<x/>")
    assert "idempotency-key" in arrived.headers


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
