"""What calls cost in tokens: as they ask, or drawn for each call as people write it: ``1000:1``."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from random import Random

from msgspec import Struct

from callmill.config.limit_spec import Unit

_TOKENS = re.compile(r"^(?P<mean>\d+)(?::(?P<cv>\d+(?:\.\d+)?))?$")
_LEAST_PROMPT, _MOST_PROMPT = 0.2, 0.8


class Charging(StrEnum):
    """When limits in tokens are charged."""

    ADMISSION = "admission"
    """When the call arrives."""
    ANSWER = "answer"
    """When it is answered: a call is let in while anything is left, and may leave a debt."""


class Tokens(Struct, frozen=True):
    """The cost of one call.

    Attributes:
        prompt: Tokens of the request.
        completion: Tokens of the answer.
    """

    prompt: int
    completion: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.prompt + self.completion

    def counted(self, unit: Unit) -> int:
        """Return what a limit in this unit counts; a call is one of everything that is no token."""
        counts = {Unit.TOKENS: self.total, Unit.INPUT_TOKENS: self.prompt, Unit.OUTPUT_TOKENS: self.completion}
        return counts.get(unit, 1)


class TokenDraw(Struct, frozen=True):
    """A log-normal distribution of costs.

    Attributes:
        mean: Of the whole cost.
        cv: Standard deviation as a part of the mean; 0 for a constant cost.
    """

    mean: int
    cv: float = 0.0

    def draw(self, random: Random) -> Tokens:
        """Draw one call's cost; between a fifth and four fifths of it are the request's."""
        variance = math.log1p(self.cv**2)
        total = round(random.lognormvariate(math.log(self.mean) - variance / 2, math.sqrt(variance)))
        prompt = round(total * random.uniform(_LEAST_PROMPT, _MOST_PROMPT))
        return Tokens(prompt, max(1, total) - prompt)

    def __str__(self) -> str:
        return f"{self.mean}:{self.cv:g}"


class TokenCosts:
    """The sequence of costs of one run; the same seed gives the n-th accepted call the same one. None: not drawn."""

    def __init__(self, draw: TokenDraw | None, seed: int) -> None:
        self._draw = draw
        self._random = Random(f"{seed}:tokens")  # noqa: S311 - replayable, not secret
        self._next: Tokens | None = None

    def next(self) -> Tokens | None:
        """Return what the next call that is accepted costs."""
        if self._next is None and self._draw is not None:
            self._next = self._draw.draw(self._random)
        return self._next

    def taken(self) -> None:
        """Note that a call was accepted."""
        self._next = None


def parse_token_draw(text: str) -> TokenDraw:
    """Read a distribution of costs.

    Raises:
        ValueError: The text is none; the message shows the form.
    """
    match = _TOKENS.match(text.strip())
    if match is None or int(match["mean"]) < 1:
        raise ValueError(
            f"{text!r} is no cost in tokens; write the mean and its variation, such as '1000:1', or '1000'"
        )
    return TokenDraw(int(match["mean"]), float(match["cv"] or 0))
