"""Who may open the dashboard, and who may steer batches with it. Pure checks."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from msgspec import Struct

from callmill.errors import ConfigurationError

LOOPBACK = "127.0.0.1"

FORWARDED_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Via")
"""What a proxy adds to a request: where one stands, the visitor is somewhere else."""


def check_credentials(credentials: Sequence[str]) -> None:
    """Refuse credentials of which Flower would make an open door or an error at every request.

    Raises:
        ConfigurationError: One is not user:password; the message shows none of it.
    """
    for number, credential in enumerate(credentials, 1):
        user, _, password = credential.partition(":")
        if not user or not password or not credential.isascii():
            raise ConfigurationError(
                f"basic auth, credential {number}: write USER:PASSWORD, neither of them empty, in ASCII; "
                "in $FLOWER_BASIC_AUTH a comma begins the next credential"
            )


def check_address(address: str, *, authenticated: bool) -> None:
    """Refuse to serve other machines without authentication.

    Raises:
        ConfigurationError: Others could connect and nobody would ask who they are.
    """
    if authenticated or is_loopback(address):
        return
    raise ConfigurationError(
        f"address {address or 'of all interfaces'!r}: others could open the dashboard, so it needs authentication: set "
        f"FLOWER_BASIC_AUTH=USER:PASSWORD (or --basic-auth, or Flower's --auth), or leave it on {LOOPBACK}"
    )


def is_loopback(address: str) -> bool:
    """Say whether only this machine reaches the address; an empty one means all interfaces."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_known_host(host: str, names: Collection[str]) -> bool:
    """Say whether a Host header names this machine's loopback, at any port, or one of these names.

    What asks nobody who they are answers by no other name: a page of another site whose name was pointed at this
    machine (DNS rebinding) would read everything.
    """
    name = _name_in(host)
    return is_loopback(name) or name in names


def _name_in(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Request(Struct, frozen=True, kw_only=True):
    """What a request says of where it comes from.

    Attributes:
        peer: Address of whoever connected.
        host: The Host header: where the browser believes to be.
        origin: The Origin header: the page that sent it; None where it says none.
        site: The Sec-Fetch-Site header; None from what is no browser, or an old one.
        forwarded: Whether a proxy passed it on.
    """

    peer: str
    host: str
    origin: str | None = None
    site: str | None = None
    forwarded: bool = False


def why_no_control(request: Request, *, authenticated: bool) -> str | None:
    """Say why batches cannot be steered from where the request comes; None where they can.

    Without authentication this machine alone may. That the Host header must be loopback as well keeps out a page
    whose name was pointed at this machine (DNS rebinding), and visitors of a proxy that tells nobody of them.
    """
    if authenticated:
        return None
    if is_loopback(request.peer) and is_loopback(_name_in(request.host)) and not request.forwarded:
        return None
    return "only this machine may steer batches while the dashboard has no authentication: see FLOWER_BASIC_AUTH"


def is_same_origin(request: Request, *, authenticated: bool) -> bool:
    """Say whether a page of this dashboard sent the request, or what is no browser.

    A proxy may change the Host header, so with authentication the browser's own word on the site is enough.
    """
    if request.site is not None and request.site != "same-origin":
        return False
    if request.origin is None or (authenticated and request.site is not None):
        return True
    return request.origin.partition("://")[2] == request.host
