"""Outcome: what came of a job."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

UNKNOWN_INDEX = -1


class OutcomeError(Struct, frozen=True):
    """Why a job failed.

    Attributes:
        code: Stable machine name, such as ``http_404``, ``timeout`` or ``deadline``.
        message: One sentence for people.
    """

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of a job: the response, or an error. Exactly one per job.

    Attributes:
        id: Id of the job.
        index: 0-based position of the job in its batch; -1 where it is lost, with ``corrupt`` or ``poison``.
        ok: Whether the call succeeded.
        status: HTTP status of the last answer; None when no answer came.
        body: Body of the last answer.
        headers: The answer's headers that the API's profile keeps, names in lower case.
        error: Why it failed; None when ``ok``.
        attempts: Calls made for the job.
        started_at: Unix time in seconds of the last attempt's start; 0 when no call was made.
        latency: Seconds from the last attempt's start to its end.
        cursor: Where to resume reading after this outcome.
    """

    id: str
    index: int
    ok: bool
    status: int | None
    body: bytes
    headers: dict[str, str]
    error: OutcomeError | None
    attempts: int
    started_at: float
    latency: float
    cursor: str = ""

    @property
    def request_id(self) -> str | None:
        """The id that the API gave the call, if it sent one."""
        return self.headers.get("x-request-id") or self.headers.get("request-id")

    def text(self) -> str:
        """Return the body as UTF-8 text; undecodable bytes become U+FFFD."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """Parse the body as JSON.

        Raises:
            ValueError: The body is not JSON, or is nested too deeply to parse; ``body`` has it unchanged.
        """
        try:
            return msgspec.json.decode(self.body)
        except RecursionError as error:
            raise ValueError("the body is nested too deeply to parse as JSON") from error
