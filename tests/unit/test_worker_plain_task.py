"""What the plain task returns of an answer."""

from __future__ import annotations

from base64 import b64decode

import pytest

from callmill.jobs import Outcome
from callmill.workers import tasks

PICTURE = b"\x89PNG\r\n\x1a\n\x00\xff"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a": [1.5, null]}', {"a": [1.5, None]}),
        ("naïve".encode(), "naïve"),
        (b"", ""),
        (PICTURE, {"base64": "iVBORw0KGgoA/w==", "content_type": "image/png"}),
    ],
)
def test_no_byte_of_an_answer_is_lost(body, expected):
    """JSON comes parsed, text as text, and what is neither in Base64 with its content type."""
    outcome = Outcome(
        id="a",
        index=0,
        ok=True,
        status=200,
        body=body,
        headers={"content-type": "image/png"},
        error=None,
        attempts=1,
        started_at=0,
        latency=0,
    )
    result = tasks._as_dict(outcome, 1)
    assert result["body"] == expected
    assert body != PICTURE or b64decode(result["body"]["base64"]) == PICTURE
