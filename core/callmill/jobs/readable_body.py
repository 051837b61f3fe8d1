"""Bodies where only text can stand: in lines of JSON, and in results of tasks. No byte is lost."""

from __future__ import annotations

from base64 import b64encode

from callmill.jobs.outcome import Outcome

BODY_IN_BASE64 = "base64"
"""The key under which a body stands that is no text."""


def text_or_base64(outcome: Outcome) -> str | dict[str, str | None]:
    """Return a body as text; what is no text as ``{"base64": ..., "content_type": ...}``.

    A body that is still encoded, say in Brotli, has ``"content_encoding"``, too.
    """
    if outcome.is_text:
        return outcome.text()
    readable = {BODY_IN_BASE64: b64encode(outcome.body).decode(), "content_type": outcome.content_type}
    if outcome.content_encoding is not None:
        readable["content_encoding"] = outcome.content_encoding
    return readable
