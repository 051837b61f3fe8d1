"""What a process reports about an API's credential or host, and what it learns about it."""

from __future__ import annotations

from enum import IntEnum

from msgspec import Struct

HOST = "host"
"""The subject that is the API's host; the others are ``key:NAME`` of its credentials."""

UNBOUNDED = -1


class HoldState(IntEnum):
    """What is known of a credential or host."""

    UNPROVEN = 0
    """It has not worked yet: few calls at once."""
    PROVEN = 1
    """It has worked."""
    HELD = 2
    """It was refused too often: calls wait."""
    SUSPECTED = 3
    """It has worked and now fails in one process: held unless another process sees it work."""


class HoldRules(Struct, frozen=True, kw_only=True):
    """When a subject is held.

    Attributes:
        hard: Refusals without a success that hold one that never worked.
        all: The same including refusals that may be the job's own fault (403); 0: those hold nothing.
        streak: Refusals in a row that hold one that has worked.
        first_ms: Until a held subject is retried automatically, doubled with each failure; 0: never.
        cap_ms: The longest such wait.
        again_ms: Until one that has worked is retried.
    """

    hard: int
    all: int
    streak: int = 0
    first_ms: int = 0
    cap_ms: int = 0
    again_ms: int = 600_000


class HoldReport(Struct, kw_only=True):
    """What happened to a subject in one process since the last exchange.

    Attributes:
        good: Answers that prove it.
        good_age_s: Seconds since the last of them.
        plain: Answers that neither prove nor refuse it.
        hard: Refusals, of different jobs.
        soft: Refusals that may be the job's own fault.
        streak: Refusals in a row, of different jobs.
        asked: Whether so long a streak was told before, and others asked whether they see it work.
        wants: Whether a call waits that could use a grant; where none does, what was granted is given back.
        trying: Whether a trial is under way.
        tried: Whether a trial ended.
        unlike: Whether a call waits of a class of which none was refused.
        seen: Whether this process saw calls refused; else it cannot know of which classes none was.
        guilty: Whether it was refused a call that another credential was allowed.
        cause: What the last refusal was.
        remedy: What to do about it.
    """

    good: int = 0
    good_age_s: float = 0.0
    plain: int = 0
    hard: int = 0
    soft: int = 0
    streak: int = 0
    asked: bool = False
    wants: bool = False
    trying: bool = False
    tried: bool = False
    unlike: bool = False
    seen: bool = False
    guilty: bool = False
    cause: str = ""
    remedy: str = ""


class HoldView(Struct, frozen=True, kw_only=True):
    """A subject as it was at the last exchange.

    Attributes:
        grant: Calls that this process may have in flight; ``UNBOUNDED``: any number.
        next_in_s: Seconds until this process may retry it automatically; None: it may not.
        line: Cause and remedy; empty unless held.
    """

    state: HoldState = HoldState.UNPROVEN
    grant: int = 0
    next_in_s: float | None = None
    line: str = ""


class Held(Struct, frozen=True, kw_only=True):
    """A hold in force, as views show it.

    Attributes:
        line: Cause and remedy.
        since_s: Seconds that it has lasted.
        next_in_s: Seconds until it is retried automatically; None: never.
    """

    line: str
    since_s: float
    next_in_s: float | None
