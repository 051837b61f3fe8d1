"""Reads the history of a storm and proves, or disproves, what Callmill promises. Pure: it looks at nothing else."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from history import Call, Commit, Exit, Fault, Final, History, Lease, Progress, Read, Snapshot
from msgspec import Struct

LEASE_BOUND_S = 0.25
"""How long after the end of its lease a call may be started: the process may lose its turn between look and start."""

ARRIVAL_BOUND_S = 1.5
"""How long after the end of its lease a call may arrive, unless its worker was stopped while it was on its way."""

SETTLES_S = 2.0
"""How long after such a moment calls that started before it count in the API's window, and the processes learn."""

_KILLED = ("kill", "die-")


class Violation(Struct, frozen=True):
    """A promise that was not kept: which one, for what, and the evidence."""

    rule: str
    subject: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.subject}: {self.evidence}"


def check(history: History) -> list[Violation]:
    """Return everything that went wrong."""
    return [violation for rule in RULES for violation in rule(history)]


def one_outcome(history: History) -> Iterator[Violation]:
    """Each job has exactly one outcome in its batch's stream, and it is a good one."""
    for final in history.all(Final):
        read = Counter(outcome.job for outcome in final.outcomes)
        for index in range(final.submitted):
            job = f"{final.batch}-{index}"
            if read[job] != 1:
                yield Violation(
                    "lost" if not read[job] else "twice", job, f"{read[job]} outcomes; {_about(history, job)}"
                )
        for job in read.keys() - {f"{final.batch}-{index}" for index in range(final.submitted)}:
            yield Violation("unknown job", job, "has an outcome and was never submitted")
        for outcome in final.outcomes:
            if not outcome.ok:
                yield Violation("failed", outcome.job, f"{outcome.why}; {_about(history, outcome.job)}")


def read_once(history: History) -> Iterator[Violation]:
    """A consumer reads every outcome exactly once, but for those that Redis forgot after it had read them.

    Such come again, unless the consumer was at the end of the batch, which Redis forgot as well.
    """
    lost = [fault for fault in history.all(Fault) if fault.lost_from_s is not None]
    kept = {outcome.job: outcome.cursor for final in history.all(Final) for outcome in final.outcomes}
    times: Counter[str] = Counter()
    forgotten = set()
    for read in history.all(Read):
        if kept.get(read.job) == read.cursor:
            times[read.job] += 1
        elif any(_forgotten(read, fault) for fault in lost):
            forgotten.add(read.job)
        else:
            yield Violation("read twice", read.job, f"as {read}; kept is {kept.get(read.job, 'nothing')}")
    for job in kept:
        if times[job] != 1 and not (times[job] == 0 and job in forgotten):
            yield Violation("read", job, f"read {times[job]} times; {_about(history, job)}")


def _forgotten(read: Read, fault: Fault) -> bool:
    return fault.lost_from_s is not None and fault.lost_from_s - 0.2 <= read.at_s <= fault.ended_s


def grounded(history: History) -> Iterator[Violation]:
    """No outcome without a call of the same job that the API answered so."""
    calls = {call.number: call for call in history.all(Call)}
    outcomes = [outcome for final in history.all(Final) for outcome in final.outcomes]
    for outcome in [*outcomes, *history.all(Read)]:
        call = calls.get(outcome.call or 0)
        if outcome.ok and (call is None or not call.good or not call.job == outcome.job == outcome.told):
            yield Violation("no such call", outcome.job, f"outcome {outcome} stands on {call}")


def counted(history: History) -> Iterator[Violation]:
    """Counters, stream and bitmaps agree, in every snapshot and at the end."""
    for final in history.all(Final):
        told = (final.total, final.succeeded + final.failed, len(final.outcomes), final.leased, final.unfinished_chunks)
        if told != (final.submitted,) * 3 + (0, 0) or not final.ended:
            yield Violation(
                "counters",
                final.batch,
                f"submitted {final.submitted}; jobs, recorded, outcomes, leases, "
                f"chunks left {told}; ended: {final.ended}",
            )
    for shot in history.all(Snapshot):
        left = sum(jobs - counted for jobs, counted, _ in shot.chunks.values())
        if shot.total - left != shot.done:
            yield Violation(
                "counters", shot.batch, f"at {shot.at_s:.3f} {shot.done} recorded, {left} of {shot.total} open"
            )
        for number, (_, count, bits) in shot.chunks.items():
            if count != bits:
                yield Violation(
                    "bitmap", f"{shot.batch}/{number}", f"at {shot.at_s:.3f} {count} counted, {bits} bits set"
                )


