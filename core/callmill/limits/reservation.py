"""What a worker asks of the limiter's state in Redis for its calls, and what it is granted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from callmill.limits.cost import Columns

Doubt = Literal["", "stepped", "rules", "look"]


class Settlement(Struct, frozen=True):
    """What calls used that was not reserved, and the reverse.

    Attributes:
        key: The credential that it belongs to, from 1; 0: limits of all credentials only.
        since_us: From now to the earliest start that it belongs to.
        dearer: Units used beyond what was reserved.
        unused: Units reserved and not used.
    """

    key: int
    since_us: int
    dearer: Columns
    unused: Columns


class Request(Struct, frozen=True, kw_only=True):
    """What a worker tells and asks in one exchange; see ``lua/reserve.lua``.

    Attributes:
        boot: The life of the state that the worker knows.
        seq: The latest exchange that it knows.
        latest_us: From now to the latest start it was granted.
        heaviest: How many requests the heaviest start counted as that may still keep a limit busy.
        lead_us: It can use no start sooner than this.
        guard_us: Timing uncertainty it needs to be allowed for.
        doubt: Why the state may not be what it seems: it saw the clock of Redis jump ahead, other limits hold since its
            last request, or this may be another server.
        settlements: What is to be settled.
        leaves: Whether it will ask for no more calls of this group.
        allowances: How many of the calls may use each credential.
        taken: Calls that the API took since the last request, with each credential; empty for none.
        calls: How many calls wait.
        costs: What each of them costs; empty where each is one request and nothing else.
    """

    boot: str
    seq: int
    latest_us: int
    heaviest: int = 1
    lead_us: int
    guard_us: int
    doubt: Doubt = ""
    settlements: Sequence[Settlement] = ()
    leaves: bool = False
    allowances: Sequence[int]
    taken: Sequence[int] = ()
    calls: int
    costs: Sequence[Columns] = ()


class Grant(Struct, frozen=True):
    """What Redis answered. Times are microseconds of Redis's clock, or from ``now_us`` on.

    Attributes:
        starts_us: When the calls may start.
        keys: The credential of each, from 1.
        scopes: Pause left and its reason, of the model and of each credential.
        upcoming_us: The first start that was not granted; -1 when nobody knows.
    """

    now_us: int
    boot: str
    seq: int
    again_us: int
    by: int
    pause_us: int
    pause_reason: str
    guard_us: int
    starts_us: list[int]
    keys: list[int]
    scopes: list[tuple[int, str]]
    upcoming_us: int

    def in_text(self) -> Grant:
        """Return the same where texts are still as Redis answers them."""
        return replace(
            self,
            boot=_text(self.boot),
            pause_reason=_text(self.pause_reason),
            scopes=[(left_us, _text(reason)) for left_us, reason in self.scopes],
        )


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
