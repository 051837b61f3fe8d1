"""One worker process and APIs on real sockets: which calls are made again, and which go where a redirect points."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis
from local_nodes import LocalWorker, WorkerProcess, write_profiles
from scripted_api import ScriptedApi, scripted_api

from callmill.config.celery import app
from callmill.producer import Client, Job, Outcome

TRANSPORTS = ("pyreqwest", "requests")
COMMON = ["retry = { attempts = 3, base = 0.01, cap = 0.05 }", "breaker = false"]


@dataclass
class Fleet:
    """A worker, its API, and a client."""

    client: Client
    script: ScriptedApi

    def run(self, api: str, method: str, url: str, **fields: object) -> tuple[Outcome, int]:
        """Run one job with a body; return its outcome and how many requests for its URL came."""
        before = len(self.script.seen(url))
        body = None if method == "GET" else {"n": 1}
        (outcome,) = self.client.submit([Job(method, url, api=api, json=body, **fields)]).outcomes()  # type: ignore[arg-type]
        return outcome, len(self.script.seen(url)) - before


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port where connections are never accepted."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def fleet(redis_server, tmp_path_factory) -> Iterator[Fleet]:
    """Start everything once for the module."""
    folder = tmp_path_factory.mktemp("worker")
    with (
        redis.Redis.from_url(redis_server.url) as connection,
        scripted_api() as script,
        silent_port() as silent,
    ):
        connection.flushall()
        profiles = {}
        for transport in TRANSPORTS:
            own = [*COMMON, f'transport = "{transport}"']
            here = [f'base_url = "{script.url}"', *own]
            profiles |= {
                transport: here,
                f"{transport}-keys": [*here, 'idempotency = "by-key"'],
                f"{transport}-stays": [*here, "follow_redirects = false"],
                f"{transport}-silent": [f'base_url = "http://127.0.0.1:{silent}"', *own, "timeout = 0.5"],
            }
        apis = write_profiles(folder / "apis.toml", profiles)
        worker = LocalWorker(WorkerProcess(folder, redis_server.url, apis, {}).start(), app)
        try:
            with Client(redis_server.url) as client:
                worker.ready()
                yield Fleet(client, script)
        finally:
            worker.teardown()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("url", "code"), [("/hang", "timeout"), ("/reset", "reset")])
def test_post_of_unknown_fate_is_made_once(fleet, transport, url, code):
    """A POST that was sent and got no answer is not made again, and the outcome says why and what to do."""
    outcome, requests = fleet.run(transport, "POST", url, timeout=0.5)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.attempts, requests) == (code, 1, 1)
    assert f'set idempotency = "by-key" if {transport} honours Idempotency-Key' in outcome.error.message


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_idempotent_calls_are_repeated(fleet, transport):
    """A PUT that got no answer is made again, and so is a POST where the API honours its key, with the same key."""
    assert fleet.run(transport, "PUT", "/hang", timeout=0.2)[1] == 3
    outcome, requests = fleet.run(f"{transport}-keys", "POST", "/hang", timeout=0.2)
    assert (outcome.attempts, requests) == (3, 3)
    assert outcome.error is not None
    assert outcome.error.message == (
        "timed out waiting for the answer"
        if transport == "requests"
        else "timed out while connecting or waiting for the answer"
    )
    keys = {request.headers["idempotency-key"] for request in fleet.script.seen("/hang")[-3:]}
    assert len(keys) == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_post_that_was_not_sent_is_repeated(fleet, transport):
    """A POST that found no connection within the API's time was not sent: it is tried as often as any other."""
    outcome, _ = fleet.run(f"{transport}-silent", "POST", "/x")
    assert outcome.error is not None
    assert (str(outcome.error), outcome.attempts) == ("timeout: timed out while connecting", 3)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("status", [307, 308])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_redirect_that_keeps_the_method_is_followed(fleet, transport, status, method):
    """A 307 or 308 under the base URL is followed by the same call: method, body and idempotency key."""
    target = f"/followed/{transport}/{status}/{method}"
    url = f"/moved/{status}/{target.replace('/', '|')}"
    outcome, requests = fleet.run(transport, method, url, idempotency_key="k")
    assert (outcome.ok, outcome.attempts, requests) == (True, 1, 1)
    (there,) = fleet.script.seen(target)
    assert (there.method, there.body, there.headers["idempotency-key"]) == (method, b'{"n":1}', "k")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("status", [301, 302, 303])
def test_post_does_not_become_a_get(fleet, transport, status):
    """A POST answered with 301, 302 or 303 fails, naming the target without its query; nothing is sent there."""
    target = f"/elsewhere/{transport}/{status}"
    outcome, _ = fleet.run(transport, "POST", f"/moved/{status}/{target.replace('/', '|')}?token=secret")
    assert outcome.error is not None
    assert (outcome.error.code, outcome.status) == (f"http_{status}", status)
    assert f"to {fleet.script.url}{target}?..., not followed" in outcome.error.message
    assert not [request for request in fleet.script.requests if request.target.startswith(target)]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_redirects_that_the_profile_refuses(fleet, transport):
    """With follow_redirects = false, no redirect is followed and the outcome names where it pointed to."""
    for method in ("GET", "POST"):
        outcome, _ = fleet.run(f"{transport}-stays", method, f"/moved/308/|stays|{transport}")
        assert outcome.error is not None
        assert outcome.error.message.startswith(f"308 Permanent Redirect to {fleet.script.url}/stays/{transport}, ")
        assert "follow_redirects = false" in outcome.error.message
    assert not fleet.script.seen(f"/stays/{transport}")


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("http:||user:secret@127.0.0.1:9|x?key=secret", "http://127.0.0.1:9/x?...;"),
        ("http:||[bad", "http://[bad;"),
        ("http:||127.0.0.1:99999|", "http://127.0.0.1:99999/;"),
    ],
)
def test_redirect_away_is_named_without_secrets(fleet, location, shown):
    """A redirect away from the API, to whatever, fails with its target, but without credentials and query."""
    outcome, _ = fleet.run("pyreqwest", "POST", f"/moved/307/{location}")
    assert outcome.error is not None
    assert outcome.error.code == "redirect"
    assert f"redirected away from the API, to {shown}" in outcome.error.message
    assert "secret" not in outcome.error.message
