"""The order in which hints are taken from a queue, and a broker that is away."""

from __future__ import annotations

import json
import socket
import threading

import pytest
import redis

from callmill.config.celery import lane_queue_key
from callmill.errors import RedisUnavailableError
from callmill.ledger import ChunkRef
from callmill.ledger.hints import HintPublisher


@pytest.fixture
def publisher(redis_url):
    """Return a publisher on the session's server."""
    made = HintPublisher(redis_url)
    yield made
    made.close()


def test_hints_that_go_first_are_taken_next(redis_url, publisher):
    """What was put back is taken before a backlog, which keeps its own order."""
    refs = [ChunkRef("batch", number, "api") for number in range(4)]
    publisher.publish(refs[:2])
    publisher.publish(refs[2:], first=True)
    with redis.Redis.from_url(redis_url) as connection:
        taken = [json.loads(connection.rpop(lane_queue_key("api")) or b"")["headers"]["id"] for _ in refs]
    assert taken == ["batch:2", "batch:3", "batch:0", "batch:1"]


@pytest.mark.parametrize("answers", [True, False])
def test_a_broker_that_is_away_is_told_at_once(answers):
    """Whether nobody listens or whoever does hangs up, publishing fails at the first try."""
    tries = 0

    def hang_up() -> None:
        nonlocal tries
        while True:
            try:
                listener.accept()[0].close()
            except OSError:  # the test is over
                return
            tries += 1

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        hanging_up = threading.Thread(target=hang_up)
        if answers:
            hanging_up.start()
        else:
            listener.close()
        publisher = HintPublisher(f"redis://127.0.0.1:{port}")
        with pytest.raises(RedisUnavailableError, match="broker cannot be reached"):
            publisher.publish([ChunkRef("batch", 0, "api")])
        publisher.close()
        if answers:
            listener.shutdown(socket.SHUT_RDWR)
            hanging_up.join(10)
    assert tries <= 1 + answers  # redis-py itself may try again once
