"""The input file: which lines are jobs, and which file it is."""

from __future__ import annotations

import os

import msgspec
import pytest

from callmill.cli import input_file
from callmill.cli.bad_line_notes import BadLineNotes
from callmill.cli.input_file import InputIdentity, Line, read_lines
from callmill.cli.job_line import BadLineError, BareBodies, custom_id_of, parse_job
from callmill.errors import InputFileError


def parse(text, api="local"):
    """Parse one line."""
    return parse_job(Line(1, text if isinstance(text, bytes) else text.encode()), api)


def test_line_becomes_a_job():
    """Every field of a line arrives in the job, and the body keeps every digit."""
    job = parse(
        '{"custom_id":"a","method":"post","url":"/v1","body":{"x":1.10},"headers":{"x-a":"b"},"api":"crm","tokens":7,'
        '"params":{"q":[1,2]},"timeout":2.5,"idempotency_key":"k","output_tokens":3,"weight":2,"model":"m"}'
    )
    assert (job.id, job.method, job.url, job.api, job.tokens) == ("a", "POST", "/v1", "crm", 7)
    assert (job.headers, job.params, job.timeout, job.idempotency_key) == ({"x-a": "b"}, {"q": [1, 2]}, 2.5, "k")
    assert (job.output_tokens, job.weight, job.model) == (3, 2, "m")
    assert msgspec.json.encode(job.json) == b'{"x":1.10}'


@pytest.mark.parametrize("body", ["", ',"body":null'])
def test_no_body(body):
    """A line without a body, or with null, is a call without one; its API is the default."""
    job = parse(f'{{"custom_id":"a","method":"GET","url":"/v1"{body}}}')
    assert (job.json, job.api) == (msgspec.UNSET, "local")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[1]", "expected `object`"),
        ('{"method":"GET","url":"/"}', "custom_id"),
        ('{"custom_id":1,"method":"GET","url":"/"}', "expected `str`, got `int` - at `$.custom_id`"),
        ('{"custom_id":"a","method":"GET","url":"/","tokns":1}', "unknown field `tokns`"),
        (b'{"custom_id":"\xff","method":"GET","url":"/"}', "is not UTF-8"),
        (b'{"custom_id":"a","method":"GET","url":"/","body":' + b"[" * 100_000, "is not JSON"),
    ],
)
def test_bad_lines(text, reason):
    """A line that is no job is refused with a reason that names what is wrong with it."""
    with pytest.raises(BadLineError, match=reason.replace("[", r"\[").replace("$", r"\$")):
        parse(text)


def test_api_must_be_known():
    """A line without an API is refused when there is no single one, and told the remedy."""
    with pytest.raises(BadLineError, match="--api"):
        parse('{"custom_id":"a","method":"GET","url":"/"}', api=None)


@pytest.mark.parametrize(
    ("content", "custom_id"),
    [
        (b'{"custom_id":"a","zzz":1}', "a"),
        (b'{"custom_id":"a\\"b", broken', 'a"b'),
        (b'{"custom_id":7}', None),
        (b"nothing", None),
        (None, None),
    ],
)
def test_custom_id_of_a_bad_line(content, custom_id):
    """The custom_id of a bad line is found where it can be read."""
    assert custom_id_of(Line(1, content)) == custom_id


def test_lines_are_counted_as_editors_do(tmp_path, monkeypatch):
    """Blank lines count but are no jobs, byte order mark and CRLF are no part of a line, endless lines are bad."""
    monkeypatch.setattr(input_file, "LONGEST_LINE_BYTES", 16)
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf{1}\r\n\n  \n{2}\n" + b"x" * 50 + b"\n{3}")
    assert list(read_lines(path)) == [Line(1, b"{1}"), Line(4, b"{2}"), Line(5, None), Line(6, b"{3}")]


