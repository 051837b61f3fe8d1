"""Backlog: what waits for workers, in jobs, from a bounded look: never a scan over chunks, however many there are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from callmill.jobs.line import api_of, identity_of
from callmill.ledger import keys
from callmill.ledger.keys import BatchKeys, ChunkRef
from callmill.ledger.lines import Lines
from callmill.ledger.session import LedgerSession

_SAMPLED_AT_EACH_END = 10
_LINES_SAMPLED = 100
_DUE_SAMPLED = 500


class ApiBacklog(Struct, kw_only=True):
    """What waits of one API.

    Attributes:
        queued_chunks: Chunks that wait for a worker.
        queued_jobs: Jobs in them that have no outcome yet, estimated from a sample.
        due_jobs: Jobs of chunks that come back soon: their time comes, or their worker died.
        leased_chunks: Chunks that living workers hold.
        jobs_per_chunk: How many jobs a queued chunk has; None: none is queued.
    """

    queued_chunks: int = 0
    queued_jobs: float = 0.0
    due_jobs: float = 0.0
    leased_chunks: int = 0
    jobs_per_chunk: float | None = None


class Backlog(Struct, frozen=True, kw_only=True):
    """What waits for workers.

    Attributes:
        apis: By API; those of which nothing waits are left out.
        unfinished: Batches that have not ended.
        upkeep: What else some worker has to do, in words; empty: nothing.
    """

    apis: dict[str, ApiBacklog]
    unfinished: int
    upkeep: str


class _ChunkState(Struct, frozen=True):
    status: str
    worker: str
    jobs: int


class _Look(Struct, frozen=True):
    """What is queued by API, and samples of it and of what is due; ``due_of_all``: how many of those there are."""

    queued_chunks: dict[str, int]
    sample: dict[str, list[str]]
    due: list[str]
    due_of_all: int
    unfinished: int
    upkeep: str


async def read_backlog(
    session: LedgerSession, apis: Mapping[str, str], workers: Collection[str], *, soon_s: float
) -> Backlog:
    """Look at what waits.

    Args:
        session: The ledger.
        apis: The APIs to look at: name -> identity. Other APIs of these names are left to other workers.
        workers: Ids of those that live.
        soon_s: What comes back later than this does not wait yet.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    lines = [*apis, *(str(line) for line in await Lines(session).used() if _is_of(apis, line.api, line.identity))]
    look = await _look(session, lines, soon_s)
    states = await _states(session, [*(member for some in look.sample.values() for member in some), *look.due])
    found = defaultdict[str, ApiBacklog](ApiBacklog)
    for api, chunks in look.queued_chunks.items():
        jobs = [states[member].jobs for member in look.sample[api] if member in states]
        per_chunk = sum(jobs) / len(jobs) if jobs else 1.0
        found[api] = ApiBacklog(queued_chunks=chunks, queued_jobs=chunks * per_chunk, jobs_per_chunk=per_chunk)
    for member in look.due:
        ref = ChunkRef.parse(member)
        if not _is_of(apis, ref.api, identity_of(ref.line)):
            continue
        state, backlog = states.get(member), found[ref.api]
        if state is not None and state.status == "L" and state.worker in workers:
            backlog.leased_chunks += 1
        elif state is not None and state.status in "LW":
            backlog.due_jobs += state.jobs * look.due_of_all / len(look.due)
    return Backlog(apis=dict(found), unfinished=look.unfinished, upkeep=look.upkeep)


def _is_of(apis: Mapping[str, str], name: str, identity: str) -> bool:
    return identity in {"", apis.get(name, identity)}


async def _look(session: LedgerSession, lines: Sequence[str], soon_s: float) -> _Look:
    pipeline = session.redis.pipeline(transaction=False)
    pipeline.time()
    pipeline.zcard(keys.ACTIVE)
    pipeline.scard(keys.RESUMED)
    for line in lines:
        pipeline.zcard(keys.queued(line))
        pipeline.zrange(keys.queued(line), 0, _SAMPLED_AT_EACH_END - 1)
        pipeline.zrange(keys.queued(line), -_SAMPLED_AT_EACH_END, -1)
    (seconds, micros), unfinished, resumed, *queues = await session.answer(pipeline.execute())
    queued_chunks, sampled, sample = Counter[str](), Counter[str](), defaultdict[str, list[str]](list)
    for line, count, *ends in zip(lines, queues[::3], queues[1::3], queues[2::3], strict=True):
        api = api_of(line)
        if count and sampled[api] < _LINES_SAMPLED:
            sampled[api] += 1
            sample[api] += sorted({member.decode() for end in ends for member in end})
        if count:
            queued_chunks[api] += count
    now_ms = seconds * 1000 + micros // 1000
    soon_ms = int(now_ms + soon_s * 1000)
    pipeline = session.redis.pipeline(transaction=False)
    pipeline.zrangebyscore(keys.DUE, "-inf", soon_ms, start=0, num=_DUE_SAMPLED)
    pipeline.zcount(keys.DUE, "-inf", soon_ms)
    pipeline.zcount(keys.DEADLINES, "-inf", now_ms)
    due, due_of_all, late = await session.answer(pipeline.execute())
    return _Look(
        queued_chunks=queued_chunks,
        sample=sample,
        due=[member.decode() for member in due],
        due_of_all=due_of_all,
        unfinished=unfinished,
        upkeep="chunks held back are to be queued" if resumed else "a batch's deadline is over" if late else "",
    )


async def _states(session: LedgerSession, members: Sequence[str]) -> dict[str, _ChunkState]:
    """Return the states of chunks, those left out that are gone or not understood."""
    pipeline = session.redis.pipeline(transaction=False)
    for member in members:
        ref = ChunkRef.parse(member)
        pipeline.hget(BatchKeys(ref.batch_id).state, str(ref.number))
    texts = await session.answer(pipeline.execute()) if members else []
    states = ((member, _state(text)) for member, text in zip(members, texts, strict=True) if text is not None)
    return {member: state for member, state in states if state is not None}


def _state(text: bytes) -> _ChunkState | None:
    try:
        _, status, worker, count, done, *_ = text.decode().split("|")
        return _ChunkState(status, worker, max(0, int(count) - int(done)))
    except ValueError:  # written by a newer version
        return None
