"""The CA file of a profile: the authorities that are trusted instead of the system's."""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from callmill.errors import ConfigurationError

_SYSTEM_STORES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_lock = threading.Lock()


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


@contextlib.contextmanager
def no_system_authorities() -> Iterator[None]:
    """Let what is built in the block find no authorities of the system.

    pyreqwest always trusts those, besides the ones that it is given. It looks for them when a client is built, where
    these variables say; nothing else can turn that off. Not on macOS and Windows, which have a store of their own.
    """
    with _lock:
        before = {name: os.environ.pop(name, None) for name in _SYSTEM_STORES}
        os.environ["SSL_CERT_FILE"] = os.devnull
        try:
            yield
        finally:
            del os.environ["SSL_CERT_FILE"]
            os.environ.update({name: value for name, value in before.items() if value is not None})
