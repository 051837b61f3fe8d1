"""Lines of an input: whatever stands in them is a job or a bad line with a reason, and never stops the others."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from fuzzing import IN_MEMORY, fuzz
from hypothesis import strategies as st

from callmill.cli.bad_line_notes import BadLineNotes
from callmill.cli.default_api import reason
from callmill.cli.input_file import Line, read_lines
from callmill.cli.job_line import BadLineError, BareBodies, custom_id_of, parse_job
from callmill.cli.result_lines import bad_line, read_id
from callmill.errors import InputFileError, JobError
from callmill.jobs.packing import JobPacker
from callmill.jobs.wire import Chunk, decode_chunk, encode_chunk

TEXT = st.text(st.characters(exclude_categories=())) | st.sampled_from(
    ["", "/", "/x", "GET", "a\r\nb: c", "\\", "x" * 999]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**31, 2**53, 2**63, 2**64, -1, 10**30, 1e308])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
FILE = st.fixed_dictionaries(
    {}, optional={"content": TEXT, "base64": TEXT | st.just("/w=="), "filename": TEXT, "content_type": TEXT}
)
KEYS: dict[str, st.SearchStrategy[Any]] = {
    "custom_id": TEXT,
    "method": st.sampled_from(["GET", "post", "PUT"]) | TEXT,
    "url": st.sampled_from(["/x", "/a?b=c#d"]) | TEXT,
}
OTHER_KEYS: dict[str, st.SearchStrategy[Any]] = {
    "body": VALUES,
    "data": st.dictionaries(TEXT, VALUES, max_size=3),
    "content": TEXT | st.fixed_dictionaries({"base64": TEXT | st.just("/w==")}),
    "content_type": TEXT,
    "files": st.dictionaries(TEXT, TEXT | FILE, max_size=2),
    "headers": st.dictionaries(TEXT, TEXT, max_size=2),
    "params": st.dictionaries(TEXT, VALUES, max_size=3),
    "tokens": NUMBERS,
    "output_tokens": NUMBERS,
    "weight": NUMBERS,
    "model": TEXT,
    "timeout": NUMBERS,
    "idempotency_key": TEXT,
    "api": TEXT,
    "other": VALUES,
}
NEARLY_RIGHT = st.fixed_dictionaries(KEYS, optional=OTHER_KEYS) | st.fixed_dictionaries({}, optional=KEYS | OTHER_KEYS)


def encoded(value: Any) -> bytes:
    """Write a value as Python does, which knows NaN and half characters; as text now and then."""
    return json.dumps(value, ensure_ascii=sum(map(len, str(value))) % 2 == 0).encode(errors="surrogatepass")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a line that is nearly right, with some bytes changed."""
    line = bytearray(encoded(draw(NEARLY_RIGHT)))
    for at, byte in draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3)):
        line[at % len(line)] = byte
    return bytes(line)


LINES = NEARLY_RIGHT.map(encoded) | mutated() | st.binary(max_size=200) | VALUES.map(encoded)
MAGICS = [b"", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\xff\xfe", b"\xfe\xff"]
BARE = st.none() | st.just(BareBodies(url="/v1", without=("metadata", "model")))


def new_packer() -> JobPacker:
    """Return a packer where nobody knows any API, so that every name is taken."""
    return JobPacker(lambda *_: None)


def taken(packer: JobPacker, line: Line, bare: BareBodies | None) -> bool:
    """Say whether a line becomes a job that can be carried; what is none must have a reason that can be shown."""
    assert line.content is not None
    try:
        wire, size = packer.pack(parse_job(line, "api", bare), 0)
    except (BadLineError, JobError) as error:
        why = reason(error)
        report = bad_line("b", line.number, custom_id_of(line, bare), why)
        assert 0 < len(why) < 2_000 + 2 * len(line.content)
        assert read_id(report) == (True, line.number)
        msgspec.json.decode(report)
        return False
    assert decode_chunk(encode_chunk(Chunk("api", 0, [wire]))).jobs == [wire]
    assert size >= len(wire.body or b"")
    assert wire.id == custom_id_of(line, bare)
    if wire.content_type == "application/json":
        json.loads(wire.body or b"", parse_constant=no_json)
    return True


def no_json(word: str) -> Any:
    """Refuse the words that only Python takes for JSON."""
    raise AssertionError(word)


@fuzz(LINES, BARE)
def test_a_line_is_a_job_or_a_bad_line(content: bytes, bare: BareBodies | None) -> None:
    """Whatever a line is, it becomes a job that survives the way to a worker, or a bad line with a reason to show."""
    if content := content.strip():
        taken(new_packer(), Line(1, content), bare)


@fuzz(st.lists(LINES, max_size=5))
def test_no_line_spoils_another(lines: list[bytes]) -> None:
    """Between two lines of a file, whatever they are, a good one is taken, and each bad line is told by its number."""
    good = b'{"custom_id":"good-%d","method":"GET","url":"/x"}\n'
    content = good % -1 + b"".join(line.replace(b"\n", b" ") + b"\n" + good % n for n, line in enumerate(lines))
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        path = Path(folder) / "in"
        path.write_bytes(content)
        said: list[str] = []
        notes = BadLineNotes(path, path, said.append)
        packer, numbers = new_packer(), set()
        for line in read_lines(path):
            if taken(packer, line, None):
                numbers.add(line.number)
            else:
                notes.note(line.number, "why", is_of_another_form=True)
    assert numbers >= {2 * n + 1 for n in range(len(lines) + 1)}
    assert len(said) <= 5


@fuzz(st.binary(max_size=400), st.sampled_from(MAGICS))
def test_no_file_raises_anything_else(content: bytes, magic: bytes) -> None:
    """A file of any bytes, behind the first bytes of any packing, has lines or is one error that names it."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        path = Path(folder) / "in"
        path.write_bytes(magic + content)
        told = str(path)
        try:
            for line in read_lines(path):
                assert line.content is not None
                taken(new_packer(), line, None)
        except InputFileError as error:
            told = str(error)
    assert told.startswith(str(path))
