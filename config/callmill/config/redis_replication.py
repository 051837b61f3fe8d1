"""How safe a failover would be: the checks of ``callmill doctor`` on replicas and Sentinels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import redis

from callmill.config.redis_connections import sentinel_clients
from callmill.config.redis_safety import Finding, Level, ServerFacts
from callmill.config.redis_url import SentinelUrl, is_sentinel

_LATE_S = 10
"""A replica says every second how far it is."""

_MAJORITY_OF = 3
"""Fewer Sentinels cannot agree on anything once one of them is gone."""


def replication(facts: ServerFacts, *, wait_replicas: int) -> Iterator[Finding]:
    """Say which replicas there are, how far behind, and what is asked of them; nothing of a server without any."""
    info, config = facts.info, facts.config or {}
    if info.get("role", "master") != "master":
        return
    replicas = [info[f"slave{n}"] for n in range(int(info.get("connected_slaves", 0)))]
    asked = int(config.get("min-replicas-to-write", 0))
    if not replicas and not asked and not wait_replicas:
        return
    behind = [_behind(replica, int(info.get("master_repl_offset", 0))) for replica in replicas]
    found = f"{len(replicas)} replicas" + "".join(f"; {text}" for text, _ in behind)
    in_time = sum(good for _, good in behind)
    if in_time < max(asked, wait_replicas):
        needed = "CALLMILL_WAIT_REPLICAS" if wait_replicas > asked else "min-replicas-to-write"
        remedy = f"start the replicas: {needed} asks for {max(asked, wait_replicas)}, and nothing is written until then"
        yield Finding(Level.FAIL, "replicas", found, remedy)
    elif in_time < len(replicas):
        yield Finding(Level.WARN, "replicas", found, "see the log of the replica that is behind")
    else:
        yield Finding(Level.OK, "replicas", found)
    if asked:
        within = config.get("min-replicas-max-lag", "?")
        text = f"writes need {asked} of them, seen within {within} s"
        yield Finding(Level.OK, "min-replicas", text)
    elif facts.config is not None and replicas:
        remedy = "set min-replicas-to-write 1, and min-replicas-max-lag below the Sentinels' down-after-milliseconds"
        yield Finding(
            Level.WARN, "min-replicas", "a primary that is cut off goes on taking writes that are lost", remedy
        )


def sentinels(url: str) -> Iterator[Finding]:
    """Ask every Sentinel of a URL who the primary is; nothing where it names none."""
    if not is_sentinel(url):
        return
    address = SentinelUrl.parse(url)
    answers: dict[str, list[str]] = {}
    silent = []
    for name, client in sentinel_clients(address):
        with closing(client):
            try:
                known = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)  # type: ignore[no-untyped-call] # redis-py's is not annotated
                client.execute_command("SENTINEL", "CKQUORUM", address.service)  # type: ignore[no-untyped-call] # as above
            except redis.RedisError as error:
                silent.append(f"{name}: {error}")
            else:
                answers.setdefault(_shown(known), []).append(name)
    asked = len(address.sentinels)
    found = f"{asked - len(silent)} of {asked} know {address.service!r} and can fail it over"
    found += "".join(f"; primary {primary}" for primary in answers) + "".join(f"; {text}" for text in silent)
    if len(answers) > 1:
        yield Finding(Level.FAIL, "sentinels", found, "wait a few seconds; if they still differ, see their logs")
    elif not answers or len(silent) * 2 >= asked:
        yield Finding(Level.FAIL, "sentinels", found, "start the Sentinels, and see the name that they monitor")
    elif silent or asked < _MAJORITY_OF:
        yield Finding(Level.WARN, "sentinels", found, "run three, on machines that do not fail together, and name all")
    else:
        yield Finding(Level.OK, "sentinels", found)


def _behind(replica: dict[str, Any], offset: int) -> tuple[str, bool]:
    where, lag_s = f"{replica.get('ip')}:{replica.get('port')}", int(replica.get("lag", 0))
    if replica.get("state") != "online":
        return f"{where} is still being filled ({replica.get('state')})", False
    missing = max(0, offset - int(replica.get("offset", 0)))
    return f"{where} {missing:,} bytes behind, seen {lag_s} s ago", lag_s < _LATE_S


def _shown(address: Any) -> str:
    if not address:
        return "unknown"
    host, port = (part.decode() if isinstance(part, bytes) else str(part) for part in address)
    return f"{host}:{port}"
