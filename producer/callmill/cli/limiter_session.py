"""Runs a command's work with the ledger's client and the limiter's Redis, which may be another server."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis

from callmill.cli.client_session import with_client
from callmill.cli.default_api import reason
from callmill.cli.embedded_session import data_of_before
from callmill.config.embedded_server import limiter_url
from callmill.config.profiles import find_profiles
from callmill.config.public_api import PublicApi
from callmill.config.redis_connections import connect
from callmill.config.settings import load_settings
from callmill.errors import UnknownApiError, UsageError
from callmill.producer import AsyncClient
from callmill.producer.known_apis import KnownApis

T = TypeVar("T")
NO_API = "no API is known: write [apis.NAME] tables into apis.toml and start a worker"


def with_limiter(work: Callable[[AsyncClient, Redis], Awaitable[T]]) -> T:
    """Run ``work`` and return its result; what was opened for it is closed afterwards."""

    async def session(client: AsyncClient) -> T:
        async with connect(limiter_url(load_settings())) as redis:
            return await work(client, redis)

    with data_of_before(load_settings()):
        return with_client(session)


async def known_apis(client: AsyncClient) -> dict[str, PublicApi]:
    """Every API that workers serve; before any worker ever did, those of the profiles."""
    fleet = client.connection().fleet
    announced = await fleet.apis_of(await fleet.workers())
    if announced:
        return announced
    return {name: profile.public_facts() for name, profile in (find_profiles(load_settings()) or {}).items()}


async def find_api(client: AsyncClient, name: str) -> PublicApi:
    """Return the API with this name.

    Raises:
        UsageError: There is none; the message lists those that are.
    """
    try:
        api = KnownApis(await known_apis(client) or None, "served by the workers").find(name, 0)
    except UnknownApiError as error:
        raise UsageError(reason(error)) from error
    if api is None:
        raise UsageError(f"{name!r}: {NO_API}")
    return api


def who() -> str:
    """Return who runs the command, for the history."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
