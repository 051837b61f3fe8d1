"""A worker that writes down what it does, and dies at a chosen point: ``celery -A fault_worker worker``.

It is Callmill's own worker; its parts are wrapped here, before Celery starts, so that the product knows nothing of it.
The file ``CHAOS_ARM`` says ``POINT N``: at the N-th pass of that point from then on the process kills itself.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from history import Commit, EventLog, Lease
from kombu.transport.redis import Transport as BrokerTransport

from callmill.errors import CallmillError, StaleLeaseError
from callmill.ledger import Chunks, Claim
from callmill.workers import app
from callmill.workers.chunk_run import ChunkRun
from callmill.workers.engine import Engine
from callmill.workers.lease_keeper import LOST
from callmill.workers.request_builder import RequestBuilder

__all__ = ["app"]

_log = EventLog(Path(os.environ["CHAOS_LOG"]))
_arm = Path(os.environ["CHAOS_ARM"])
_pid = os.getpid()
_renewal = threading.local()


class _Passes:
    point = ""
    left = 0


def _pass(point: str) -> None:
    """Note that a point is passed, and die if it is the one."""
    try:
        armed, number = _arm.read_text().split()
    except (OSError, ValueError):
        _Passes.point = ""
        return
    if armed != point:
        return
    if _Passes.point != armed:
        _Passes.point, _Passes.left = armed, int(number)
    _Passes.left -= 1
    if _Passes.left <= 0:
        os.kill(_pid, signal.SIGKILL)
        signal.pause()


_deliver, _claim, _commit_all = BrokerTransport._deliver, Chunks.claim, Chunks.commit_all
_renewal_of, _renewed, _build = Chunks.renewal, Engine._leases_renewed, RequestBuilder.build


@wraps(_deliver)
def deliver(self: Any, message: Any, queue: str) -> None:
    """The broker's queue has given the message up, and nobody has noted it yet."""
    if queue.startswith("lane."):
        _pass("pop")
    _deliver(self, message, queue)


@wraps(_claim)
async def claim(self: Chunks, ref: Any) -> Any:
    """The lease is this worker's now."""
    asked_s = time.time()
    given = await _claim(self, ref)
    if isinstance(given, Claim):
        _log.write(Lease(_pid, ref.member, given.fence, asked_s))
        _pass("claim")
    return given


@wraps(_commit_all)
async def commit_all(self: Chunks, commits: Sequence[Any]) -> Any:
    """Between calls and commit, and between commit and finish."""
    if any(bundle.outcomes for _, bundle, _ in commits):
        _pass("call")
    sent_s = time.time()
    try:
        results = await _commit_all(self, commits)
    except CallmillError:
        _note(commits, [None] * len(commits), sent_s)
        raise
    _note(commits, results, sent_s)
    if any(bundle.outcomes and finish is None for _, bundle, finish in commits):
        _pass("commit")
    if any(finish is not None for _, _, finish in commits):
        _pass("finish")
    return results


def _note(commits: Sequence[Any], results: Sequence[Any], sent_s: float) -> None:
    answered_s = time.time()
    for (held, bundle, _), result in zip(commits, results, strict=True):
        jobs = [f"{held.ref.batch_id}-{outcome.index}" for _, outcome in bundle.outcomes]
        if jobs:
            _log.write(Commit(_pid, held.ref.member, held.fence, jobs, sent_s, answered_s, _word(result)))


def _word(result: Any) -> str:
    if isinstance(result, StaleLeaseError):
        return "refused"
    return "unknown" if result is None or isinstance(result, CallmillError) else "recorded"


@wraps(_renewal_of)
def renewal(self: Chunks, claims: Sequence[Claim]) -> Any:
    """Note when it was asked for."""
    _renewal.asked_s = time.time()
    return _renewal_of(self, claims)


@wraps(_renewed)
def leases_renewed(self: Engine, runs: Sequence[ChunkRun], answers: Sequence[int], *more: Any) -> None:
    """Write down the leases that go on."""
    for run, answer in zip(runs, answers, strict=True):
        if answer != LOST:
            _log.write(Lease(_pid, run.claim.ref.member, run.claim.fence, _renewal.asked_s))
    _renewed(self, runs, answers, *more)


@wraps(_build)
def build(self: RequestBuilder, call: Any, key: int) -> Any:
    """Let the call tell the API which lease it is made under."""
    method, url, headers, body, timeout_s = _build(self, call, key)
    held = getattr(call.owner, "_owner", call.owner).claim  # a suspect chunk has a caller of its own before it
    headers["user-agent"] = f"{_pid} {held.ref.member} {held.fence} {time.time():.6f}"
    return method, url, headers, body, timeout_s


BrokerTransport._deliver = deliver  # type: ignore[method-assign]
Chunks.claim, Chunks.commit_all, Chunks.renewal = claim, commit_all, renewal  # type: ignore[method-assign]
Engine._leases_renewed, RequestBuilder.build = leases_renewed, build  # type: ignore[method-assign]
