"""What identifies an API's host and credentials: when it changes, a hold is void."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from redis.asyncio import Redis

from callmill.config.api_profile import ApiProfile
from callmill.config.credentials import ResolvedCredential
from callmill.holds import HOST, HoldRules, HoldStore, open_stores
from callmill.workers.hold_gate import POOLED_REFUSALS
from callmill.workers.subject import STREAK

HOST_RULES = HoldRules(hard=3, all=3, first_ms=2_000, cap_ms=60_000)
KEY_RULES = HoldRules(hard=8, all=16, streak=STREAK)
POOLED_KEY_RULES = HoldRules(hard=POOLED_REFUSALS, all=0)


async def open_hold_stores(
    redis: Redis,
    profile: ApiProfile,
    key_names: Sequence[str],
    credentials: Sequence[ResolvedCredential],
    *,
    name: str,
    worker: str,
) -> list[HoldStore]:
    """Return the stores of an API's host and credentials.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    base = (profile.base_url, profile.ca_file or "", _digest(profile.ca_file), str(profile.allow_private_addresses))
    rules = POOLED_KEY_RULES if len(key_names) > 1 else KEY_RULES
    subjects: dict[str, tuple[Sequence[str], HoldRules]] = {HOST: (base, HOST_RULES)}
    for key, credential in zip(key_names, credentials, strict=True):
        secret = (f"{at}: {value}" for at, value in sorted((*credential.headers.items(), *credential.query.items())))
        subjects[f"key:{key}"] = ((profile.base_url, profile.session_factory or "", *secret), rules)
    return await open_stores(redis, name, subjects, worker=worker)


def _digest(path: str | None) -> str:
    try:
        return "" if path is None else sha256(Path(path).read_bytes()).hexdigest()
    except OSError:  # reported where the file is used
        return ""
