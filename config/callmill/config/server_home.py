"""The directory that an embedded server lives in, and the rules by which it starts, is found and ends.

    server.json        0600: url, pid, started (unix seconds); where clients find the server
    server.lock        held by whoever starts or stops the server: one at a time
    redis/             the data and the log
    redis/server.conf  0600: port and password, kept over restarts so that clients find their way back
    redis/alive.lock   held by the server process itself, through an inherited descriptor, for as long as it lives

Invariant: a server works on the data if and only if ``alive.lock`` is held. The kernel gives the lock back when the
process is gone, however it went; a process id or a port may belong to a stranger by then.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import msgspec
import redis

from callmill.config.file_lock import FileLock, is_locked
from callmill.config.redis_connections import connect_blocking
from callmill.config.server_binary import VARIABLE, find_server_binary
from callmill.errors import CallmillError, ConfigurationError, RedisUnavailableError, ServerNotFoundError

START_TIMEOUT_S = 60.0
"""How long a server may take to read its append-only file."""
STOP_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 2.0
_DISK_REFUSED = "MISCONF"
"""How an error begins of a server that cannot write to its disk."""
_POLL_S = 0.01
_PORT_ATTEMPTS = 5
_PORT_PATIENCE_S = 0.5
_LOG_LINES = 10
_CONFIGURATION = """\
# Written by Callmill at every start of the embedded server.
bind 127.0.0.1
port {port}
requirepass {password}
protected-mode yes
daemonize yes
dir {directory}
logfile {log}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""
_PORTS = 65536
_OWN_URL = re.compile(r"redis://:[0-9a-f]+@127\.0\.0\.1:\d{1,5}/0", re.ASCII)
_ENDPOINT = re.compile(r"^port (?P<port>\d{1,5})\nrequirepass (?P<password>[0-9a-f]+)$", re.MULTILINE)


@contextmanager
def usable(state_dir: Path) -> Iterator[None]:
    """Turn disk errors in a state directory into errors that the user can fix.

    Raises:
        ConfigurationError: It cannot be used; on leaving the context.
    """
    try:
        yield
    except CallmillError:
        raise
    except OSError as error:
        remedy = "free space on its disk" if error.errno == errno.ENOSPC else "name a directory that you can write to"
        raise ConfigurationError(
            f"CALLMILL_STATE_DIR: {state_dir} cannot be used: {error.strerror}; {remedy}"
        ) from error


def make_state_dir(state_dir: Path) -> None:
    """Create the directory of an embedded server, readable only by its owner.

    Raises:
        ConfigurationError: It cannot be created.
    """
    with usable(state_dir):
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)


class ServerFile(msgspec.Struct, frozen=True):
    """What ``server.json`` says: where the server is, its process, and when it started (unix seconds)."""

    url: str
    pid: int
    started: float


class _Endpoint(msgspec.Struct, frozen=True):
    port: int
    password: str

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"


