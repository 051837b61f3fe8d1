"""Closes transports that are still open when the interpreter exits.

pyreqwest's runtime thread calls into Python when a request ends. Should it do so while the interpreter is being torn
down, the process aborts; so every client is closed, and its calls have ended, before that begins.
"""

from __future__ import annotations

import atexit
import time
from typing import Protocol

_SETTLE_S = 0.05
_DRAIN_S = 1.0


class ClosesAtExit(Protocol):
    """What can be closed without an event loop."""

    def close_now(self) -> None:
        """Refuse new calls and end those in flight."""
        ...

    @property
    def in_flight(self) -> int:
        """Calls that have not ended."""
        ...


_open: set[ClosesAtExit] = set()


def guard(transport: ClosesAtExit) -> None:
    """Close ``transport`` at exit if nobody did before."""
    _open.add(transport)


def release(transport: ClosesAtExit) -> None:
    """The transport was closed and its calls have ended."""
    _open.discard(transport)


@atexit.register
def _close_all() -> None:
    transports = list(_open)
    for transport in transports:
        transport.close_now()
    if not transports:
        return
    # A loop in another thread sees its calls end; a loop that stopped never will, hence the bound.
    give_up_at = time.monotonic() + _DRAIN_S
    while any(transport.in_flight for transport in transports) and time.monotonic() < give_up_at:
        time.sleep(0.005)
    time.sleep(_SETTLE_S)
