"""Machines of a test's own: network namespaces on one switch, each with its address, its loopback and nothing else."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Self

_CLONE_NEWNET = 0x40000000
_SUBNET = "10.77.0"
_numbers = count(1)


@cache
def why_not() -> str:
    """Return why there can be no machines here; empty where there can."""
    try:
        with Switch() as switch, switch.machine("probe").inside():
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces here (they need root and iproute2): {error}"
    return ""


class Machine:
    """One namespace with an address of the switch's network."""

    def __init__(self, namespace: str, switch: str, address: str) -> None:
        self.namespace = namespace
        self.address = address
        self._switch = switch
        self._port = f"to-{address.rpartition('.')[2]}"
        with ExitStack() as undo:
            _ip("netns", "add", namespace)
            undo.callback(self.remove)
            _ip("link", "add", self._port, "netns", switch, "type", "veth", "peer", "eth0", "netns", namespace)
            _ip("-n", switch, "link", "set", self._port, "master", "switch", "up")
            _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", namespace, "link", "set", device, "up")
            undo.pop_all()

    def command(self, *words: str) -> list[str]:
        """Return a command line that runs there."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def cut(self) -> None:
        """Pull its cable: nothing arrives and nothing leaves, and nobody is told."""
        _ip("-n", self._switch, "link", "set", self._port, "down")

    def mend(self) -> None:
        """Put the cable back."""
        _ip("-n", self._switch, "link", "set", self._port, "up")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be there with this thread, and with those that it starts."""
        with Path("/proc/thread-self/ns/net").open() as before, Path("/run/netns", self.namespace).open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def remove(self) -> None:
        """Remove it; what still runs there keeps nothing of the others."""
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "delete", self.namespace)


class Switch:
    """What machines are joined by; they and it are gone with the block, whatever happened in it."""

    def __init__(self) -> None:
        self._name = f"callmill-{os.getpid()}-{next(_numbers)}"
        self._machines = ExitStack()
        self._hosts = count(1)

    def __enter__(self) -> Self:
        _ip("netns", "add", self._name)
        self._machines.callback(_ip, "netns", "delete", self._name)
        try:
            _ip("-n", self._name, "link", "add", "switch", "type", "bridge")
            _ip("-n", self._name, "link", "set", "switch", "up")
        except BaseException:
            self._machines.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._machines.close()

    def machine(self, name: str) -> Machine:
        """Add a machine."""
        made = Machine(f"{self._name}-{name}", self._name, f"{_SUBNET}.{next(self._hosts)}")
        self._machines.callback(made.remove)
        return made


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
