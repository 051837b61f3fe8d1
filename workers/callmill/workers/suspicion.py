r"""Suspicion: which job kills its workers, found without blaming any other.

A worker that dies takes every chunk that it held along. All of them are suspected, and at most one is guilty; and a
lease also ends when Redis is away, or a worker is stopped or killed from outside. So a chunk goes through stages, by
its deaths in a row (``Claim.deaths``) and by what ran alone when workers died (``Claim.suspect``):

                                            /--3 in a row, while it was read--> CONVICT_ALL
    TOGETHER --3 deaths--> ALONE --1 alone--> ONE_BY_ONE --3 with the same job--> CONVICT
       ^                   |   ^                  |                                  |
       \---- survived -----+---|------------------/                                  |
                               \------------ the job is recorded as failed ----------/

* TOGETHER: as always, beside other chunks.
* ALONE: all its jobs at once, with nothing beside the chunk in its process.
* ONE_BY_ONE: alone, and one job after the other, each noted in the ledger before it starts.
* CONVICT: the noted job fails with ``poison`` without being called again.
* CONVICT_ALL: workers died of reading the chunk, before any of it was called: all its jobs fail with ``poison``.

From ALONE on a chunk is noted as a whole before it is read. Once it is read, what is noted is a job, or that none runs
(``NO_JOB``); so deaths in a row that count against all of a chunk in ONE_BY_ONE are those of workers that read it.

Why no innocent is blamed. Before anything runs alone, the process takes nothing in, gives its other chunks back and
waits until their calls are over (``isolation.py``). So a worker that dies of what runs alone takes nothing else along,
and nothing is noted while calls of other chunks are under way. The ledger counts a death against what was noted under
the fence of the lease that ended, and against nothing else: the worker died of that, or was ended from outside. A job
of ONE_BY_ONE is noted while an attempt of it is under way, and no longer; a worker that survives one has acquitted it
of earlier deaths. What a verdict leaves to chance is that the outside ends three workers in a row with a chunk, one
more while the chunk is alone, and the next three each during a call of the same job. An innocent chunk that dying
workers held runs alone once, and is then like any other.

What one poison job costs: 3 + 1 + 3 workers; a further one in its chunk 1 + 3. Deaths are forgotten once the chunk got
to try something and gave up regularly; but not while jobs of ONE_BY_ONE are untried, or the end of a chunk's time
would end the search. A job that died alone goes first the next time: to note another one forgets its deaths.

What it costs others: a process that runs something alone does nothing else meanwhile, but that at most half of the
time; suspected chunks that must wait for it go back to the ledger. Other processes go on. Plain ``callmill.call``
tasks are no chunks; they are neither held back nor isolated.
"""

from __future__ import annotations

from enum import Enum, auto

from callmill.ledger import Claim

_ALONE_FROM_DEATHS = 3
_CONVICTED_FROM_DEATHS = 3

NO_JOB = -1
"""Noted of a chunk in ONE_BY_ONE while no call of it is under way."""


class Stage(Enum):
    """How a chunk is run, by what happened to the workers that held it."""

    TOGETHER = auto()
    ALONE = auto()
    ONE_BY_ONE = auto()
    CONVICT = auto()
    CONVICT_ALL = auto()

    @property
    def needs_process(self) -> bool:
        """Whether nothing may run beside it."""
        return self in {Stage.ALONE, Stage.ONE_BY_ONE}


def stage_of(claim: Claim) -> Stage:
    """Return how a chunk is to be run now."""
    if claim.deaths < _ALONE_FROM_DEATHS:
        return Stage.TOGETHER
    suspect = claim.suspect
    if suspect is None:
        return Stage.ALONE
    if suspect.offset is None and suspect.deaths >= _CONVICTED_FROM_DEATHS:
        return Stage.CONVICT_ALL
    if suspect.offset is None:
        return Stage.ONE_BY_ONE if suspect.deaths else Stage.ALONE
    if suspect.offset == NO_JOB or suspect.deaths < _CONVICTED_FROM_DEATHS:
        return Stage.ONE_BY_ONE
    return Stage.ALONE if suspect.offset in claim.recorded else Stage.CONVICT


def noted_when_read(claim: Claim, stage: Stage) -> int | None:
    """Return what is noted of a chunk once it is read: its only job, or that none runs; None: still all of it."""
    if stage is Stage.ONE_BY_ONE:
        return NO_JOB
    left = [offset for offset in range(claim.count) if offset not in claim.recorded]
    return left[0] if len(left) == 1 else None


def reading_is_suspect(claim: Claim, stage: Stage) -> bool:
    """Say whether to note all of a chunk before it is read: once a job of it was noted, somebody had survived that."""
    return stage is Stage.ALONE or claim.suspect is None or claim.suspect.offset is None


def verdict(claim: Claim) -> str:
    """Return for people why the suspect of a claim fails."""
    alone = claim.suspect.deaths if claim.suspect else 0
    return (
        f"it kills its worker: {alone} died while nothing but this job ran, "
        f"after {claim.deaths - alone} that ran it with others; it was not called again"
    )


def verdict_on_all(claim: Claim) -> str:
    """Return for people why every job of a chunk fails that cannot be read without dying."""
    return f"its chunk kills the worker that reads it: {claim.deaths} died; nothing of it was called again"
