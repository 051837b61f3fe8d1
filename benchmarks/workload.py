"""The work that every benchmark and every baseline does: one small chat completion a call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from callmill.producer import Job

API = "bench"


def request_body(number: int) -> dict[str, Any]:
    """Return the body of the call with this number."""
    return {
        "model": "small",
        "messages": [{"role": "user", "content": f"Translate: hello {number}"}],
        "max_tokens": 100,
    }


def jobs(count: int, path: str, *, api: str = API, own_ids: bool = False) -> Iterator[Job]:
    """Yield that many jobs, made one at a time; with ``own_ids`` each has an id as a user's rows would."""
    for number in range(count):
        yield Job("POST", path, api=api, id=f"row-{number}" if own_ids else None, json=request_body(number))
