"""Cost: what one call takes from the limits that hold for it."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

Columns: TypeAlias = tuple[int, int, int, int]
"""Requests, tokens, input tokens, output tokens: a call's costs as the scripts take them."""

NOTHING: Columns = (0, 0, 0, 0)


class Cost(Struct, frozen=True):
    """What one call takes from the limits.

    Attributes:
        tokens: All its tokens, those of the answer included.
        output_tokens: Those of the answer.
        weight: How many requests it counts as.
    """

    tokens: int = 0
    output_tokens: int = 0
    weight: int = 1

    @property
    def columns(self) -> Columns:
        """The same as the scripts take it."""
        return (self.weight, self.tokens, max(0, self.tokens - self.output_tokens), self.output_tokens)


ONE_REQUEST = Cost()


def beyond(used: Columns, reserved: Columns) -> Columns:
    """What was used beyond what was reserved, column by column; 0 where it was less."""
    return tuple(max(0, now - before) for now, before in zip(used, reserved, strict=True))  # type: ignore[return-value] # four stay four
