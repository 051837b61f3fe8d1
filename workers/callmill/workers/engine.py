"""Engine: what one worker process consists of besides Celery.

Celery's threads call ``run_chunk`` and wait; the work itself happens on the engine's one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from callmill.config.beat import AT_REST_S, until_beat_s
from callmill.config.cancelling import end_tasks
from callmill.config.redis_connections import connect, connect_blocking
from callmill.errors import RedisUnavailableError, UnknownFormatError
from callmill.jobs.line import Line
from callmill.ledger import Batches, ChunkRef, Chunks, ClaimRefused, LedgerSession, Lines
from callmill.ledger.fleet import STATUS_EVERY_S, Fleet, WorkerStatus
from callmill.ledger.hints import HintPublisher
from callmill.ledger.memory import MemoryGauge
from callmill.workers.alert_sender import AlertTargets, open_sender
from callmill.workers.alert_watch import AlertWatch
from callmill.workers.chunk_run import ChunkRun
from callmill.workers.committer import Committer
from callmill.workers.execution import Execution
from callmill.workers.held_chunks import LargeChunks
from callmill.workers.hint_sender import HintSender
from callmill.workers.lane_host import LaneHost
from callmill.workers.lane_switch import LaneSwitch
from callmill.workers.lease_keeper import LOST, RENEWED, LeaseKeeper
from callmill.workers.log_fields import of_ref
from callmill.workers.memory_watch import watch_memory
from callmill.workers.newer_batches import NewerBatches
from callmill.workers.reconciler import Reconciler
from callmill.workers.redis_watch import RedisWatch
from callmill.workers.reporter import Reporter
from callmill.workers.rhythm import Rhythm
from callmill.workers.room import Room
from callmill.workers.served_lines import ServedLines
from callmill.workers.vitals import Vitals, rss_bytes
from callmill.workers.worker_options import WorkerOptions

log = logging.getLogger(__name__)

_ROOM_CHECK_S = 0.05
_PACED_ROOM_CHECK_S = 0.25
"""Where limits pace all that is here: their lanes have taken in work for longer than that."""

_LINES_CHECK_S = 0.5
"""How soon a line that nobody used lately is heard of."""
_NEWER_LOOK_EVERY = 4
"""Of so many looks one also sees which batches wait for newer workers."""

_CONTROLS_CHECK_S = 0.5
"""How soon it is heard of that a batch was paused, cancelled or deleted."""

_LAST_WORDS_S = 10.0
"""After the grace; together they are less than what Compose, Kubernetes and systemd wait before they kill."""

_RESCUES_AT_ONCE = 8
"""Chunks that a process holds beyond its threads, because a dead worker had them."""

_EXIT_BUG = 70
"""EX_SOFTWARE of sysexits.h."""


class Engine:
    """Executes chunks. Started and stopped by the pool; its public methods may be called from any thread."""

    def __init__(
        self, worker: str, options: WorkerOptions, host: LaneHost, switch: LaneSwitch, alerts: AlertTargets
    ) -> None:
        self.worker = worker
        self._options = options
        self._apis = list(host.apis.values())
        self._lanes = host.lanes
        self._switch = switch
        self._served = ServedLines(host.profiles, only_batch=options.only_batch)
        self._started_ms = int(time.time() * 1000)
        self._thread = host.thread
        self._hints = HintPublisher(options.broker_url)
        self._runs: dict[ChunkRef, ChunkRun] = {}
        self._newer = NewerBatches()
        self._draining = False
        self._recording = True
        self._held = ""
        self._rhythm = Rhythm(self._at_rest)
        self._background: set[asyncio.Task[None]] = set()
        self._rescues: set[asyncio.Task[str]] = set()
        self._redis, self._broker = connect(options.redis_url), connect(options.broker_url)
        session = LedgerSession(self._redis, wait_replicas=options.wait_replicas)
        self._chunks = Chunks(session, worker=self.worker, lease_ms=options.lease_ms)
        self._fleet = Fleet(session)
        self._lines = Lines(session)
        self._batches = Batches(session)
        self._room = Room(self._lanes, self._switch, self._served, threads=options.chunks_at_once)
        self._reporter, self._vitals = Reporter(self._fleet, self._lanes), Vitals()
        self._sender = HintSender(self._hints)
        large = LargeChunks(options.memory.large_chunks_bytes)
        self._committer = Committer(
            self._chunks,
            self._sender.send,
            self._set_recording,
            self._reporter.recorded,
            waiting=host.answers.unrecorded,
            most_at_once_bytes=options.memory.recorded_at_once_bytes,
        )
        self._execution = Execution(
            self._chunks,
            self._lanes,
            self._committer,
            self._room,
            self._runs,
            lease_s=options.lease_ms / 1000,
            newer=self._newer,
            large=large,
        )
        self._leases = LeaseKeeper(
            connect_blocking(options.redis_url, socket_timeout_s=options.lease_ms / 3000),
            self._chunks,
            lambda: list(self._runs.values()),
            self._leases_renewed,
            every_s=options.lease_ms / 3000,
        )
        gauge = MemoryGauge(session, options.memory_watermark)
        reconciler = Reconciler(
            session,
            self._broker,
            self._chunks,
            self._sender.send,
            self._rescue,
            watch=AlertWatch(session, gauge=gauge, stuck_after_s=alerts.stuck_after_s),
            rhythm=self._rhythm,
            worker=self.worker,
            done=self._reporter.reconciled,
            open_batch_s=options.open_batch_s,
            newer=self._newer,
        )
        watch = RedisWatch(session, options, self._hold, gauge=gauge, rhythm=self._rhythm)
        memory = watch_memory(options.memory, self._rhythm, host.answers, large)
        self._thread.run(self._start(session, alerts, reconciler.run(), watch.run(), memory))

    def run_chunk(self, ref: ChunkRef, *, first: bool = False) -> str:
        """Execute a chunk, or find out that there is nothing to do; return what came of it, for people.

        ``first``: it was put back and goes before those that wait for room.
        """
        return self._thread.run(self._run_chunk(ref, first=first))

    def drain(self) -> None:
        """Start no further calls; chunks end when their calls in flight have, the rest goes back. Returns at once."""
        self._thread.loop.call_soon_threadsafe(self._drain)

    def stop(self) -> None:
        """Record everything and close the connections; the host goes on. No chunk may be running any more."""
        self._leases.stop()
        self._thread.run(self._close())
        self._hints.close()

    async def _start(self, session: LedgerSession, alerts: AlertTargets, *parts: Coroutine[Any, Any, None]) -> None:
        self._leases.start()
        if alerts.webhooks:
            self._in_background(open_sender(session, alerts, self.worker).run())
        for part in (
            *parts,
            self._committer.run(),
            self._sender.run(),
            self._vitals.run(self._rhythm),
            self._report(),
            self._watch_room(),
            self._watch_lines(),
            self._watch_controls(),
        ):
            self._in_background(_or_die(part))

    async def _close(self) -> None:
        self._drain()
        if self._rescues:  # no thread of the pool waits for them
            await asyncio.wait(self._rescues)
        await self._committer.idle()
        await self._sender.settle()
        await end_tasks(self._background)
        try:
            await self._reporter.send(self._status())
            await self._fleet.leave(self.worker)
        except RedisUnavailableError as error:
            log.warning("left without a word: %s", error, extra={"action": "leave_failed"})
        await self._redis.aclose()
        await self._broker.aclose()

    async def _run_chunk(self, ref: ChunkRef, *, first: bool) -> str:
        try:
            line = Line.parse(ref.line)
        except ValueError as error:
            return f"left to others: {error}"
        if not self._served.serves(line):
            return f"not served here: {ref.line}"
        async with self._room.enter(line, ref, first=first) as entered:
            if entered:
                return await self._execute(ref, line)
        self._sender.send([ref], first=first)
        return "left to others: the lane is full"

    async def _execute(self, ref: ChunkRef, line: Line) -> str:
        asked_s = time.monotonic()  # the lease runs from then at least, whenever its answer is read
        try:
            claim = await self._chunks.claim(ref)
        except RedisUnavailableError as error:
            log.warning("not claimed: %s", error, extra={"action": "claim_failed", **of_ref(ref)})
            return "not claimed: Redis is away; the reconciler will find it"
        except UnknownFormatError as error:
            self._newer.met(ref.batch_id, error)
            return f"left to others: {error}"
        if isinstance(claim, ClaimRefused):
            return f"nothing to do: {claim}"
        return await self._execution.execute(claim, line, asked_s)

    def _rescue(self, ref: ChunkRef) -> None:
        """Run a chunk that waits for a thread, although its jobs were under way before: in no thread at all."""
        try:
            line = Line.parse(ref.line)
        except ValueError:  # of a newer version, which looks after it
            return
        lane = self._lanes.get(line.api) if self._served.serves(line) else None
        if lane is None or self._draining or self._held or len(self._rescues) >= _RESCUES_AT_ONCE:
            return
        if lane.paced and not lane.has_room(line.traffic):
            return
        task = asyncio.ensure_future(self._execute(ref, line))
        self._rescues.add(task)
        task.add_done_callback(self._rescue_ended)

    def _rescue_ended(self, task: asyncio.Task[str]) -> None:
        self._rescues.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a rescue failed", exc_info=error, extra={"action": "rescue_failed"})

    async def _watch_room(self) -> None:
        while True:
            await asyncio.sleep(until_beat_s(_ROOM_CHECK_S if self._room.may_open_soon else _PACED_ROOM_CHECK_S))
            self._room.look()
            if self._room.at_rest:  # the look after a while is for calls of the plain task: they fill lanes as well
                await self._room.stirred(until_beat_s(AT_REST_S))

    async def _watch_lines(self) -> None:
        for look in itertools.count():
            try:
                self._room.serve(await self._lines.in_turn())
                if look % _NEWER_LOOK_EVERY == 0:
                    for batch_id, error in (await self._lines.newer()).items():
                        self._newer.met(batch_id, error)
            except RedisUnavailableError as error:
                log.warning("lines not looked up: %s", error, extra={"action": "lines_failed"})
            await self._rhythm.pause(_LINES_CHECK_S)

    async def _watch_controls(self) -> None:
        seen, look_again = 0, False
        while True:
            await self._rhythm.pause(_CONTROLS_CHECK_S)
            if not self._runs:
                continue  # a claim that comes finds what was changed meanwhile
            try:
                controls = await self._batches.controls()
            except RedisUnavailableError as error:
                log.warning("controls not looked up: %s", error, extra={"action": "controls_failed"})
                continue
            if controls != seen or look_again:
                self._leases.renew_now()
            look_again = controls != seen  # for a claim that was on its way meanwhile
            seen = controls

    def _drain(self) -> None:
        if self._draining:
            return
        self._draining = True
        self._room.shut()
        self._execution.drain()
        self._in_background(self._end_grace())

    async def _end_grace(self) -> None:
        await asyncio.sleep(self._options.shutdown_grace_s)
        for lane in self._lanes.values():
            if lane.in_flight:
                log.warning(
                    "%d calls of %s cut off: the grace is over",
                    lane.in_flight,
                    lane.api,
                    extra={"action": "grace_over", "api": lane.api, "calls": lane.in_flight},
                )
                await lane.cancel()
        await self._give_up_after(_LAST_WORDS_S)

    async def _give_up_after(self, wait_s: float) -> None:
        """Let chunks be recorded for so long; what is left then cannot be: Redis is away, and may be so for good."""
        runs = list(self._runs.values())
        if runs and (await asyncio.wait([run.over for run in runs], timeout=wait_s))[1]:
            self._committer.give_up()
            for run in (run for run in runs if not run.over.done()):
                log.error(
                    "chunk given up: Redis is away; what is not recorded runs again",
                    extra={"action": "given_up", **of_ref(run.claim.ref)},
                )
                run.abandon()

    def _set_recording(self, on: bool) -> None:  # noqa: FBT001 - a callback with one meaning
        self._recording = on
        self._set_gates()

    def _hold(self, reason: str) -> None:
        """Take no chunk and start no call while there is a reason; calls in flight finish and are recorded."""
        changed, self._held = bool(reason) != bool(self._held), reason
        if changed:
            self._room.leave_queues(on=bool(reason))
            self._set_gates()

    def _set_gates(self) -> None:
        for lane in self._lanes.values():
            lane.set_gate(is_open=self._recording and not self._held)

    def _leases_renewed(self, runs: Sequence[ChunkRun], answers: Sequence[int], asked_s: float) -> None:
        self._thread.loop.call_soon_threadsafe(self._apply_renewal, runs, answers, asked_s)

    def _apply_renewal(self, runs: Sequence[ChunkRun], answers: Sequence[int], asked_s: float) -> None:
        ends_s = asked_s + self._options.lease_ms / 1000
        for run, answer in zip(runs, answers, strict=True):
            if answer == LOST:
                run.abandon()
                continue
            run.renewed(ends_s)
            if answer != RENEWED:
                run.close()

    async def _report(self) -> None:
        announced = False
        while True:
            try:
                if not announced:
                    await self._fleet.announce_apis(
                        self._apis,
                        only_batch=bool(self._served.only_batch),
                    )
                    announced = True
                await self._reporter.send(self._status())
                await self._chunks.touch(list(self._room.waiting))
            except RedisUnavailableError as error:
                log.warning("status not reported: %s", error, extra={"action": "report_failed"})
            await self._rhythm.pause(STATUS_EVERY_S)

    def _at_rest(self) -> bool:
        return not self._runs and not any(lane.in_flight for lane in self._lanes.values())

    def _status(self) -> WorkerStatus:
        calls = sum(lane.tally.calls for lane in self._lanes.values())
        return WorkerStatus(
            id=self.worker,
            host=socket.gethostname(),
            pid=os.getpid(),
            started_ms=self._started_ms,
            calls=calls,
            cpu_s=time.process_time(),
            draining=self._draining,
            held=self._held,
            apis=list(self._lanes),
            lanes=[lane.status() for lane in self._lanes.values()],
            newer_format=self._newer.lately,
            loop_lag_s=self._vitals.loop_lag_s,
            rss_bytes=rss_bytes(),
            cpu_us_per_call=self._vitals.cpu_us_per_call(calls),
            calls_per_s=self._vitals.calls_per_s,
            chunks_at_once=self._options.chunks_at_once,
            serves_at=self._served.at,
            only_batch=self._served.only_batch,
        )

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed", exc_info=error, extra={"action": "background_failed"})


async def _or_die(part: Coroutine[Any, Any, None]) -> None:
    """Run a part that the worker cannot do without; when it meets a bug, end the process.

    A worker that renewed its leases but recorded nothing would keep its chunks for ever. Dead, it loses them to others
    within a lease.
    """
    try:
        await part
    except Exception:  # the boundary of the process: whatever it is, nobody else will see it
        log.critical("a part of the worker died, and the worker with it", exc_info=True, extra={"action": "died"})
        logging.shutdown()
        os._exit(_EXIT_BUG)
