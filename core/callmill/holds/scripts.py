"""The script of holds: what it takes and returns, by the names that stand in ``lua/exchange.lua`` as well."""

from __future__ import annotations

from msgspec import Struct

from callmill.config.lua_script import LuaScript
from callmill.holds.records import HoldReport, HoldRules


class ExchangeKeys(Struct, frozen=True):
    """Where a subject is kept, and what the subjects of an API share."""

    state: str
    shared: str


class ExchangeArguments(Struct, frozen=True, kw_only=True):
    """What happened to a subject in one process, and when it is held."""

    worker: str
    subject: str
    mark: str
    begins: bool
    report: HoldReport
    rules: HoldRules
    calls_at_once: int
    processes_at_once: int
    lease_ms: int


class Exchanged(Struct, frozen=True):
    """What holds now."""

    state: int
    grant: int
    next_ms: int
    line: bytes


EXCHANGE = LuaScript("callmill.holds", "exchange", keys=ExchangeKeys, arguments=ExchangeArguments, answer=Exchanged)

SCRIPTS = (EXCHANGE,)
