"""What a run writes: result lines, the files, the state beside them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from base64 import b64encode
from collections import Counter
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from callmill.cli.file_run import FileRun
from callmill.cli.input_file import InputIdentity
from callmill.cli.number_set import NumberSet
from callmill.cli.outcomes_command import outcomes
from callmill.cli.result_file import ResultFile
from callmill.cli.result_lines import bad_line, is_failure, outcome_line, read_id
from callmill.cli.run_files import RunFiles
from callmill.cli.run_session import RunSession
from callmill.cli.run_state import RunState, load_state, save_state, state_path
from callmill.config.settings import load_settings
from callmill.errors import InputFileError, OutsideError, RedisUnavailableError, UsageError
from callmill.jobs import Outcome, OutcomeError
from callmill.jobs.outcome import UNKNOWN_INDEX
from callmill.jobs.traffic import NORMAL, TrafficClass

KEPT = {"x-request-id": "req-1", "content-type": "image/png"}


def outcome(index=0, *, status=200, body=b"{}", error=None):
    """Make an outcome."""
    return Outcome(
        id=f"row-{index}",
        index=index,
        ok=error is None,
        status=status,
        body=body,
        headers=KEPT,
        error=error,
        attempts=1,
        started_at=0,
        latency=0.1,
    )


@pytest.fixture
def identity(tmp_path):
    """Write an input file and return which one it is."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"{}\n")
    return InputIdentity.of(path)


def test_outcome_line():
    """A success has a response and no error; a failure keeps its answer if there was one, and says its error."""
    assert json.loads(outcome_line("b", outcome(3, body=b'{"a":\n1}'))) == {
        "id": "b-3",
        "custom_id": "row-3",
        "response": {"status_code": 200, "request_id": "req-1", "body": {"a": 1}, "headers": KEPT},
        "error": None,
    }
    failed = json.loads(outcome_line("b", outcome(status=404, body=b"no", error=OutcomeError("http_404", "gone"))))
    assert (failed["response"]["body"], failed["error"]) == ("no", {"code": "http_404", "message": "gone"})
    assert json.loads(outcome_line("b", outcome(status=None, error=OutcomeError("connect", "x"))))["response"] is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
)
BODIES = (
    st.binary(max_size=60)
    | st.text(max_size=40).map(str.encode)
    | VALUES.map(lambda value: json.dumps(value, indent=1).encode())
)


@given(BODIES)
@example(b"\xfe\xff")
@example(b"\xef\xbb\xbf{}")
def test_any_body_is_one_line(body):
    """Whatever an API answers becomes a line of JSON with the same value, or the text, or else every byte of it."""
    line = outcome_line("b", outcome(body=body))
    assert line.count(b"\n") == 1
    written = json.loads(line)["response"]["body"]
    try:
        expected = json.loads(body.decode("utf-8-sig"), parse_constant=lambda _: pytest.fail("no JSON"))
    except (ValueError, pytest.fail.Exception):
        if isinstance(written, dict):
            assert written == {"base64": b64encode(body).decode(), "content_type": "image/png"}
            return
        expected = body.decode("utf-8-sig")
    assert written == expected


def test_numbers_keep_their_digits():
    """A body's numbers are not read and written again."""
    assert b'"body":{"n":1.10000000000000000001},' in outcome_line("b", outcome(body=b'{"n":1.10000000000000000001}'))


def test_json_behind_a_byte_order_mark():
    """JSON is written as JSON also where it begins with a mark, which is no part of it."""
    assert b'"body":{"a":1},' in outcome_line("b", outcome(body=b'\xef\xbb\xbf{"a":1}'))


def test_lines_say_whose_they_are():
    """A line's beginning tells the job's index or the bad line's number, whatever the custom_id holds."""
    assert read_id(outcome_line("b1", outcome(17))) == (False, 17)
    assert read_id(outcome_line("b1", outcome(UNKNOWN_INDEX))) == (False, UNKNOWN_INDEX)
    assert read_id(bad_line("b1", 9, 'x","id":"b1-1"', "why")) == (True, 9)
    assert read_id(b'{"other":1}\n') is None


