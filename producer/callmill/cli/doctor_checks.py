"""The checks of ``callmill doctor``, each a function that returns what it found."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

import redis
from msgspec import Struct

from callmill.config.credentials import resolve_headers
from callmill.config.profiles import ApiProfile, find_profiles, profiles_path
from callmill.config.redis_connections import connect_blocking
from callmill.config.settings import Settings
from callmill.errors import ConfigurationError
from callmill.ledger.fleet import WorkerStatus

OLDEST_REDIS = (6, 2)
_PINGS = 200
_SLOW_P50_MS, _SLOW_P99_MS = 2.0, 20.0
_CLOCKS_APART_S = 1.0
_MEMORY_SHARE_WARN, _MEMORY_SHARE_FAIL = 0.7, 0.9
_FILES_BESIDES = 256


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


def check_profiles(settings: Settings) -> Iterator[Finding]:
    """Look at the profiles and their credentials."""
    try:
        profiles = find_profiles(settings)
    except ConfigurationError as error:
        yield Finding(Level.FAIL, "profiles", str(error), "mend the file that is named")
        return
    if not profiles:
        where = profiles_path(settings) or "config/apis.toml or ./apis.toml"
        remedy = f"where workers run, write [apis.NAME] tables into {where}, or set CALLMILL_APIS"
        yield Finding(Level.WARN, "profiles", "none here: no worker can run on this machine", remedy)
        return
    yield Finding(Level.OK, "profiles", f"{', '.join(sorted(profiles))} in {profiles_path(settings)}")
    try:
        for profile in profiles.values():
            resolve_headers(profile)
    except ConfigurationError as error:
        yield Finding(Level.FAIL, "credentials", str(error), "set what is named, for the workers")
    else:
        yield Finding(Level.OK, "credentials", "all there")
    yield check_file_descriptors(settings, profiles)


def check_file_descriptors(settings: Settings, profiles: Mapping[str, ApiProfile]) -> Finding:
    """Look at how many connections a worker may open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = (min(profile.max_connections, settings.calls_in_flight) for profile in profiles.values())
    needed = sum(connections) + _FILES_BESIDES
    if hard in {resource.RLIM_INFINITY, -1} or hard >= needed:
        return Finding(Level.OK, "open files", f"a worker needs up to {needed:,}, allowed are {_number(hard)}")
    remedy = "raise the hard limit (`ulimit -Hn`, LimitNOFILE=, Docker's ulimits), or lower max_connections"
    return Finding(Level.FAIL, "open files", f"a worker needs up to {needed:,}, allowed are {hard:,}", remedy)


def check_redis(url: str) -> Iterator[Finding]:
    """Look at the server of the ledger."""
    client = connect_blocking(url, socket_timeout_s=5)
    try:
        info: dict[str, Any] = client.info()
        yield from _server(info)
        yield from _memory(info)
        yield _latency(client)
        yield _clock(client)
    except redis.RedisError as error:
        remedy = "see that the server runs and that CALLMILL_REDIS_URL names it"
        yield Finding(Level.FAIL, "redis", f"cannot be used: {error}", remedy)
    finally:
        client.close()


def check_workers(workers: list[WorkerStatus]) -> Finding:
    """Look at who works."""
    if not workers:
        remedy = "start one per core with `callmill worker`, or everything with `callmill up`"
        return Finding(Level.WARN, "workers", "none runs; jobs wait", remedy)
    apis = sorted({api for worker in workers for api in worker.apis})
    hosts = len({worker.host for worker in workers})
    return Finding(Level.OK, "workers", f"{len(workers)} on {hosts} hosts, serving {', '.join(apis)}")


def _server(info: Mapping[str, Any]) -> Iterator[Finding]:
    version = str(info.get("redis_version", "0"))
    name = str(info.get("server_name", "redis"))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        yield Finding(Level.FAIL, "redis", f"{name} {version}", "upgrade it to 6.2 or newer, or use Valkey")
    else:
        yield Finding(Level.OK, "redis", f"{name}, speaks Redis {version}")
    if info.get("cluster_enabled"):
        yield Finding(Level.FAIL, "cluster", "is a Redis Cluster", "use a single primary; Celery knows no cluster")
    if info.get("role", "master") != "master":
        yield Finding(Level.FAIL, "role", "is a replica", "name the primary in CALLMILL_REDIS_URL")
    if info.get("aof_enabled"):
        yield Finding(Level.OK, "persistence", "append-only file")
    else:
        yield Finding(Level.WARN, "persistence", "no append-only file: a restart loses jobs", "set appendonly yes")


def _memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction":
        yield Finding(Level.OK, "eviction", policy)
    else:
        yield Finding(Level.FAIL, "eviction", f"{policy}: Redis may drop jobs", "set maxmemory-policy noeviction")
    used = int(info.get("used_memory", 0))
    limit = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
    if not limit:
        return
    found = f"{used / 2**20:,.0f} MiB of {limit / 2**20:,.0f} MiB used"
    if used < limit * _MEMORY_SHARE_WARN:
        yield Finding(Level.OK, "memory", found)
    else:
        level = Level.FAIL if used > limit * _MEMORY_SHARE_FAIL else Level.WARN
        yield Finding(level, "memory", found, "raise maxmemory, delete old batches, or lower the retention")


def _latency(client: redis.Redis) -> Finding:
    times_ms = []
    for _ in range(_PINGS):
        begin = time.perf_counter()
        client.ping()
        times_ms.append((time.perf_counter() - begin) * 1000)
    times_ms.sort()
    p50, p99 = times_ms[_PINGS // 2], times_ms[_PINGS * 99 // 100]
    found = f"PING p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    if p50 < _SLOW_P50_MS and p99 < _SLOW_P99_MS:
        return Finding(Level.OK, "latency", found)
    return Finding(Level.WARN, "latency", found, "run Redis near the workers, on a machine that has room")


def _clock(client: redis.Redis) -> Finding:
    begin = time.time()
    seconds, micros = client.time()
    end = time.time()
    apart_s = seconds + micros / 1e6 - (begin + end) / 2
    found = f"{abs(apart_s) * 1000:,.0f} ms {'behind' if apart_s > 0 else 'ahead of'} Redis"
    if abs(apart_s) < _CLOCKS_APART_S:
        return Finding(Level.OK, "clock", found)
    remedy = "synchronise both clocks (NTP); limits hold all the same, shown times do not"
    return Finding(Level.WARN, "clock", found, remedy)


def _number(limit: int) -> str:
    return "any number" if limit in {resource.RLIM_INFINITY, -1} else f"{limit:,}"
