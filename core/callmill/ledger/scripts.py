"""The ledger's scripts beside those about one batch, and the texts of all of them; see ``batch_scripts``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from callmill.config.lua_script import LuaScript
from callmill.ledger import batch_scripts
from callmill.ledger.batch_scripts import READ_BY_ALL, InLine, InLines

_LUA = "callmill.ledger"


class LeaseKeys(Struct, frozen=True):
    """The keys of the batch of one lease."""

    state: str
    meta: str


class RenewKeys(Struct, frozen=True):
    """Where leases are."""

    due: str
    leases: Sequence[LeaseKeys]


class HeldLease(Struct, frozen=True):
    """A lease that its worker still holds."""

    number: int
    member: str
    fence: int


class RenewArguments(Struct, frozen=True, kw_only=True):
    """Leases, and how long they are."""

    lease_ms: int
    leases: Sequence[HeldLease]


RENEW = LuaScript(
    _LUA,
    *("line", "renew"),
    keys=RenewKeys,
    arguments=RenewArguments,
    reads={"control": READ_BY_ALL["control"]},
)


class DueKeys(Struct, frozen=True):
    """What is due when."""

    due: str


class DueArguments(Struct, frozen=True, kw_only=True):
    """A page of it."""

    limit: int
    after: int


DUE = LuaScript(_LUA, "due", keys=DueKeys, arguments=DueArguments)


class StrandedArguments(Struct, frozen=True, kw_only=True):
    """How long a chunk may wait."""

    older_than_ms: int
    limit: int


STRANDED = LuaScript(_LUA, "stranded", keys=InLine, arguments=StrandedArguments)


class TouchArguments(Struct, frozen=True, kw_only=True):
    """Chunks whose hints are in a worker's hands."""

    members: Sequence[str]


TOUCH = LuaScript(_LUA, "touch", keys=InLines, arguments=TouchArguments)


class LinesKeys(Struct, frozen=True):
    """Where lines are noted."""

    lines: str


class PruneArguments(Struct, frozen=True, kw_only=True):
    """Which lines may be forgotten."""

    unused_for_ms: int
    limit: int
    queued: str


PRUNE_LINES = LuaScript(_LUA, "prune_lines", keys=LinesKeys, arguments=PruneArguments)


class TurnArguments(Struct, frozen=True, kw_only=True):
    """How many lines are of use, and where their turns begin."""

    queued: str
    most: int
    newest: int
    begin: int
    scan: int


class LinesTurn(Struct, frozen=True):
    """The lines whose turn it is."""

    lines: Sequence[bytes]
    next: int


LINES_TURN = LuaScript(_LUA, "lines_turn", keys=LinesKeys, arguments=TurnArguments, answer=LinesTurn)


class ApiCountsKeys(Struct, frozen=True):
    """The counts of one API."""

    total: str
    minutes: str


class ReportKeys(Struct, frozen=True):
    """Where a worker's report goes."""

    status: str
    workers: str
    reported: str
    reconciled: str
    apis: Sequence[ApiCountsKeys]


class ReportArguments(Struct, frozen=True, kw_only=True):
    """What a worker does, and what it counted."""

    status: bytes
    status_ttl_ms: int
    worker: str
    number: int
    number_ttl_ms: int
    api_ttl_ms: int
    reconciled: Mapping[str, int]
    apis: Sequence[Mapping[str, int]]


REPORT = LuaScript(_LUA, "report", keys=ReportKeys, arguments=ReportArguments)


class AlertTellKeys(Struct, frozen=True):
    """Where alerts are noted."""

    states: str
    alerts: str
    ended: str


class AlertTellArguments(Struct, frozen=True, kw_only=True):
    """A change of a condition, or the end of a batch."""

    field: str = ""
    before: str = ""
    after: str = ""
    batch_id: str = ""
    alert: str
    kept: int


ALERT_TELL = LuaScript(_LUA, "alert_tell", keys=AlertTellKeys, arguments=AlertTellArguments)


class AlertNextKeys(Struct, frozen=True):
    """Where alerts wait for a webhook."""

    alerts: str
    sent: str
    sender: str


class AlertNextArguments(Struct, frozen=True, kw_only=True):
    """A worker that tells a webhook."""

    webhook: str
    worker: str
    lease_ms: int
    told: str
    limit: int


ALERT_NEXT = LuaScript(_LUA, "alert_next", keys=AlertNextKeys, arguments=AlertNextArguments)

SCRIPTS = (
    *batch_scripts.SCRIPTS,
    RENEW,
    DUE,
    STRANDED,
    TOUCH,
    PRUNE_LINES,
    LINES_TURN,
    REPORT,
    ALERT_TELL,
    ALERT_NEXT,
)
_BY_NAME = {script.parts[-1]: script for script in SCRIPTS}


def script(name: str) -> str:
    """Return the text of a script to register with a client."""
    return _BY_NAME[name].text
