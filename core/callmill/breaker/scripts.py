"""The breaker's script: what it takes and returns, by the names that stand in ``lua/exchange.lua`` as well."""

from __future__ import annotations

from msgspec import Struct

from callmill.breaker.records import BreakerRules, Report
from callmill.config.lua_script import LuaScript


class ExchangeKeys(Struct, frozen=True):
    """Where an API's breaker is kept."""

    state: str
    counts: str


class ExchangeArguments(Struct, frozen=True, kw_only=True):
    """What happened to the calls of one process, and by which rules it is judged."""

    worker: str
    epoch: int
    report: Report
    rules: BreakerRules
    random: float
    streak_s: float
    witnesses: int
    doubts_last_s: float
    retries_at_least: int
    retries_of_overloaded: int
    lease_s: float


class Exchanged(Struct, frozen=True):
    """What holds now."""

    state: int
    epoch: int
    ok: int
    bad: int
    streak: int
    streak_ms: int
    witnesses: int
    doubts: int
    probe_in_ms: int
    probes: int
    retries: int
    reason: bytes


EXCHANGE = LuaScript("callmill.breaker", "exchange", keys=ExchangeKeys, arguments=ExchangeArguments, answer=Exchanged)

SCRIPTS = (EXCHANGE,)
