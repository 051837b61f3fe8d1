"""What replicas mean for the ledger: what counts waits for them; a server that may not write is one that is away."""

from __future__ import annotations

import asyncio
import functools
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import redis
from local_nodes import until
from sentinel_site import ReplicatedRedis, SentinelSite

from callmill.breaker.records import BreakerRules, Report
from callmill.breaker.store import BreakerStore
from callmill.config import redis_replication
from callmill.config.redis_connections import connect, connect_blocking
from callmill.config.redis_safety import Finding, Level, ServerFacts
from callmill.errors import BatchStateError, RedisUnavailableError
from callmill.jobs.wire import Chunk, encode_chunk
from callmill.ledger import LedgerSession
from callmill.ledger import session as session_module
from callmill.ledger.batches import Batches
from callmill.limits.store import answer

PAYLOAD = encode_chunk(Chunk("api", 0, []))


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a plain test of a coroutine."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        asyncio.run(test(**given))

    return run


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[tuple[ReplicatedRedis, ReplicatedRedis]]:
    """Run a primary and a replica."""
    folder = tmp_path_factory.mktemp("pair")
    primary = ReplicatedRedis(folder).start()
    replica = ReplicatedRedis(folder, primary.port).start()
    for server in (primary, replica):
        server.ready()
    until(lambda: SentinelSite.replicas_of(primary) == 1, what="the replica is there")
    yield primary, replica
    for server in (primary, replica):
        server.teardown()


@pytest.fixture
def frozen(pair) -> Iterator[ReplicatedRedis]:
    """Keep the replica from answering during the test; return the primary."""
    primary, replica = pair
    replica.send(signal.SIGSTOP)
    yield primary
    replica.send(signal.SIGCONT)


@in_a_loop
async def test_a_submit_counts_when_replicas_have_it(pair, monkeypatch):
    """While the replica is silent a step of a submit fails; said again when it answers, it is there once."""
    primary, replica = pair
    async with connect(primary.url) as client, connect(primary.url) as other:
        batches = Batches(LedgerSession(client, wait_replicas=1))
        batch_id = await batches.create("b", retention_ms=60_000)
        await batches.add(batch_id, 0, [("api", PAYLOAD)], park=True)  # the server knows the script from here on
        monkeypatch.setattr(session_module, "REPLICATED_WITHIN_MS", 100)
        replica.send(signal.SIGSTOP)
        try:
            with pytest.raises(RedisUnavailableError, match=r"0 of 1 replicas .* CALLMILL_WAIT_REPLICAS"):
                await batches.add(batch_id, 1, [("api", PAYLOAD)], park=True)
            # Over a connection that wrote nothing: it must not take its own silence for the replica's word.
            with pytest.raises(RedisUnavailableError):
                await Batches(LedgerSession(other, wait_replicas=1)).add(batch_id, 1, [("api", PAYLOAD)], park=True)
            with pytest.raises(RedisUnavailableError):
                await LedgerSession(other, wait_replicas=1).read_lasting("GET", "x")
        finally:
            replica.send(signal.SIGCONT)
        monkeypatch.setattr(session_module, "REPLICATED_WITHIN_MS", 10_000)
        await batches.add(batch_id, 1, [("api", PAYLOAD)], park=True)
        assert (await batches.record(batch_id)).chunks == 2


@in_a_loop
async def test_without_the_setting_nobody_waits(frozen):
    """With no replicas asked for, writes and reads go on whatever a replica does."""
    async with connect(frozen.url) as client:
        batches = Batches(LedgerSession(client))
        batch_id = await batches.create("b", retention_ms=60_000)
        await batches.add(batch_id, 0, [("api", PAYLOAD)], park=True)
        assert await LedgerSession(client).read_lasting("GET", "x") is None


@pytest.mark.parametrize("refusal", ["NOREPLICAS", "READONLY"])
@in_a_loop
async def test_a_server_that_may_not_write_is_one_that_is_away(pair, refusal):
    """Ledger, limiter and breaker take a primary without its replicas, and a replica, for a Redis to wait for."""
    primary, replica = pair
    with redis.Redis(port=primary.port) as connection:
        connection.config_set("min-replicas-to-write", 2 if refusal == "NOREPLICAS" else 0)
        try:
            async with connect((primary if refusal == "NOREPLICAS" else replica).url) as client:
                session = LedgerSession(client)
                with pytest.raises(RedisUnavailableError, match=r"(?i)replica"):
                    await Batches(session).create("b", retention_ms=60_000)
                with pytest.raises(RedisUnavailableError):
                    await session.answer(client.set("x", 1))
                with pytest.raises(RedisUnavailableError):
                    await answer(client.set("x", 1))
                rules = BreakerRules(errors=0.5, calls=20, window_s=10, streak=4, probe_s=5, cap_s=60, retry_share=0.1)
                with pytest.raises(RedisUnavailableError):
                    await BreakerStore(client, "api", rules, worker="w").exchange(Report(ok=1), 0)
        finally:
            connection.config_set("min-replicas-to-write", 0)


@in_a_loop
async def test_a_batch_that_lost_chunks_is_not_sealed(redis_url):
    """A server that lost the last chunks of a submit neither seals what is left of it nor takes more: it says so."""
    async with connect(redis_url) as client:
        batches = Batches(LedgerSession(client))
        batch_id = await batches.create("b", retention_ms=60_000)
        await batches.add(batch_id, 0, [("api", PAYLOAD)], park=True)
        with pytest.raises(BatchStateError, match=r"Redis has 1 of the 2 chunks"):
            await batches.seal(batch_id, 2)
        with pytest.raises(BatchStateError, match=r"Redis has 1 of the 2 chunks"):
            await batches.add(batch_id, 2, [("api", PAYLOAD)], park=True)
        assert not (await batches.record(batch_id)).sealed
        await batches.seal(batch_id, 1)
        assert (await batches.record(batch_id)).sealed


def test_doctor_tells_of_replicas(pair):
    """The findings name each replica and how far it is, and fail where more are asked for than there are."""
    primary, replica = pair
    client = connect_blocking(primary.url)

    def found(**options: int) -> dict[str, Finding]:
        findings = redis_replication.replication(
            ServerFacts.read(client), wait_replicas=options.get("wait_replicas", 0)
        )
        return {finding.check: finding for finding in findings}

    try:
        well = found()
        assert (well["replicas"].level, well["min-replicas"].level) == (Level.OK, Level.WARN)
        assert f"1 replicas; 127.0.0.1:{replica.port} " in well["replicas"].found
        assert found(wait_replicas=2)["replicas"].level is Level.FAIL
        client.config_set("min-replicas-to-write", 1)
        assert found()["min-replicas"].level is Level.OK
    finally:
        client.config_set("min-replicas-to-write", 0)
        client.close()


def test_a_server_by_itself_has_no_findings(redis_url):
    """Who has no replica and asks for none is told nothing of replicas."""
    client = connect_blocking(redis_url)
    try:
        assert not list(redis_replication.replication(ServerFacts.read(client), wait_replicas=0))
        assert not list(redis_replication.sentinels(redis_url))
    finally:
        client.close()
