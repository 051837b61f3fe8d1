"""What is in Redis carries a version: it stays what it is, and who knows an older one only leaves it alone."""

from __future__ import annotations

import asyncio
import logging
import zlib

import golden_ledger as golden
import msgspec
import pytest
from limits_kit import rules

from callmill.config.lua_script import Call
from callmill.config.redis_connections import connect
from callmill.errors import RedisUnavailableError, UnknownFormatError
from callmill.jobs.formats import FORMAT, newer_batch
from callmill.jobs.line import Line, format_of
from callmill.jobs.traffic import Priority, TrafficClass
from callmill.jobs.wire import (
    Chunk,
    WireCost,
    WireJob,
    WireOutcome,
    decode_chunk,
    decode_outcomes,
    encode_chunk,
    encode_outcomes,
)
from callmill.ledger import Batches, Bundle, Chunks, Claim, Finish, LedgerSession, Lines, Throttles, batch_scripts, keys
from callmill.ledger.alert_log import AlertLog
from callmill.ledger.fleet import Fleet, WorkerStatus
from callmill.ledger.keys import BatchKeys
from callmill.ledger.rests import Rest, encode_rest, read_rest
from callmill.limits.keys import Keys
from callmill.limits.layout import layout
from callmill.limits.scripts import FORMAT as LIMITER_FORMAT
from callmill.limits.store import LimitStore, Refusal, Request
from callmill.overview.reader import Overview
from callmill.workers.newer_batches import NewerBatches

NEWER = FORMAT + 1


@pytest.fixture
def run(redis_url):
    """Run a scenario on a connection to an empty Redis."""

    def run_scenario(scenario) -> None:
        async def main() -> None:
            redis = connect(redis_url)
            try:
                await scenario(redis)
            finally:
                await redis.aclose()

        asyncio.run(main())

    return run_scenario


async def make_newer(redis) -> str:
    """Write a batch of one queued chunk as a newer Callmill might, and return its id."""
    session = LedgerSession(redis)
    batches = Batches(session)
    batch_id = await batches.create("of the future", retention_ms=60_000)
    await batches.add(batch_id, 0, [(f"crm@f{NEWER}", b"\x02\x00\x00\x00\x01?")], park=False)
    await redis.hset(BatchKeys(batch_id).meta, "format", NEWER)
    return batch_id


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_a_batch_of_every_format_goes_on_to_its_end(run, version):
    """What an earlier version left in the middle is taken up: every job has one outcome, and failed ones run again."""

    async def scenario(redis) -> None:
        await golden.bring_back(redis, golden.read(version))
        session = LedgerSession(redis)
        batches, chunks = Batches(session), Chunks(session, worker="new")
        assert (await batches.record(golden.BATCH)).format == version
        jobs, refs = await batches.retry_failed(golden.BATCH)
        assert (jobs, [ref.number for ref in refs]) == (1, [1])
        refs += (await chunks.requeue_due()).put_back
        refs += await chunks.stranded([refs[0].line], 0)
        seen = {}
        for ref in dict.fromkeys(refs):
            claim = await chunks.claim(ref)
            assert isinstance(claim, Claim)
            seen[ref.number] = claim
            chunk = decode_chunk(claim.payload, claim.count)
            left = [n for n in range(claim.count) if n not in claim.recorded]
            bundle = Bundle([(n, golden.outcome(chunk.index(n))) for n in left])
            await chunks.commit(claim, bundle, Finish())
        assert set(seen) == {1, 2, 3, 4, 5}
        assert (seen[3].deaths, seen[3].suspect.offset) == (2, 1)
        assert (seen[4].attempts, seen[4].not_before_ms) == ({1: 2}, {1: 1})
        record = await batches.record(golden.BATCH)
        total = golden.JOBS * len(golden.STATES)
        assert (record.ended, record.succeeded, record.failed, record.leased) == (True, total, 0, 0)
        outcomes = [outcome async for bundle in batches.outcomes(golden.BATCH) for outcome in bundle]
        assert all(outcome.ok for outcome in outcomes)
        assert sorted(outcome.index for outcome in outcomes) == list(range(total))

    run(scenario)


def test_the_layout_is_that_of_its_format(run):
    """Who changes how a batch is written must raise FORMAT and record it: tests/golden_ledger.py."""

    async def scenario(redis) -> None:
        await golden.write(redis)
        now = golden.shape(await golden.record(redis))
        assert now == golden.shape(golden.read(FORMAT)), "another layout: raise FORMAT, see docs/adr/0007"

    run(scenario)


