"""RunSession: what surrounds a FileRun: the server, local workers, the progress that is shown, and signals."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from callmill.cli import console
from callmill.cli.cause_words import CauseInWords, top_causes
from callmill.cli.client_session import with_client
from callmill.cli.default_api import default_api
from callmill.cli.embedded_session import EmbeddedSession, up_is_running
from callmill.cli.figures import counted
from callmill.cli.file_run import FileRun
from callmill.cli.fleet_cpu import FleetCpu
from callmill.cli.input_file import InputIdentity
from callmill.cli.job_line import BareBodies
from callmill.cli.local_fleet import LocalFleet, workers
from callmill.cli.progress_view import ProgressView
from callmill.cli.run_binding import check_apis, continue_bound
from callmill.cli.run_files import RunFiles
from callmill.cli.run_report import RunReport
from callmill.cli.run_state import RunState
from callmill.cli.worker_setup import checked_profiles, cores
from callmill.config.api_profile import ApiProfile
from callmill.config.cancelling import end_tasks
from callmill.config.embedded_server import limiter_url
from callmill.config.profiles import find_profiles
from callmill.config.redis_connections import connect
from callmill.config.settings import Settings
from callmill.errors import (
    ApiHeldError,
    BatchNotFoundError,
    BatchStateError,
    CallmillError,
    ConfigurationError,
    RedisUnavailableError,
    UsageError,
)
from callmill.jobs.traffic import NORMAL, TrafficClass
from callmill.ledger.fleet import WorkerStatus
from callmill.ledger.session import LedgerSession
from callmill.overview.standstill import StandstillWatch
from callmill.producer import AsyncClient, Progress

_SHOW_EVERY_S = 0.5
_SERVER_CHECK_EVERY_S = 1.0
_READY_POLL_S = 0.05


class RunSession:
    """One call of ``callmill run``.

    Args:
        settings: As the environment has them.
        files: The files of the run, open.
        name: Name of the batch.
        api: API of the lines that name none.
        traffic: How urgent the calls are, and on whose behalf they are made; None: as usual.
        bare: How lines are sent that are bodies and nothing else; None: they are bad lines.
        quiet: Show no progress.
    """

    def __init__(
        self,
        settings: Settings,
        files: RunFiles,
        *,
        name: str,
        api: str | None,
        traffic: TrafficClass | None,
        bare: BareBodies | None = None,
        quiet: bool,
    ) -> None:
        self._settings = settings
        self._files = files
        self._name = name
        self._api = api
        self._traffic = traffic or NORMAL
        self._bare = bare
        self._view = ProgressView(console.stderr(), quiet=quiet)
        self._cpu = FleetCpu()
        self._fleet: LocalFleet | None = None
        self._server: EmbeddedSession | None = None
        self._signal: signal.Signals | None = None
        self._own_workers, self._batch_id = False, ""
        self._retry_failed = self._began = False
        self._failed_up_to_ms = 0

    def run(
        self, identity: InputIdentity, *, fresh: bool, workers: int | None, retry_failed: bool = False
    ) -> RunReport:
        """Run to the end and return the report.

        Raises:
            SystemExit: Interrupted by a signal; everything so far is kept.
            CallmillError: What FileRun raises, or a wrong configuration.
        """
        console.say_warnings(self._view.say)
        self._retry_failed = retry_failed
        number = self._local_workers(workers)
        if number:
            checked_profiles(self._settings)
        self._own_workers = number > 0
        state = self._files.state
        self._batch_id = secrets.token_hex(6) if state is None or fresh else state.batch_id
        with ExitStack() as stack:
            if self._settings.redis_url is None:
                self._server = stack.enter_context(EmbeddedSession(self._settings))
            if retry_failed:
                self._failed_up_to_ms = with_client(_now_ms)  # before its workers can fail a job
            if number:
                self._fleet = self._start_fleet(number)
                stack.callback(self._fleet.stop)
            stack.enter_context(self._view)
            return asyncio.run(self._guarded(identity, fresh=fresh))

    def _local_workers(self, asked: int | None) -> int:
        if asked is not None:
            return asked
        return 0 if self._settings.redis_url is not None or up_is_running(self._settings) else cores()

    def _start_fleet(self, number: int) -> LocalFleet:
        fleet = LocalFleet(
            workers(number),
            grace_s=self._settings.shutdown_grace_s,
            say=self._view.say,
            log_level="warning",
            settings={"CALLMILL_ONLY_BATCH": self._batch_id},
        )
        fleet.start()
        return fleet

    async def _guarded(self, identity: InputIdentity, *, fresh: bool) -> RunReport:
        loop, work = asyncio.get_running_loop(), asyncio.ensure_future(self._run(identity, fresh=fresh))

        def interrupt(number: signal.Signals) -> None:
            if self._signal is None:
                self._signal = number
                work.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt, number)
        try:
            return await work
        except asyncio.CancelledError:
            if self._signal is None:
                raise
            self._view.say("stopped; everything so far is kept: run the same command again to go on")
            raise SystemExit(128 + self._signal) from None

    async def _run(self, identity: InputIdentity, *, fresh: bool) -> RunReport:
        async with AsyncClient(own_workers=self._own_workers) as client:
            beside = [asyncio.create_task(self._keep_server())]
            try:
                await self._await_workers(client)
                await self._find_batch(client, identity, fresh=fresh)
                return await self._execute(client, beside)
            except BaseException:
                await self._undo_start(client)
                raise
            finally:
                await end_tasks(beside)

    async def _execute(self, client: AsyncClient, beside: list[asyncio.Task[None]]) -> RunReport:
        assert self._files.state is not None  # noqa: S101 - made by _find_batch
        run = FileRun(
            client,
            self._files.state,
            source=self._files.source,
            state_file=self._files.state_file,
            output=self._files.output,
            errors=self._files.errors,
            retry_failed=self._retry_failed,
            failed_up_to_ms=self._failed_up_to_ms,
            say=self._view.say,
        )
        work = asyncio.ensure_future(run.execute())
        watch = asyncio.create_task(self._watch(client, run))
        beside.append(watch)
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
            progress = await work
        except BaseException as error:
            await self._give_up(work, run, error)
            raise
        await self._note_cpu(client)
        causes: list[CauseInWords] = []
        with suppress(RedisUnavailableError):  # everything is on disk: no reason to fail now
            causes = await top_causes(client, progress.id, await self._profile(client, progress.id))
        report = RunReport.of(progress, bad_lines=run.bad_lines, cpu_us_per_call=self._cpu.us_per_call, causes=causes)
        await run.finish(report)
        self._view.show(progress, last=True)
        return report

    @staticmethod
    async def _give_up(work: asyncio.Future[Progress], run: FileRun, error: BaseException) -> None:
        await end_tasks([work])
        with suppress(CallmillError):
            await run.settle()
            if isinstance(error, UsageError):
                run.end_retry()

    async def _undo_start(self, client: AsyncClient) -> None:
        """Remove every trace of a run that has just begun and has neither a job nor a line."""
        state = self._files.state
        if state is None or not self._began or any(file.length for file in self._files.all):
            return
        with suppress(CallmillError):  # else the same command goes on with it
            batches = client.connection().batches
            if not await batches.exists(state.batch_id) or not (await batches.record(state.batch_id)).total:
                await batches.delete(state.batch_id)
                self._files.forget()

    async def _profile(self, client: AsyncClient, batch_id: str) -> ApiProfile | None:
        """Return the local profile of the batch's only API, if we run its workers."""
        apis = (await client.connection().batches.record(batch_id)).apis
        if self._fleet is None or len(apis) != 1:
            return None
        return (find_profiles(self._settings) or {}).get(apis[0])

    async def _await_workers(self, client: AsyncClient) -> None:
        """Wait until a local worker has announced its APIs: an API that is new in the profiles is unknown before."""
        while self._fleet is not None:
            self._check_fleet()
            with suppress(RedisUnavailableError):
                if self._ours(await client.connection().fleet.workers()):
                    return
            await asyncio.sleep(_READY_POLL_S)

    async def _find_batch(self, client: AsyncClient, identity: InputIdentity, *, fresh: bool) -> None:
        state = self._files.state
        if state is not None and not fresh:
            try:
                await client.batch(state.batch_id)
            except BatchNotFoundError as error:
                if state.output_bytes or state.errors_bytes:
                    raise BatchNotFoundError(f"{error}; start over with --fresh, or name another -o") from error
            else:
                again = self._retry_failed or state.retry_up_to_ms > 0  # a retry that was cut off goes on
                await continue_bound(client, state.batch_id, own_workers=self._own_workers, calls_again=again)
                return
        api = await default_api(client, self._api)
        await check_apis(client, self._files.source, api, self._bare)
        submission = await client.open_submission(
            name=self._name,
            start="at once",
            batch_id=self._batch_id,
            priority=self._traffic.priority,
            tenant=self._traffic.tenant,
            own_lines=self._own_workers,
        )
        if state is not None:  # the configuration has been checked by now
            with suppress(BatchNotFoundError, BatchStateError):
                former = await client.batch(state.batch_id)
                await former.cancel()
        # On disk first: if killed in between, the next run finds no batch and starts over.
        self._began = True
        self._files.begin(
            RunState(
                batch_id=self._batch_id,
                api=api,
                input=identity,
                errors=self._files.errors_path,
                traffic=self._traffic,
                bare=self._bare,
            )
        )
        await submission.create()

    async def _watch(self, client: AsyncClient, run: FileRun) -> None:
        batch, session = await client.batch(run.state.batch_id), LedgerSession(client.connection().redis)
        async with connect(limiter_url(self._settings)) as limiter:
            standstill = StandstillWatch(session, limiter, batch.id)
            while True:
                self._check_fleet()
                with suppress(RedisUnavailableError):
                    self._view.show(progress := await batch.progress())
                    await self._note_cpu(client)
                    if why := await standstill.look(progress):
                        raise ApiHeldError(self._held_in_words(why, progress))
                await asyncio.sleep(_SHOW_EVERY_S)

    def _held_in_words(self, why: str, progress: Progress) -> str:
        restart = "" if self._fleet is not None else ", restart the workers"
        left = progress.total - progress.done
        wait = f"{counted(left, 'job')} {'waits' if left == 1 else 'wait'}"
        return f"{why}. {wait}: fix this{restart} and run the same command again"

    def _check_fleet(self) -> None:
        if self._fleet is not None and (failure := self._fleet.failure) is not None:
            raise ConfigurationError(failure.removeprefix("callmill: "))

    async def _note_cpu(self, client: AsyncClient) -> None:
        if self._fleet is not None:
            with suppress(RedisUnavailableError):
                self._cpu.note(self._ours(await client.connection().fleet.workers()))

    def _ours(self, workers: Iterable[WorkerStatus]) -> list[WorkerStatus]:
        pids, host = set(self._fleet.pids if self._fleet is not None else ()), socket.gethostname()
        return [worker for worker in workers if worker.pid in pids and worker.host == host]

    async def _keep_server(self) -> None:
        while self._server is not None:
            await asyncio.sleep(_SERVER_CHECK_EVERY_S)
            try:
                if await asyncio.to_thread(self._server.ensure):
                    self._view.say("the embedded server was gone; it was started again")
            except RedisUnavailableError as error:
                self._view.say(f"callmill: {error}")


async def _now_ms(client: AsyncClient) -> int:
    return await client.connection().batches.now_ms()
