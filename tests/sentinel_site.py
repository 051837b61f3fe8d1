"""A primary, replicas and three Sentinels as processes of this machine, and what befalls them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Self

import redis
from local_nodes import LocalProcess, RedisProcess, free_port, until

from callmill.config.server_binary import find_server_binary

SERVICE = "callmill"
DOWN_AFTER_MS = 1000


class ReplicatedRedis(RedisProcess):
    """A durable server that replicates from another one, or leads."""

    def __init__(self, folder: Path, primary_port: int | None = None) -> None:
        super().__init__(folder, durable=True)
        self._primary_port = primary_port

    def command(self) -> list[str]:
        """Return the server's command line."""
        replica = [] if self._primary_port is None else ["--replicaof", f"127.0.0.1 {self._primary_port}"]
        return [*super().command(), "--appendfsync", "everysec", "--repl-diskless-sync-delay", "0", *replica]


class SentinelProcess(LocalProcess):
    """A Sentinel that takes a primary for dead after a second without an answer."""

    ready_prompt = "Sentinel ID is"

    def __init__(self, folder: Path, primary_port: int) -> None:
        super().__init__(folder)
        self.port = free_port()
        (self.folder / "sentinel.conf").write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary_port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} 6000\n"
        )

    def command(self) -> list[str]:
        """Return the server's command line."""
        return [str(find_server_binary()), str(self.folder / "sentinel.conf"), "--sentinel"]


class SentinelSite:
    """The servers, started and stopped together.

    Args:
        folder: Where they keep their files.
        replicas: How many the primary has.
    """

    def __init__(self, folder: Path, replicas: int = 2) -> None:
        self._folder, self._replicas = folder, replicas
        self.servers: list[ReplicatedRedis] = []
        self.sentinels: list[SentinelProcess] = []

    def __enter__(self) -> Self:
        try:
            first = self._server(None)
            for _ in range(self._replicas):
                self._server(first.port)
            until(lambda: self.replicas_of(first) == self._replicas, what="replicas are there")
            for _ in range(3):
                self.sentinels.append(SentinelProcess(self._folder, first.port).start())
            for sentinel in self.sentinels:
                sentinel.ready()
            until(self._complete, what="the Sentinels know each other and the replicas")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in [*self.sentinels, *self.servers]:
            if node.status == "running":
                node.send(signal.SIGCONT)
            node.teardown()

    @property
    def url(self) -> str:
        """The URL of settings."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{node.port}' for node in self.sentinels)}/{SERVICE}/0"

    def primary(self) -> ReplicatedRedis:
        """Return who is the primary for the first Sentinel."""
        with redis.Redis(port=self.sentinels[0].port) as sentinel:
            _, port = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def fail_over(self) -> None:
        """Have the Sentinels change the primary while it is well."""
        with redis.Redis(port=self.sentinels[0].port) as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)

    def wait_for_another_than(self, old: ReplicatedRedis) -> ReplicatedRedis:
        """Wait until another server is the primary, also in its own words, and return it."""

        def promoted() -> bool:
            if (now := self.primary()) is old:
                return False
            with redis.Redis(port=now.port) as connection:
                return bool(connection.info("replication")["role"] == "master")

        until(promoted, 30, "a failover")
        return self.primary()

    @staticmethod
    def replicas_of(server: ReplicatedRedis) -> int:
        """Return how many replicas follow a server and are up to date."""
        with redis.Redis(port=server.port) as connection:
            facts = connection.info("replication")
        return sum(facts[f"slave{n}"]["state"] == "online" for n in range(facts["connected_slaves"]))

    def _server(self, primary_port: int | None) -> ReplicatedRedis:
        server = ReplicatedRedis(self._folder, primary_port).start()
        self.servers.append(server)
        server.ready()
        return server

    def _complete(self) -> bool:
        for node in self.sentinels:
            with redis.Redis(port=node.port, protocol=2) as sentinel:
                known = sentinel.sentinel_masters()[SERVICE]
            if known["num-other-sentinels"] < 2 or known["num-slaves"] < self._replicas:
                return False
        return True
