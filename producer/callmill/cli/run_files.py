"""RunFiles: the files of a run, and whether they may be used."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from callmill.cli.input_file import InputIdentity
from callmill.cli.result_file import ResultFile
from callmill.cli.run_state import RunState, load_state, save_state, state_path
from callmill.errors import InputFileError, UsageError
from callmill.jobs.traffic import TrafficClass


class RunFiles:
    """Output, errors file and state, open and locked while the context lasts.

    Attributes:
        state: What an earlier run left; None when this one begins.
    """

    def __init__(self, output: Path, errors: Path | None) -> None:
        if errors is not None and errors.absolute() == output.absolute():
            raise UsageError("--errors names the same file as -o; leave it out to have every line in one file")
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
        return None if self.errors is None else str(self.errors.path.absolute())

    def check(
        self, identity: InputIdentity, api: str | None, traffic: TrafficClass | None = None, *, fresh: bool
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
                        f"{file.path} exists, but no run to go on with: name another file, or drop it with --fresh"
                    )
            return
        if difference := self.state.input.difference(identity):
            raise InputFileError(
                f"{identity.path}: is not the input that {self.output.path} was begun with: {difference}; "
                "begin anew with --fresh, or name another -o"
            )
        self._check_options(self.state, api, traffic)

    def begin(self, state: RunState) -> None:
        """Drop what the files hold and note a new run."""
        self.state_file.unlink(missing_ok=True)
        for file in self._files:
            file.cut(0)
        save_state(self.state_file, state)
        self.state = state

    def _check_options(self, state: RunState, api: str | None, traffic: TrafficClass | None) -> None:
        if state.errors != self.errors_path:
            was = "without --errors" if state.errors is None else f"with --errors {state.errors}"
            raise UsageError(f"this run was begun {was}: give the same again, or begin anew with --fresh")
        if api is not None and api != state.api:
            raise UsageError(f"this run was begun with API {state.api}: give no other, or begin anew with --fresh")
        if traffic is not None and traffic != state.traffic:
            raise UsageError(f"this run was begun as {state.traffic}: give no other, or begin anew with --fresh")

    def _state_to_drop(self) -> RunState | None:
        try:
            return load_state(self.state_file)
        except InputFileError:
            return None

    def _close(self) -> None:
        for file in self._files:
            file.close()
        self._files.clear()
