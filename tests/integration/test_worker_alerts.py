"""Alerts and the log, with two real workers and a webhook."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faulty_server import Exchange, FaultyServer, faulty_server
from limits_site import Site, limits_site
from local_nodes import until
from scripted_api import scripted_api

from callmill.config.alert_policy import AlertEvent
from callmill.ledger import keys
from callmill.producer import Job

WAIT_S = 30
SECRET = "T0hook9secret"
API_KEY = "sk-very-secret-key-1"


@dataclass
class Alerted:
    """Workers, and the webhook that they post to."""

    site: Site
    server: FaultyServer
    answers: list[str]

    def posts(self, event: str = "") -> list[dict]:
        """Return what arrived, of one event or of all."""
        bodies = [json.loads(exchange.body) for exchange in list(self.server.requests)]
        return [body for body in bodies if event in {"", body["event"]}]

    def lines(self, action: str = "", batch: str = "") -> list[dict]:
        """Return the lines that the workers logged, but for what Celery's own command prints before it logs."""
        lines = [json.loads(line) for line in self.site.logs().splitlines() if line.startswith("{")]
        return [line for line in lines if action in {"", line["action"]} and batch in {"", line.get("batch")}]


@pytest.fixture(scope="module")
def alerted(redis_server, tmp_path_factory) -> Iterator[Alerted]:
    """Start everything once for the module; the workers log JSON."""
    folder: Path = tmp_path_factory.mktemp("alerts")
    answers: list[str] = []

    async def answer(exchange: Exchange) -> None:
        await exchange.answer(answers.pop(0) if answers else "200 OK")

    with faulty_server(answer) as server, scripted_api() as api:
        (folder / "hook").write_text(server.url(f"/{SECRET}"))
        (folder / "key").write_text(API_KEY)
        auth = 'auth = { bearer = "file:key" }'
        profiles = {
            "busy": [f'base_url = "{api.url}"', auth],
            "still": [f'base_url = "{api.url}"', auth, '[alerts]\nwebhook = "file:hook"'],
        }
        with limits_site(folder, redis_server.url, profiles, workers=2, settings={"log_format": "json"}) as site:
            yield Alerted(site, server, answers)


def test_what_happens_is_posted_once(alerted):
    """Of two workers one posts a pause, and the end of a batch; a single call is nobody's business."""
    site = alerted.site
    site.cli("limits", "pause", "still", "--reason", "over budget")
    until(lambda: alerted.posts("lane_paused"), WAIT_S, "the pause is told")
    jobs = [Job("GET", "/ok" if n else "/status/404", api="busy") for n in range(250)]
    night = site.client.submit(jobs, name="night")
    until(lambda: alerted.posts("batch_failed"), WAIT_S, "the end is told")
    assert site.client.call(Job("GET", "/ok", api="busy")).ok
    site.client.submit([Job("GET", "/ok", api="busy")] * 5, name="last")
    until(lambda: alerted.posts("batch_done"), WAIT_S, "what comes last is told")
    pause, end, last = alerted.posts()  # in order: there is nothing else
    assert (pause["api"], pause["reason"]) == ("still", "until resumed: over budget")
    assert end["text"].startswith(f"Callmill: batch `night` ({night.id}) is over: 1 failed, 249 succeeded")
    assert last["batch"]["name"] == "last"


def test_chunk_is_a_line_and_a_call_is_none(alerted):
    """Each chunk of a batch is one line with what came of it; a call that is a batch of its own has none."""
    batch = alerted.site.client.submit([Job("GET", "/ok", api="busy")] * 250, name="lines")
    batch.wait(WAIT_S)
    assert alerted.site.client.call(Job("GET", "/ok", api="busy")).ok
    until(lambda: len(alerted.lines("chunk_over", batch.id)) == 3, WAIT_S, "each chunk is logged")
    chunks = alerted.lines("chunk_over", batch.id)
    assert sorted(line["chunk"] for line in chunks) == [0, 1, 2]
    assert sum(line["succeeded"] for line in chunks) == 250
    for line in chunks:
        assert (line["batch_name"], line["api"], line["level"], line["put_back"]) == ("lines", "busy", "info", 0)
        assert line["p50_ms"] > 0
        assert line["duration_s"] > 0
        assert line["worker"]
    until(lambda: batch.id in json.dumps(alerted.posts()), WAIT_S, "the end is told")
    assert {line["action"] for line in alerted.lines(batch=batch.id)} == {"chunk_over", "batch_done"}
    assert "call" not in {line.get("batch_name") for line in alerted.lines()}


@pytest.mark.chaos
def test_alert_survives_kill_9_of_the_worker_that_posts_it(alerted):
    """The worker that has an alert in hand is killed before the webhook took it: the other one posts it."""
    before = len(alerted.server.requests)
    alerted.answers += ["503 Later"]
    batch = alerted.site.client.submit([Job("GET", "/ok", api="busy")] * 5, name="killed")
    until(lambda: len(alerted.server.requests) > before, WAIT_S, "a worker posts it, in vain")
    sender = until(
        lambda: alerted.site.redis.get(next(alerted.site.redis.scan_iter(keys.alert_sender("*")), "")), WAIT_S
    )
    pid = int(sender.rsplit("-", 2)[1])
    os.kill(pid, signal.SIGKILL)
    until(lambda: len(alerted.server.requests) > before + 1, WAIT_S, "the other worker posts it")
    tries = alerted.posts()[before:]
    assert {post["batch"]["id"] for post in tries} == {batch.id}
    assert len({post["id"] for post in tries}) == 1
    for worker in alerted.site.workers:
        if worker.container.process.pid == pid:
            worker.container.process.wait(10)


def test_log_is_json_with_actions_and_without_secrets(alerted):
    """Every line of a worker is one object, Celery's too; ours have an action; neither key nor webhook is in any."""
    lines = alerted.lines()
    assert {line["logger"].partition(".")[0] for line in lines} >= {"callmill", "celery"}
    assert all(line["action"] != "library" for line in lines if line["logger"].startswith("callmill"))
    assert {"batch_done", "chunk_over", "lane_paused"} <= {line["action"] for line in lines}
    assert not [line for line in lines if line["logger"] in {"celery.app.trace", "celery.worker.strategy"}]
    assert SECRET not in alerted.site.logs()
    assert API_KEY not in alerted.site.logs()
    assert {post["event"] for post in alerted.posts()} <= set(AlertEvent)
