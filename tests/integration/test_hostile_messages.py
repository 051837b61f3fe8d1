"""Whatever stands in a queue or comes on a channel: a worker drops it, does nothing of it, and goes on."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hostile_messages import (
    CONTROL_MESSAGES,
    HARMFUL_COMMANDS,
    LIMITER_MESSAGES,
    QUEUE_MESSAGES,
    command,
    task_message,
)
from local_nodes import RedisProcess, WorkerProcess, until, write_profiles
from scripted_api import ScriptedApi, scripted_api

from callmill.config.celery import CALLS_QUEUE, KEY_PREFIX, lane_queue_key
from callmill.limits.keys import Keys
from callmill.producer import Client, Job

CONTROL = f"{KEY_PREFIX}/0.celery.pidbox"
EVENTS = f"{KEY_PREFIX}/0.celeryev/worker.heartbeat"


class Site:
    """A worker, the API that it calls, and the Redis that anybody may write to."""

    def __init__(self, server: RedisProcess, worker: WorkerProcess, api: ScriptedApi) -> None:
        self.url, self.worker, self.api = server.url, worker, api
        self.redis = redis.Redis.from_url(server.url)

    def does_a_good_batch(self) -> None:
        """Run a batch to its end."""
        with Client(self.url) as client:
            batch = client.submit(Job("GET", f"/good/{n}", api="near") for n in range(20))
            assert batch.wait(30).succeeded == 20, self.worker.logs()

    def queues(self) -> list[str]:
        """The queues that the worker consumes."""
        return sorted(queue["name"] for queue in self.asked("active_queues"))

    def asked(self, method: str, arguments: object = None) -> Any:
        """Send a command of Celery's remote control and return the worker's answer."""
        asked_by = str(uuid.uuid4())
        reply_to = {"exchange": "reply.celery.pidbox", "routing_key": asked_by}
        queue = f"{KEY_PREFIX}{asked_by}.reply.celery.pidbox"
        found = None
        for _ in range(10):  # a worker that was asked too much within a second says nothing
            self.redis.publish(CONTROL, command(method, arguments, reply_to=reply_to, ticket="t"))
            if found := self.redis.brpop([queue], timeout=2):
                break
        assert found, self.worker.logs()
        (answer,) = json.loads(base64.b64decode(json.loads(found[1])["body"])).values()
        return answer


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    """Start everything once for the module."""
    folder = tmp_path_factory.mktemp("hostile")
    server = RedisProcess(folder).start()
    with scripted_api() as api:
        apis = write_profiles(folder / "apis.toml", {"near": [f'base_url = "{api.url}"', 'limits = ["1000/second"]']})
        server.ready()
        worker = WorkerProcess(tmp_path_factory.mktemp("worker"), server.url, apis, {}).start()
        try:
            worker.ready()
            yield Site(server, worker, api)
        finally:
            worker.teardown()
            server.teardown()


def test_messages_in_queues_end_nothing(site):
    """Malformed messages in every queue are dropped, none comes back, and no call is made of one."""
    pid, keys = site.worker.process.pid, {key for key in site.redis.keys("*") if b"lane" not in key}
    for queue in (KEY_PREFIX + CALLS_QUEUE, lane_queue_key("near")):
        site.redis.lpush(queue, *QUEUE_MESSAGES)
        until(lambda queue=queue: not site.redis.exists(queue), 30, f"{queue} is empty")
    until(lambda: not site.redis.exists("callmill:unacked"), 30, "nothing waits for an acknowledgement")
    site.does_a_good_batch()
    assert site.worker.status == "running"
    assert site.worker.process.pid == pid
    assert not [path for path in map(str, site.api.requests) if "hostile" in path]
    new = {key for key in site.redis.keys("*") if not key.startswith((b"callmill:b:", b"callmill:api"))} - keys
    assert not [key for key in new if site.redis.type(key) == b"list"]
    log = site.worker.logs()
    assert "message_dropped" in log
    assert "Traceback" not in log
    assert max(map(len, log.splitlines())) < 2_000


def test_messages_on_channels_end_nothing(site):
    """Malformed messages on the channels of control, events and the limiter change nothing; later ones are heard."""
    for message in CONTROL_MESSAGES:
        site.redis.publish(CONTROL, message)
        site.redis.publish(EVENTS, message)
    limiter = Keys("near").channel
    assert site.redis.pubsub_numsub(limiter)[0][1] == 1
    for message in LIMITER_MESSAGES:
        site.redis.publish(limiter, message)
    site.does_a_good_batch()
    assert site.redis.pubsub_numsub(limiter)[0][1] == 1
    assert "calls" in (queues := site.queues())
    assert all(queue == "calls" or queue.startswith("lane.near") for queue in queues)
    assert site.worker.status == "running"
    assert "Traceback" not in site.worker.logs()


@pytest.mark.parametrize("name", sorted({name for name, _ in HARMFUL_COMMANDS}))
def test_workers_take_no_remote_control(site, name):
    """A command that changes something is refused, and whoever sent it is told."""
    assert "do not take the command" in site.asked(name, dict(HARMFUL_COMMANDS)[name])["error"]
    assert site.worker.status == "running"


def test_workers_answer_what_the_dashboard_asks(site):
    """What Flower's pages of workers show is answered."""
    assert site.asked("ping") == {"ok": "pong"}
    assert site.asked("stats")["pool"]
    assert "callmill.run_chunk" in str(site.asked("registered"))
    assert site.asked("conf", {"with_defaults": False})
    for name in ("active", "reserved", "scheduled", "revoked"):
        assert site.asked(name, {"safe": True}) == [], name


def test_a_plain_call_may_have_a_follower(site):
    """A plain call that names another as what follows is made, and so is the other."""
    first, second = ({"method": "GET", "url": f"/{path}", "api": "near"} for path in ("leads", "follows"))
    follower = {
        "task": "callmill.call",
        "args": [second],
        "kwargs": {},
        "options": {"task_id": "x2"},
        "immutable": True,
    }
    message = task_message([[first], {}, {"chain": [follower]}], task="callmill.call", id="x1")
    site.redis.lpush(KEY_PREFIX + CALLS_QUEUE, message)
    until(lambda: site.api.seen("/follows"), 20, "both calls were made")
    assert len(site.api.seen("/leads")) == 1
