"""The order in which hints are taken from a queue, and a broker that is away."""

from __future__ import annotations

import base64
import json
import socket
import threading

import pytest
import redis

from callmill.config.broker_connection import TAKEN_NEXT
from callmill.config.celery import lane_queue_key
from callmill.errors import RedisUnavailableError
from callmill.ledger import ChunkRef
from callmill.ledger.hints import RUN_CHUNK, HintPublisher


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


def waiting(redis_url: str, line: str = "api") -> list[str]:
    """Return the ids of the hints in a line's queue, those taken next first."""
    with redis.Redis.from_url(redis_url) as connection:
        messages = reversed(connection.lrange(lane_queue_key(line), 0, -1))
        return [json.loads(message)["headers"]["id"] for message in messages]


def test_a_hint_names_its_chunk_and_shows_its_label(redis_url, publisher):
    """A hint is a task with the chunk's batch, number and line, in the queue of that line, shown by its label."""
    publisher.publish([ChunkRef("b1", 7, "api@bulk")], label="nightly")
    publisher.publish([])
    assert waiting(redis_url) == []
    with redis.Redis.from_url(redis_url) as connection:
        (message,) = connection.lrange(lane_queue_key("api@bulk"), 0, -1)
    hint = json.loads(message)
    assert json.loads(base64.b64decode(hint["body"]))[0] == ["b1", 7, "api@bulk"]
    headers = hint["headers"]
    assert (headers["task"], headers["id"], headers["ignore_result"]) == (RUN_CHUNK, "b1:7", True)
    assert headers["argsrepr"].startswith("nightly · ")
    assert TAKEN_NEXT not in headers


def test_a_withdrawn_hint_is_gone_and_no_other(redis_url, publisher):
    """Withdrawing takes a chunk's hint out of its queue; one that is not there, or another chunk's, is left alone."""
    refs = [ChunkRef("b1", number, "api") for number in (1, 2, 12)]
    publisher.publish(refs)
    publisher.withdraw(refs[1])
    publisher.withdraw(ChunkRef("b2", 1, "api"))
    assert waiting(redis_url) == ["b1:1", "b1:12"]


def test_a_broker_that_is_away_cannot_withdraw():
    """Where the broker cannot be reached whoever withdraws is told."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    publisher = HintPublisher(f"redis://127.0.0.1:{port}")
    with pytest.raises(RedisUnavailableError, match="broker cannot be reached"):
        publisher.withdraw(ChunkRef("batch", 0, "api"))
    publisher.close()


def test_a_closed_publisher_publishes_again(redis_url, publisher):
    """A publisher that was closed opens its connection again when it is used."""
    publisher.publish([ChunkRef("b1", 0, "api")])
    publisher.close()
    publisher.publish([ChunkRef("b1", 1, "api")])
    assert waiting(redis_url) == ["b1:0", "b1:1"]
