r"""The workers' side of the ledger: claim, renew, commit and finish chunks, and put back what was left.

    queued --claim (fence+1)--> leased --commit*, finish--> done
      ^                           |  \--finish with remainder--> waiting --due--> queued
      \----- lease ended: a death /

Invariants: the fence rises with every claim, and only the holder of the newest one records; a job's bit, its outcome in
the stream and the counters change in one step, so a job has one outcome however often its chunk is executed.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from callmill.config.lua_script import Call
from callmill.errors import (
    CallmillError,
    CorruptBatchError,
    OutsideError,
    RedisUnavailableError,
    StaleLeaseError,
    UnknownFormatError,
)
from callmill.jobs.bounds import SMALL_CHUNK_BYTES
from callmill.jobs.failure import cause_of
from callmill.jobs.formats import FORMAT, newer_batch
from callmill.jobs.wire import WireOutcome, encode_outcomes
from callmill.ledger import batch_scripts, keys, scripts
from callmill.ledger.batch_scripts import Committed
from callmill.ledger.bitmaps import members
from callmill.ledger.failure_records import encode_failure
from callmill.ledger.keys import BatchKeys, ChunkRef
from callmill.ledger.latency import count_buckets
from callmill.ledger.records import Claim, ClaimRefused, CommitResult, Requeued, Suspect, Throttles
from callmill.ledger.rests import encode_rest, read_rest
from callmill.ledger.session import LedgerSession

log = logging.getLogger(__name__)

_PUT_BACK, _NOT_TAKEN = 1, 2
"""Answers of ``requeue.lua``."""

_SLOWEST, _ID_CHARACTERS = 10, 128
"""What is kept of the slowest jobs."""

_FLOORS_KNOWN = 256
"""Batches of which it is known how slow the slowest jobs are."""


class Bundle(msgspec.Struct):
    """Outcomes and counts of one chunk, gathered since its last commit."""

    outcomes: list[tuple[int, WireOutcome]] = []
    """(offset in the chunk, outcome)"""
    latencies_us: list[int] = []
    calls: int = 0
    retries: int = 0
    throttled: int = 0
    size_bytes: int = 0
    """Bytes of the outcomes' bodies."""

    def __bool__(self) -> bool:
        return bool(self.outcomes or self.calls or self.retries or self.throttled)

    def add(self, offset: int, outcome: WireOutcome) -> None:
        """Take an outcome in."""
        self.outcomes.append((offset, outcome))
        self.size_bytes += len(outcome.body)

    def take(self, most_bytes: int) -> Bundle:
        """Take everything out, but for outcomes beyond so many bytes; the first goes in any case."""
        taken = Bundle(latencies_us=self.latencies_us, calls=self.calls, retries=self.retries, throttled=self.throttled)
        self.latencies_us, self.calls, self.retries, self.throttled = [], 0, 0, 0
        if self.size_bytes <= most_bytes:
            taken.outcomes, taken.size_bytes = self.outcomes, self.size_bytes
            self.outcomes, self.size_bytes = [], 0
            return taken
        for offset, outcome in self.outcomes:
            if taken.outcomes and taken.size_bytes + len(outcome.body) > most_bytes:
                break
            taken.add(offset, outcome)
        self.outcomes = self.outcomes[len(taken.outcomes) :]
        self.size_bytes -= taken.size_bytes
        return taken


class Finish(msgspec.Struct, frozen=True):
    """How a worker gives a chunk up: what is unrecorded runs again after ``delay_ms``.

    Attributes:
        delay_ms: Milliseconds; 0: at once.
        attempts: Attempts spent on unrecorded jobs, by offset.
        not_before_ms: Unix times in milliseconds, on the clock of Redis, before which jobs must not run, by offset.
        spared: Uncounted failed attempts, by offset: see ``Claim.spared``.
        throttles: Refusals because of limits, by offset.
        deaths: Those of ``Claim.deaths`` that still stand against the chunk; 0: it is harmless.
    """

    delay_ms: int = 0
    attempts: Mapping[int, int] = {}
    not_before_ms: Mapping[int, int] = {}
    spared: Mapping[int, int] = {}
    throttles: Mapping[int, Throttles] = {}
    deaths: int = 0

    @classmethod
    def as_it_was(cls, claim: Claim, delay_ms: int = 0) -> Finish:
        """Return the end of a chunk of which nothing was tried."""
        return cls(
            delay_ms=delay_ms,
            attempts=claim.attempts,
            not_before_ms=claim.not_before_ms,
            spared=claim.spared,
            throttles=claim.throttles,
            deaths=claim.deaths,
        )


