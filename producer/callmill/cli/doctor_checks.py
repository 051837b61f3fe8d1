"""The checks of ``callmill doctor``, each a function that returns what it found."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping

import redis

from callmill.config import redis_replication, redis_safety
from callmill.config.alert_policy import AlertEvent, resolve_webhooks
from callmill.config.credentials import resolve_headers
from callmill.config.profiles import ApiProfile, find_alerts, find_profiles, profiles_path
from callmill.config.redis_connections import connect_blocking
from callmill.config.redis_safety import Finding, Level
from callmill.config.settings import Settings
from callmill.errors import ConfigurationError
from callmill.ledger.fleet import WorkerStatus

_PINGS = 200
_FILES_BESIDES = 256


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
    yield check_alerts(settings)


def check_alerts(settings: Settings) -> Finding:
    """Look at whether anybody is told what changes."""
    try:
        policy = find_alerts(settings)
        webhooks = [] if policy is None else resolve_webhooks(policy)
    except ConfigurationError as error:
        return Finding(Level.FAIL, "alerts", str(error), "mend what is named")
    if policy is None:
        return Finding(Level.OK, "alerts", "nobody is told of changes; [alerts] in the profiles has a webhook told")
    several = "webhooks are" if len(webhooks) > 1 else "webhook is"
    events = "every event" if set(policy.events) == set(AlertEvent) else ", ".join(policy.events)
    return Finding(Level.OK, "alerts", f"{len(webhooks)} {several} told of {events}; try it: `callmill alerts test`")


def check_file_descriptors(settings: Settings, profiles: Mapping[str, ApiProfile]) -> Finding:
    """Look at how many connections a worker may open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = (min(profile.max_connections, settings.calls_in_flight) for profile in profiles.values())
    needed = sum(connections) + _FILES_BESIDES
    if hard in {resource.RLIM_INFINITY, -1} or hard >= needed:
        return Finding(Level.OK, "open files", f"a worker needs up to {needed:,}, allowed are {_number(hard)}")
    remedy = "raise the hard limit (`ulimit -Hn`, LimitNOFILE=, Docker's ulimits), or lower max_connections"
    return Finding(Level.FAIL, "open files", f"a worker needs up to {needed:,}, allowed are {hard:,}", remedy)


def check_redis(url: str, settings: Settings) -> Iterator[Finding]:
    """Look at the server of the ledger, and at who would take over from it."""
    yield from redis_replication.sentinels(url)
    client = connect_blocking(url, socket_timeout_s=5)
    try:
        facts = redis_safety.ServerFacts.read(client)
        yield from redis_safety.identity(facts)
        yield from redis_safety.durability(facts)
        yield from redis_safety.condition(facts)
        yield from redis_replication.replication(facts, wait_replicas=settings.wait_replicas)
        yield from redis_safety.memory(facts, settings.memory_watermark)
        yield redis_safety.latency(client, _PINGS)
        yield redis_safety.clock(client)
    except redis.RedisError as error:
        remedy = redis_safety.remedy(error) or "see that the server runs and that CALLMILL_REDIS_URL names it"
        yield Finding(Level.FAIL, "redis", f"cannot be used: {error}", remedy)
    finally:
        client.close()


def check_workers(workers: list[WorkerStatus]) -> Finding:
    """Look at who works."""
    if not workers:
        remedy = "start one per core with `callmill worker`, or everything with `callmill up`"
        return Finding(Level.WARN, "workers", "none runs; jobs wait", remedy)
    if newer := sorted({batch for worker in workers for batch in worker.newer_format}):
        remedy = "upgrade the workers that are older: `callmill status` names them"
        return Finding(Level.WARN, "workers", f"some leave {', '.join(newer)} alone: a newer Callmill wrote it", remedy)
    if any(worker.unreadable for worker in workers):
        return Finding(Level.WARN, "workers", "some are newer than this program", "upgrade this program, too")
    apis = sorted({api for worker in workers for api in worker.apis})
    hosts = len({worker.host for worker in workers})
    return Finding(
        Level.OK, "workers", f"{len(workers)} on {hosts} {'host' if hosts == 1 else 'hosts'}, serving {', '.join(apis)}"
    )


def _number(limit: int) -> str:
    return "any number" if limit in {resource.RLIM_INFINITY, -1} else f"{limit:,}"
