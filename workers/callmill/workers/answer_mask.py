"""AnswerMask: keeps a credential out of stored answers to its calls.

An API may echo a request, including its URL or headers. What a worker keeps of an answer goes to Redis, to readers of
outcomes, and to pages; so the credential is replaced there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from callmill.config.secret_mask import SecretMask, is_unmistakable
from callmill.workers.transports.port import Response


class AnswerMask:
    """Masks the secrets of one credential, unless they could be ordinary words or numbers."""

    def __init__(self, secrets: Iterable[str]) -> None:
        looked_for = list(filter(is_unmistakable, secrets))
        self._mask = SecretMask(looked_for)
        self._looks = bool(looked_for)

    def answer(self, answer: Response) -> Response:
        """Return the answer with its body masked; its headers are masked where they are kept."""
        if not self._looks:
            return answer
        masked = self._mask.body(answer.body)
        return answer if masked is answer.body else Response(answer.status, answer.headers, masked, answer.encoding)

    def kept(self, headers: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
        """Return the named headers that exist, masked."""
        kept = {}
        for name in names:
            if (value := headers.get(name)) is not None:
                kept[name] = self._mask.text(value) if self._looks else value
        return kept
