"""Streams as input and output of a run, and packed input."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import threading
from pathlib import Path

import pytest
import zstandard

from callmill.cli import input_file
from callmill.cli.input_file import Line, is_stream, open_any, read_lines
from callmill.cli.output_stream import OutputStream, is_output_stream
from callmill.cli.run_place import RunPlace
from callmill.cli.run_report import RunReport
from callmill.cli.run_state import RunState, save_state
from callmill.config.settings import Settings
from callmill.errors import InputFileError, OutsideError, UsageError

TEXT = '{"é": 1}\r\n\n{"b": "\U0001f600"}\n{"c": 3}'
LINES = [Line(1, '{"é": 1}'.encode()), Line(3, '{"b": "\U0001f600"}'.encode()), Line(4, b'{"c": 3}')]

PACKED = {
    "plain": TEXT.encode(),
    "mark": TEXT.encode("utf-8-sig"),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16, other order": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "UTF-16 without a mark": TEXT.encode("utf-16-le"),
    "gzip": gzip.compress(TEXT.encode()),
    "gzip in two members": gzip.compress(TEXT[:9].encode()) + gzip.compress(TEXT[9:].encode()),
    "bzip2": bz2.compress(TEXT.encode()),
    "xz": lzma.compress(TEXT.encode()),
    "Zstandard": zstandard.ZstdCompressor(write_checksum=True).compress(TEXT.encode()),
    "Zstandard in two frames": zstandard.compress(TEXT[:9].encode()) + zstandard.compress(TEXT[9:].encode()),
    "UTF-16 in gzip": gzip.compress(TEXT.encode("utf-16")),
}


@pytest.mark.parametrize("content", PACKED.values(), ids=PACKED)
def test_lines_of_packed_files(tmp_path, content):
    """Compressed files and those in UTF-16 have the same lines as the plain one."""
    path = tmp_path / "in"
    path.write_bytes(content)
    assert list(read_lines(path)) == LINES


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "Zstandard"])
@pytest.mark.parametrize("harm", ["cut", "changed"])
def test_damaged_files(tmp_path, name, harm):
    """Compressed data that are cut off or changed are one error that names the file."""
    content = bytearray(PACKED[name])
    if harm == "cut":
        del content[-8:]
    else:
        content[10:30] = b"x" * 20
    path = tmp_path / "in"
    path.write_bytes(content)
    with pytest.raises(InputFileError, match="in: "):
        list(read_lines(path))


def test_half_a_character_in_utf_16(tmp_path):
    """Half a character in UTF-16 spoils its own line alone, which stays no UTF-8."""
    path = tmp_path / "in"
    path.write_bytes(b'\xff\xfe"\0\x00\xd8"\0\n\0{\0}\0')
    first, second = read_lines(path)
    assert second == Line(2, b"{}")
    with pytest.raises(UnicodeDecodeError):
        (first.content or b"").decode()


def test_endless_lines_of_packed_files(tmp_path, monkeypatch):
    """A bomb in one line is no more in memory than the longest line, and the lines behind it are read."""
    monkeypatch.setattr(input_file, "LONGEST_LINE_BYTES", 1000)
    path = tmp_path / "in"
    path.write_bytes(gzip.compress(b"x" * 1_000_000 + b"\n{}\n"))
    assert list(read_lines(path)) == [Line(1, None), Line(2, b"{}")]


def place(tmp_path, input_path="in", output="out", *, fresh=False):
    """Return the place of a run."""
    settings = Settings(state_dir=tmp_path / "state")
    return RunPlace(settings, tmp_path / input_path, tmp_path / output, None, fresh=fresh)


def fill(pipe, content):
    """Write into a pipe from a thread."""
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    return writer


@pytest.fixture
def pipe(tmp_path):
    """Make a named pipe."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def enter(tmp_path, pipe, content, *, fresh=False, begin=True):
    """Open a run whose input is the pipe, and begin it; return what its input is."""
    writer = fill(pipe, content)
    try:
        with place(tmp_path, "pipe", fresh=fresh) as opened:
            identity = opened.identity()
            opened.files.check(identity, None, fresh=fresh)
            if begin and opened.files.state is None:
                opened.files.begin(RunState(batch_id="b", api=None, input=identity, errors=None))
            return Path(identity.path).read_bytes()
    finally:
        writer.join()


