"""Bodies where only text can stand: in lines of JSON, and in results of tasks. No byte is lost."""

from __future__ import annotations

from base64 import b64encode

from callmill.jobs.outcome import Outcome

BODY_IN_BASE64 = "base64"
"""The key under which a body stands that is no text."""


def text_or_base64(outcome: Outcome) -> str | dict[str, str | None]:
    """Return a body as text; what is no text as ``{"base64": ..., "content_type": ...}``."""
    text = text_of(outcome)
    if text is not None:
        return text
    return {BODY_IN_BASE64: b64encode(outcome.body).decode(), "content_type": outcome.headers.get("content-type")}


def text_of(outcome: Outcome) -> str | None:
    """Return the body as text; None if it is none, so that bytes would be lost."""
    try:
        return outcome.body.decode()
    except UnicodeDecodeError:
        return None