_ALL = b"*"
_DUE_PAGES = 20

Commit = tuple[Claim, Bundle, Finish | None]


class Chunks:
    """The chunks of every batch, as one worker process sees them."""

    def __init__(self, session: LedgerSession, *, worker: str, lease_ms: int = 10_000) -> None:
        self._session = session
        self._worker = worker
        self._lease_ms = lease_ms
        self._floors_us: dict[str, int] = {}

    async def claim(self, ref: ChunkRef) -> Claim | ClaimRefused:
        """Take a chunk, or say why there is nothing to do.

        Raises:
            UnknownFormatError: A newer Callmill wrote the batch; the chunk is as it was.
            RedisUnavailableError: Redis cannot be reached. A lease taken unnoticed ends by itself.
        """
        wanted = batch_scripts.ClaimArguments(
            number=ref.number, member=ref.member, worker=self._worker, lease_ms=self._lease_ms
        )
        answer = await self._session.run(batch_scripts.CLAIM.call(_in_line(ref), wanted, keys.shared(ref.batch_id)))
        claimed = batch_scripts.Claimed(*answer)
        if claimed.verdict != b"ok":
            return ClaimRefused(claimed.verdict.decode())
        known = read_rest(claimed.rest)
        try:
            deadline_ms, suspect, corrupt = int(claimed.deadline_ms) or None, _suspect(claimed), ""
        except ValueError as error:
            deadline_ms, suspect, corrupt = None, None, f"something else stands where a number was written: {error}"
        return Claim(
            ref=ref,
            fence=claimed.fence,
            payload=claimed.payload,
            size_bytes=claimed.size_bytes,
            recorded=frozenset(members(claimed.recorded)),
            attempts=known.attempts,
            not_before_ms=known.not_before_ms,
            spared=known.spared,
            throttles=known.throttles,
            claims=claimed.claims,
            now_ms=claimed.now_ms,
            deadline_ms=deadline_ms,
            count=claimed.count,
            deaths=claimed.deaths,
            suspect=suspect,
            batch_name=claimed.name.decode(errors="replace"),
            corrupt=corrupt,
        )

    async def payload(self, claim: Claim) -> bytes:
        """Return the payload of a claimed chunk, which a large one does not bring along; empty: it is gone.

        Raises:
            RedisUnavailableError: Redis cannot be reached.
        """
        if claim.size_bytes <= SMALL_CHUNK_BYTES:
            return claim.payload
        stored = self._session.redis.hget(BatchKeys(claim.ref.batch_id).chunks, str(claim.ref.number))
        payload: bytes | None = await self._session.answer(stored)
        return payload or b""

    async def note_alone(self, claim: Claim, offset: int | None) -> None:
        """Note that a job of the chunk, or with None all of it, is about to run with nothing beside it.

        Raises:
            StaleLeaseError: Another worker holds the chunk.
            RedisUnavailableError: Redis cannot be reached.
        """
        ref = claim.ref
        suspect = batch_scripts.SuspectArguments(
            number=ref.number, fence=claim.fence, alone=_ALL.decode() if offset is None else str(offset)
        )
        call = batch_scripts.SUSPECT.call(batch_scripts.NoKeys(), suspect, keys.shared(ref.batch_id))
        if not await self._session.run(call):
            raise _stale(claim)

    async def release(self, claim: Claim, delay_ms: int) -> None:
        """Give a chunk back as it was: nothing of it was tried.

        Raises:
            StaleLeaseError: Another worker holds the chunk.
            RedisUnavailableError: Redis cannot be reached; the lease ends by itself.
        """
        await self.commit(claim, Bundle(), Finish.as_it_was(claim, delay_ms))

    async def commit(self, claim: Claim, bundle: Bundle, finish: Finish | None = None) -> CommitResult:
        """Record a bundle, and give the chunk up where ``finish`` says so. Safe to repeat with the same arguments.

        Raises:
            StaleLeaseError: Another worker holds the chunk; nothing was recorded.
            RedisUnavailableError: Redis cannot be reached; whether the bundle is recorded is unknown: repeat the call.
        """
        answer = await self._session.run_lasting(commit_call(claim, bundle, finish, self._floor_us(claim)))
        return await self._settled(claim, bundle, finish, Committed(*answer))

    async def _settled(self, claim: Claim, bundle: Bundle, finish: Finish | None, answer: Committed) -> CommitResult:
        if answer.recorded is not None:  # an earlier try got through; its counts are in
            already = frozenset(answer.recorded)
            rest = Bundle(outcomes=[item for item in bundle.outcomes if item[0] not in already])
            return await self.commit(claim, rest, finish)
        if answer.floor_us is not None:
            if len(self._floors_us) >= _FLOORS_KNOWN:
                self._floors_us.clear()  # what is forgotten is told again
            self._floors_us[claim.ref.batch_id] = int(answer.floor_us)
        return commit_result(claim, answer)

    def _floor_us(self, claim: Claim) -> int:
        """Return a latency that the slowest jobs of the claim's batch are known to exceed; it only grows."""
        return self._floors_us.get(claim.ref.batch_id, 0)

    async def commit_all(self, commits: Sequence[Commit]) -> list[CommitResult | CallmillError]:
        """Do several commits in one round trip; where one failed, its error stands in its place.

        Raises:
            RedisUnavailableError: Redis cannot be reached; which bundles are recorded is unknown: repeat all.
        """
        calls = [commit_call(claim, bundle, finish, self._floor_us(claim)) for claim, bundle, finish in commits]
        answers = await self._session.run_many(calls, lasting=True)
        results: list[CommitResult | CallmillError] = []
        for (claim, bundle, finish), answer in zip(commits, answers, strict=True):
            try:
                if isinstance(answer, OutsideError):
                    raise answer
                results.append(await self._settled(claim, bundle, finish, Committed(*answer)))
            except (StaleLeaseError, RedisUnavailableError, UnknownFormatError) as error:
                results.append(error)
        return results

    async def requeue_due(self, limit: int = 500) -> Requeued:
        """Put back every chunk whose lease ended or whose due time has come; return those that need a hint."""
        put_back, not_taken, newer = [], [], {}
        for ref in await self._due(limit):
            if ref.format > FORMAT:
                newer[ref.batch_id] = newer_batch(ref.batch_id, ref.format)
                continue
            try:
                answer = await self._session.run(
                    batch_scripts.REQUEUE.call(
                        _in_line(ref), batch_scripts.OneChunk(ref.number, ref.member), keys.shared(ref.batch_id)
                    )
                )
            except UnknownFormatError as error:
                newer[ref.batch_id] = error
                continue
            except CorruptBatchError as error:
                log.warning("chunk %s not put back: %s", ref.member, error, extra={"action": "corrupt_batch"})
                continue
            if answer == _PUT_BACK:
                put_back.append(ref)
            elif answer == _NOT_TAKEN:
                not_taken.append(ref)
        return Requeued(put_back=put_back, not_taken=not_taken, newer=newer)

    async def _due(self, limit: int) -> list[ChunkRef]:
        """Return what is due; those of a newer format, which stay, do not keep ``limit`` others from being seen."""
        refs: list[ChunkRef] = []
        for page in range(_DUE_PAGES):
            wanted = scripts.DueArguments(limit=limit, after=page * limit)
            members = await self._session.run(scripts.DUE.call(scripts.DueKeys(keys.DUE), wanted))
            refs += await self._known(members, keys.DUE)
            if len(members) < limit or sum(ref.format <= FORMAT for ref in refs) >= limit:
                break
        return refs

    async def stranded(self, lines: Sequence[str], older_than_ms: int, limit: int = 200) -> list[ChunkRef]:
        """Return chunks of these lines that are queued for so long that their hints must have been lost."""
        wanted = scripts.StrandedArguments(older_than_ms=older_than_ms, limit=limit)
        calls = [scripts.STRANDED.call(batch_scripts.InLine(keys.queued(line)), wanted) for line in lines]
        answers = await self._session.run_many(calls) if calls else []
        refs: list[ChunkRef] = []
        for line, answer in zip(lines, answers, strict=True):
            if not isinstance(answer, RedisUnavailableError):
                refs += await self._known(answer, keys.queued(line))
        return refs

    async def _known(self, members: Sequence[bytes], index: str) -> list[ChunkRef]:
        """Return what members of a sorted set name; those that name no chunk would be found there for ever: they go."""
        refs, strange = [], []
        for member in members:
            try:
                refs.append(ChunkRef.parse(member.decode()))
            except ValueError:
                strange.append(member)
        if strange:
            await self._session.answer(self._session.redis.zrem(index, *strange))
        return refs

    async def touch(self, refs: Sequence[ChunkRef]) -> None:
        """Note that the hints of these chunks are in this worker's hands: they are not lost, they wait for room."""
        if refs:
            lines = batch_scripts.InLines([keys.queued(ref.line) for ref in refs])
            told = scripts.TouchArguments(members=[ref.member for ref in refs])
            await self._session.run(scripts.TOUCH.call(lines, told))

    def renewal(self, claims: Sequence[Claim]) -> tuple[list[str], list[bytes]]:
        """Return keys and arguments of ``renew.lua`` for these claims; its answer has one number per claim."""
        batches = [BatchKeys(claim.ref.batch_id) for claim in claims]
        _, names, arguments = scripts.RENEW.call(
            scripts.RenewKeys(keys.DUE, [scripts.LeaseKeys(state=batch.state, meta=batch.meta) for batch in batches]),
            scripts.RenewArguments(
                lease_ms=self._lease_ms,
                leases=[scripts.HeldLease(claim.ref.number, claim.ref.member, claim.fence) for claim in claims],
            ),
        )
        return names, arguments


