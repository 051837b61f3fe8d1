"""RunFiles: the files of a run, and whether they may be used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from callmill.cli.input_file import InputIdentity, names_a_stream, path_text
from callmill.cli.job_line import BareBodies
from callmill.cli.packed_input import refuse_packed_name
from callmill.cli.result_file import ResultFile, draft_path
from callmill.cli.run_report import RunReport
from callmill.cli.run_state import RunState, load_state, save_state, state_path
from callmill.errors import InputFileError, UsageError
from callmill.jobs.traffic import TrafficClass

_BOTH = "--errors names the same file as -o; leave it out to have every line in one file"


class RunFiles:
    """Output, errors file and state, open and locked while the context lasts.

    On exit, files that it created and that are still empty are removed, unless a run began.

    Args:
        input_path: The input, which no output may be.
        output: Where every line goes, or, beside ``errors``, the successes.
        errors: Where the failures go.

    Attributes:
        source: The input.
        state: What an earlier run left; None when this one begins.

    Raises:
        UsageError: Two of them are the same file, by whatever path, or one is a stream, or named like a compressed
            file; nothing was opened.
    """

    def __init__(self, input_path: Path, output: Path, errors: Path | None) -> None:
        try:
            _refuse_one_file_twice(input_path, output, errors)
            _refuse_streams(output, errors)
        except OSError as error:  # the current directory is gone
            raise UsageError(f"{output}: cannot be written: {error.strerror}") from error
        self.source = input_path
        self.state: RunState | None = None
        self.state_file = state_path(output)
        self._paths = [output] if errors is None else [output, errors]
        self._files: list[ResultFile] = []

    def __enter__(self) -> Self:
        try:
            for path in self._paths:
                self._files.append(ResultFile(path))
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def report(self) -> RunReport | None:
        """The report of the earlier run; None when it is not over, or there was none."""
        return None if self.state is None else self.state.report

    @property
    def all(self) -> list[ResultFile]:
        """The output, and the errors file if there is one."""
        return self._files

    @property
    def output(self) -> ResultFile:
        """Gets every line, or, beside an errors file, the successes."""
        return self._files[0]

    @property
    def errors(self) -> ResultFile | None:
        """Gets the failures, if there is such a file."""
        return self._files[1] if self._files[1:] else None

    @property
    def errors_path(self) -> str | None:
        """Absolute path of the errors file."""
        return None if self.errors is None else path_text(self.errors.path.absolute())

    def check(
        self,
        identity: InputIdentity,
        api: str | None,
        traffic: TrafficClass | None = None,
        bare: BareBodies | None = None,
        *,
        fresh: bool,
    ) -> None:
        """Load the state that an earlier run left, and refuse what would not go on with that run.

        Raises:
            InputFileError: The input changed, or the output is no output of a run.
            UsageError: The options are not those of the earlier run.
        """
        self.state = load_state(self.state_file) if not fresh else self._state_to_drop()
        if fresh:
            return
        if self.state is None:
            for file in self._files:
                if file.length:
                    raise InputFileError(
                        f"{file.path} exists, but there is no run to continue: "
                        "name another file, or discard it with --fresh"
                    )
            return
        if difference := self.state.input.difference(identity):
            raise InputFileError(
                f"{identity.path}: is not the input that {self.output.path} was started with: {difference}; "
                "start over with --fresh, or name another -o"
            )
        self._check_options(self.state, api, traffic, bare)
        if self.state.draft_bytes is None:  # else the draft may have replaced the file already
            for file, length in zip(self._files, self._recorded(self.state), strict=False):
                file.check_length(length)

    def begin(self, state: RunState) -> None:
        """Drop what the files hold and note a new run.

        Raises:
            UsageError: Nothing can be noted beside the output.
            OutsideError: What they hold cannot be dropped.
        """
        with self._noting():
            self.state_file.unlink(missing_ok=True)
        for file in self._files:
            file.drop_draft()
            file.cut(0)
        with self._noting():
            save_state(self.state_file, state)
        self.state = state

    def forget(self) -> None:
        """Drop a run that began but did nothing.

        Raises:
            UsageError: Its state cannot be removed.
        """
        with self._noting():
            self.state_file.unlink(missing_ok=True)
        self.state = None

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"{self.state_file}: cannot be written: {error.strerror}; "
                "a run keeps its state there: name an -o in a folder that can be written to"
            ) from error

    def _check_options(
        self, state: RunState, api: str | None, traffic: TrafficClass | None, bare: BareBodies | None
    ) -> None:
        if state.errors != self.errors_path:
            was = "without --errors" if state.errors is None else f"with --errors {state.errors}"
            raise UsageError(f"this run was started {was}: give the same again, or start over with --fresh")
        if api is not None and api != state.api:
            was = "without an API" if state.api is None else f"with API {state.api}"
            raise UsageError(f"this run was started {was}: keep to that, or start over with --fresh")
        if traffic is not None and traffic != state.traffic:
            raise UsageError(f"this run was started as {state.traffic}: keep to that, or start over with --fresh")
        if bare is not None and bare != state.bare:
            raise UsageError(
                "this run was started with another --url, --method or --without: "
                "keep to that, or start over with --fresh"
            )

    def _state_to_drop(self) -> RunState | None:
        try:
            return load_state(self.state_file)
        except InputFileError:
            return None

    def _close(self) -> None:
        recorded = (0, 0) if self.state is None else self._recorded(self.state)
        for file, length in zip(self._files, recorded, strict=False):
            if self.state is None or length:
                file.remove_made()
            file.close()
        self._files.clear()

    @staticmethod
    def _recorded(state: RunState) -> tuple[int, int]:
        return state.output_bytes, state.errors_bytes


def _refuse_streams(output: Path, errors: Path | None) -> None:
    """Raise an error if an output is another file in each process, which the next run would not find, or compressed."""
    for option, path in (("-o", output), ("--errors", errors)):
        if path is None:
            continue
        if names_a_stream(path):
            raise UsageError(
                f"{option} {path}: not a regular file; a run reads its output back, so name a regular file"
            )
        refuse_packed_name(option, path)


def _refuse_one_file_twice(input_path: Path, output: Path, errors: Path | None) -> None:
    """Raise an error if an output is also the input, or one file is named twice."""
    written = {"-o": output, "--errors": errors}
    for option, path in written.items():
        if path is not None and _is_same(path, input_path):
            raise UsageError(
                f"{option} {path}: this is the input file ({input_path}), which a run never changes: name another"
            )
    if errors is not None and _is_same(output, errors):
        raise UsageError(_BOTH)
    own = state_path(output)
    for path in (own, own.with_name(f"{own.name}.new"), *map(draft_path, filter(None, written.values()))):
        for option, other in {"the input": input_path, **written}.items():
            if other is not None and _is_same(path, other):
                raise UsageError(f"{option} {other}: a run with -o {output} keeps its state there: name another file")


def _is_same(one: Path, other: Path) -> bool:
    """Say whether two paths lead to one file, also through symbolic or hard links; it need not exist."""
    try:
        return one.samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)