def test_a_stream_is_kept_for_the_next_run(tmp_path, pipe):
    """A run goes on with the stream that it began with, given again or not; another one is refused."""
    assert enter(tmp_path, pipe, b"{}\n") == b"{}\n"
    assert enter(tmp_path, pipe, b"{}\n") == b"{}\n"
    assert enter(tmp_path, pipe, b"") == b"{}\n"
    with pytest.raises(InputFileError, match="pipe: is not what this run was started with"):
        enter(tmp_path, pipe, b"other")
    assert enter(tmp_path, pipe, b"") == b"{}\n"
    assert enter(tmp_path, pipe, b"other", fresh=True, begin=False) == b"other"


def test_a_run_that_does_not_begin_keeps_no_stream(tmp_path, pipe):
    """Where a run does not begin, what was read of its stream is gone, and so is its output."""
    assert enter(tmp_path, pipe, b"{}\n", begin=False) == b"{}\n"
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_run_into_a_stream(tmp_path, pipe):
    """Lines go to the stream once they are on the disk; where it went wrong they come again; what is over is gone."""
    (tmp_path / "in").write_bytes(b"{}\n")
    seen: list[bytes] = []

    def read(*, over):
        reader = threading.Thread(target=lambda: seen.append(pipe.read_bytes()))
        reader.start()
        with place(tmp_path, "in", "pipe") as opened:
            identity, files = opened.identity(), opened.files
            files.check(identity, None, fresh=False)
            if files.state is None:
                files.begin(RunState(batch_id="b", api=None, input=identity, errors=None))
            opened.repeat()
            files.output.append(b"line\n")
            length = files.output.sync()
            report = REPORT if over else None
            state = RunState(batch_id="b", api=None, input=identity, errors=None, output_bytes=length, report=report)
            save_state(files.state_file, state)
        reader.join()

    read(over=False)
    assert len(list((tmp_path / "state" / "runs").iterdir())) == 1
    read(over=True)
    assert seen == [b"line\n", b"line\nline\n"]
    assert list((tmp_path / "state" / "runs").iterdir()) == []


REPORT = RunReport(
    batch_id="b",
    state="done",
    jobs=1,
    succeeded=1,
    failed=0,
    bad_lines=0,
    calls=1,
    retries=0,
    throttled=0,
    elapsed_s=1,
    rate_per_s=1,
    p50_s=None,
    p95_s=None,
    p99_s=None,
)


def test_a_stream_without_a_reader(pipe):
    """A stream whose reader has gone is one error that says how to go on."""
    reader = threading.Thread(target=lambda: pipe.open("rb").close())
    reader.start()
    with OutputStream(pipe) as stream:
        reader.join()
        with pytest.raises(OutsideError, match="pipe: its reader is gone; nothing is lost: run the same command again"):
            stream.write(b"x\n")


def test_the_output_is_never_the_input(tmp_path):
    """A stream that leads into the input is refused: ``run in.jsonl -o - >> in.jsonl``."""
    path = tmp_path / "in"
    path.write_bytes(b"{}\n")
    descriptor = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(UsageError, match="is the input file"), place(tmp_path, "in", f"/dev/fd/{descriptor}"):
            pass
    finally:
        os.close(descriptor)


def test_what_is_a_stream(tmp_path, pipe):
    """Pipes, devices, ``-`` and the names of open files are streams; they are not opened to find that out."""
    path = tmp_path / "in"
    path.touch()
    assert not is_stream(path)
    assert not is_output_stream(path)
    assert not is_output_stream(tmp_path / "new")
    for stream in (pipe, Path("-"), Path("/dev/stdin"), Path("/dev/fd/0"), Path("/dev/null")):
        assert is_stream(stream)
        assert is_output_stream(stream)
    with pytest.raises(InputFileError, match="missing"):
        is_stream(tmp_path / "missing")


def test_a_stream_is_read_once(pipe):
    """What is submitted all at once may come from a stream."""
    writer = fill(pipe, b'{"a":1}\n')
    assert list(read_lines(pipe, open_any)) == [Line(1, b'{"a":1}')]
    writer.join()
