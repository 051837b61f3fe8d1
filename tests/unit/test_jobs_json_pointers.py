"""JSON pointers read what they can of any body, and leave out what they cannot."""

from __future__ import annotations

import pytest

from callmill.jobs.json_pointers import JsonPointers

READ = JsonPointers({"total": "/usage/total", "text": "/error/message", "second": "/list/1", "none": None})


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (
            b'{"usage": {"total": 3}, "error": {"message": "no"}, "list": [1, 2]}',
            {"total": 3, "text": "no", "second": 2},
        ),
        (b'{"usage": {"total": 3}, "usage": {"total": 4}}', {"total": 4}),
        (b'\xef\xbb\xbf{"usage": {"total": 3}}', {"total": 3}),
        ('{"usage": {"total": 3}}'.encode("utf-16"), {"total": 3}),
        (b'{"text": "cut \\ud83d", "usage": {"total": 3}, "list": [0, 1]}', {"total": 3, "second": 1}),
        (b'{"\\ud83d": 1, "usage": {"total": 3}}', {"total": 3}),
        (b'{"error": {"message": "cut \\ud83d"}, "usage": {"total": 3}}', {"total": 3, "text": "cut ?"}),
        (b'{"score": NaN, "usage": {"total": 3}}', {"total": 3}),
        (b'{"usage": {"total": %b}}' % (b"9" * 40), {"total": int("9" * 40)}),
        (b'{"usage": {"total": %b}}' % (b"9" * 5000), {}),
        (b'{"usage": {"total": {"of": 1}}}', {"total": {"of": 1}}),
        (b'{"usage": [3], "list": {"1": 2}, "error": "no"}', {"second": 2}),
        (b'{"usage": {"total": 3}', {}),
        (b'{"usage": %b' % (b"[" * 100_000), {}),
        (b'{"usage": {"total": %b%b}}' % (b"[" * 100_000, b"]" * 100_000), {}),
        (b'{"cut": "\\ud8", "usage": %b' % (b"[" * 100_000), {}),
        (b"<html>", {}),
        (b"\xff\xfe\x00", {}),
        (b"", {}),
        (None, {}),
    ],
)
def test_what_can_be_read_is_read(body, found):
    """Odd JSON hides nothing that can be read; what cannot be is left out, whatever its depth and size."""
    assert READ.read(body) == found
