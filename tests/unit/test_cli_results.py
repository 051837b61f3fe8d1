"""What a run writes: result lines, the files, the state beside them."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.cli.file_run import FileRun
from callmill.cli.input_file import InputIdentity
from callmill.cli.number_set import NumberSet
from callmill.cli.result_file import ResultFile
from callmill.cli.result_lines import bad_line, json_or_text, outcome_line, read_id
from callmill.cli.run_files import RunFiles
from callmill.cli.run_state import RunState, load_state, save_state, state_path
from callmill.errors import InputFileError, UsageError
from callmill.jobs import Outcome, OutcomeError
from callmill.jobs.outcome import UNKNOWN_INDEX
from callmill.jobs.traffic import NORMAL, TrafficClass


def outcome(index=0, *, status=200, body=b"{}", error=None):
    """Make an outcome."""
    return Outcome(
        id=f"row-{index}",
        index=index,
        ok=error is None,
        status=status,
        body=body,
        headers={"x-request-id": "req-1"},
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
        "response": {"status_code": 200, "request_id": "req-1", "body": {"a": 1}},
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
def test_any_body_is_one_line(body):
    """Whatever an API answers becomes one line of JSON that holds the same value, or the text."""
    line = outcome_line("b", outcome(body=body))
    assert line.count(b"\n") == 1
    written = json.loads(line)["response"]["body"]
    try:
        expected = json.loads(body.decode(), parse_constant=lambda _: pytest.fail("no JSON"))
    except (ValueError, pytest.fail.Exception):
        expected = body.decode(errors="replace")
    assert written == expected


def test_numbers_keep_their_digits():
    """A body's numbers are not read and written again."""
    assert bytes(json_or_text(b'{"n":1.10000000000000000001}')) == b'{"n":1.10000000000000000001}'


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
    with RunFiles(path, None) as files:
        with pytest.raises(InputFileError, match="exists"):
            files.check(identity, None, fresh=False)
        files.check(identity, None, fresh=True)
    assert path.read_text() == "precious"
    with RunFiles(tmp_path / "new.jsonl", None) as files:
        files.check(identity, None, fresh=False)


def test_only_the_same_run_goes_on(tmp_path, identity):
    """Another input, another errors file, another API or another class is refused, and said to be so."""
    output, errors = tmp_path / "out.jsonl", tmp_path / "err.jsonl"
    with RunFiles(output, errors) as files:
        files.begin(RunState(batch_id="b", api="x", input=identity, errors=files.errors_path))
    with RunFiles(output, errors) as files:
        files.check(identity, "x", fresh=False)
        assert files.state is not None
        with pytest.raises(UsageError, match="with API x"):
            files.check(identity, "y", fresh=False)
        files.check(identity, None, NORMAL, fresh=False)
        with pytest.raises(UsageError, match="begun as normal"):
            files.check(identity, None, TrafficClass(tenant="acme"), fresh=False)
        with pytest.raises(InputFileError, match="it had 3 bytes"):
            files.check(msgspec.structs.replace(identity, size=4), None, fresh=False)
    with RunFiles(output, None) as files, pytest.raises(UsageError, match="with --errors"):
        files.check(identity, None, fresh=False)


def test_one_run_at_a_time(tmp_path):
    """A second run with the same output is refused while the first is at work."""
    with RunFiles(tmp_path / "out.jsonl", None):
        with pytest.raises(UsageError, match="another `callmill run`"), RunFiles(tmp_path / "out.jsonl", None):
            pass
        with pytest.raises(UsageError, match="same file"):
            RunFiles(tmp_path / "x", tmp_path / "x")
