"""RunPlace: where a run keeps its files, whatever its input and output are.

A stream as input is first kept beside the output. A run whose output is a stream has its output, and what is kept
beside it, in a folder of the state directory: it is named by the input, and goes when the run is over.
"""

from __future__ import annotations

import hashlib
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from callmill.cli.input_file import InputIdentity, is_stream
from callmill.cli.output_stream import OutputStream, is_output_stream
from callmill.cli.run_files import RunFiles
from callmill.cli.run_state import load_state, state_path
from callmill.cli.spooled_input import SpooledInput, spool_path, spooled
from callmill.config.server_home import make_state_dir, usable
from callmill.config.settings import Settings
from callmill.errors import InputFileError, UsageError

_RUNS = "runs"
_OUTPUT = "out.jsonl"


class RunPlace:
    """The files of a run, open while the context lasts.

    Args:
        settings: As the environment has them.
        input_path: The input, which may be a stream.
        output: The output, which may be a stream.
        errors: Where failures go.
        fresh: Whether the run begins anew.

    Attributes:
        files: The run's files.
        stream: The output, if it is a stream.

    Raises:
        CallmillError: What ``RunFiles``, ``OutputStream`` and ``spooled`` raise; on entering.
    """

    files: RunFiles

    def __init__(self, settings: Settings, input_path: Path, output: Path, errors: Path | None, *, fresh: bool) -> None:
        self._settings, self._fresh = settings, fresh
        self._input, self._output, self._errors = input_path, output, errors
        self._stack = ExitStack()
        self._has_files = False
        self.stream: OutputStream | None = None

    def __enter__(self) -> Self:
        with self._stack as stack:
            if is_output_stream(self._output):
                self.stream = stack.enter_context(OutputStream(self._output))
            spool = self._spool(stack) if is_stream(self._input) else None
            self._source = self._input
            if self.stream is not None:
                self._output = self._folder_of_its_own(spool) / _OUTPUT
                stack.callback(self._remove_folder)
            if spool is not None:
                self._source = spool_path(self._output)
            self._refuse_the_input()
            self.files = stack.enter_context(RunFiles(self._source, self._output, self._errors))
            self._has_files = True
            self.files.output.stream = self.stream
            if spool is not None:
                stack.callback(self._remove_spool)
                spool.keep(self._source, to_go_on=not self._fresh and self.files.state_file.exists())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def identity(self) -> InputIdentity:
        """Look at the input.

        Raises:
            InputFileError: It cannot be read.
        """
        return InputIdentity.of(self._source)

    def repeat(self) -> None:
        """Write the output of a run that is over to the stream, if it goes to one."""
        if self.stream is not None:
            for line in self.files.output.lines():
                self.stream.write(line)

    def _spool(self, stack: ExitStack) -> SpooledInput:
        folder = self._output.parent if self.stream is None else self._runs()
        return stack.enter_context(spooled(self._input, folder))

    def _runs(self) -> Path:
        make_state_dir(self._settings.state_dir)
        folder = self._settings.state_dir / _RUNS
        with usable(self._settings.state_dir):
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _folder_of_its_own(self, spool: SpooledInput | None) -> Path:
        key = hashlib.sha256(str(self._input.absolute()).encode(errors="surrogateescape")).hexdigest()
        folder = self._runs() / (key if spool is None else spool.sha256)[:32]
        with usable(self._settings.state_dir):
            folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _refuse_the_input(self) -> None:
        if self.stream is not None and self.stream.is_same_file(self._source):
            raise UsageError(f"the output is the input file ({self._source}), which a run never changes: name another")

    def _remove_spool(self) -> None:
        """Remove the input of a run that did not begin."""
        if not self.files.state_file.exists():
            with suppress(OSError):
                self._source.unlink()

    def _remove_folder(self) -> None:
        """Remove the folder of a run that is over, or did not begin."""
        with suppress(OSError, InputFileError):
            state = load_state(state_path(self._output))
            if self._has_files and (state is None or state.report is not None):
                shutil.rmtree(self._output.parent, ignore_errors=True)
