"""Credentials stay in the worker, whatever an API does with them: what Redis is told, keeps and shows holds none.

A real worker process makes calls to an API that echoes each request in its answer's body and headers, to one that
refuses connections and to a host that does not exist. Everything that any process tells Redis is watched, the messages
of Celery's events included, which is all that Flower and our own pages know.
"""

from __future__ import annotations

import json
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit
from urllib.request import Request, urlopen

import pytest
import redis
from celery import Celery
from dashboard_process import DashboardProcess
from faulty_server import Exchange, FaultyServer, faulty_server
from local_nodes import RedisProcess, WorkerProcess, until, write_profiles

from callmill.config.celery import CALLS_QUEUE, KEY_PREFIX
from callmill.producer import Client, Job, Outcome
from callmill.workers import tasks

KEY = "k9Qz7Lw2Vx4T/fB+8 '&=é"
"""A secret that every encoder writes in its own way."""

SIGN = "k9Qz7Lw2Vx4T"
"""What is left of it in every spelling."""

TOKEN = "t5Rm3Np8Yc6H/aa+bb=="
PASSWORD = "p4Ws9Dk2Bn7J+cc"
BASIC = b64encode(f"me:{PASSWORD}".encode()).decode()
SIGN_IN = "me:dashboard"
SIGNS = [SIGN, "t5Rm3Np8Yc6H", "p4Ws9Dk2Bn7J", BASIC]

PATHS = ["/echo", "/echo?q=1", "/fail", "/redirect/here", "/redirect/away", "/throttle", "/refuse", "/hang", "/break"]
"""One job each: every way in which a call ends."""

CREDENTIALS = {
    "query": 'auth = { query = { "api key" = "env:SECRET_KEY", extra = "env:SECRET_TOKEN" } }',
    "header": 'auth = { header = { X-Api-Key = "Token env:SECRET_TOKEN" } }',
    "basic": 'auth = { basic = ["me", "env:SECRET_PASSWORD"] }',
    "static": 'headers = { X-Team = "env:SECRET_TOKEN" }',
    "pool": 'auth = [{ query = { k = "env:SECRET_KEY" } }, { name = "two", query = { k = "env:SECRET_TOKEN" } }]',
}


async def echo(exchange: Exchange) -> None:
    """Answer with what was asked, credential and all, as careless servers do."""
    told = json.dumps({"method": exchange.method, "url": exchange.target, "headers": exchange.headers})
    body = f"{told}\n{unquote(exchange.target)}\n{json.dumps(told)}".encode()
    kept = f"X-Echo: {exchange.target}\r\nX-Request-Id: {exchange.headers.get('authorization', '-')}\r\n"
    query = urlsplit(exchange.target).query
    match urlsplit(exchange.target).path.split("/")[1:]:
        case ["fail"]:
            await exchange.answer("500 Failed", kept, body)
        case ["refuse"]:
            await exchange.answer("400 Refused", kept, body)
        case ["redirect", "here"]:
            await exchange.answer("302 Found", f"{kept}Location: /echo?{query}&page=2\r\n", body)
        case ["redirect", "away"]:
            await exchange.answer("302 Found", f"{kept}Location: http://evil.example/?{query}\r\n", body)
        case ["throttle"] if exchange.connection not in throttled:
            throttled.add(exchange.connection)
            policy = f'RateLimit: "{query}";r=0;t=1\r\n'
            await exchange.answer("429 Slow down", f"{kept}Retry-After: 0\r\n{policy}", body)
        case ["hang"]:
            await exchange.reader.read(1)
        case ["break"]:
            exchange.reset()
        case _:
            await exchange.answer("200 OK", kept, body)


throttled: set[int] = set()


class TalkativeWorker(WorkerProcess):
    """A worker that logs all that it and its libraries have to say, and has the secrets."""

    def command(self) -> list[str]:
        """Return the worker's command line."""
        return ["DEBUG" if word == "INFO" else word for word in super().command()] + ["-c", "1"]

    def environment(self) -> dict[str, str]:
        """Return the worker's settings."""
        secrets = {"SECRET_KEY": KEY, "SECRET_TOKEN": TOKEN, "SECRET_PASSWORD": PASSWORD}
        return {**super().environment(), **secrets, "CALLMILL_LOG_LEVEL": "debug", "RUST_LOG": "trace"}