def _suspect(claimed: batch_scripts.Claimed) -> Suspect | None:
    if not claimed.alone:
        return None
    return Suspect(None if claimed.alone == _ALL else int(claimed.alone), claimed.alone_deaths)


def commit_call(claim: Claim, bundle: Bundle, finish: Finish | None, floor_us: int = 0) -> Call:
    """Return the call of ``commit.lua``; what took ``floor_us`` at most is none of the batch's slowest jobs."""
    offsets = [offset for offset, _ in bundle.outcomes]
    failed = [offset for offset, outcome in bundle.outcomes if outcome.error_code is not None]
    failures = [outcome for _, outcome in bundle.outcomes if outcome.error_code is not None] if failed else []
    bundled = batch_scripts.CommitArguments(
        number=claim.ref.number,
        member=claim.ref.member,
        fence=claim.fence,
        bundle=encode_outcomes([outcome for _, outcome in bundle.outcomes]) if offsets else b"",
        recorded=offsets,
        failed=failed,
        failures=b"".join([encode_failure(claim.ref.api, failure) for failure in failures]),
        causes=Counter(cause_of(failure.error_code or "", failure.status) for failure in failures) if failed else {},
        slowest=_slowest(bundle.outcomes, floor_us),
        latencies=count_buckets(bundle.latencies_us),
        retries=bundle.retries,
        calls=bundle.calls,
        throttled=bundle.throttled,
        finish=finish is not None,
        delay_ms=finish.delay_ms if finish else 0,
        rest=encode_rest(finish.attempts, finish.not_before_ms, finish.spared, finish.throttles) if finish else b"",
        deaths=finish.deaths if finish else 0,
    )
    return batch_scripts.COMMIT.call(_in_line(claim.ref), bundled, keys.shared(claim.ref.batch_id))


