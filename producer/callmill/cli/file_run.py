"""FileRun: a JSONL file through a batch, to exactly one line per job, whatever is killed and whenever.

What is certain is on the disk, in this order: lines of the output, then the state that counts them in, then what must
not happen before:

    bad lines of a window of the input on the disk  ->  state saved  ->  the window's jobs are written to the ledger
    outcomes on the disk                            ->  state saved  ->  the ledger may drop them

So the lines of the input that are neither blank nor reported bad are, in their order, the jobs of the batch, and the
ledger's count of jobs says where to go on. The output itself says which jobs it has: an outcome that comes twice,
because the ledger lost a moment and the job ran again, is written once.

When a failed job ran again, its new line is appended, and the earlier one is removed when the run ends or continues:

    lines to keep in a draft next to the file  ->  state saved: the draft counts  ->  the draft replaces the file

The state records which jobs run again before any does: those that had failed by then. If killed in between, a run
continues with those that are left, and repeats none of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from callmill.cli.bad_line_notes import BadLineNotes
from callmill.cli.default_api import reason
from callmill.cli.figures import counted
from callmill.cli.input_file import InputIdentity, Line, first_part, read_lines
from callmill.cli.job_line import BadLineError, custom_id_of, parse_job
from callmill.cli.newest_lines import newest_lines
from callmill.cli.number_set import NumberSet
from callmill.cli.result_file import ResultFile, not_written
from callmill.cli.result_lines import bad_line, is_failure, outcome_line, read_id
from callmill.cli.run_report import RunReport
from callmill.cli.run_state import RunState, save_state
from callmill.config.cancelling import end_tasks, to_its_end
from callmill.errors import BatchStateError, InputFileError, JobError, OutsideError, RedisUnavailableError
from callmill.jobs import Outcome
from callmill.jobs.outcome import UNKNOWN_INDEX
from callmill.ledger.failure_filter import FailureFilter
from callmill.ledger.records import BatchState
from callmill.producer import AsyncBatch, AsyncClient, Progress
from callmill.producer.submission import Submission, publish_hints

log = logging.getLogger(__name__)

_COMMIT_EVERY_S = 1.0
_COMMIT_BYTES = 8 * 1024 * 1024
_LINES_AT_ONCE = 500
_REPORTS_AT_ONCE = 1_000
_REDIS_PATIENCE_S = 60.0
_REDIS_RETRY_S = 1.0
_SAMPLE_BYTES = 1024 * 1024
_PENDING_BYTES = 256 * 1024 * 1024
_FEWEST_PENDING, _MOST_PENDING = 1_000, 50_000


class FileRun:
    """One run of an input file. Belongs to one event loop.

    Args:
        client: The connection to the ledger.
        state: Where the run is; its batch exists.
        source: The input.
        state_file: Where the state is kept.
        output: Takes every line, or, beside ``errors``, the successes.
        errors: Takes the failures and bad lines, if there is one.
        retry_failed: Run failed jobs again; if an earlier retry was interrupted, continue it instead.
        failed_up_to_ms: Those that had failed by then (Unix time in milliseconds, by Redis's clock); 0: by now.
        say: Prints a line for people.
    """

    def __init__(
        self,
        client: AsyncClient,
        state: RunState,
        *,
        source: Path | None = None,
        state_file: Path,
        output: ResultFile,
        errors: ResultFile | None,
        retry_failed: bool = False,
        failed_up_to_ms: int = 0,
        say: Callable[[str], None] = log.warning,
    ) -> None:
        self.state = state
        self._client = client
        self._source = source or Path(state.input.path)
        self._state_file = state_file
        self._output = output
        self._errors = errors
        self._files = [output] if errors is None else [output, errors]
        self._with_failures = errors or output
        self._retry_failed = retry_failed
        self._failed_up_to_ms = failed_up_to_ms
        self._written = NumberSet()
        self._failed = NumberSet()
        self._replaced, self._knows_lines = 0, False
        self._bad_lines = NumberSet()
        self._of_unknown_jobs = 0
        self._cursor = state.cursor
        self._reports: list[bytes] = []
        self._notes = BadLineNotes(self._source, self._with_failures.path, say)
        self._writing = asyncio.Lock()
        self._last_contact_s = 0.0
        self._last_trouble = ""

    @property
    def bad_lines(self) -> int:
        """Lines so far that are no jobs."""
        return len(self._bad_lines)

    async def execute(self) -> Progress:
        """Run until the batch is over and every outcome is in the output.

        Raises:
            InputFileError: The input is another now than it was.
            BatchNotFoundError: The batch is gone.
            RedisUnavailableError: Redis stayed away for a minute.
            OutsideError: The disk is full.
        """
        self._take_stock()
        if self._replaced:
            await self._drop_replaced()
        self._last_contact_s = asyncio.get_running_loop().time()
        while True:
            try:
                batch = await self._client.batch(self.state.batch_id)
                await self._retry(batch)
                await self._together(batch, self._submit(), self._read(batch))
                return await self._checked_end(batch)
            except (RedisUnavailableError, BatchStateError) as error:
                if asyncio.get_running_loop().time() - self._last_contact_s > _REDIS_PATIENCE_S:
                    raise
                if str(error) != self._last_trouble:
                    log.warning("%s; trying again", error, extra={"action": "run_retry", "batch": self.state.batch_id})
                self._last_trouble = str(error)
                await asyncio.sleep(_REDIS_RETRY_S)

    async def finish(self, report: RunReport) -> None:
        """Note what came of the run."""
        await self.settle()
        self.state = replace(self.state, report=report, retry_up_to_ms=0)
        self._save()

    async def settle(self) -> None:
        """Write everything so far to disk, with one line for each job."""
        await self.commit()
        if self._replaced and self._knows_lines:
            await self._drop_replaced()

    def end_retry(self) -> None:
        """Record that something must be fixed first: the next retry covers what has failed by then."""
        if self.state.retry_up_to_ms:
            self.state = replace(self.state, retry_up_to_ms=0)
            self._save()

    async def commit(self) -> None:
        """Bring to the disk what was read and found so far."""
        async with self._writing:
            for line in self._reports:
                (self._errors or self._output).append(line)
            self._reports.clear()
            if self._cursor == self.state.cursor and not any(file.unsynced for file in self._files):
                return
            # A thread cannot be cancelled, and nobody may write while it syncs.
            await to_its_end(asyncio.ensure_future(asyncio.to_thread(self._sync)))

    async def _retry(self, batch: AsyncBatch) -> None:
        """Run the failed jobs again that should; safe to repeat, because later failures are left alone."""
        connection = self._client.connection()
        if (await connection.batches.record(batch.id)).state is BatchState.CANCELLED:
            return
        if self._retry_failed and not self.state.retry_up_to_ms:
            up_to_ms = self._failed_up_to_ms or await connection.batches.now_ms()
            self.state = replace(self.state, retry_up_to_ms=up_to_ms, report=None)
            self._save()
        if self.state.retry_up_to_ms:
            where = FailureFilter("", up_to_ms=self.state.retry_up_to_ms)
            _, refs = await connection.batches.retry_failed(batch.id, where)
            await publish_hints(connection.hints, refs, batch.name)

    async def _together(self, batch: AsyncBatch, *parts: Coroutine[Any, Any, None]) -> None:
        """Run the parts, and commits beside them, until all parts are through or anything raises."""
        ticker = asyncio.create_task(self._commit_now_and_then(batch))
        tasks = {asyncio.create_task(part) for part in parts}
        waiting = tasks | {ticker}
        try:
            while waiting & tasks:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            await end_tasks(waiting)

    async def _checked_end(self, batch: AsyncBatch) -> Progress:
        progress = await batch.progress()
        await self.commit()
        if self.state.cursor:
            await batch.release(self.state.cursor)
        missing = progress.total - len(self._written) - self._of_unknown_jobs
        missing = max(missing, len(self._failed) - progress.failed)
        if progress.state is BatchState.DONE and missing > 0:
            raise OutsideError(
                f"{counted(missing, 'outcome')} {'is' if missing == 1 else 'are'} no longer in Redis: "
                "somebody else released them; "
                "run those jobs again with --fresh"
            )
        return progress

    def _take_stock(self) -> None:
        """Cut the output to what is certain of it, and see which jobs and bad lines it has."""
        self._adopt_draft()
        lengths = (self.state.output_bytes, self.state.errors_bytes)
        for file, length in zip(self._files, lengths, strict=False):
            file.cut(length)
            for line in file.lines():
                file.repeat(line)
                found = read_id(line)
                if found is None:
                    raise InputFileError(
                        f"{file.path}: has a line that does not belong to this run; start over with --fresh"
                    )
                is_bad_line, number = found
                if number == UNKNOWN_INDEX:
                    self._of_unknown_jobs += 1
                    continue
                if is_bad_line:
                    self._bad_lines.add(number)
                else:
                    self._note_line(number, failed=is_failure(line))
        self._knows_lines = True

    def _note_line(self, index: int, *, failed: bool) -> None:
        """Record a job's line in the files; the newest counts, and a success is never replaced."""
        is_new = self._written.add(index)
        self._replaced += not is_new
        if not failed:
            self._failed.discard(index)
        elif is_new:
            self._failed.add(index)

    async def _drop_replaced(self) -> None:
        """Remove the lines that later ones replace."""
        async with self._writing:
            await to_its_end(asyncio.ensure_future(asyncio.to_thread(self._rewrite)))
            self._replaced = 0

    def _rewrite(self) -> None:
        if self.state.draft_bytes is None:  # else it is in the file in part, perhaps: only the draft has all lines
            self._sync()
            lines = newest_lines(self._with_failures, self._output if self._errors else None)
            self.state = replace(self.state, draft_bytes=self._with_failures.write_draft(lines))
            self._save()
        self._adopt_draft()

    def _adopt_draft(self) -> None:
        if self.state.draft_bytes is None:
            self._with_failures.drop_draft()
            return
        self._with_failures.adopt_draft()
        lengths = {"errors_bytes" if self._errors else "output_bytes": self.state.draft_bytes}
        self.state = replace(self.state, draft_bytes=None, **lengths)
        self._save()

    async def _submit(self) -> None:
        submission = await self._open_submission()
        if submission is None:
            return
        path = self._source
        jobs_to_pass = (await self._client.connection().batches.record(self.state.batch_id)).total
        for count, line in enumerate(read_lines(path), 1):
            if count % _LINES_AT_ONCE == 0:
                await asyncio.sleep(0)
            if line.number in self._bad_lines:
                continue
            if jobs_to_pass:
                jobs_to_pass -= 1
                submission.note_id(custom_id_of(line, self.state.bare) or "")
            elif self._add(submission, line):
                await self._flush(submission)
        self._check_input(path)
        if jobs_to_pass:
            raise InputFileError(
                f"{path}: has {counted(jobs_to_pass, 'job')} fewer than its batch; start over with --fresh"
            )
        await self.commit()
        await submission.seal()

    async def _open_submission(self) -> Submission | None:
        record = await self._client.connection().batches.record(self.state.batch_id)
        if record.sealed or record.ended or record.state is BatchState.CANCELLED:
            return None
        return await self._client.resume_submission(
            self.state.batch_id, start="at once", max_pending=_max_pending(self._source)
        )

    def _add(self, submission: Submission, line: Line) -> bool:
        """Add a line's job to the window, or report the line; True when the window is to be written."""
        try:
            return submission.add(parse_job(line, self.state.api, self.state.bare))
        except (BadLineError, JobError) as error:
            self._bad_lines.add(line.number)
            why, custom_id = reason(error), custom_id_of(line, self.state.bare)
            self._notes.note(line.number, why, is_of_another_form=getattr(error, "is_of_another_form", False))
            self._reports.append(bad_line(self.state.batch_id, line.number, custom_id, why))
            return len(self._reports) >= _REPORTS_AT_ONCE

    async def _flush(self, submission: Submission) -> None:
        await self.commit()
        await submission.flush()
        self._last_contact_s = asyncio.get_running_loop().time()

    def _check_input(self, path: Path) -> None:
        difference = self.state.input.difference(InputIdentity.of(path))
        if difference is not None:
            raise InputFileError(f"{path}: changed while it was read: {difference}; start over with --fresh")

    async def _read(self, batch: AsyncBatch) -> None:
        async for bundle in batch.bundles(self._cursor or None):
            async with self._writing:
                for outcome in bundle:
                    self._write(outcome)
                if bundle:
                    self._cursor = bundle[-1].cursor
            self._last_contact_s = asyncio.get_running_loop().time()
            if sum(file.unsynced for file in self._files) > _COMMIT_BYTES:
                await self.commit()

    def _write(self, outcome: Outcome) -> None:
        if outcome.index == UNKNOWN_INDEX:
            self._of_unknown_jobs += 1
        elif outcome.index in self._written and outcome.index not in self._failed:
            return
        else:
            self._note_line(outcome.index, failed=not outcome.ok)
        file = self._output if outcome.ok or self._errors is None else self._errors
        file.append(outcome_line(self.state.batch_id, outcome))

    async def _commit_now_and_then(self, batch: AsyncBatch) -> None:
        released = self.state.cursor
        while True:
            await asyncio.sleep(_COMMIT_EVERY_S)
            await self.commit()
            if released != self.state.cursor:
                try:
                    await batch.release(self.state.cursor)
                    released = self.state.cursor
                except RedisUnavailableError as error:
                    log.info(
                        "outcomes not released yet: %s", error, extra={"action": "release_later", "batch": batch.id}
                    )

    def _sync(self) -> None:
        lengths = [file.sync() for file in self._files]
        self.state = replace(
            self.state, cursor=self._cursor, output_bytes=lengths[0], errors_bytes=lengths[1] if lengths[1:] else 0
        )
        self._save()

    def _save(self) -> None:
        try:
            save_state(self._state_file, self.state)
        except OSError as error:
            raise not_written(self._state_file, error) from error


def _max_pending(path: Path) -> int:
    """Return how many jobs may wait in Redis: many, but no more than fit if all are as large as the first ones."""
    sample = first_part(path, _SAMPLE_BYTES)
    line_bytes = len(sample) / max(1, sample.count(b"\n"))
    return int(min(_MOST_PENDING, max(_FEWEST_PENDING, _PENDING_BYTES / max(1.0, line_bytes))))
