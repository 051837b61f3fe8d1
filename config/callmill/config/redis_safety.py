"""Whether a Redis keeps what it is given: the checks of ``callmill doctor`` and of a worker's start.

INFO says most of it. CONFIG says the rest, and is forbidden by many a managed Redis: then the findings tell what could
not be checked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

import redis
from msgspec import Struct
from redis.exceptions import NoPermissionError

from callmill.config.redaction import redacted
from callmill.config.redis_connections import connect_blocking
from callmill.errors import ConfigurationError

OLDEST_REDIS = (6, 2)
"""XTRIM has MINID from there on."""

_ANSWER_TIMEOUT_S = 5.0
_SLOW_P50_MS, _SLOW_P99_MS = 2.0, 20.0
_CLOCKS_APART_S = 1.0
_ROOMY_SHARE = 0.7
_MIB = 2**20


class Level(StrEnum):
    """How good it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(Struct, frozen=True):
    """What a check found.

    Attributes:
        check: What was looked at.
        found: How it is.
        remedy: What to do about it; empty when it is well.
    """

    level: Level
    check: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")


class ServerFacts(Struct, frozen=True):
    """What a server says of itself.

    Attributes:
        info: Its INFO.
        config: What CONFIG says of ``appendfsync``, ``save`` and ``min-replicas-...``; None where CONFIG is forbidden.
    """

    info: Mapping[str, Any]
    config: Mapping[str, str] | None = None

    @classmethod
    def read(cls, client: redis.Redis) -> ServerFacts:
        """Ask a server.

        Raises:
            redis.RedisError: It cannot be reached, or INFO is forbidden.
        """
        info: dict[str, Any] = client.info()
        try:
            config: dict[str, str] = {}
            for name in (
                "appendfsync",
                "save",
                "min-replicas-to-write",
                "min-replicas-max-lag",
            ):  # Redis 6.2 takes one pattern at a time
                config |= client.config_get(name)  # type: ignore[arg-type] # redis-py shares its types with asyncio
        except redis.ResponseError:
            return cls(info)
        return cls(info, config)


def identity(facts: ServerFacts) -> Iterator[Finding]:
    """Say whether Callmill can work on such a server at all."""
    version = str(facts.info.get("redis_version", "0"))
    name = str(facts.info.get("server_name", "redis"))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        yield Finding(Level.FAIL, "redis", f"{name} {version}", "upgrade it to 6.2 or newer, or use Valkey")
    else:
        yield Finding(Level.OK, "redis", f"{name}, speaks Redis {version}")
    if facts.info.get("cluster_enabled"):
        yield Finding(Level.FAIL, "cluster", "is a Redis Cluster", "use a single primary; Celery knows no cluster")


def durability(facts: ServerFacts) -> Iterator[Finding]:
    """Say whether the server keeps what it acknowledged; where one of these fails, workers do not start."""
    yield _persistence(facts)
    policy, limit = facts.info.get("maxmemory_policy"), int(facts.info.get("maxmemory", 0))
    if policy is None:
        remedy = "see that its maxmemory-policy is noeviction"
        yield Finding(Level.WARN, "eviction", "cannot be checked: INFO does not tell the policy", remedy)
    elif policy == "noeviction" or not limit:
        yield Finding(Level.OK, "eviction", f"{policy}{'' if limit else ', and no maxmemory'}")
    else:
        remedy = "set maxmemory-policy noeviction"
        yield Finding(Level.FAIL, "eviction", f"{policy}: Redis drops jobs when its memory is full", remedy)


def condition(facts: ServerFacts) -> Iterator[Finding]:
    """Say how the server is now, which may pass."""
    if facts.info.get("role", "master") != "master":
        yield Finding(Level.FAIL, "role", "is a replica", "name the primary in CALLMILL_REDIS_URL")
    if facts.info.get("aof_enabled") and facts.info.get("aof_last_write_status", "ok") != "ok":
        yield Finding(Level.FAIL, "disk", "the append-only file cannot be written", "see the server's log and its disk")
    if facts.info.get("rdb_last_bgsave_status", "ok") != "ok" and (facts.config or {}).get("save"):
        yield Finding(Level.WARN, "disk", "the last snapshot failed", "see the server's log and its disk")


