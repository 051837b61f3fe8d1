"""Paths that a command cannot use: each is one error that names the path and the remedy, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from callmill.cli import outcomes_command
from callmill.cli.input_file import InputIdentity, read_lines
from callmill.cli.program import callmill
from callmill.cli.result_file import ResultFile
from callmill.cli.run_files import RunFiles
from callmill.cli.run_state import RunState, save_state, state_path
from callmill.errors import InputFileError, OutsideError, UsageError

# Root gives up its right to pass over the modes of files (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH), others never had it.
OBEYING = (
    "import ctypes, os, sys; [ctypes.CDLL(None).prctl(24, right) for right in (1, 2)];"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
CALL = '{"custom_id":"1","method":"GET","url":"/1"}\n'


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Write an input file, with the current directory beside it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "in.jsonl"
    path.write_text(CALL, encoding="utf-8")
    return path


@pytest.mark.parametrize("option", ["-o", "--errors"])
@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "../../../../../../dev/stdout", "-"])
def test_streams_are_no_outputs(source, path, option):
    """An output that is another file in the next run is refused before anything is opened, even a regular one."""
    paths = (Path(path), None) if option == "-o" else (source.with_name("out"), Path(path))
    with (source.with_name("redirected")).open("wb") as file:
        saved = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            with pytest.raises(UsageError, match=rf"{option} {path}: .*name a regular file"), RunFiles(source, *paths):
                pass
        finally:
            os.dup2(saved, 1)
            os.close(saved)
    assert sorted(path.name for path in source.parent.iterdir()) == ["in.jsonl", "redirected"]


def test_shared_memory_is_a_place_for_files(source):
    """The folder for shared memory has files like any other."""
    with RunFiles(source, Path(f"/dev/shm/callmill-{os.getpid()}"), None):  # noqa: S108 - what is tested
        pass


def test_outcomes_go_to_standard_output_without_an_option():
    """``outcomes -o -`` makes no file of that name: the error says how to print them."""
    done = CliRunner().invoke(callmill, ["outcomes", "b", "-o", "-"])
    assert (done.exit_code, "omit -o" in done.output) == (2, True)


def test_a_lost_output_is_not_over(source):
    """A run whose output lost what was written is not said to be over; nothing is made in its place."""
    output = source.with_name("out")
    identity = InputIdentity.of(source)
    save_state(state_path(output), RunState(batch_id="b", api=None, input=identity, errors=None, output_bytes=7))
    with RunFiles(source, output, None) as files, pytest.raises(InputFileError, match=r"out: has 0 bytes.*--fresh"):
        files.check(identity, None, fresh=False)
    assert not output.exists()


def test_a_pipe_is_no_input(source):
    """A pipe is refused at once, whether or not anybody writes to it; so is standard input by its dash."""
    pipe = source.with_name("pipe")
    os.mkfifo(pipe)
    waiting = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for somebody who writes"))
    signal.alarm(5)
    try:
        for use in (InputIdentity.of, lambda path: next(read_lines(path))):
            with pytest.raises(InputFileError, match="pipe: is not a regular file; write the jobs to a file"):
                use(pipe)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, waiting)
    with pytest.raises(InputFileError, match="write the jobs to a file"):
        InputIdentity.of(Path("-"))


@pytest.mark.parametrize("use", [InputIdentity.of, lambda path: next(read_lines(path))])
def test_an_input_that_cannot_be_read(use):
    """A disk that fails while the input is read is an error that names the input."""
    with pytest.raises(InputFileError, match="/proc/self/mem: cannot be read: "):
        use(Path("/proc/self/mem"))


@pytest.mark.parametrize("name", ["n" * 300, "in.jsonl/out", "missing/out"])
@pytest.mark.parametrize("option", ["-o", "--errors"])
def test_an_output_that_cannot_be_looked_at(source, name, option):
    """A path that the system refuses is an error that names it."""
    output = source.with_name("out")
    paths = (source.parent / name, None) if option == "-o" else (output, source.parent / name)
    with pytest.raises(UsageError, match=f"{name}: cannot be written: "), RunFiles(source, *paths):
        pass
    assert not output.exists()


def test_a_current_directory_that_is_gone(source, monkeypatch):
    """A relative output in a directory that was removed is an error, not a traceback."""
    gone = source.with_name("gone")
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match="out: cannot be written: "), RunFiles(source, Path("out"), None):
        pass


def test_no_notes_no_run(source, monkeypatch):
    """Where the folder of an output takes no further file, the run does not begin, and the error says why."""
    output = source.with_name("out")
    output.touch()
    state = RunState(batch_id="b", api=None, input=InputIdentity.of(source), errors=None)
    state_path(output).with_name("out.callmill.new").mkdir()  # nobody can write that, not even root
    with RunFiles(source, output, None) as files, pytest.raises(UsageError, match=r"out\.callmill: cannot be writ"):
        files.begin(state)
    state_path(output).with_name("out.callmill.new").rmdir()
    save_state(state_path(output), state)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only")))
    with RunFiles(source, output, None) as files:
        for act in (lambda: files.begin(state), files.forget):
            with pytest.raises(UsageError, match=r"out\.callmill: cannot be written: Read-only"):
                act()


def test_an_output_that_fails_later(source, monkeypatch):
    """A disk that fails when the output is read back or cut is an error that names the output."""
    output = ResultFile(source.with_name("out"))
    output.append(b"x\n")
    output.sync()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EIO, "broke")))
        with pytest.raises(OutsideError, match="out: cannot be read: broke"):
            list(output.lines())
    os.close(output._file.fileno())
    with pytest.raises(OutsideError, match="out: cannot be written: "):
        output.cut(0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        output._file.close()


def test_a_failed_start_leaves_a_dangling_link(source):
    """A link to nothing stays a link to nothing where a run does not begin: the file that was made for it goes."""
    link, target = source.with_name("out"), source.with_name("target")
    link.symlink_to(target)
    with RunFiles(source, link, None):
        assert target.exists()
    assert (link.is_symlink(), target.exists()) == (True, False)


def test_an_output_of_outcomes_on_a_full_disk():
    """Outcomes that find no room end with one error."""
    path = Path("/dev/full")
    with path.open("wb", buffering=0) as full, pytest.raises(OutsideError, match="full: cannot be written: "):
        outcomes_command._write(full, [b"x"], path)


@pytest.mark.parametrize(
    "command", [["run", "in.jsonl", "-o", "out"], ["submit", "in.jsonl"], ["status"], ["delete", "b"], ["doctor"]]
)
def test_a_folder_that_may_not_be_entered(source, monkeypatch, command):
    """Where the current directory and the state directory are closed to the user, commands end with a message."""
    monkeypatch.setenv("CALLMILL_STATE_DIR", str(source.parent / "state"))
    source.parent.chmod(0)
    try:
        done = subprocess.run(
            [sys.executable, "-Pc", OBEYING, "-Pm", "callmill.cli", *command],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        source.parent.chmod(0o700)
    assert "Traceback" not in done.stderr
    assert done.returncode in {1, 2}
    if command[0] in {"run", "status", "delete"}:
        assert "Permission denied" in done.stderr


@pytest.mark.parametrize(("stream", "command"), [("<&-", "delete b"), (">&-", "status"), (">&-", "outcomes b")])
def test_a_closed_stream(monkeypatch, redis_url, stream, command):
    """A command whose standard input or output is closed, as some services start it, ends with a message at most."""
    monkeypatch.setenv("CALLMILL_REDIS_URL", redis_url)
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m callmill.cli {command} {stream}', sys.executable],
        stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr


def test_a_name_whose_bytes_are_no_text(source):
    """A run's files may have names that are no text: they are written into its state, and told apart."""
    odd, other = (source.with_name(os.fsdecode(name)) for name in (b"in\xff", b"in\xfe"))
    odd.write_text(CALL, encoding="utf-8")
    other.write_text(CALL, encoding="utf-8")
    errors = source.with_name(os.fsdecode(b"errors\xff"))
    with RunFiles(odd, source.with_name("out"), errors) as files:
        files.begin(RunState(batch_id="b", api=None, input=InputIdentity.of(odd), errors=files.errors_path))
    with RunFiles(odd, source.with_name("out"), errors) as files:
        files.check(InputIdentity.of(odd), None, fresh=False)
        with pytest.raises(InputFileError, match=r"in\\xfe: is not the input"):
            files.check(InputIdentity.of(other), None, fresh=False)
