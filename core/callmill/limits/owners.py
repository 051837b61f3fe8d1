"""Which API uses the plain name in the limiter's Redis, where workers call several APIs of one name.

Two APIs of one name must not share pauses, learned limits or a breaker. The first one seen keeps the plain name, under
which other programs may share its limits; any other gets a name that distinguishes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace
from redis.asyncio import Redis

from callmill.config.public_api import PublicApi
from callmill.limits.keys import OWNERS
from callmill.limits.store import answer


async def with_names(redis: Redis, apis: Iterable[PublicApi]) -> dict[str, PublicApi]:
    """Return the APIs by name, each with the name of its limiter's state.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused. A guess could give one API two names, and with them
            twice its limit.
    """
    apis = list(apis)
    pipeline = redis.pipeline(transaction=True)
    for api in apis:
        pipeline.hsetnx(OWNERS, api.name, api.identity)
        pipeline.hget(OWNERS, api.name)
    owners = (await answer(pipeline.execute()))[1::2] if apis else []
    return {
        api.name: replace(api, limited_as="" if (name := _name(api.name, api.identity, owner)) == api.name else name)
        for api, owner in zip(apis, owners, strict=True)
    }


async def limiter_names(redis: Redis, identities: Mapping[str, str]) -> dict[str, str]:
    """Return the names of APIs' limiter states; ``identities``: by API, empty for any API of that name.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    owners = await answer(redis.hmget(OWNERS, list(identities))) if identities else []
    return {api: _name(api, identities[api], owner) for api, owner in zip(identities, owners, strict=True)}


def _name(api: str, identity: str, owner: bytes | None) -> str:
    return api if not identity or owner in {None, identity.encode()} else f"{api}@{identity}"