CHUNK = Chunk(
    "crm",
    [4, 9],
    [
        WireJob(
            "POST",
            "/v1/x",
            "row-1",
            {"X-A": "b"},
            b'{"x":1}',
            "application/json",
            2.5,
            350,
            "key-1",
            1795268761277,
            WireCost(20, 2, "m1"),
        ),
        WireJob("GET", "/v1/y"),
    ],
)
CHUNK_BYTES = bytes.fromhex(
    "010000000278019bbc38b92877120be7a4d94b02fc834396ea9719ea572c2dca2fd7356c5c1ca1ebb830e9087bb55285929561ed86c482829cc"
    "ce4c492ccfc3cfdace2fcbcd30e2c0c607096316e69766aa5aee1790606c685ffa2c3f64e16615a946b387bb1bb2bc4c8ca033000008d2e2cfe"
)
OUTCOMES = [
    WireOutcome(4, "row-1", 200, b'{"n":1}', {"x-a": "b"}, None, None, 1, 1795268761277, 20_000),
    WireOutcome(9, None, 404, b"", {}, "http_404", "no", 2, 1795268761277, 30_000),
]
OUTCOMES_BYTES = bytes.fromhex(
    "00929a04a5726f772d31ccc8c4077b226e223a317d81a3782d61a162c0c001cf000001a1fe5b56bdcd4e209a09c0cd0194c40080a8687474705f"
    "343034a26e6f02cf000001a1fe5b56bdcd7530"
)
LARGE = WireOutcome(0, None, 200, b"x" * 600, {}, None, None, 1, 1, 1)
LARGE_BYTES = bytes.fromhex("0178019b388be1c099134799222a46c16808d020041a0e1c6064640400e1d61ff1")


def test_packed_bytes_are_those_of_their_format():
    """Chunks and bundles as format 1 has them are read, and written so again; compressed parts may differ in length."""
    assert decode_chunk(CHUNK_BYTES) == CHUNK
    written = encode_chunk(CHUNK)
    assert (written[:5], zlib.decompress(written[5:])) == (CHUNK_BYTES[:5], zlib.decompress(CHUNK_BYTES[5:]))
    assert (decode_outcomes(OUTCOMES_BYTES), encode_outcomes(OUTCOMES)) == (OUTCOMES, OUTCOMES_BYTES)
    assert decode_outcomes(LARGE_BYTES) == decode_outcomes(encode_outcomes([LARGE])) == [LARGE]


def test_older_workers_skip_what_they_do_not_know_of_a_remainder():
    """Spared and refused calls are kept where format 1 has attempts and times, under the offset of no job."""
    known = {"attempts": {0: 1, 499: 2}, "not_before_ms": {3: 1795268761277}}
    more = {"spared": {0: 7, 499: 20}, "throttles": {0: Throttles(100, 1795268761277), 499: Throttles(1, 1)}}
    written = encode_rest(**known, **more)
    numbers, times = msgspec.msgpack.decode(written, type=tuple[dict[int, int], dict[int, int]])
    assert {at: number for at, number in numbers.items() if at >= 0} == known["attempts"]
    assert {at: ms for at, ms in times.items() if at >= 0} == known["not_before_ms"]
    assert read_rest(written) == Rest(**known, **more)
    assert read_rest(encode_rest(**known, spared={}, throttles={})) == Rest(**known)


@pytest.mark.parametrize(
    "damaged", [b"", b"x", msgspec.msgpack.encode(({},)), msgspec.msgpack.encode(({-(2**33): 1}, {}))]
)
def test_damaged_remainders_hold_no_chunk_up(damaged):
    """What cannot be read of a remainder is as if it were not there."""
    assert read_rest(damaged) == Rest()


@pytest.mark.parametrize("script", batch_scripts.SCRIPTS, ids=lambda script: script.parts[-1])
def test_no_script_touches_a_newer_batch(run, script):
    """Whatever is asked of a batch of a newer format is refused with both versions named, and nothing changes."""

    async def scenario(redis) -> None:
        batch_id = await make_newer(redis)
        before = await golden.record(redis)
        names = [*keys.shared(batch_id), keys.queued(f"crm@f{NEWER}"), keys.DEADLINES]
        call = Call(script, names, [msgspec.msgpack.encode({})])
        with pytest.raises(UnknownFormatError, match=f"{batch_id}.*format {NEWER}.*knows {FORMAT}: upgrade"):
            await LedgerSession(redis).run(call)
        assert await golden.record(redis) == before

    run(scenario)


def test_readers_leave_a_newer_batch_alone(run):
    """It is not read, deleted or taken for gone; lists show its name and no figures."""

    async def scenario(redis) -> None:
        batch_id = await make_newer(redis)
        before = await golden.record(redis)
        session = LedgerSession(redis)
        batches = Batches(session)
        for attempt in (batches.record(batch_id), batches.delete(batch_id), batches.retry_failed(batch_id)):
            with pytest.raises(UnknownFormatError):
                await attempt
        assert await batches.recent() == []
        assert await AlertLog(session).batches([batch_id]) == {}
        await redis.hset(BatchKeys(batch_id).latency, "of another", "kind")
        overview = Overview(session, redis)
        (shown,) = (await overview.batches()).rows
        assert (shown.name, shown.total) == ("of the future", 0)
        assert f"ledger format {NEWER}: upgrade this program" in shown.limited_by
        with pytest.raises(UnknownFormatError):
            await overview.batch(batch_id)
        await redis.delete(BatchKeys(batch_id).latency)
        await redis.zadd(keys.DEADLINES, {batch_id: 1})
        assert await batches.overdue() == []
        await redis.delete(keys.DEADLINES)
        assert await golden.record(redis) == before

    run(scenario)


