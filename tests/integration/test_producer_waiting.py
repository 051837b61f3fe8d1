"""Waiting for calls that nobody makes: it is said, it ends in time, and nothing stays."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis
from fleet_samples import WORKER
from local_nodes import until

from callmill.errors import BatchStateError, UsageError, WaitTimeoutError
from callmill.ledger.keys import CONTROLS, LINES
from callmill.producer import AsyncClient, Client, Job, unserved

JOB = Job("GET", "/1", api="crm")
UNSERVED = "no worker serves crm: start one with `callmill worker`"
OF_THE_SERVER = {CONTROLS.encode(), LINES.encode()}
"""A count and the names of lines, which are there once and for all."""


@pytest.fixture
def raw(redis_url) -> Iterator[redis.Redis]:
    """A plain connection, to look at what is there."""
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


def left(raw: redis.Redis) -> set[bytes]:
    """Return the keys that are there."""
    return set(raw.keys("*")) - OF_THE_SERVER


@pytest.mark.parametrize(
    ("timeout", "words", "tenant"), [(2.5, "2.5 s", ""), (timedelta(milliseconds=2600), "2.6 s", "acme")]
)
def test_call_that_nobody_makes(client, raw, timeout, words, tenant):
    """A call ends when its time is over and says that no worker serves its API; nothing of it stays in Redis."""
    with pytest.raises(WaitTimeoutError) as raised:
        client.call(JOB, timeout=timeout, priority="bulk" if tenant else "normal", tenant=tenant)
    assert str(raised.value) == f"GET /1 of crm has no outcome after {words}: {UNSERVED}; the call was withdrawn"
    assert left(raw) == set()


def test_call_without_time(client, raw):
    """A call that has no time even to be submitted leaves nothing either."""
    with pytest.raises(WaitTimeoutError, match=r"has no outcome after 0 s: it had not been submitted yet"):
        client.call(JOB, timeout=0)
    assert left(raw) == set()


def test_call_without_redis():
    """A call ends soon after its time also where Redis never answers, and says that it may still be made."""
    with (
        socket.create_server(("127.0.0.1", 0)) as deaf,
        Client(f"redis://127.0.0.1:{deaf.getsockname()[1]}/0") as client,
    ):
        began_s = time.monotonic()
        with pytest.raises(WaitTimeoutError, match=r"could not be withdrawn and may still be made"):
            client.call(JOB, timeout=0.5)
        assert time.monotonic() - began_s < 10


def test_hints_of_others_stay(client, raw):
    """A call that is taken back takes only its own hint along."""
    batch = client.submit([JOB])
    before = left(raw)
    with pytest.raises(WaitTimeoutError):
        client.call(JOB, timeout=1)
    assert left(raw) == before
    (hint,) = raw.lrange("callmill:lane.crm", 0, -1)
    assert batch.id.encode() in hint


@pytest.mark.usefixtures("client")
def test_cancelled_call(redis_url, raw):
    """A call whose task is cancelled leaves nothing."""

    async def main() -> None:
        async with AsyncClient(redis_url) as own:
            waiting = asyncio.create_task(own.call(JOB))
            while not await asyncio.to_thread(raw.llen, "callmill:lane.crm"):  # noqa: ASYNC110 - Redis tells nobody
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(main())
    assert left(raw) == set()


@pytest.mark.usefixtures("client")
def test_interrupted_call(redis_url, raw):
    """Ctrl-C during a call ends the program at once, and leaves nothing."""
    program = f"""
import signal
from callmill.producer import Client, Job
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored
Client({redis_url!r}).call(Job("GET", "/1", api="crm"))
"""
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as child:
        until(lambda: raw.llen("callmill:lane.crm"), 20)
        child.send_signal(2)
        _, errors = child.communicate(timeout=10)
    assert errors.endswith(b"KeyboardInterrupt\n")
    assert left(raw) == set()


def test_call_that_is_refused(client, raw):
    """A call that cannot be made, or of a class that cannot be, leaves nothing."""
    for job, tenant in ((Job("GET", "no path", api="crm"), ""), (JOB, "no tenant")):
        with pytest.raises(UsageError):
            client.call(job, tenant=tenant)
    assert left(raw) == set()


@pytest.mark.usefixtures("client")
def test_call_that_somebody_cancels(redis_url):
    """A call that is cancelled from elsewhere says so."""

    async def main() -> None:
        async with AsyncClient(redis_url) as own:
            waiting = asyncio.create_task(own.call(JOB))
            while not (found := await own.batches()) or not found[0].sealed:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            await (await own.batch(found[0].id)).cancel()
            with pytest.raises(BatchStateError, match="was cancelled"):
                await waiting

    asyncio.run(main())


def wait(client: Client) -> None:
    """Wait for a batch."""
    with pytest.raises(WaitTimeoutError, match=f"is not over after 1 s: {UNSERVED}; it goes on"):
        client.submit([JOB]).wait(1)


def call(client: Client) -> None:
    """Wait for a call."""
    with pytest.raises(WaitTimeoutError):
        client.call(JOB, timeout=1)


def read(client: Client) -> None:
    """Wait for outcomes."""
    batch = client.submit([JOB])
    threading.Timer(1, batch.cancel).start()
    assert list(batch.outcomes()) == []


@pytest.mark.parametrize("waits", [wait, call, read])
def test_words_while_nobody_serves(client, caplog, monkeypatch, waits):
    """Whoever waits while no worker serves the API is told so in the log, once."""
    monkeypatch.setattr(unserved, "LOOK_EVERY_S", 0.05)
    with caplog.at_level(logging.WARNING, "callmill"):
        waits(client)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.endswith(f" waits: {UNSERVED}")


@pytest.mark.usefixtures("client")
def test_words_when_somebody_serves_again(redis_url, caplog, monkeypatch):
    """When a worker serves the API after all, the log says that, too."""
    monkeypatch.setattr(unserved, "LOOK_EVERY_S", 0.05)

    def said() -> list[str]:
        return [record.getMessage().partition(" ")[2].split(":")[0] for record in caplog.records]

    async def main() -> None:
        async with AsyncClient(redis_url) as own:
            batch = await own.submit([JOB])
            waiting = asyncio.create_task(batch.wait())
            while not said():  # noqa: ASYNC110 - the log has no event
                await asyncio.sleep(0.01)
            await own.connection().fleet.report(WORKER)
            while len(said()) < 2:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            await batch.cancel()
            await waiting
            assert said() == [f"{batch.id} waits", f"{batch.id} goes on"]

    with caplog.at_level(logging.WARNING, "callmill"):
        asyncio.run(main())