@given(st.lists(st.integers(0, 3000)))
def test_number_set_is_a_set(numbers):
    """It holds what was added and nothing else, and tells what is new."""
    numbers_seen, known = NumberSet(), set()
    for number in numbers:
        assert numbers_seen.add(number) == (number not in known)
        known.add(number)
    assert len(numbers_seen) == len(known)
    assert all((number in numbers_seen) == (number in known) for number in range(3001))


def test_output_is_cut_and_never_written_twice(tmp_path, identity):
    """After a cut-off run the output is what is certain of it, and an outcome that comes again is not written again."""
    output = ResultFile(tmp_path / "out.jsonl")
    lines = [outcome_line("b", outcome(index)) for index in range(3)]
    for line in (*lines[:2], bad_line("b", 4, None, "why")):
        output.append(line)
    certain = output.sync()
    output.append(lines[2][:20])
    output.sync()
    state = RunState(batch_id="b", api=None, input=identity, errors=None, output_bytes=certain)
    run = FileRun(None, state, state_file=tmp_path / "state", output=output, errors=None)
    run._take_stock()
    for index in (1, 0, 2):
        run._write(outcome(index))
    output.sync()
    assert [read_id(line) for line in output.lines()] == [(False, 0), (False, 1), (True, 4), (False, 2)]
    assert run.bad_lines == 1
    output.close()


def test_foreign_lines_are_noticed(tmp_path, identity):
    """An output that somebody wrote into, or shortened, is refused with the remedy."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"hello\n")
    output = ResultFile(path)
    for length in (6, 7):
        state = RunState(batch_id="b", api=None, input=identity, errors=None, output_bytes=length)
        run = FileRun(None, state, state_file=tmp_path / "state", output=output, errors=None)
        with pytest.raises(InputFileError, match="--fresh"):
            run._take_stock()
    output.close()


def test_state_is_kept(tmp_path, identity):
    """A saved state is read back; a broken one, or one of another version, is an error with the remedy."""
    path = state_path(tmp_path / "out.jsonl")
    assert load_state(path) is None
    state = RunState(batch_id="b", api="x", input=identity, errors=None, cursor="1-0/2", output_bytes=5)
    save_state(path, state)
    assert load_state(path) == state
    for broken in (b"{", msgspec.json.encode(msgspec.structs.replace(state, version=99))):
        path.write_bytes(broken)
        with pytest.raises(InputFileError, match="--fresh"):
            load_state(path)


def test_existing_output_is_never_overwritten(tmp_path, identity):
    """An output with content and no state is refused unless the run is to begin anew; an empty one is taken."""
    path = tmp_path / "out.jsonl"
    path.write_text("precious")
    with RunFiles(tmp_path / "in.jsonl", path, None) as files:
        with pytest.raises(InputFileError, match="exists"):
            files.check(identity, None, fresh=False)
        files.check(identity, None, fresh=True)
    assert path.read_text() == "precious"
    with RunFiles(tmp_path / "in.jsonl", tmp_path / "new.jsonl", None) as files:
        files.check(identity, None, fresh=False)


def test_only_the_same_run_goes_on(tmp_path, identity):
    """Another input, another errors file, another API or another class is refused, and said to be so."""
    output, errors = tmp_path / "out.jsonl", tmp_path / "err.jsonl"
    with RunFiles(tmp_path / "in.jsonl", output, errors) as files:
        files.begin(RunState(batch_id="b", api="x", input=identity, errors=files.errors_path))
    with RunFiles(tmp_path / "in.jsonl", output, errors) as files:
        files.check(identity, "x", fresh=False)
        assert files.state is not None
        with pytest.raises(UsageError, match="with API x"):
            files.check(identity, "y", fresh=False)
        files.check(identity, None, NORMAL, fresh=False)
        with pytest.raises(UsageError, match="started as normal"):
            files.check(identity, None, TrafficClass(tenant="acme"), fresh=False)
        with pytest.raises(InputFileError, match="it had 3 bytes"):
            files.check(msgspec.structs.replace(identity, size=4), None, fresh=False)
    with RunFiles(tmp_path / "in.jsonl", output, None) as files, pytest.raises(UsageError, match="with --errors"):
        files.check(identity, None, fresh=False)


def test_a_run_without_an_api_says_so(tmp_path, identity):
    """Where the earlier run took no API, giving one is refused without naming it None."""
    with RunFiles(tmp_path / "in.jsonl", tmp_path / "out.jsonl", None) as files:
        files.begin(RunState(batch_id="b", api=None, input=identity, errors=None))
        with pytest.raises(UsageError, match="started without an API"):
            files.check(identity, "y", fresh=False)


def test_one_run_at_a_time(tmp_path):
    """A second run with the same output is refused while the first is at work."""
    paths = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with (
        RunFiles(*paths, None),
        pytest.raises(UsageError, match="another `callmill run`"),
        RunFiles(*paths, None),
    ):
        pass


@pytest.mark.parametrize(
    ("option", "how"),
    [
        *product(("output", "errors"), ("same", "relative", "symlink", "hard link", "folder", "descriptor", "draft")),
        ("output", "state"),
    ],
)
def test_the_input_is_never_written(tmp_path, monkeypatch, how, option):
    """What is the input, by whatever path, is refused as an output before anything is opened for writing."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"precious\n")
    other = tmp_path / "other"
    if how == "relative":
        other = Path("..") / tmp_path.name / "in.jsonl"
    elif how == "symlink":
        other.symlink_to(source)
    elif how == "hard link":
        os.link(source, other)
    elif how == "folder":
        other.symlink_to(tmp_path)
        other /= "in.jsonl"
    elif how in ("state", "draft"):  # the input lies where the run would keep its notes
        suffix = ".callmill" if how == "state" else ".callmill-draft"
        source = source.rename(tmp_path / f"other{suffix}")
    with source.open("rb") as file:
        path = source if how == "same" else Path(f"/proc/self/fd/{file.fileno()}") if how == "descriptor" else other
        paths = (path, None) if option == "output" else (tmp_path / "out", path)
        with pytest.raises(UsageError, match="input"):
            RunFiles(source, *paths)
    assert source.read_bytes() == b"precious\n"
    assert not (tmp_path / "out").exists()


