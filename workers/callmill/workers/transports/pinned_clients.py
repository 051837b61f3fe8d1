"""PinnedClients: pyreqwest clients that can only connect to addresses that were checked.

pyreqwest takes no resolver of ours, but a client can be built with a name fixed to one address. So each host gets a
client of its own, built for an address that passed the rule: what was checked is what is connected to. A name is looked
up again after ``_FRESH_S``; a client whose address is still among the answers stays, with its connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from pyreqwest.client import Client
from pyreqwest.http import Url

from callmill.workers.transports.addresses import resolve_public
from callmill.workers.transports.port import FaultKind, TransportFault

_FRESH_S = 30.0
_MAX_ROUTES = 1024
_PLAIN_ORIGIN = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d+)?", re.ASCII)

ClientMaker = Callable[[str, str], Client]
"""Builds a client in which a host name means one address."""


@dataclass(slots=True, eq=False)
class Pinned:
    """A client and the calls that it has in flight; a retired one is closed by whoever ends its last call."""

    client: Client
    in_flight: int = 0
    retired: bool = False


@dataclass(slots=True)
class Route:
    """A host's client and the addresses that it may use, the current one first.

    Attributes:
        fresh_until_s: On the monotonic clock, when the name is looked up again.
    """

    host: str
    pinned: Pinned
    addresses: list[str]
    fresh_until_s: float


class PinnedClients:
    """The clients of one transport, by host."""

    def __init__(self, make_client: ClientMaker) -> None:
        self._make_client = make_client
        self._by_origin: dict[str, Route] = {}
        self._by_host: dict[str, Route] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self.pinned: set[Pinned] = set()
        """Every client that is still open; the owner closes them in the end."""

    def known(self, url: str) -> Route | None:
        """The route of a URL whose origin was checked recently; costs no await."""
        route = self._by_origin.get(_origin(url))
        return route if route is not None and route.fresh_until_s > time.monotonic() else None

    async def find(self, url: str) -> Route:
        """The route of a URL, after looking its host up if need be.

        Raises:
            TransportFault: DNS, FORBIDDEN_ADDRESS, or PROTOCOL for what is no URL.
        """
        try:
            # pyreqwest's own parser: two parsers that disagree about the host would be a hole in the rule.
            host = Url(url).host_str
        except ValueError as error:
            raise TransportFault(FaultKind.PROTOCOL, f"not a URL: {error}", sent=False) from error
        if not host:
            raise TransportFault(FaultKind.PROTOCOL, "not a URL with a host", sent=False)
        async with self._locks.setdefault(host, asyncio.Lock()):
            route = self._by_host.get(host)
            if route is None or route.fresh_until_s <= time.monotonic():
                route = await self._look_up(host, route)
        origin = _origin(url)
        if _PLAIN_ORIGIN.fullmatch(origin):
            self._remember(origin, route)
        return route

    def move_on(self, route: Route, address: str) -> bool:
        """After ``address`` could not be connected to, use the host's next one; False when it is the only one."""
        if len(route.addresses) < 2:
            return False
        if route.addresses[0] == address:
            route.addresses.append(route.addresses.pop(0))
            self._replace(route)
        return True

    def release(self, pinned: Pinned) -> None:
        """A call on ``pinned`` ended."""
        pinned.in_flight -= 1
        if pinned.retired and not pinned.in_flight:
            self._close(pinned)

    async def _look_up(self, host: str, old: Route | None) -> Route:
        addresses = await resolve_public(host)
        fresh_until_s = time.monotonic() + _FRESH_S
        if old is not None and old.addresses[0] in addresses:
            current = old.addresses[0]
            old.addresses = [current, *(address for address in addresses if address != current)]
            old.fresh_until_s = fresh_until_s
            return old
        if old is not None:
            old.addresses, old.fresh_until_s = addresses, fresh_until_s
            self._replace(old)
            return old
        route = Route(host, self._make(host, addresses[0]), addresses, fresh_until_s)
        self._by_host[host] = route
        return route

    def _make(self, host: str, address: str) -> Pinned:
        pinned = Pinned(self._make_client(host, address))
        self.pinned.add(pinned)
        return pinned

    def _replace(self, route: Route) -> None:
        old = route.pinned
        route.pinned = self._make(route.host, route.addresses[0])
        old.retired = True
        if not old.in_flight:
            self._close(old)

    def _close(self, pinned: Pinned) -> None:
        self.pinned.discard(pinned)
        close_now(pinned.client)

    def _remember(self, origin: str, route: Route) -> None:
        if len(self._by_origin) >= _MAX_ROUTES:
            self._by_origin.clear()
        self._by_origin[origin] = route


def _origin(url: str) -> str:
    end = url.find("/", 8)
    return url if end < 0 else url[:end]


def close_now(client: Client) -> None:
    """Close a client without an event loop: its close() never waits, so one step runs it to its end."""
    closing = client.close()
    with contextlib.suppress(StopIteration):
        closing.send(None)
