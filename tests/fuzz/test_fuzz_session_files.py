"""Files that a run and the embedded server keep: whatever is done to them is told in one error, or mended."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import redis
from fuzzing import IN_MEMORY, fuzz
from hypothesis import strategies as st

from callmill.cli.file_run import FileRun
from callmill.cli.input_file import InputIdentity
from callmill.cli.result_file import ResultFile, draft_path
from callmill.cli.result_lines import bad_line, outcome_line
from callmill.cli.run_files import RunFiles
from callmill.cli.run_state import RunState, load_state, save_state, state_path
from callmill.config import server_home
from callmill.config.server_home import ServerHome
from callmill.errors import CallmillError, InputFileError
from callmill.jobs import Outcome

CHANGES = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(["set", "cut", "insert", "drop"]), st.binary(max_size=8)),
    max_size=4,
)
JUNK = st.binary(max_size=300) | st.just(b"")


def changed(content: bytes, changes: Any) -> bytes:
    """Return the content with some of its bytes changed."""
    for place, how, piece in changes:
        at = place % (len(content) + 1)
        if how == "cut":
            content = content[:at]
        else:
            kept = at if how == "insert" else at + (len(piece) if how == "set" else 7)
            content = content[:at] + (b"" if how == "drop" else piece) + content[kept:]
    return content


@contextmanager
def a_run() -> Iterator[tuple[Path, Path, RunState]]:
    """Make a folder with the input, the output and the state of a run that was cut off."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        source, output = Path(folder) / "in", Path(folder) / "out"
        source.write_bytes(b"{}\n" * 4)
        lines = [_line(0), _line(2), bad_line("b", 4, "x", "why"), _line(1)]
        output.write_bytes(b"".join(lines) + b'{"id":"b-3')
        state = RunState(
            batch_id="b",
            api="a",
            input=InputIdentity.of(source),
            errors=None,
            cursor="17-0/2",
            output_bytes=sum(map(len, lines)),
        )
        save_state(state_path(output), state)
        yield source, output, state


def _line(index: int) -> bytes:
    headers = {"content-type": "text/plain"}
    return outcome_line(
        "b",
        Outcome(
            id=f"r{index}", index=index, ok=True, status=200, body=b"x", headers=headers, error=None, attempts=1,
            started_at=0, latency=0,
        ),
    )  # fmt: skip


def go_on(source: Path, output: Path) -> str:
    """Go on with a run as far as that needs no server; return the error, if there is one."""
    try:
        with RunFiles(source, output, None) as files:
            files.check(InputIdentity.of(source), None, fresh=False)
            if files.state is not None:
                run = FileRun(None, files.state, state_file=files.state_file, output=files.output, errors=None)  # type: ignore[arg-type] # no server
                run._take_stock()
    except CallmillError as error:
        return str(error)
    return ""


@fuzz(CHANGES, JUNK)
def test_a_changed_state_is_noticed(changes: Any, junk: bytes) -> None:
    """A state that is not as it was written is one error, which names it; input and output stay as they are."""
    with a_run() as (source, output, state):
        path = state_path(output)
        for content in (changed(path.read_bytes(), changes), junk):
            is_same = content == path.read_bytes()
            path.write_bytes(content)
            before = output.read_bytes()
            try:
                found = load_state(path)
            except InputFileError as error:
                assert_names(error, path)
                assert go_on(source, output)
                assert output.read_bytes() == before
            else:
                assert found == state
                assert is_same or len(content) > 0
            save_state(path, state)
        assert source.read_bytes() == b"{}\n" * 4


def assert_names(error: Exception, path: Path) -> None:
    """Check that a message names the file and the remedy."""
    assert str(error).startswith(str(path))
    assert "--fresh" in str(error)


@fuzz(CHANGES, JUNK)
def test_a_changed_output_is_noticed(changes: Any, junk: bytes) -> None:
    """An output, or a draft of one, that somebody changed is one error, or goes on with the lines that it has."""
    with a_run() as (source, output, state):
        output.write_bytes(changed(output.read_bytes(), changes))
        if len(junk) % 2:
            draft_path(output).write_bytes(junk)
        why = go_on(source, output)
        assert not why or "--fresh" in why
        assert why or output.stat().st_size == state.output_bytes
        assert source.read_bytes() == b"{}\n" * 4


SERVER = b'{"url":"redis://:0a@127.0.0.1:1/0","pid":7,"started":1.5}'
CONFIGURATION = b"bind 127.0.0.1\nport 6379\nrequirepass 0a\nprotected-mode yes\n"


@fuzz(CHANGES, CHANGES, JUNK)
def test_a_changed_home_finds_no_stranger(server: Any, configuration: Any, junk: bytes) -> None:
    """What the home of a server says is a server of this machine, or none; never an error, never another host."""
    asked: list[str] = []

    def ask(url: str) -> int:
        asked.append(url)
        raise redis.ConnectionError

    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder, patch.object(server_home, "_pid_of", ask):
        home, data = ServerHome(Path(folder)), Path(folder) / "redis"
        data.mkdir()
        with (data / "alive.lock").open("w") as alive:
            fcntl.flock(alive, fcntl.LOCK_EX)
            for published, conf in (
                (changed(SERVER, server), changed(CONFIGURATION, configuration)),
                (junk, junk),
                (b"[" * 100_000, junk),
            ):
                (Path(folder) / "server.json").write_bytes(published)
                (data / "server.conf").write_bytes(conf)
                assert home.running_url() is None
                assert home.has_data
                if (endpoint := home._endpoint()) is not None:
                    assert 0 < endpoint.port < 65536
                home._log_tail()
    assert all(url.startswith("redis://:") and "@127.0.0.1:" in url for url in asked)


@fuzz(st.lists(st.binary(max_size=50), max_size=4), st.integers(-5, 400))
def test_a_result_file_is_cut_to_lines_only(lines: list[bytes], length: int) -> None:
    """Cutting a file to any length takes nothing from it when it has less, and says so."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        path = Path(folder) / "out"
        file = ResultFile(path)
        for line in lines:
            file.append(line)
        size = file.sync()
        try:
            file.cut(max(length, 0))
        except InputFileError:
            assert length > size
            assert path.stat().st_size == size
        else:
            assert path.stat().st_size == max(length, 0)
        file.close()
