"""Sees to it that pyreqwest's runtime thread is out of Python when the interpreter exits.

That thread calls into Python when a request ends. Caught in there by the interpreter's end, it aborts the process, and
also after a clean close: a task can learn of its call's end before the thread has left Python again. So at exit every
client is closed, its calls have ended, and no thread that Python did not start is inside Python any more.
"""

from __future__ import annotations

import atexit
import faulthandler
import re
import tempfile
import threading
import time
from typing import Protocol

_QUIET_S = 0.02
_DRAIN_S = 1.0
_LEAVE_S = 2.0
_THREAD = re.compile(rb"^(?:Current thread|Thread) 0x([0-9a-f]+)", re.MULTILINE)


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
_ever_used = False


def guard(transport: ClosesAtExit) -> None:
    """Close ``transport`` at exit if nobody did before."""
    global _ever_used  # noqa: PLW0603 - one interpreter has one exit
    _ever_used = True
    _open.add(transport)


def release(transport: ClosesAtExit) -> None:
    """The transport was closed and its calls have ended."""
    _open.discard(transport)


@atexit.register
def _close_all() -> None:
    transports = list(_open)
    for transport in transports:
        transport.close_now()
    if not _ever_used:
        return
    # A loop in another thread sees its calls end; a loop that stopped never will, hence the bound.
    give_up_at = time.monotonic() + _DRAIN_S
    while any(transport.in_flight for transport in transports) and time.monotonic() < give_up_at:
        time.sleep(0.005)
    _wait_for_strangers()


def _wait_for_strangers() -> None:
    """Wait until foreign threads have stayed outside Python for a while; sleeping gives them the lock to leave."""
    now_s = time.monotonic()
    give_up_at_s, quiet_since_s = now_s + _LEAVE_S, now_s
    while now_s < give_up_at_s and now_s - quiet_since_s < _QUIET_S:
        time.sleep(0.002)
        now_s = time.monotonic()
        if _strangers_inside():
            quiet_since_s = now_s


def _strangers_inside() -> bool:
    """Whether a thread that Python did not start is in Python, even without a frame: only faulthandler shows these."""
    with tempfile.TemporaryFile() as listing:
        faulthandler.dump_traceback(listing, all_threads=True)
        listing.seek(0)
        inside = {int(ident, 16) for ident in _THREAD.findall(listing.read())}
    return bool(inside - {thread.ident for thread in threading.enumerate()} - {threading.get_ident()})
