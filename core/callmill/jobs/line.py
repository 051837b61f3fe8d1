"""Line: the calls of one traffic class of one API. They wait behind each other and behind nobody else."""

from __future__ import annotations

from msgspec import Struct

from callmill.config.tenant import checked_tenant
from callmill.errors import UsageError
from callmill.jobs.traffic import NORMAL, Priority, TrafficClass

_MARK = "@"
"""Neither an API's nor a tenant's name can hold it."""


class Line(Struct, frozen=True):
    """One traffic class of one API.

    Its text names queues and keys: ``api`` where the traffic is normal and no tenant's, else ``api@priority`` or
    ``api@priority@tenant``.
    """

    api: str
    traffic: TrafficClass = NORMAL

    def __str__(self) -> str:
        if self.traffic == NORMAL:
            return self.api
        parts = (self.api, self.traffic.priority.value, self.traffic.tenant)
        return _MARK.join(part for part in parts if part)

    @classmethod
    def parse(cls, text: str) -> Line:
        """Read a line's text back.

        Raises:
            ValueError: It is none, or one of a newer version.
        """
        api, *rest = text.split(_MARK, 2)
        if not rest:
            return cls(api)
        return cls(api, TrafficClass(Priority(rest[0]), checked_tenant(rest[1]) if rest[1:] else ""))


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