@contextmanager
def watched(url: str) -> Iterator[list[str]]:
    """Yield every command that a Redis server executes meanwhile, as MONITOR tells it."""
    commands: list[str] = []
    with redis.Redis.from_url(url) as asked, redis.Redis.from_url(url) as told, told.monitor() as monitor:

        def listen() -> None:
            for event in monitor.listen():
                commands.append(event["command"])
                if event["command"].startswith("ECHO that"):
                    return

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield commands
        finally:
            asked.echo("that is all")
            thread.join()


@dataclass
class Run:
    """What is left of a run.

    Attributes:
        outcomes: By API and path.
        seen: What the API was sent.
        texts: Everything that anybody may read afterwards, by where it stands.
    """

    outcomes: dict[tuple[str, str], Outcome]
    seen: list[Exchange]
    texts: dict[str, str]


@pytest.fixture(scope="module", params=["pyreqwest", "requests"])
def run(request, tmp_path_factory) -> Iterator[Run]:
    """Make every kind of call with every kind of credential, and collect what it leaves behind."""
    folder = tmp_path_factory.mktemp("secrets")
    throttled.clear()
    with faulty_server(echo) as api, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        server = RedisProcess(folder, durable=True).start()
        server.ready()
        worker = TalkativeWorker(folder, server.url, write_apis(folder, request.param, api, closed), {}).start()
        try:
            worker.ready()
            with watched(server.url) as commands:
                outcomes, texts = make_calls(server.url, folder)
            worker.kill("SIGTERM")
            texts["log"] = worker.logs()
            texts["commands"] = "\n".join(commands)
            with redis.Redis.from_url(server.url) as connection:
                connection.save()
            files = [path for path in server.folder.rglob("*") if path.is_file()]
            texts |= {f"Redis's file {path.name}": path.read_bytes().decode("latin-1") for path in files}
            yield Run(outcomes, list(api.requests), texts)
        finally:
            worker.teardown()
            server.teardown()


def write_apis(folder: Path, transport: str, api: FaultyServer, closed: socket.socket) -> Path:
    """Write the profiles: one for each kind of credential, and two that are never reached."""
    common = [
        f'transport = "{transport}"',
        "timeout = 1",
        "retry = { attempts = 2, base = 0.01, cap = 0.02, statuses = [500] }",
        "breaker = false",
        'keep_headers = ["x-echo", "x-request-id", "location"]',
    ]
    profiles = {name: [f'base_url = "{api.url("")}"', auth, *common] for name, auth in CREDENTIALS.items()}
    for name, url in (
        ("refused", f"http://127.0.0.1:{closed.getsockname()[1]}"),
        ("nowhere", "http://nowhere.invalid"),
    ):
        profiles[name] = [f'base_url = "{url}"', CREDENTIALS["query"], *common]
    return write_profiles(folder / "apis.toml", profiles)


def make_calls(redis_url: str, folder: Path) -> tuple[dict[tuple[str, str], Outcome], dict[str, str]]:
    """Run the jobs as a batch and as plain tasks; return the outcomes, and what people see of them."""
    jobs = [Job("GET", path, api=name, id=f"{name} {path}") for name in CREDENTIALS for path in PATHS]
    jobs += [Job("GET", "/echo", api=name, id=f"{name} /echo") for name in ("refused", "nowhere")]
    dashboard = DashboardProcess(folder, {"redis_url": redis_url}, "--basic-auth", SIGN_IN).start()
    try:
        dashboard.ready()
        with Client(redis_url) as client:
            batch = client.submit(jobs, name="secrets")
            found = {outcome.id: outcome for outcome in batch.outcomes()}
            texts = {
                "outcomes": repr(list(found.values())),
                "failures": repr([*batch.failures(), *batch.failed_jobs(include_retried=True)]),
                "results": results_of_tasks(redis_url),
            }
            pages = ["/batches", "/apis", "/tasks", "/api/tasks", "/metrics", f"/batch/{batch.id}"]
            pages += ["/callmill/data/batches", "/callmill/data/apis", f"/callmill/data/batch/{batch.id}"]
            pages += [f"/callmill/data/failed/{batch.id}"]
            until(lambda: get(dashboard, "/api/tasks").count('"SUCCESS"') > 3, what="the dashboard knows the tasks")
            texts |= {page: get(dashboard, page) for page in pages}
            texts |= {f"/task/{uuid}": get(dashboard, f"/task/{uuid}") for uuid in json.loads(texts["/api/tasks"])}
    finally:
        dashboard.teardown()
    texts["log of the dashboard"] = dashboard.logs()
    return {(outcome.id.split()[0], outcome.id.split()[1]): outcome for outcome in found.values()}, texts


