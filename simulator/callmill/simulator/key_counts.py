"""How often each idempotency key came, and which keys came again after they had succeeded."""

from __future__ import annotations

_SUCCEEDED = 1
_REQUEST = 2


class KeyCounts:
    """Requests per idempotency key.

    Memory: bounded by two generations of ``generation`` keys; a key not seen for that long is forgotten, and
    ``forgotten`` says how many were, so that an incomplete answer is never taken for a complete one.
    """

    def __init__(self, *, generation: int = 1_000_000, examples: int = 100) -> None:
        self.distinct = 0
        self.repeated = 0
        self.repeated_after_success = 0
        self.forgotten = 0
        self.examples: list[str] = []
        self._generation = generation
        self._most_examples = examples
        # One small integer per key, no object: requests * 2 + succeeded.
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}

    def arrived(self, key: str) -> None:
        """Count a request."""
        seen = self._take(key)
        if seen is None:
            self.distinct += 1
            seen = 0
        elif seen < 2 * _REQUEST:
            self.repeated += 1
        if seen & _SUCCEEDED:
            self.repeated_after_success += 1
            if len(self.examples) < self._most_examples and key not in self.examples:
                self.examples.append(key)
        self._put(key, seen + _REQUEST)

    def succeeded(self, key: str) -> None:
        """Note that a request with the key was given a 2xx answer."""
        self._put(key, (self._take(key) or _REQUEST) | _SUCCEEDED)

    def _take(self, key: str) -> int | None:
        seen = self._young.get(key)
        return self._old.pop(key, None) if seen is None else seen

    def _put(self, key: str, seen: int) -> None:
        self._young[key] = seen
        if len(self._young) >= self._generation:
            self.forgotten += len(self._old)
            self._old, self._young = self._young, {}
