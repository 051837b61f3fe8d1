"""Line: the calls of one traffic class of one API. They wait behind each other and behind nobody else."""

from __future__ import annotations

import re

from msgspec import Struct

from callmill.config.tenant import checked_tenant
from callmill.errors import UsageError
from callmill.jobs.formats import FORMAT
from callmill.jobs.traffic import NORMAL, Priority, TrafficClass

_MARK = "@"
"""Neither an API's nor a tenant's name can hold it."""
_FORMAT = re.compile(r"f([1-9][0-9]{0,8})")


class Line(Struct, frozen=True):
    """One traffic class of one API.

    Its text names queues and keys: ``api`` where the traffic is normal and no tenant's, else ``api@priority`` or
    ``api@priority@tenant``. Batches of another format than the first have lines of their own, so that hints reach only
    who can read their chunks: ``api@f2``, ``api@f2@priority``.
    """

    api: str
    traffic: TrafficClass = NORMAL
    format: int = 1

    def __str__(self) -> str:
        parts = [self.api]
        if self.format > 1:
            parts.append(f"f{self.format}")
        if self.traffic != NORMAL:
            parts += (self.traffic.priority.value, self.traffic.tenant)
        return _MARK.join(part for part in parts if part)

    @classmethod
    def parse(cls, text: str) -> Line:
        """Read a line's text back.

        Raises:
            ValueError: It is none, or one of a newer version.
        """
        api, *rest = text.split(_MARK, 3)
        written = format_of(text)
        if written > FORMAT:
            raise ValueError(f"line {text!r} is of ledger format {written}, this Callmill knows {FORMAT}")
        if written > 1:
            del rest[0]
        if not rest:
            return cls(api, format=written)
        priority, *tenant = rest
        return cls(api, TrafficClass(Priority(priority), checked_tenant(_MARK.join(tenant)) if tenant else ""), written)


def format_of(line: str) -> int:
    """Return the ledger format of the batches that have a chunk in a line of this text."""
    marked = _FORMAT.fullmatch(line.partition(_MARK)[2].partition(_MARK)[0])
    return int(marked[1]) if marked else 1


def api_of(line: str) -> str:
    """Return the API of a line's text."""
    return line.partition(_MARK)[0]


def traffic_class(priority: str, tenant: str) -> TrafficClass:
    """Return the class that a caller names; an empty tenant is nobody in particular.

    Raises:
        UsageError: There is no such priority, or the tenant's name cannot be one.
    """
    if priority not in set(Priority):
        raise UsageError(f"{priority!r} is no priority: {', '.join(Priority)}")
    try:
        return TrafficClass(Priority(priority), checked_tenant(tenant) if tenant else "")
    except ValueError as error:
        raise UsageError(str(error)) from error