def test_newer_chunks_that_are_due_hold_nobody_up(run):
    """However many chunks of newer batches are due first, those that can be read are put back; the others stay."""

    async def scenario(redis) -> None:
        await golden.bring_back(redis, golden.read(FORMAT))
        members = {f"future/{n}/crm@f{NEWER}": n for n in range(25)}
        await redis.zadd(keys.DUE, members)
        requeued = await Chunks(LedgerSession(redis), worker="w").requeue_due(limit=10)
        assert {ref.number for ref in requeued.put_back} == {2, 3, 4}
        assert list(requeued.newer) == ["future"]
        assert set(members) <= {member.decode() for member in await redis.zrange(keys.DUE, 0, -1)}

    run(scenario)


def test_hints_of_newer_batches_go_where_older_workers_do_not_listen(run):
    """A line of a newer format is in use, and no line for this worker; which batches wait in it can be told."""

    async def scenario(redis) -> None:
        batch_id = await make_newer(redis)
        lines = Lines(LedgerSession(redis))
        assert await lines.used() == []
        assert list(await lines.newer()) == [batch_id]

    run(scenario)


@pytest.mark.parametrize("traffic", [TrafficClass(), TrafficClass(Priority.BULK), TrafficClass(tenant="f3")])
def test_text_of_a_line_tells_its_format(traffic):
    """The first format has the plain text; a newer one is marked, and refused by who does not know it."""
    assert format_of(str(Line("crm", traffic))) == 1
    newer = str(Line("crm", traffic, NEWER))
    assert newer.startswith(f"crm@f{NEWER}")
    assert format_of(newer) == NEWER
    with pytest.raises(ValueError, match=f"format {NEWER}"):
        Line.parse(newer)


def test_each_newer_batch_is_told_of_once(caplog):
    """However often a batch is met, the log has one line of it, with both versions and the remedy."""
    newer = NewerBatches()
    for batch_id in ("a", "b", "a", "a"):
        newer.met(batch_id, newer_batch(batch_id, NEWER))
    assert [entry.levelno for entry in caplog.records] == [logging.ERROR] * 2
    assert f"batch a was written by Callmill with ledger format {NEWER}, this program knows {FORMAT}: upgrade it" in (
        caplog.text
    )
    assert newer.lately == ["b", "a"]


def test_a_report_of_a_newer_worker_is_no_error(run):
    """A status that lacks what is expected shows the worker as unreadable; further fields are no matter."""

    async def scenario(redis) -> None:
        fleet = Fleet(LedgerSession(redis))
        known = WorkerStatus(
            id="w1", host="h", pid=1, started_ms=1, calls=1, cpu_s=1, draining=False, apis=["crm"], lanes=[]
        )
        await fleet.report(known)
        await redis.set(keys.worker_status("w2"), b'{"id":"w2","lanes":{"crm":1}}')
        await redis.set(
            keys.worker_status("w3"), msgspec.json.encode({**msgspec.to_builtins(known), "id": "w3", "x": 1})
        )
        await redis.zadd(keys.WORKERS, {"w2": 2, "w3": 3})
        told = {worker.id: (worker.unreadable, worker.apis) for worker in await fleet.workers()}
        assert told == {"w1": (False, ["crm"]), "w2": (True, []), "w3": (False, ["crm"])}

    run(scenario)


def test_an_older_limiter_grants_nothing_beside_a_newer_one(run):
    """Two that count differently would break the limit together: the newer one's state stops the older."""

    async def scenario(redis) -> None:
        store, limits = LimitStore(redis, "crm", "w"), layout(rules("100/second"), Keys("crm"), "", TrafficClass())
        request = Request(
            boot="", seq=0, latest_us=-(10**9), lead_us=1000, guard_us=1000, allowances=[1], calls=1, costs=()
        )
        await store.reserve(limits, request)
        await store.permits("", want=1, used=0, held=0, limit=1, ttl_us=10**6, answers=None)
        hashes = (store.keys.meta, store.keys.permits()[-1])
        assert [await redis.hget(key, "format") for key in hashes] == [b"%d" % LIMITER_FORMAT] * 2
        for key in hashes:
            await redis.hset(key, "format", LIMITER_FORMAT + 1)
        before = await golden.record(redis)
        refusal = Refusal(
            layout=limits,
            key=1,
            scope="",
            permits=0,
            workers=1.0,
            what="",
            in_a_row=1,
            crowded=False,
            wanted=False,
            asked_s=0.0,
            begins=None,
        )
        for attempt in (
            store.reserve(limits, request),
            store.pause([limits], 1, "429"),
            store.refused(refusal),
            store.permits("", want=1, used=0, held=0, limit=1, ttl_us=10**6, answers=None),
        ):
            with pytest.raises(RedisUnavailableError, match=f"format {LIMITER_FORMAT + 1}.*upgrade"):
                await attempt
        assert await golden.record(redis) == before

    run(scenario)