def memory(facts: ServerFacts, watermark: float) -> Iterator[Finding]:
    """Say how much room there is; producers wait from ``watermark`` on, a share of maxmemory."""
    used, limit = int(facts.info.get("used_memory", 0)), int(facts.info.get("maxmemory", 0))
    of = limit or int(facts.info.get("total_system_memory", 0))
    if not of:
        return
    found = f"{used / _MIB:,.0f} MiB of {of / _MIB:,.0f} MiB used"
    if not limit:
        found += " (the machine's: there is no maxmemory)"
    if used < of * min(_ROOMY_SHARE, watermark):
        yield Finding(Level.OK, "memory", found)
    else:
        level = Level.FAIL if used >= of * watermark else Level.WARN
        found += f"; producers wait from {watermark:.0%} on" if limit else ""
        remedy = "raise maxmemory, read and release outcomes, delete old batches, or lower the retention"
        yield Finding(level, "memory", found, remedy)


def latency(client: redis.Redis, pings: int) -> Finding:
    """Measure how soon the server answers."""
    times_ms = []
    for _ in range(pings):
        begin = time.perf_counter()
        client.ping()
        times_ms.append((time.perf_counter() - begin) * 1000)
    times_ms.sort()
    p50, p99 = times_ms[pings // 2], times_ms[pings * 99 // 100]
    found = f"PING p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    if p50 < _SLOW_P50_MS and p99 < _SLOW_P99_MS:
        return Finding(Level.OK, "latency", found)
    return Finding(Level.WARN, "latency", found, "run Redis near the workers, on a machine that has room")


def clock(client: redis.Redis) -> Finding:
    """Compare this machine's clock with the server's."""
    begin = time.time()
    seconds, micros = client.time()
    end = time.time()
    apart_s = seconds + micros / 1e6 - (begin + end) / 2
    found = f"{abs(apart_s) * 1000:,.0f} ms {'behind' if apart_s > 0 else 'ahead of'} Redis"
    if abs(apart_s) < _CLOCKS_APART_S:
        return Finding(Level.OK, "clock", found)
    remedy = "synchronise both clocks (NTP); limits hold all the same, shown times do not"
    return Finding(Level.WARN, "clock", found, remedy)


def refusal(facts: ServerFacts, *, allow_unsafe: bool) -> str | None:
    """Say why no worker may start on this server; None where it may."""
    unfit = [str(finding) for finding in identity(facts) if finding.level is Level.FAIL]
    if unfit:
        return f"this Redis cannot be used: {'; '.join(unfit)}"
    unsafe = [str(finding) for finding in durability(facts) if finding.level is Level.FAIL]
    if not unsafe or allow_unsafe:
        return None
    return (
        f"this Redis would lose jobs: {'; '.join(unsafe)}. "
        "Where losing them is acceptable, set CALLMILL_ALLOW_UNSAFE_REDIS=1"
    )


def remedy(error: Exception) -> str:
    """Say what to do about an error that waiting does not mend; empty where it may."""
    if isinstance(error, NoPermissionError):
        return "give this user the rights that docs/operate/secure.md lists; ACL LOG of the server says what it lacked"
    if isinstance(error, redis.AuthenticationError):
        return "see user and password in the URL of Redis; special characters in them are written as %XX"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "name the authority of the server's certificate in the URL of Redis: ?ssl_ca_certs=/path/to/ca.pem"
    return ""


def refuse_unsafe(url: str, *, allow_unsafe: bool) -> None:
    """Look at the ledger's server before a worker starts; one that is away now is looked at when it is back.

    Raises:
        ConfigurationError: No worker may start on it, or it does not let one in.
    """
    client = connect_blocking(url, socket_timeout_s=_ANSWER_TIMEOUT_S)
    try:
        why = refusal(ServerFacts.read(client), allow_unsafe=allow_unsafe)
    except redis.RedisError as error:
        if isinstance(error, NoPermissionError) or not (mend := remedy(error)):
            return  # who may not ask must not be kept from working
        why = f"{error}; {mend}"
    finally:
        client.close()
    if why is not None:
        raise ConfigurationError(f"{redacted(url)}: {why}")


def _persistence(facts: ServerFacts) -> Finding:
    enabled, config = facts.info.get("aof_enabled"), facts.config
    remedy = "set appendonly yes"
    if enabled is None:
        found = "cannot be checked: INFO does not tell it"
        return Finding(Level.WARN, "persistence", found, "see that it has an append-only file or its like")
    if not enabled:
        snapshots = config is None or config.get("save")
        lost = "what came since the last snapshot" if snapshots else "everything"
        return Finding(Level.FAIL, "persistence", f"no append-only file: a restart loses {lost}", remedy)
    if config is None:
        found = "append-only file; how often it is synced cannot be checked: CONFIG is forbidden"
        return Finding(Level.OK, "persistence", found)
    sync = config.get("appendfsync", "")
    if sync == "no":
        found = "append-only file, synced when the system likes: a crash of the machine loses half a minute"
        return Finding(Level.WARN, "persistence", found, "set appendfsync everysec")
    return Finding(Level.OK, "persistence", f"append-only file, appendfsync {sync}")