def results_of_tasks(redis_url: str) -> str:
    """Send plain tasks as somebody's own Celery app does, and return their results."""
    with Celery("theirs", broker=redis_url, backend=redis_url, set_as_current=False) as theirs:
        theirs.conf.broker_transport_options = {"global_keyprefix": KEY_PREFIX}
        theirs.conf.result_backend_transport_options = {"global_keyprefix": KEY_PREFIX}
        sent = [
            theirs.send_task(tasks.CALL, ({"method": "GET", "url": path, "api": "query"},), queue=CALLS_QUEUE)
            for path in ("/echo", "/refuse", "/redirect/away")
        ]
        return json.dumps([result.get(timeout=30) for result in sent])


def get(dashboard: DashboardProcess, path: str) -> str:
    """Return a page of the dashboard."""
    sign_in = b64encode(SIGN_IN.encode()).decode()
    with urlopen(Request(dashboard.url + path, headers={"Authorization": f"Basic {sign_in}"}), timeout=10) as answer:  # noqa: S310 - http
        return str(answer.read().decode())


def test_every_call_carries_its_credential(run):
    """The API gets every credential whole, in every call and every redirect within it, and no parameter twice."""
    for exchange in run.seen:
        parameters = parse_qsl(urlsplit(exchange.target).query)
        names = [name for name, _ in parameters]
        sent = dict(parameters)
        assert len(names) == len(set(names)), exchange.target
        assert (
            (sent.get("api key"), sent.get("extra")) == (KEY, TOKEN)
            or sent.get("k") in (KEY, TOKEN)
            or exchange.headers.get("x-api-key") == f"Token {TOKEN}"
            or exchange.headers.get("authorization") == f"Basic {BASIC}"
            or exchange.headers.get("x-team") == TOKEN
        )
    redirected = [exchange for exchange in run.seen if "page=2" in exchange.target]
    assert len(redirected) == len(CREDENTIALS)


def test_every_call_ends_as_its_answer_says(run):
    """Masking changes no outcome: what succeeds, and with which code the others fail."""
    codes = {key: None if outcome.ok else outcome.error.code for key, outcome in run.outcomes.items()}
    expected = {
        "/fail": "http_500",
        "/redirect/away": "redirect",
        "/refuse": "http_400",
        "/hang": "timeout",
        "/break": "reset",
    }
    assert codes == {
        **{(name, path): expected.get(path) for name in CREDENTIALS for path in PATHS},
        ("refused", "/echo"): "connect",
        ("nowhere", "/echo"): "dns",
    }


def test_what_the_api_echoes_is_masked(run):
    """The body that is kept is what the API sent but for the credential, and still tells where it stood."""
    for name in CREDENTIALS:
        outcome = run.outcomes[name, "/echo?q=1"]
        told = json.loads(outcome.body.splitlines()[0])
        assert told["url"].startswith("/echo?q=1")
        assert "***" in (outcome.text() + str(outcome.headers))
        assert b"q=1" in outcome.body.splitlines()[1]
    told = json.loads(run.outcomes["query", "/echo?q=1"].body.splitlines()[0])
    assert told["url"] == "/echo?q=1&api%20key=***&extra=***"
    assert run.outcomes["query", "/echo?q=1"].headers["x-echo"] == told["url"]
    assert run.outcomes["query", "/redirect/away"].error.message.startswith(
        "redirected away from the API, to http://evil.example/;"
    )


@pytest.mark.parametrize("sign", SIGNS)
def test_no_credential_is_anywhere(run, sign):
    """Neither what Redis is told and keeps, nor any log, outcome, result or page holds a credential in any spelling."""
    assert [place for place, text in run.texts.items() if sign in text] == []
    assert all(len(text) > 0 for text in run.texts.values())
    assert "/echo" in run.texts["commands"]
