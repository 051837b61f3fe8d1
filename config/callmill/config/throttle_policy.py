"""How an API says that it wants fewer calls, and how often it may say so to one job, as its profile has it."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from callmill.config.table import Pointer, Seconds, Table


def _texts(texts: list[str]) -> list[str]:
    if not all(texts):
        raise ValueError("an empty text occurs in everything")
    return texts


AnswerStatus = Annotated[int, Field(ge=200, le=599)]
BodyTexts = dict[Pointer, Annotated[list[str], Field(min_length=1), AfterValidator(_texts)]]


class ThrottlePolicy(Table):
    """How the API says that it wants fewer calls, besides the status 429, and what bounds a job's refusals.

    Each of the three tables has JSON pointers into the body of an answer, and for each of them texts, of which one
    occurs in the value there, in any case; a number must be equal.

    Attributes:
        statuses: Statuses that say so when a text below is found; or, other than 2xx, when they come with Retry-After
            or with headers by which nothing remains.
        rate: Texts that tell of too many calls, or tokens, in too short a time.
        quota: Texts that tell of a quota that is spent, or of money.
        concurrency: Texts that tell of too many calls at once.
        max_refusals: With so many refusals a job fails; with several credentials, so many for each of them.
        max_wait: Seconds since a job's first refusal after which the next one fails it. Defaults to 31 days: every
            quota has come back by then.
    """

    statuses: tuple[AnswerStatus, ...] = Field(default=(), strict=False)
    rate: BodyTexts = Field(default_factory=dict)
    quota: BodyTexts = Field(default_factory=dict)
    concurrency: BodyTexts = Field(default_factory=dict)
    max_refusals: int = Field(default=10_000, ge=1)
    max_wait: Seconds = 2_678_400

    @model_validator(mode="after")
    def _successes_need_texts(self) -> ThrottlePolicy:
        if any(status < 300 for status in self.statuses) and not (self.rate or self.quota or self.concurrency):
            raise ValueError(
                "statuses with 2xx need a table rate, quota or concurrency that tells refusals from answers"
            )
        return self
