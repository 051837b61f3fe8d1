"""Lets a forked child release what it inherits without disturbing its parent.

A child has its parent's sockets and event loops, but none of the threads that serve them. It must not even close such a
socket as usual, nor let the garbage collector do so: asyncio would remove the socket from the epoll that both processes
share, so that the parent would never see another answer, and TLS would send a close notification in the parent's name.
So whoever keeps such things registers here how a child releases them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

_kept: WeakKeyDictionary[Any, Callable[[Any], None]] = WeakKeyDictionary()
_pid = os.getpid()


def in_child(kept: T, let_go: Callable[[T], None]) -> None:
    """Have ``let_go`` called with ``kept`` in every child that is forked while it exists.

    ``let_go`` must neither block nor take a lock: the thread that held it does not exist in the child.
    """
    _kept[kept] = let_go


def notice_fork() -> None:
    """Release what was inherited if not done yet: servers written in C may fork without telling Python."""
    if os.getpid() != _pid:
        _let_go()


def _let_go() -> None:
    global _pid  # noqa: PLW0603 - a fact of the process
    _pid = os.getpid()
    for thing, let_go in list(_kept.items()):
        let_go(thing)


os.register_at_fork(after_in_child=_let_go)
