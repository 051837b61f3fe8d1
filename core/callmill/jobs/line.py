"""Line: calls of one API and one traffic class that wait behind each other and behind nobody else."""

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
_IDENTITY = re.compile(r"i([0-9a-f]{10})")
_BATCH = "b="
_BOUND = re.compile(rf"^([^@]*(?:@f\d+)?)(?:@{_IDENTITY.pattern}(?=@|$))?(?:@{_BATCH}[^@]*)?")


class Line(Struct, frozen=True):
    """One traffic class of one API.

    Its text names queues and keys, so a worker only receives hints of the lines that it serves. It is the API's name,
    then whatever applies, in this order::

        api@f2@i3fa94c2110@b=4be1@priority@tenant

    Attributes:
        api: Name of the API.
        traffic: The class of the calls.
        format: The ledger format of the batches, so that their hints reach only who can read their chunks.
        identity: ``PublicApi.identity`` of the API, so that only its workers get hints; empty: any of its name.
        batch: The only batch of the line; empty: all batches share it.
    """

    api: str
    traffic: TrafficClass = NORMAL
    format: int = 1
    identity: str = ""
    batch: str = ""

    def __str__(self) -> str:
        parts = [self.api]
        if self.format > 1:
            parts.append(f"f{self.format}")
        if self.identity:
            parts.append(f"i{self.identity}")
        if self.batch:
            parts.append(f"{_BATCH}{self.batch}")
        if self.traffic != NORMAL:
            parts += (self.traffic.priority.value, self.traffic.tenant)
        return _MARK.join(part for part in parts if part)

    @classmethod
    def parse(cls, text: str) -> Line:
        """Read a line's text back.

        Raises:
            ValueError: It is none, or one of a newer version.
        """
        api, *rest = text.split(_MARK)
        written = format_of(text)
        if written > FORMAT:
            raise ValueError(f"line {text!r} is of ledger format {written}, this Callmill knows {FORMAT}")
        if written > 1:
            del rest[0]
        identity = _IDENTITY.fullmatch(rest[0]) if rest else None
        if identity:
            del rest[0]
        batch = rest.pop(0).removeprefix(_BATCH) if rest and rest[0].startswith(_BATCH) else ""
        traffic = NORMAL
        if rest:
            priority, *tenant = rest
            traffic = TrafficClass(Priority(priority), checked_tenant(_MARK.join(tenant)) if tenant else "")
        return cls(api, traffic, written, identity[1] if identity else "", batch)


def format_of(line: str) -> int:
    """Return the ledger format of the batches that have a chunk in a line of this text."""
    marked = _FORMAT.fullmatch(line.partition(_MARK)[2].partition(_MARK)[0])
    return int(marked[1]) if marked else 1


def api_of(line: str) -> str:
    """Return the API of a line's text."""
    return line.partition(_MARK)[0]


def identity_of(line: str) -> str:
    """Return the identity of the API that a line is bound to, from its text; empty: any of its name."""
    bound = _BOUND.match(line)
    return (bound[2] or "") if bound else ""


def shown_line(line: str) -> str:
    """Return a line as shown to people: the API, and the traffic class unless it is the default."""
    return _BOUND.sub(r"\1", line)


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
