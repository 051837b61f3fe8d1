"""The checks of ``callmill doctor``, each a function that returns what it found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import redis

from callmill.config import open_files, redis_replication, redis_safety
from callmill.config.alert_policy import AlertEvent, resolve_webhooks
from callmill.config.credentials import ResolvedCredential, resolve_credentials
from callmill.config.profiles import ApiProfile, find_alerts, find_profiles, profiles_path
from callmill.config.redis_connections import connect_blocking
from callmill.config.redis_safety import Finding, Level
from callmill.config.secret_mask import is_unmistakable
from callmill.config.settings import Settings
from callmill.errors import ConfigurationError
from callmill.ledger.fleet import WorkerStatus
from callmill.overview.served import WaitsElsewhere
from callmill.producer.known_apis import Elsewhere
from callmill.workers import file_descriptors

_PINGS = 200
_PROXIES = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"})


def check_profiles(settings: Settings, elsewhere: Sequence[Elsewhere] = ()) -> Iterator[Finding]:
    """Check the profiles and their credentials; ``elsewhere``: where the fleet uses a name for another API."""
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
    yield from (Finding(Level.FAIL, "profiles", other.fact, other.remedy) for other in elsewhere)
    if not elsewhere:
        yield Finding(Level.OK, "profiles", f"{', '.join(sorted(profiles))} in {profiles_path(settings)}")
    try:
        credentials = {name: resolve_credentials(profile) for name, profile in profiles.items()}
    except ConfigurationError as error:
        yield Finding(Level.FAIL, "credentials", str(error), "set what is named, for the workers")
    else:
        yield _maskable(credentials)
    yield check_file_descriptors(settings, profiles)
    yield from check_proxies(profiles, os.environ)
    yield check_alerts(settings)


def _maskable(credentials: Mapping[str, Sequence[ResolvedCredential]]) -> Finding:
    short = sorted(
        name
        for name, of_api in credentials.items()
        if not all(is_unmistakable(secret) for credential in of_api for secret in credential.secrets)
    )
    if not short:
        return Finding(Level.OK, "credentials", "all present")
    found = f"all present; those of {', '.join(short)} are too short, or too much like a word or number, to be masked"
    return Finding(Level.WARN, "credentials", f"{found} in answers that echo them", "ask the provider for longer ones")


def check_proxies(profiles: Mapping[str, ApiProfile], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check for proxies in the environment, which calls ignore."""
    named = [name for name in environment if name.upper() in _PROXIES and environment[name]]
    if not named:
        return
    own = [name for name, profile in profiles.items() if profile.session_factory is not None]
    but = f", except for {', '.join(sorted(own))}, whose session_factory decides" if own else ""
    yield Finding(
        Level.WARN,
        "proxy",
        f"{', '.join(sorted(named))}: ignored; calls go directly to the APIs{but}",
        'if an API needs the proxy, set transport = "requests" and a session_factory that uses it',
    )


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
    limit = open_files.hard_limit()
    wanted = [min(profile.max_connections, settings.calls_in_flight) for profile in profiles.values()]
    try:
        calls = file_descriptors.calls_at_once(wanted, limit)
    except ConfigurationError as error:
        return Finding(Level.FAIL, "open files", str(error), "do this where workers run")
    found = f"a worker needs up to {calls.files:,}, the limit is {'infinite' if limit is None else f'{limit:,}'}"
    if calls.possible == calls.wanted:
        return Finding(Level.OK, "open files", found)
    fewer = f": at most {calls.possible:,} calls of one API at once, not {calls.wanted:,}"
    return Finding(Level.WARN, "open files", found + fewer, f"{file_descriptors.REMEDY} where workers run")


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


def check_waiting(elsewhere: Sequence[WaitsElsewhere]) -> Iterator[Finding]:
    """Check for chunks that wait for workers serving another API of the same name."""
    for waits in elsewhere:
        yield Finding(Level.WARN, "apis", waits.text, f"`callmill apis move {waits.api}` if it has moved")