def progress_forward(history: History) -> Iterator[Violation]:
    """Progress never runs backwards, but where Redis forgot: once each, and by no more than was recorded then."""
    before: dict[str, Progress] = {}
    excused: set[tuple[str, float]] = set()
    for now in history.all(Progress):
        last = before.get(now.batch, now)
        before[now.batch] = now
        if now.ended and not now.sealed:
            yield Violation("ended unsealed", now.batch, f"at {now.at_s:.3f} with {now.done} of {now.total}")
        if now.done >= last.done and now.total >= last.total:
            continue
        fault = next(
            (f for f in history.all(Fault) if f.lost_from_s and last.at_s <= f.ended_s and f.began_s <= now.at_s), None
        )
        if fault is None or (now.batch, fault.began_s) in excused:
            yield Violation("backwards", now.batch, f"from {last} to {now}")
            continue
        excused.add((now.batch, fault.began_s))
        recorded = sum(
            job.startswith(f"{now.batch}-")
            for commit in history.all(Commit)
            if fault.lost_from_s - 1 <= commit.answered_s and commit.sent_s <= fault.ended_s  # type: ignore[operator]
            for job in commit.jobs
        )
        if last.done - now.done > recorded:
            yield Violation("backwards", now.batch, f"by {last.done - now.done}, recorded in that time were {recorded}")


def leased(history: History) -> Iterator[Violation]:
    """No call starts outside a valid lease by more than the bound."""
    asked: dict[tuple[int, str, int], list[float]] = defaultdict(list)
    for lease in history.all(Lease):
        asked[lease.worker, lease.chunk, lease.fence].append(lease.asked_s)
    for times in asked.values():
        times.sort()
    stops = [fault for fault in history.all(Fault) if fault.name == "stop"]
    for call in history.all(Call):
        times = asked.get((call.worker, call.chunk, call.fence), [])
        known = bisect_right(times, call.built_s)
        ends_s = times[known - 1] + history.lease_s if known else 0.0
        if call.built_s > ends_s + LEASE_BOUND_S:
            yield Violation(
                "outside its lease", call.job, f"started {call.built_s - ends_s:.3f} s after its end: {call}"
            )
        elif call.began_s > ends_s + ARRIVAL_BOUND_S and not any(
            stop.worker == call.worker and stop.began_s <= call.began_s and call.built_s <= stop.ended_s
            for stop in stops
        ):
            yield Violation(
                "outside its lease", call.job, f"arrived {call.began_s - ends_s:.3f} s after its end: {call}"
            )


def limited(history: History) -> Iterator[Violation]:
    """No call breaks the API's limit, as the API itself counts it.

    But for those that a busy host brought to the API late, so that the limit held when they were started; and but for
    the moments when the way to Redis becomes longer or shorter by more than the limiter's guard is there for.
    """
    calls = history.all(Call)
    for call in calls:
        if not call.broken or while_redis_was_slow(history, call):
            continue
        alike = [other for other in calls if other.api == call.api and (other.status != 429 or other is call)]
        arrived = sum(call.began_s - 1 < other.began_s <= call.began_s for other in alike)
        started = sum(call.built_s - 1 < other.built_s <= call.built_s for other in alike)
        if started >= arrived:
            yield Violation("limit", call.api, f"{started} started within a second: {call}")


def while_redis_was_slow(history: History, call: Call) -> bool:
    """Say whether processes may have disagreed about Redis's clock when the call was made."""
    slow = (fault for fault in history.all(Fault) if fault.name == "redis-slow")
    return any(fault.began_s <= call.began_s <= fault.ended_s + SETTLES_S for fault in slow)


def repeated_with_cause(history: History) -> Iterator[Violation]:
    """A call that the API has answered is made again only where a fault of worker or Redis explains it.

    A worker that is asked to stop is no such fault: it finishes what it began.
    """
    faults = [fault for fault in history.all(Fault) if fault.stream in ("workers", "redis") and fault.name != "term"]
    for first, again in repeats(history):
        if first.delivered and not any(_explains(fault, first, again, history.lease_s) for fault in faults):
            yield Violation("repeated", first.job, f"without a cause: {_about(history, first.job)}")


