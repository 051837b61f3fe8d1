"""Feedback: what the headers of an answer say about the limits behind it."""

from __future__ import annotations

from msgspec import Struct

from callmill.config.limit_spec import Unit


class Observation(Struct, frozen=True):
    """Where one limit of the server stands after an answer. What the server did not say is None.

    Attributes:
        name: What the server calls the limit: a policy, a resource, a bucket; else what it counts.
        unit: What it counts.
        limit: How much a window takes, or how many calls may be in flight; more than 0.
        remaining: What is left; a server may count calls that are still under way, or not.
        reset_s: Seconds from the answer until the server counts anew, or has refilled.
        reset_step_s: How far ``reset_s`` may be off, as coarsely as the server wrote it; 0 without ``reset_s``.
        window_s: Length of the window.
    """

    name: str
    unit: Unit
    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None
    reset_step_s: float = 0.0
    window_s: float | None = None


class Feedback(Struct, frozen=True):
    """What one answer says.

    Attributes:
        retry_after_s: Seconds for which the server wants no call. It goes before every observation.
        observations: The limits that are named, each once.
        absurd: Whether the server asked for more than a week; ``retry_after_s`` is an hour instead.
    """

    retry_after_s: float | None = None
    observations: tuple[Observation, ...] = ()
    absurd: bool = False
