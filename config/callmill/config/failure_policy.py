"""What happens to calls that fail, and to an API of which too many do, as profiles say it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from callmill.config.table import Seconds, Status, Table

Share = Annotated[float, Field(gt=0, le=1)]


class RetryPolicy(Table):
    """How failed calls are repeated: exponential backoff with full jitter.

    Attributes:
        attempts: Calls made for a job at most.
        base: Seconds that the first delay is drawn from.
        cap: Seconds that a delay never exceeds.
        statuses: Statuses that are worth another attempt. 429 needs no mention: it pauses the lane instead.
        budget: The part of all calls, over 10 s and the whole fleet, that may be retries while the API fails; 1: any.
    """

    attempts: int = Field(default=5, ge=1)
    base: Seconds = 0.5
    cap: Seconds = 30
    statuses: tuple[Status, ...] = Field(default=(408, 425, 500, 502, 503, 504, 529), strict=False)
    budget: Share = 0.2


class BreakerPolicy(Table):
    """When an API counts as down, and how it is asked whether it is up again.

    Attributes:
        errors: Share of calls that the API cannot serve at which the breaker opens.
        calls: So many calls tell something; fewer do not.
        window: Seconds over which both are counted.
        streak: Calls in a row that the API cannot serve, over a second or more, that open it, however few there are.
        jobs: It opens when more different jobs than this fail in a row in ways that may be their own fault.
        probe: Seconds until the first probe; doubled with every probe that fails.
        cap: Seconds that the wait for a probe never exceeds.
    """

    errors: Share = 0.5
    calls: int = Field(default=20, ge=1)
    window: Annotated[float, Field(ge=1, le=600)] = 10
    streak: int = Field(default=4, ge=1)
    jobs: int = Field(default=64, ge=1)
    probe: Seconds = 2
    cap: Seconds = 60

    @model_validator(mode="after")
    def _cap_is_the_longest(self) -> BreakerPolicy:
        if self.cap < self.probe:
            raise ValueError(f"cap is below probe, {self.probe:g} s: no wait could keep both")
        return self


def breaker_or_none(value: Any) -> Any:
    """Read ``breaker = false`` as no breaker.

    Raises:
        ValueError: It is neither a table nor false.
    """
    if value is False:
        return None
    if not isinstance(value, dict | BreakerPolicy):
        raise ValueError("must be a table, such as { errors = 0.5, calls = 20 }, or false for none")  # noqa: TRY004 - pydantic's
    return value