class ServerHome:
    """The directory of one embedded server."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._data = state_dir / "redis"
        self._alive = self._data / "alive.lock"
        self._configuration = self._data / "server.conf"
        self._log = self._data / "server.log"
        self._published = state_dir / "server.json"

    def running_url(self) -> str | None:
        """Return the URL of the server that lives here and answers (or still reads its data), else None."""
        server = self._server_file()
        if server is None or not is_locked(self._alive):
            return None
        try:
            _pid_of(server.url)
        except (redis.BusyLoadingError, redis.TimeoutError):
            # It lives, as the lock says; it is only busy.
            return server.url
        except redis.RedisError:
            return None
        return server.url

    @property
    def has_data(self) -> bool:
        """Whether a server has ever run here.

        Raises:
            ConfigurationError: The directory may not be looked into.
        """
        with usable(self._state_dir):
            return self._configuration.exists()

    def start(self) -> tuple[ServerFile, bool]:
        """Return the server that lives here, and whether this call started it.

        Raises:
            ConfigurationError: The directory cannot be used.
            ServerNotFoundError: There is no server program on this machine.
            RedisUnavailableError: The server does not start, or does not answer.
        """
        self._make_directories()
        with usable(self._state_dir), self._turn(START_TIMEOUT_S):
            endpoint = self._endpoint()
            if endpoint is not None and (pid := self._await_answer(endpoint)) is not None:
                return self._publish(endpoint, pid), False
            return self._launch(endpoint), True

    def has_lost(self, server: ServerFile) -> bool:
        """Say whether the server lives, but the directory that it works on was removed."""
        if self._configuration.exists() and is_locked(self._alive):
            return False
        with suppress(redis.RedisError):
            return _pid_of(server.url) == server.pid
        return False

    def stop(self, server: ServerFile) -> None:
        """End the server if it is still the same; everything acknowledged is on disk then.

        Raises:
            RedisUnavailableError: It did not end in time.
        """
        if self.has_lost(server):
            with closing(connect_blocking(server.url)) as client, suppress(redis.RedisError):
                client.shutdown(nosave=True)
        if self._state_dir.is_dir():
            self._stop(server.pid)

    def _stop(self, pid: int) -> None:
        with self._turn(STOP_TIMEOUT_S):
            server = self._server_file()
            if server is None or server.pid != pid:
                return
            # It may be gone already, or go without a last word: what counts is that the lock is given back.
            with closing(connect_blocking(server.url)) as client, suppress(redis.RedisError):
                client.shutdown(nosave=True)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while is_locked(self._alive):
                if time.monotonic() > deadline:
                    raise RedisUnavailableError(f"the embedded server (process {pid}) does not end; {self._log_tail()}")
                time.sleep(_POLL_S)
            self._published.unlink(missing_ok=True)

    def _make_directories(self) -> None:
        make_state_dir(self._state_dir)
        with usable(self._state_dir):
            self._data.mkdir(mode=0o700, exist_ok=True)

    def _turn(self, timeout_s: float) -> FileLock:
        return FileLock(self._state_dir / "server.lock", timeout_s, "starting or stopping the embedded server")

    def _server_file(self) -> ServerFile | None:
        try:
            server = msgspec.json.decode(self._published.read_bytes(), type=ServerFile)
        except (OSError, ValueError, RecursionError):
            return None
        return server if _OWN_URL.fullmatch(server.url) else None

    def _endpoint(self) -> _Endpoint | None:
        try:
            match = _ENDPOINT.search(self._configuration.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return None
        if match is None or not 0 < (port := int(match["port"])) < _PORTS:
            return None
        return _Endpoint(port, match["password"])

    def _launch(self, previous: _Endpoint | None) -> ServerFile:
        endpoint = previous or _Endpoint(_free_port(), secrets.token_hex(32))
        for _ in range(_PORT_ATTEMPTS):
            if not _becomes_free(endpoint.port):
                endpoint = _Endpoint(_free_port(), endpoint.password)
            self._spawn(endpoint)
            if (pid := self._await_answer(endpoint)) is not None:
                return self._publish(endpoint, pid)
            if _is_free(endpoint.port):
                break
        raise RedisUnavailableError(f"the embedded server does not start; {self._log_tail()}")

    def _spawn(self, endpoint: _Endpoint) -> None:
        binary = find_server_binary()
        self._write_private(self._configuration, self._configuration_text(endpoint))
        with FileLock(self._alive, START_TIMEOUT_S, f"working on {self._data}") as lock:
            # The server forks itself away and keeps the descriptor, and with it the lock, when ours is closed.
            result = self._run(binary, lock)
        if result.returncode:
            said = result.stdout.decode(errors="replace").strip().replace(endpoint.password, "***")
            raise RedisUnavailableError(f"the embedded server does not start: {binary} says: {said}")

    def _run(self, binary: Path, lock: FileLock) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(  # noqa: S603 - our own server, no shell
                [binary, self._configuration],
                pass_fds=(lock.descriptor,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # Its environment would show this process's secrets for as long as it lives.
                env={name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ},
                start_new_session=True,
                check=False,
            )
        except OSError as error:
            raise ServerNotFoundError(
                f"{binary} cannot be run: {error.strerror}; set {VARIABLE} to another server program"
            ) from error

    def _await_answer(self, endpoint: _Endpoint) -> int | None:
        """Return the server's process id once it answers; None when no server lives here.

        Raises:
            RedisUnavailableError: One lives but does not answer.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while is_locked(self._alive):
            with suppress(redis.RedisError):
                return _pid_of(endpoint.url)
            if time.monotonic() > deadline:
                raise RedisUnavailableError(
                    f"a server works on {self._data} but does not answer on port {endpoint.port}; end it first; "
                    f"{self._log_tail()}"
                )
            time.sleep(_POLL_S)
        return None

    def _publish(self, endpoint: _Endpoint, pid: int) -> ServerFile:
        server = self._server_file()
        if server is None or (server.url, server.pid) != (endpoint.url, pid):
            server = ServerFile(endpoint.url, pid, time.time())
            self._write_private(self._published, msgspec.json.encode(server).decode())
        return server

    def _configuration_text(self, endpoint: _Endpoint) -> str:
        return _CONFIGURATION.format(
            port=endpoint.port, password=endpoint.password, directory=_quoted(self._data), log=_quoted(self._log)
        )

    def _write_private(self, path: Path, text: str) -> None:
        """Replace the file as a whole; no other user can read it at any moment."""
        draft = path.with_name(f"{path.name}.new")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def _log_tail(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        except OSError:
            lines = []
        if not lines:
            return f"it wrote no log to {self._log}: check that the disk has space"
        return "\n".join([f"the end of {self._log}:", *lines])


def _pid_of(url: str) -> int:
    """Return the process id of the server at the URL; that it takes the password proves it to be ours.

    Raises:
        redis.RedisError: No server, a stranger, or one that is not ready.
    """
    with closing(connect_blocking(url, socket_timeout_s=ANSWER_TIMEOUT_S)) as client:
        # INFO is answered while the data is still being read, PING is not.
        try:
            client.ping()
        except redis.ResponseError as error:
            if not str(error).startswith(_DISK_REFUSED):  # it lives and serves readers, but its disk is full
                raise
        return int(client.info("server")["process_id"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the server does it: connections of the one before may linger.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _becomes_free(port: int) -> bool:
    # A process that ends gives back its files one by one: the lock may be free some moments before the port.
    deadline = time.monotonic() + _PORT_PATIENCE_S
    while not _is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
