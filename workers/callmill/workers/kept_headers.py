"""KeptHeaders: which headers of an answer its outcome keeps."""

from __future__ import annotations

from collections.abc import Iterable

from callmill.workers.answer_mask import AnswerMask
from callmill.workers.transports.port import Response

_PLAIN_JSON = frozenset({"application/json", "application/json; charset=utf-8", "application/json;charset=utf-8"})


class KeptHeaders:
    """Chooses the headers of one API's answers that outcomes keep.

    They are those that the profile names, and what a reader needs to understand the body: its coding, if it is still
    encoded, and its content type, unless that is the usual one.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._lacks_type = "content-type" not in self._names

    def of(self, answer: Response, mask: AnswerMask) -> dict[str, str]:
        """Return the headers to keep, masked."""
        kept = mask.kept(answer.headers, self._names)
        if answer.encoding:
            kept["content-encoding"] = answer.encoding
        if self._lacks_type and answer.body:
            kept |= {
                name: value
                for name, value in mask.kept(answer.headers, ("content-type",)).items()
                if value.lower() not in _PLAIN_JSON
            }
        return kept
