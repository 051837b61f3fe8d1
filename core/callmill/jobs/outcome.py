"""Outcome: what came of a job."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from callmill.jobs.body_text import is_text, json_of, text_of

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
        body: Body of the last answer, byte for byte, decompressed unless ``content_encoding`` says otherwise.
        headers: The answer's headers that the API's profile keeps, names in lower case; besides, ``content-type`` if
            the body is not plain JSON, and ``content-encoding`` if the body is still encoded.
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

    @property
    def content_type(self) -> str | None:
        """What the body is, as the API stated it: ``image/png``, ``text/html; charset=shift_jis``.

        None if the API stated nothing; or the profile's ``keep_headers`` leaves it out, and it is plain JSON.
        """
        return self.headers.get("content-type")

    @property
    def content_encoding(self) -> str | None:
        """How the body is encoded, such as ``br``; None if it is not, or was decoded: the usual case."""
        return self.headers.get("content-encoding") if self.body else None

    @property
    def is_text(self) -> bool:
        """Whether ``text()`` loses nothing of the body; otherwise it is for ``body`` alone, as a picture is."""
        return self.content_encoding is None and is_text(self.body, self.content_type)

    def text(self) -> str:
        """Return the body as text.

        A byte order mark tells the charset, otherwise the content type; otherwise it is UTF-8, or what XML or HTML
        declare. What cannot be decoded becomes U+FFFD.
        """
        return text_of(self.body, self.content_type)

    def json(self) -> Any:
        """Parse the body as JSON, whether it is in UTF-8, as JSON should be, or in another charset.

        What only some parsers take is read as Python's ``json`` reads it: NaN, half a surrogate pair.

        Raises:
            ValueError: The body is not JSON, is still encoded, or is nested too deeply to parse; ``body`` has it
                unchanged.
        """
        if self.content_encoding is not None:
            raise ValueError(f"the body is still encoded: {self.content_encoding}")
        return json_of(self.body, self.content_type)