def _explains(fault: Fault, first: Call, again: Call, lease_s: float) -> bool:
    if fault.worker and fault.worker != first.worker:
        return False
    if fault.lost_from_s is not None and fault.lost_from_s - 1 <= first.ended_s <= fault.ended_s:
        return True
    return first.began_s - lease_s <= fault.ended_s and fault.began_s <= again.began_s


def nothing_left(history: History) -> Iterator[Violation]:
    """A deleted batch leaves nothing in Redis."""
    for final in history.all(Final):
        if final.left_over:
            yield Violation("left over", final.batch, ", ".join(final.left_over))


def workers_stay(history: History) -> Iterator[Violation]:
    """No worker ends that nobody ended, and those asked to stop end in order."""
    for ended in history.all(Exit):
        if not ended.meant:
            yield Violation("worker ended by itself", str(ended.worker), f"exit code {ended.code}\n{ended.log}")
    for fault in history.all(Fault):
        if fault.name == "term" and fault.about != "exit code 0":
            yield Violation("stopped badly", str(fault.worker), fault.about)


def bounded_repeats(history: History) -> Iterator[Violation]:
    """A kill repeats no more calls than the process had in hand: sent, and not known to be recorded."""
    for kill in kills(history):
        in_hand = {call.job for call in in_hand_at(history, kill)}
        repeats_of = {first.job for first in repeated_by(history, kill)}
        if extra := repeats_of - in_hand:
            yield Violation(
                "repeated", f"kill of {kill.worker}", f"{len(extra)} more than in hand: {sorted(extra)[:5]}"
            )


RULES: list[Callable[[History], Iterator[Violation]]] = [
    one_outcome,
    read_once,
    grounded,
    counted,
    progress_forward,
    leased,
    limited,
    repeated_with_cause,
    bounded_repeats,
    nothing_left,
    workers_stay,
]


def repeats(history: History) -> list[tuple[Call, Call]]:
    """Return each call that the API answered well, with the next call of the same job, where there is one."""
    calls: dict[str, list[Call]] = defaultdict(list)
    for call in history.all(Call):
        calls[call.job].append(call)
    return [pair for of_job in calls.values() for pair in pairwise(of_job) if pair[0].good]


def kills(history: History) -> list[Fault]:
    """Return the kill -9 of workers."""
    return [fault for fault in history.all(Fault) if fault.name.startswith(_KILLED)]


def repeated_by(history: History, kill: Fault) -> list[Call]:
    """Return the killed worker's calls that were made again, but for those whose record Redis forgot."""
    lost = [fault for fault in history.all(Fault) if fault.lost_from_s is not None]
    return [
        first
        for first, again in repeats(history)
        if first.worker == kill.worker
        and first.began_s <= kill.ended_s
        and again.began_s >= kill.began_s
        and not any(_explains(fault, first, again, history.lease_s) for fault in lost)
    ]


def in_hand_at(history: History, kill: Fault) -> list[Call]:
    """Return the killed worker's calls that were sent and not known to be recorded."""
    at_s = kill.ended_s
    lost = [(fault.lost_from_s - 1, fault.ended_s) for fault in history.all(Fault) if fault.lost_from_s is not None]
    recorded = {
        job
        for commit in history.all(Commit)
        if commit.worker == kill.worker and commit.result == "recorded"
        if not any(from_s <= commit.answered_s and commit.sent_s <= to_s for from_s, to_s in lost)
        for job in commit.jobs
    }
    return [
        call
        for call in history.all(Call)
        if call.worker == kill.worker
        and call.began_s <= at_s
        and (call.good or call.ended_s >= kill.began_s)
        and call.job not in recorded
    ]


def _about(history: History, job: str) -> str:
    """Return all that is known of a job."""
    calls = [call for call in history.all(Call) if call.job == job]
    commits = [commit for commit in history.all(Commit) if job in commit.jobs]
    slim = [f"{c.result} by {c.worker} fence {c.fence} of {c.chunk} {c.sent_s:.3f}-{c.answered_s:.3f}" for c in commits]
    reads = [f"{read.cursor} at {read.at_s:.3f}" for read in history.all(Read) if read.job == job]
    return f"calls {calls}; commits {slim}; reads {reads}"
