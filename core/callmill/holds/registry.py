"""The holds in force, for viewing and releasing them; works without running workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from redis.asyncio import Redis

from callmill.holds.keys import FINGERPRINT, HELD, RESUMED, Keys
from callmill.holds.records import HOST, Held
from callmill.holds.store import answer, text


async def current_holds(redis: Redis, apis: Sequence[str]) -> list[dict[str, Held]]:
    """Return the holds of each of these APIs, by subject, in one round trip.

    An API is held if none of its credentials may be used: it then also has a hold with subject '' for the whole API.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    for api in apis:
        pipeline.hgetall(Keys(api).shared)
    (seconds, micros), *known = await answer(pipeline.execute())
    now_ms = seconds * 1000 + micros / 1000
    return [_holds({text(name): text(value) for name, value in fields.items()}, now_ms) for fields in known]


async def release_holds(redis: Redis, api: str, key: str | None = None) -> dict[str, Held]:
    """Let calls of an API start again, or those of one credential; return the holds that were in force.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    shared = Keys(api).shared
    (holds,) = await current_holds(redis, [api])
    wanted = None if key is None else f"key:{key}"
    known = [text(field) for field in await answer(redis.hkeys(shared))]
    subjects = [field.removeprefix(FINGERPRINT) for field in known if field.startswith(FINGERPRINT)]
    pipeline = redis.pipeline(transaction=True)
    for subject in dict.fromkeys([*subjects, *filter(None, holds)]):
        if wanted in {None, subject}:  # one that no view shows as held may be so with another secret
            pipeline.hincrby(shared, RESUMED + subject, 1)
            pipeline.hdel(shared, HELD + subject)
    await answer(pipeline.execute())
    return {subject: held for subject, held in holds.items() if subject and wanted in {None, subject}}


def held_in_words(api: str, line: str) -> str:
    """Say that an API is held, why, and what to do about it; empty if it is not."""
    return f"{api} is held: {line}" if line else ""


def _holds(fields: Mapping[str, str], now_ms: float) -> dict[str, Held]:
    holds = {name.removeprefix(HELD): _held(value, now_ms) for name, value in fields.items() if name.startswith(HELD)}
    keys = [name.removeprefix(FINGERPRINT) for name in fields if name.startswith(f"{FINGERPRINT}key:")]
    if HOST in holds:
        holds[""] = holds[HOST]
    elif keys and all(key in holds for key in keys):
        of_keys = [holds[key] for key in sorted(keys)]
        line = "; ".join(dict.fromkeys(held.line for held in of_keys))
        nexts = [held.next_in_s for held in of_keys if held.next_in_s is not None]
        holds[""] = Held(line=line, since_s=min(held.since_s for held in of_keys), next_in_s=min(nexts, default=None))
    return holds


def _held(value: str, now_ms: float) -> Held:
    since_ms, next_ms, line = value.split(" ", 2)
    next_in_s = max(0.0, float(next_ms) - now_ms) / 1000 if float(next_ms) else None
    return Held(line=line, since_s=max(0.0, now_ms - float(since_ms)) / 1000, next_in_s=next_in_s)
