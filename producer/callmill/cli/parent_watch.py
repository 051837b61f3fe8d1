"""Ends a child process of ours when its parent is gone, however the parent went.

A parent that is killed -9 can tell nobody. So a child asks who its parent is, which works on every Unix and does not
depend on the thread that started it, as the kernel's parent death signal does.
"""

from __future__ import annotations

import os
import signal
import threading
import time

VARIABLE = "CALLMILL_PARENT_PID"
"""Names the parent to a child; not for users."""

_EVERY_S = 0.3
_PATIENCE_S = 60.0
_EXIT_CODE = 70


def environment() -> dict[str, str]:
    """Return the environment of a child that is to end with this process."""
    return {**os.environ, VARIABLE: str(os.getpid())}


def begin() -> None:
    """Watch the parent that the environment names, if it names one."""
    parent = os.environ.pop(VARIABLE, "")
    if parent.isdecimal():
        threading.Thread(target=_watch, args=(int(parent),), name="callmill-parent-watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    # What cannot end by itself in this time, the grace included, is stuck, and nobody else will ever end it.
    time.sleep(_PATIENCE_S)
    os._exit(_EXIT_CODE)