def test_output_and_errors_are_two_files(tmp_path):
    """One file for both, by whatever path and whether or not it exists, is refused, as is the state as the errors."""
    output, link = tmp_path / "out", tmp_path / "link"
    link.symlink_to(output)
    for errors in (output, link):
        with pytest.raises(UsageError, match="same file"):
            RunFiles(tmp_path / "in", output, errors)
    with pytest.raises(UsageError, match="its state"):
        RunFiles(tmp_path / "in", output, tmp_path / "out.callmill")


def test_what_is_no_file_is_no_output(tmp_path):
    """A pipe or a device is refused at once, for a run could not go on with it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null")):
        with pytest.raises(UsageError, match="not a regular file"), RunFiles(tmp_path / "in", path, None):
            pass


@pytest.mark.parametrize("name", ["out.jsonl.gz", "out.GZ", "out.bz2", "out.xz", "out.zst"])
def test_an_output_is_not_named_like_a_compressed_file(tmp_path, name):
    """What would be plain lines under the name of a compressed file is refused, and nothing is made."""
    (tmp_path / "in").touch()
    path, other = tmp_path / name, tmp_path / "out"
    for output, errors in ((path, None), (other, path)):
        with pytest.raises(UsageError, match="uncompressed"), RunFiles(tmp_path / "in", output, errors):
            pass
    result = CliRunner().invoke(outcomes, ["some-batch", "-o", str(path)])
    assert "uncompressed" in str(result.exception)
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_files_of_a_run_that_never_began_are_removed(tmp_path):
    """Files that were made for a run go when it does not begin; those that were there, and those of a run, stay."""
    there, made = tmp_path / "there", tmp_path / "made"
    there.touch()
    with RunFiles(tmp_path / "in", there, made):
        pass
    assert (there.exists(), made.exists()) == (True, False)


def failed(index):
    """Make a failed outcome."""
    return outcome(index, status=401, error=OutcomeError("http_401", "no"))


class Files:
    """The files of a run, and the run on them, with or without an errors file; the one that changes may be a link."""

    def __init__(self, folder, identity, *, errors, kind):
        self.folder, self.paths = folder, (folder / "in.jsonl", folder / "out", folder / "err" if errors else None)
        self.changes = self.paths[2] or self.paths[1]
        self.real = folder / "elsewhere" / "real"
        self.real.parent.mkdir()
        if kind == "hard link":
            self.changes.touch()
            os.link(self.changes, self.real)
        elif kind == "symlink":
            self.changes.symlink_to(self.real)
        with RunFiles(*self.paths) as files:
            files.begin(RunState(batch_id="b", api=None, input=identity, errors=files.errors_path))
        if kind == "another's":
            if os.getuid():
                pytest.skip("only root can give a file away and still write it")
            os.chown(self.changes, 12345, 12345)
        self.owner = self.changes.stat().st_uid

    def busy(self):
        """Return an ``os.replace`` that cannot replace the file that changes, as if it were mounted alone."""
        replace = os.replace

        def refuse(source, target):
            if Path(target).exists() and Path(target).samefile(self.changes):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            replace(source, target)

        return refuse

    @contextmanager
    def run(self):
        """Open the files as a run does."""
        with RunFiles(*self.paths) as files:
            files.state = load_state(files.state_file)
            run = FileRun(None, files.state, state_file=files.state_file, output=files.output, errors=files.errors)
            run._take_stock()
            yield run

    def lines(self):
        """Return (index, whether it succeeded) of every line, of the errors file behind the output."""
        found = []
        for path in filter(None, self.paths[1:]):
            for line in path.read_bytes().splitlines(keepends=True):
                is_bad_line, number = read_id(line)
                found.append(("bad" if is_bad_line else number, not is_failure(line)))
        assert self.changes.stat().st_uid == self.owner
        assert not self.real.exists() or self.real.samefile(self.changes), "a link was broken"
        assert not list(self.folder.rglob("*draft*"))
        return found


@pytest.fixture(
    params=product((False, True), ("plain", "hard link", "symlink", "mount", "another's")),
    ids=lambda at: f"{at[1]}, {'errors apart' if at[0] else 'one file'}",
)
def files(request, tmp_path, monkeypatch, identity):
    """Write what a first run left: ten jobs, of which those with odd indexes failed, and a bad line."""
    made = Files(tmp_path, identity, errors=request.param[0], kind=request.param[1])
    if request.param[1] == "mount":
        monkeypatch.setattr(os, "replace", made.busy())
    with made.run() as run:
        for index in range(10):
            run._write(failed(index) if index % 2 else outcome(index))
        run._reports.append(bad_line("b", 11, None, "why"))
        asyncio.run(run.settle())
    return made


def test_newest_line_replaces_the_others(files):
    """A job that ran again, however often, has its newest line only; a success is never replaced."""
    with files.run() as run:
        for index in (1, 3, 3, 5, 4):
            run._write(failed(index))
        for index in (5, 7, 7):
            run._write(outcome(index))
        asyncio.run(run.settle())
    good = {0, 2, 4, 5, 6, 7, 8}
    assert Counter(files.lines()) == Counter([*((n, n in good) for n in range(10)), ("bad", False)])
    with files.run() as run:
        assert (run.bad_lines, run._replaced, len(run._failed)) == (1, 0, 3)


@pytest.mark.parametrize("killed_at", range(1, 25))
def test_a_kill_while_lines_are_replaced(files, monkeypatch, killed_at):
    """Killed before any step of replacing lines, the next run ends with one line for each job, and no draft."""
    steps = 0

    def killed(method):
        def step(*arguments, **options):
            nonlocal steps
            steps += 1
            if steps == killed_at:
                if method is shutil.copyfileobj:
                    arguments[1].write(arguments[0].read(150))
                raise KeyboardInterrupt
            return method(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        for owner, name in (
            (ResultFile, "sync"),
            (ResultFile, "write_draft"),
            (ResultFile, "adopt_draft"),
            (FileRun, "_save"),
            (Path, "replace"),
            (Path, "unlink"),
            (shutil, "copyfileobj"),
            (os, "fsync"),
        ):
            patch.setattr(owner, name, killed(getattr(owner, name)))
        with suppress(KeyboardInterrupt), files.run() as run:
            for index in (1, 3, 5):
                run._write(outcome(index))
            run._rewrite()
    with files.run() as run:
        for index in (1, 3, 5):  # what was not on the disk is read again
            run._write(outcome(index))
        asyncio.run(run.settle())
    assert Counter(files.lines()) == Counter([*((n, n not in (7, 9)) for n in range(10)), ("bad", False)])


def test_a_copy_that_stops_half_way(files, monkeypatch):
    """A draft that could be copied in part only is still what counts: nothing reads the file before it is whole."""

    def stop(source, target, *_):
        target.write(source.read(150))
        raise OSError(errno.EIO, "it broke")

    with files.run() as run:
        run._write(outcome(1))
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copyfileobj", stop)
            patch.setattr(os, "replace", files.busy())
            for _ in range(2):
                with pytest.raises(OutsideError, match="nothing is lost"):
                    asyncio.run(run.settle())
        asyncio.run(run.settle())
    assert Counter(files.lines()) == Counter([*((n, n == 1 or n % 2 == 0) for n in range(10)), ("bad", False)])


def test_nothing_is_replaced_in_files_that_are_refused(files):
    """Where a run ends because somebody wrote into its output, giving up leaves the files and the state as they are."""
    path = files.paths[1]
    lines = path.read_bytes()
    first = lines[: lines.index(b"\n") + 1]
    path.write_bytes(first + first + b"{}\n" + lines)
    state = load_state(state_path(path))
    with RunFiles(*files.paths) as opened:
        run = FileRun(None, state, state_file=opened.state_file, output=opened.output, errors=opened.errors)
        with pytest.raises(InputFileError, match="does not belong"):
            run._take_stock()
        asyncio.run(run.settle())
        opened.state = state
    assert load_state(state_path(path)) == state
    assert path.read_bytes().startswith(first + first + b"{}\n")


def test_no_room_for_a_draft(files, monkeypatch):
    """A disk without room for the draft is one error with the remedy; nothing is lost, and no draft is left."""
    with files.run() as run:
        run._write(outcome(1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fchmod", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
            with pytest.raises(OutsideError, match="No space left; nothing is lost"):
                asyncio.run(run.settle())
        assert not list(files.folder.rglob("*draft*"))
        asyncio.run(run.settle())
    assert len(files.lines()) == 11


@pytest.mark.parametrize(
    ("error", "left"), [(UsageError("held"), 0), (KeyboardInterrupt(), 7), (OutsideError("no room"), 7)]
)
def test_a_retry_is_over_once_something_must_be_mended(files, error, left):
    """What was cut off goes on with its retry; where something must be mended first, the next retry begins anew."""

    async def give_up(run):
        await RunSession._give_up(asyncio.ensure_future(asyncio.sleep(0)), run, error)

    with files.run() as run:
        run.state = msgspec.structs.replace(run.state, retry_up_to_ms=7)
        run._save()
        run._write(outcome(1))
        asyncio.run(give_up(run))
    assert load_state(state_path(files.paths[1])).retry_up_to_ms == left
    assert len(files.lines()) == 11


def test_no_worker_begins_before_it_is_known_what_failed(monkeypatch, tmp_path, identity):
    """Where Redis cannot tell the time, --retry-failed ends: what its own workers failed at would be called twice."""
    monkeypatch.setenv("CALLMILL_REDIS_URL", "redis://127.0.0.1:9")
    monkeypatch.setattr(RunSession, "_start_fleet", lambda *_: pytest.fail("workers began"))
    with RunFiles(tmp_path / "in.jsonl", tmp_path / "out.jsonl", None) as files:
        session = RunSession(load_settings(), files, name="", api=None, traffic=None, quiet=True)
        with pytest.raises(RedisUnavailableError):
            session.run(identity, fresh=False, workers=1, retry_failed=True)
