"""Who may open the dashboard: this machine alone, or whoever signs in. Pure checks."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from callmill.errors import ConfigurationError

LOOPBACK = "127.0.0.1"


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
