"""Names and reasons that people give are bounded, and so is what somebody wrote to Redis past every check."""

from __future__ import annotations

import asyncio

import pytest
import redis
import redis.asyncio
from click.testing import CliRunner

from callmill.cli.program import callmill
from callmill.errors import UsageError
from callmill.ledger.keys import BatchKeys
from callmill.limits.control import LimitControl
from callmill.producer import Client, Job

LONG = "x" * 201


@pytest.fixture(autouse=True)
def no_profiles(monkeypatch, tmp_path):
    """Run where no profiles file lies: any API will do."""
    monkeypatch.chdir(tmp_path)


def test_a_long_name_is_refused(redis_url):
    """A batch's name has at most 200 characters; one that has more is refused before anything is written."""
    with Client(redis_url) as client:
        with pytest.raises(UsageError, match=r"the batch's name: 201 characters are too many; at most 200"):
            client.submit([Job("GET", "/", api="near")], name=LONG)
        assert client.submit([Job("GET", "/", api="near")], name=LONG[1:]).progress().total == 1


def test_a_long_reason_is_refused(redis_url):
    """A reason for a pause has at most 500 characters."""

    async def scenario():
        async with redis.asyncio.Redis.from_url(redis_url) as connection:
            with pytest.raises(UsageError, match="the reason: 501 characters are too many"):
                await LimitControl(connection, "near").pause(5, "x" * 501, by="me")

    asyncio.run(scenario())


@pytest.mark.parametrize("name", [b"x" * 100_000, b"\xff\xfe" * 500, b"", "é".encode() * 300])
def test_what_stands_in_redis_is_cut(redis_url, name):
    """A name that a program wrote to Redis by itself, of whatever bytes, is shown in part, and status goes on."""
    with Client(redis_url) as client, redis.Redis.from_url(redis_url) as raw:
        batch = client.submit([Job("GET", "/", api="near")], name="good")
        raw.hset(BatchKeys(batch.id).meta, mapping={"name": name, "reason": name})
        shown = CliRunner().invoke(callmill, ["status", "--json"], env={"CALLMILL_REDIS_URL": redis_url})
        assert shown.exit_code == 0, shown.output
        assert len(shown.output) < 5_000
