"""The order in which hints are taken from a queue."""

from __future__ import annotations

import json

import pytest
import redis

from callmill.config.celery import lane_queue_key
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
