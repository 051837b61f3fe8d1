"""RunSession: what surrounds a FileRun: the server, local workers, the progress that is shown, and signals."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from collections.abc import Iterable
from contextlib import ExitStack, suppress

from callmill.cli import console
from callmill.cli.default_api import default_api
from callmill.cli.embedded_session import EmbeddedSession, up_is_running
from callmill.cli.file_run import FileRun
from callmill.cli.fleet_cpu import FleetCpu
from callmill.cli.input_file import InputIdentity
from callmill.cli.local_fleet import LocalFleet, workers
from callmill.cli.progress_view import ProgressView
from callmill.cli.run_files import RunFiles
from callmill.cli.run_report import RunReport
from callmill.cli.run_state import RunState
from callmill.cli.worker_setup import checked_profiles, cores
from callmill.config.cancelling import end_tasks
from callmill.config.settings import Settings
from callmill.errors import (
    BatchNotFoundError,
    BatchStateError,
    CallmillError,
    ConfigurationError,
    RedisUnavailableError,
)
from callmill.jobs.traffic import NORMAL, TrafficClass
from callmill.ledger.fleet import WorkerStatus
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
        quiet: bool,
    ) -> None:
        self._settings = settings
        self._files = files
        self._name = name
        self._api = api
        self._traffic = traffic or NORMAL
        self._view = ProgressView(console.stderr(), quiet=quiet)
        self._cpu = FleetCpu()
        self._fleet: LocalFleet | None = None
        self._server: EmbeddedSession | None = None
        self._signal: signal.Signals | None = None

    def run(self, identity: InputIdentity, *, fresh: bool, workers: int | None) -> RunReport:
        """Run to the end and return the report.

        Raises:
            SystemExit: Interrupted by a signal; everything so far is kept.
            CallmillError: What FileRun raises, or a wrong configuration.
        """
        console.say_warnings(self._view.say)
        number = self._local_workers(workers)
        if number:
            checked_profiles(self._settings)
        with ExitStack() as stack:
            if self._settings.redis_url is None:
                self._server = stack.enter_context(EmbeddedSession(self._settings))
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
            workers(number), grace_s=self._settings.shutdown_grace_s, say=self._view.say, log_level="warning"
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
        async with AsyncClient() as client:
            beside = [asyncio.create_task(self._keep_server())]
            try:
                await self._await_workers(client)
                await self._find_batch(client, identity, fresh=fresh)
                return await self._execute(client, beside)
            finally:
                await end_tasks(beside)

    async def _execute(self, client: AsyncClient, beside: list[asyncio.Task[None]]) -> RunReport:
        assert self._files.state is not None  # noqa: S101 - made by _find_batch
        run = FileRun(
            client,
            self._files.state,
            state_file=self._files.state_file,
            output=self._files.output,
            errors=self._files.errors,
        )
        work = asyncio.ensure_future(run.execute())
        watch = asyncio.create_task(self._watch(client, run))
        beside.append(watch)
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
            progress = await work
        except BaseException:
            await self._give_up(work, run)
            raise
        await self._note_cpu(client)
        report = RunReport.of(progress, bad_lines=run.bad_lines, cpu_us_per_call=self._cpu.us_per_call)
        await run.finish(report)
        self._view.show(progress, last=True)
        return report

    @staticmethod
    async def _give_up(work: asyncio.Future[Progress], run: FileRun) -> None:
        await end_tasks([work])
        with suppress(CallmillError):
            await run.commit()

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
        if fresh and state is not None:
            with suppress(BatchNotFoundError, BatchStateError):
                former = await client.batch(state.batch_id)
                await former.cancel()
        elif state is not None:
            try:
                await client.batch(state.batch_id)
            except BatchNotFoundError as error:
                if state.output_bytes or state.errors_bytes:
                    raise BatchNotFoundError(f"{error}; begin anew with --fresh, or name another -o") from error
            else:
                return
        api = await default_api(client, self._api)
        # On the disk first: killed in between, the next run finds no batch and begins anew.
        batch_id = secrets.token_hex(6)
        self._files.begin(
            RunState(batch_id=batch_id, api=api, input=identity, errors=self._files.errors_path, traffic=self._traffic)
        )
        await client.open_submission(
            name=self._name,
            start="at once",
            batch_id=batch_id,
            priority=self._traffic.priority,
            tenant=self._traffic.tenant,
        )

    async def _watch(self, client: AsyncClient, run: FileRun) -> None:
        batch = await client.batch(run.state.batch_id)
        while True:
            self._check_fleet()
            with suppress(RedisUnavailableError):
                self._view.show(await batch.progress())
                await self._note_cpu(client)
            await asyncio.sleep(_SHOW_EVERY_S)

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
