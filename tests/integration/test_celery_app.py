"""The Celery app on a real server."""

from __future__ import annotations

from contextlib import closing

import pytest

from callmill.config import celery as celery_module
from callmill.config.celery import KEY_PREFIX, lane_queue
from callmill.config.embedded_server import start
from callmill.config.redis_connections import connect_blocking
from callmill.config.settings import load_settings


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Run an embedded server that the environment does not name."""
    for variable in ("CALLMILL_REDIS_URL", "CALLMILL_BROKER_URL", "CALLMILL_LIMITER_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CALLMILL_STATE_DIR", str(tmp_path))
    server = start(load_settings())
    yield server
    server.stop()


@pytest.fixture
def app(server):  # noqa: ARG001 - it must run
    """Make an app of the same kind as the module's, which finds the server by itself."""
    app = celery_module._App("callmill", set_as_current=False)
    yield app
    app.close()
    app.backend.client.close()


def test_batch_publishing(app, server):
    """Hints published in a pipeline arrive in their lane's queue, whole, in order, under our key prefix only."""
    with app.producer_pool.acquire(block=True) as producer, producer.batch(max_size=100):
        for number in range(250):
            app.send_task("hint", ("batch", number), queue=lane_queue("crm"), producer=producer, retry=False)
    with closing(connect_blocking(server.url)) as client:
        assert client.llen(f"{KEY_PREFIX}lane.crm") == 250
        assert [key for key in client.scan_iter() if not key.startswith(KEY_PREFIX.encode())] == []
    with app.connection_for_read() as connection, closing(connection.SimpleQueue(lane_queue("crm"))) as queue:
        messages = [queue.get(block=False) for _ in range(250)]
        assert [message.payload[0] for message in messages] == [["batch", number] for number in range(250)]
        for message in messages:
            message.ack()


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")  # celery 5.7 with redis-py 8
def test_results_are_kept_under_the_prefix(app, server):
    """A task's result is stored on the ledger's server under our prefix, and expires."""
    app.backend.store_result("some-id", {"ok": True}, "SUCCESS")
    assert app.AsyncResult("some-id").get(timeout=5) == {"ok": True}
    with closing(connect_blocking(server.url)) as client:
        assert [key for key in client.scan_iter() if not key.startswith(KEY_PREFIX.encode())] == []
        assert client.ttl(f"{KEY_PREFIX}celery-task-meta-some-id") > 0