def _slowest(outcomes: Sequence[tuple[int, WireOutcome]], floor_us: int) -> list[batch_scripts.SlowJob]:
    """Return the slowest outcomes, those that took longer than ``floor_us``, the slowest first."""
    slow = [outcome for _, outcome in outcomes if outcome.latency_us > floor_us]
    slow.sort(key=lambda outcome: -outcome.latency_us)
    return [batch_scripts.SlowJob(outcome.latency_us, slow_name(outcome)) for outcome in slow[:_SLOWEST]]


def slow_name(outcome: WireOutcome) -> str:
    """Return how a job is named among the slowest: its position, and its id where the producer gave it one."""
    return f"{outcome.index}" if outcome.id is None else f"{outcome.index} {outcome.id[:_ID_CHARACTERS]}"


def commit_result(claim: Claim, answer: Committed) -> CommitResult:
    """Read the answer of ``commit.lua``.

    Raises:
        StaleLeaseError: Another worker holds the chunk.
    """
    if answer.verdict == b"stale":
        raise _stale(claim)
    return CommitResult(hint_wanted=answer.verdict == b"queued", proceed=answer.control == b"run")


def _stale(claim: Claim) -> StaleLeaseError:
    return StaleLeaseError(f"chunk {claim.ref.member}: lease with fence {claim.fence} is over")


def _in_line(ref: ChunkRef) -> batch_scripts.InLine:
    return batch_scripts.InLine(keys.queued(ref.line))


__all__ = ["Bundle", "Chunks", "Finish", "commit_call", "commit_result"]
