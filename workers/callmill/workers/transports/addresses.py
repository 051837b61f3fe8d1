"""The private-address rule, and host names resolved under it.

The rule holds for the address that is connected to, never for the name: a name may resolve differently a moment later.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from callmill.workers.transports.port import FaultKind, TransportFault

_IPV4_NUMBERS = re.compile(r"[0-9a-fx]+(\.[0-9a-fx]+){0,3}", re.IGNORECASE)
_FORBIDDEN = [
    ip_network(network)
    for network in (
        "100.64.0.0/10",
        "192.0.0.0/24",  # of protocols; clouds answer there, too
        "192.88.99.0/24",
        "168.63.129.16/32",  # Azure's own services, at a public address
        "64:ff9b:1::/48",  # NAT64 of the network's own choice: what it leads to, nobody else knows
        "100:0:0:1::/64",
        "3fff::/20",
        "5f00::/16",
    )
]
"""What Python counts as public, and is not."""
_NAT64 = IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE = IPv6Network("::/96")
_IPV4_TRANSLATED = IPv6Network("::ffff:0:0:0/96")
_SITE_LOCAL = IPv6Network("fec0::/10")


def is_forbidden(address: str) -> bool:
    """Whether the rule refuses this IP address; IPv4 inside IPv6 is judged by the IPv4 address."""
    return _judge(ip_address(address.partition("%")[0]))


def _judge(parsed: IPv4Address | IPv6Address) -> bool:
    if isinstance(parsed, IPv6Address):
        inner = _embedded_ipv4(parsed)
        if inner is not None:
            return _judge(inner)
        forbidden = parsed in _SITE_LOCAL
    else:
        forbidden = parsed.is_reserved
    return forbidden or not parsed.is_global or parsed.is_multicast or any(parsed in network for network in _FORBIDDEN)


def _embedded_ipv4(parsed: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a gateway or the kernel would connect to instead; None for plain IPv6."""
    if parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    if parsed.sixtofour is not None:
        return parsed.sixtofour
    if parsed.teredo is not None:
        return parsed.teredo[1]
    if any(parsed in network for network in (_NAT64, _IPV4_COMPATIBLE, _IPV4_TRANSLATED)):
        return IPv4Address(int(parsed) & 0xFFFFFFFF)
    return None


def literal_address(host: str) -> str | None:
    """The address that a host spells out, None for a name; ``0x7f000001`` and ``127.1`` are literals too."""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        return str(ip_address(bare))
    except ValueError:
        pass
    if not _IPV4_NUMBERS.fullmatch(bare.removesuffix(".")):
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(bare.removesuffix(".")))
    except OSError:
        return None


def refuse_forbidden(host: str, addresses: Iterable[str]) -> None:
    """Let through only a host of which every address is public.

    Raises:
        TransportFault: FORBIDDEN_ADDRESS; one public address beside a private one does not help.
    """
    for address in addresses:
        if is_forbidden(address):
            message = (
                f"{host} resolves to {address}, which is not a public address; "
                "set allow_private_addresses = true in the API's profile if it should be called"
            )
            raise TransportFault(FaultKind.FORBIDDEN_ADDRESS, message, sent=False)


async def resolve_public(host: str) -> list[str]:
    """Resolve a host to its addresses, in the system's order of preference, all of them public.

    Raises:
        TransportFault: DNS or FORBIDDEN_ADDRESS.
    """
    literal = literal_address(host)
    if literal is not None:
        refuse_forbidden(host, [literal])
        return [literal]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TransportFault(FaultKind.DNS, f"{host} does not resolve: {error}", sent=False) from error
    addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
    if not addresses:
        raise TransportFault(FaultKind.DNS, f"{host} has no address", sent=False)
    refuse_forbidden(host, addresses)
    return addresses
