"""Names of tenants: on whose behalf calls are made."""

from __future__ import annotations

import re

_TENANT = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def checked_tenant(name: str) -> str:
    """Return the name of a tenant.

    Raises:
        ValueError: It cannot be one.
    """
    if not isinstance(name, str) or not _TENANT.fullmatch(name):
        raise ValueError(f"{name!r} is no tenant: 1 to 64 letters, digits, '_', '.' and '-'")
    return name
