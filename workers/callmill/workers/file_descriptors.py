"""File descriptors: each connection takes one, so they limit how many calls a worker makes at once."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct

from callmill.errors import ConfigurationError

REMEDY = "raise the hard limit of open files (`ulimit -Hn`, systemd's LimitNOFILE=, Docker's `ulimits`)"

_OF_THE_PROCESS = 80
"""Redis, Celery, event loop, logs and name look-ups: 42 measured under full load."""
_OF_AN_API = 4
"""Its limiter's and breaker's connections: 2 measured."""


class CallsAtOnce(Struct, frozen=True):
    """How many calls of one API a process may have in flight.

    Attributes:
        wanted: What profiles and settings ask for; the largest number of any API.
        possible: At most this many of each API; not above ``wanted``.
        files: How many files it takes to give every API what it wants.
    """

    wanted: int
    possible: int
    files: int


def calls_at_once(connections: Collection[int], limit: int | None) -> CallsAtOnce:
    """Share the limit among the APIs: those that want little get it, the others get equal shares of the rest.

    Args:
        connections: How many each API wants.
        limit: How many files the process may open; None: any number.

    Raises:
        ConfigurationError: The limit is too low for one connection per API.
    """
    wanted, others = max(connections), _OF_THE_PROCESS + _OF_AN_API * len(connections)
    files = others + sum(connections)
    if limit is None or files <= limit:
        return CallsAtOnce(wanted, wanted, files)
    if limit < others + len(connections):
        raise ConfigurationError(
            f"this process may open {limit} files, but needs at least {others + len(connections)}: {REMEDY}"
        )
    left = limit - others
    possible = next(each for each in range(left, 0, -1) if sum(min(one, each) for one in connections) <= left)
    return CallsAtOnce(wanted, possible, files)
