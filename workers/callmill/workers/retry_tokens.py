"""RetryTokens: the retries of one API that this process may make now, within the budget of the fleet."""

from __future__ import annotations

import random

from callmill.workers.call import Call

_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_LEAST_PER_S = 1.0
"""What the budget gives even where hardly any calls are made."""

_MOST_WANTED = 1000
"""Retries asked for in one exchange: a process that has many more must not take the whole budget."""


class RetryTokens:
    """Calls that will want another attempt are announced, so that their tokens are here when they come for them."""

    def __init__(self) -> None:
        self._announced: set[Call] = set()
        self._tokens = 0
        self._per_s = _LEAST_PER_S
        self._short = False

    @property
    def wanted(self) -> int:
        """Tokens that announced calls lack."""
        return min(max(0, len(self._announced) - self._tokens), _MOST_WANTED)

    def announce(self, call: Call) -> None:
        """Say that a call will want another attempt; repeats are ignored."""
        self._announced.add(call)

    def withdraw(self, call: Call) -> None:
        """Say that it will not."""
        self._announced.discard(call)

    def take(self, call: Call) -> bool:
        """Let a call have its attempt; False: there is no token, it is announced and comes again later."""
        if not self._tokens:
            self._announced.add(call)
            return False
        self._tokens -= 1
        self._announced.discard(call)
        return True

    def granted(self, tokens: int, asked: int, over_s: float) -> None:
        """Take the tokens granted of those asked for, over ``over_s`` seconds; what no call wants is void."""
        self._per_s = 0.7 * self._per_s + 0.3 * tokens / max(over_s, 0.01)
        self._tokens = min(self._tokens + tokens, len(self._announced))
        self._short = tokens < asked  # calls announced since then have not been asked for yet

    def wait_s(self) -> float:
        """Return seconds after which a call that got no token should come again: about when its turn is."""
        expected_s = self.wanted / max(self._per_s, _LEAST_PER_S) if self._short else 0.0
        return random.uniform(0.5, 1.5) * min(max(expected_s, _SHORTEST_WAIT_S), _LONGEST_WAIT_S)  # noqa: S311 - spread
