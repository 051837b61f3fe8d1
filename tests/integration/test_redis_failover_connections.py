"""Connections while the primary changes under their commands: real servers, and Sentinels that change their mind."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio
import uvloop
from local_nodes import RedisProcess
from redis.exceptions import ConnectionError as RedisConnectionError

from callmill.config import redis_failover
from callmill.config.redis_failover import AsyncFailoverPool

CHANGES, TASKS = 300, 20


class Sentinels:
    """Names the servers in turn, as Sentinels would in the longest series of failovers."""

    def __init__(self, ports: list[int]) -> None:
        self._ports, self.changes = ports, 0

    async def discover_master(self, _: str) -> tuple[str, int]:
        """Return the address of who is the primary now, after the turn that a question to a Sentinel takes."""
        await asyncio.sleep(0)
        return "127.0.0.1", self._ports[self.changes % len(self._ports)]

    async def aclose(self) -> None:
        """Nothing is open."""


async def commands_during_changes(ports: list[int]) -> set[str]:
    """Change the primary again and again while tasks send commands; return who answered after the last change."""
    sentinels = Sentinels(ports)
    pool = AsyncFailoverPool("service", sentinels, socket_timeout=5, socket_connect_timeout=5)
    client = redis.asyncio.Redis.from_pool(pool)

    async def send() -> None:
        while sentinels.changes < CHANGES:
            try:
                await client.ping()
            except RedisConnectionError:
                await asyncio.sleep(0)  # what a program does about it: it sends again, later

    try:
        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            for _ in range(TASKS):
                tasks.create_task(send())
            while sentinels.changes < CHANGES:
                await asyncio.sleep(0.001)
                sentinels.changes += 1
        return {(await client.config_get("port"))["port"] for _ in range(TASKS)}
    finally:
        await client.aclose()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_command_that_a_failover_cuts_off_says_that_redis_cannot_be_reached(tmp_path, monkeypatch, run):
    """Whatever a connection does when its primary changes, its command is answered or fails as one cut off."""
    monkeypatch.setattr(redis_failover, "ASK_EVERY_S", 0)
    servers = [RedisProcess(tmp_path).start() for _ in range(2)]
    try:
        for server in servers:
            server.ready()
        ports = [server.port for server in servers]
        assert run(commands_during_changes(ports)) == {str(ports[CHANGES % 2])}
    finally:
        for server in servers:
            server.teardown()
