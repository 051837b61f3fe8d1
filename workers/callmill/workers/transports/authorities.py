"""The CA file of a profile: authorities trusted besides the public ones."""

from __future__ import annotations

import ssl
from pathlib import Path

from callmill.errors import ConfigurationError


def read_authorities(ca_file: str) -> bytes:
    """Return the certificates as PEM.

    Raises:
        ConfigurationError: The file cannot be read or holds no certificate.
    """
    try:
        pem = Path(ca_file).read_bytes()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigurationError(f"ca_file {ca_file!r} cannot be used: {error}") from error
    return pem