def test_change_is_noticed(tmp_path):
    """A file is the same until it is moved, written to, or exchanged; what changed is said."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"a" * 3_000_000)
    before = InputIdentity.of(path)
    assert before.difference(InputIdentity.of(path)) is None
    os.utime(path, ns=(1, before.mtime_ns + 1))
    assert before.difference(InputIdentity.of(path)) == "it was written to since then"
    path.write_bytes(b"a" * 2_999_999 + b"b")
    assert before.difference(InputIdentity.of(path)) == "its content is different now"
    path.write_bytes(b"a")
    assert "3,000,000 bytes" in (before.difference(InputIdentity.of(path)) or "")
    assert "it was" in (before.difference(InputIdentity.of(path.rename(tmp_path / "other"))) or "")


def test_only_regular_files(tmp_path):
    """A missing file, a directory and a pipe are refused: no run could go on with them."""
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDWR)
    for name in ("none", ".", "pipe"):
        with pytest.raises(InputFileError):
            InputIdentity.of(tmp_path / name)
    os.close(descriptor)


FORMS = {
    "form": ('"data":{"a":true,"n":null}', {"data": {"a": True, "n": None}}, {}),
    "text": ('"content":"<x/>","content_type":"text/xml"', {"data": "<x/>"}, {"Content-Type": "text/xml"}),
    "bytes": ('"content":{"base64":"/wA="}', {"data": b"\xff\0"}, {}),
    "files": (
        '"data":{"k":1},"files":{"a":"x","b":{"base64":"/w=="},"c":{"content":"y","filename":"d","content_type":"a/b"}}',
        {"data": {"k": 1}, "files": {"a": ("a", b"x"), "b": ("b", b"\xff"), "c": ("d", b"y", "a/b")}},
        {},
    ),
}


@pytest.mark.parametrize(("keys", "fields", "headers"), FORMS.values(), ids=FORMS)
def test_bodies_that_are_no_json(keys, fields, headers):
    """Forms, text, bytes and files can be said in a line."""
    job = parse(f'{{"custom_id":"a","method":"POST","url":"/v1","body":null,{keys}}}')
    assert job.json is msgspec.UNSET
    assert {name: getattr(job, name) for name in fields} == fields
    assert dict(job.headers or {}) == headers


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ('"body":1,"data":{}', "has body and data"),
        ('"content":"x","files":{}', "has content and files"),
        ('"content":{"base64":"x"}', "content.base64 is no Base64"),
        ('"files":{"f":{}}', "files.f needs either"),
        ('"content_type":"a/b"', "there is no content"),
        ('"tokens":99999999999999999999', "tokens`"),
        ('"weight":18446744073709551616', "weight`"),
        ('"output_tokens":-1', "output_tokens`"),
        ('"timeout":1e999', "timeout`"),
        ('"body":{"m":["ok","\\ud800"]}', r"body.m\[1\] holds half a character"),
        ('"headers":{"a":"\\udc00"}', "headers.a holds half a character"),
        ('"body":NaN', "is not JSON: invalid character"),
    ],
)
def test_values_that_no_job_has(keys, reason):
    """What no job can carry makes a bad line, whose reason names the place."""
    with pytest.raises(BadLineError, match=reason):
        parse(f'{{"custom_id":"a","method":"POST","url":"/v1",{keys}}}')


BARE = BareBodies(url="/v1/chat", without=("metadata",))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"model":"m","n":1.10,"metadata":{"row":1}}', ("POST", "/v1/chat", "line-7", b'{"model":"m","n":1.10}')),
        ('{"model":"m"}', ("POST", "/v1/chat", "line-7", b'{"model":"m"}')),
        ('["a", 1.10]', ("POST", "/v1/chat", "line-7", b'["a", 1.10]')),
        ('{"custom_id":"a","body":{"metadata":1}}', ("POST", "/v1/chat", "a", b'{"metadata":1}')),
        ('{"custom_id":"a","method":"put","url":"/x","body":2}', ("PUT", "/x", "a", b"2")),
    ],
)
def test_bare_bodies(line, said):
    """With a URL for them, lines without keys of ours are bodies as they stand, under their number."""
    job = parse_job(Line(7, line.encode()), "local", BARE)
    assert (job.method, job.url, job.id, bytes(job.json)) == said
    assert custom_id_of(Line(7, line.encode()), BARE) == job.id


def test_first_reasons_are_said(tmp_path):
    """Of ten thousand bad lines three reasons are said, what a line needs once, and where the other reasons are."""
    said: list[str] = []
    notes = BadLineNotes(tmp_path / "in", tmp_path / "errors", said.append)
    for number in range(1, 10_001):
        notes.note(number, "unknown field", is_of_another_form=True)
    assert len(said) == 5
    assert [line for line in said if "unknown field" in line] == [said[0], *said[2:4]]
    assert '"custom_id"' in said[1]
    assert "--url" in said[1]
    assert "errors" in said[4]
