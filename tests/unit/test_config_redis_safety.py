"""Which servers endanger jobs, and which of them no worker starts on."""

from __future__ import annotations

import re

import pytest

from callmill.config.redis_safety import Level, ServerFacts, condition, durability, identity, memory, refusal

SAFE = {"redis_version": "7.2.4", "aof_enabled": 1, "maxmemory_policy": "noeviction", "maxmemory": 100}
WATERMARK = 0.85


def facts(info, config=None):
    """Return a safe server's facts, changed; a value of None is one that INFO lacks."""
    return ServerFacts({key: value for key, value in {**SAFE, **info}.items() if value is not None}, config)


@pytest.mark.parametrize(
    ("info", "config", "levels"),
    [
        ({}, None, {"redis": Level.OK, "persistence": Level.OK, "eviction": Level.OK}),
        ({"redis_version": "6.0.9"}, None, {"redis": Level.FAIL}),
        ({"cluster_enabled": 1}, None, {"cluster": Level.FAIL}),
        ({"role": "slave"}, None, {"role": Level.FAIL}),
        ({"aof_enabled": 0}, {"save": "3600 1"}, {"persistence": Level.FAIL}),
        ({"aof_enabled": None}, None, {"persistence": Level.WARN}),
        ({}, {"appendfsync": "no"}, {"persistence": Level.WARN}),
        ({}, {"appendfsync": "everysec"}, {"persistence": Level.OK}),
        ({"maxmemory_policy": "allkeys-lru"}, None, {"eviction": Level.FAIL}),
        ({"maxmemory_policy": "allkeys-lru", "maxmemory": 0}, None, {"eviction": Level.OK}),
        ({"maxmemory_policy": None}, None, {"eviction": Level.WARN}),
        ({"aof_last_write_status": "err"}, None, {"disk": Level.FAIL}),
        ({"rdb_last_bgsave_status": "err"}, {"save": "60 1"}, {"disk": Level.WARN}),
        ({"used_memory": 75}, None, {"memory": Level.WARN}),
        ({"used_memory": 85}, None, {"memory": Level.FAIL}),
        ({"used_memory": 5, "maxmemory": 0, "total_system_memory": 100}, None, {"memory": Level.OK}),
    ],
)
def test_findings(info, config, levels):
    """Each property of a server that endangers jobs is found, with a remedy unless it is well."""
    server = facts(info, config)
    findings = [*identity(server), *durability(server), *condition(server), *memory(server, WATERMARK)]
    found = {finding.check: finding.level for finding in findings}
    assert {check: found[check] for check in levels} == levels
    assert all(bool(finding.remedy) == (finding.level is not Level.OK) for finding in findings)


@pytest.mark.parametrize(
    ("info", "allowed", "why"),
    [
        ({}, False, None),
        ({"aof_enabled": None, "maxmemory_policy": None}, False, None),
        ({"role": "slave"}, False, None),
        ({"aof_enabled": 0}, False, "appendonly yes.*CALLMILL_ALLOW_UNSAFE_REDIS"),
        ({"maxmemory_policy": "volatile-ttl"}, False, "noeviction.*CALLMILL_ALLOW_UNSAFE_REDIS"),
        ({"aof_enabled": 0, "maxmemory_policy": "volatile-ttl"}, True, None),
        ({"redis_version": "5.0.14"}, True, "cannot be used.*6.2"),
        ({"cluster_enabled": 1}, True, "cannot be used.*single primary"),
    ],
)
def test_refusal(info, allowed, why):
    """A server that loses or evicts is refused unless allowed; one that cannot be used, always; what passes, never."""
    refused = refusal(facts(info), allow_unsafe=allowed)
    assert refused is None if why is None else re.search(why, refused or "")


def test_what_cannot_be_checked_is_told():
    """Where CONFIG is forbidden, or INFO lacks a field, the finding says what could not be checked."""
    assert "CONFIG is forbidden" in next(durability(facts({}))).found
    told = [finding.found for finding in durability(facts({"aof_enabled": None, "maxmemory_policy": None}))]
    assert all("cannot be checked" in found for found in told)
    assert len(told) == 2
