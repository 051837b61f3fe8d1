"""Transports by the name that an API profile gives."""

from __future__ import annotations

from collections.abc import Callable

from callmill.errors import ConfigurationError
from callmill.workers.transports.exact_headers import ExactHeadersTransport
from callmill.workers.transports.port import Transport, TransportOptions
from callmill.workers.transports.pyreqwest_transport import PyreqwestTransport
from callmill.workers.transports.requests_transport import RequestsTransport


def _pyreqwest(options: TransportOptions) -> Transport:
    return ExactHeadersTransport(options) if options.exact_headers else PyreqwestTransport(options)


_TRANSPORTS: dict[str, Callable[[TransportOptions], Transport]] = {
    "pyreqwest": _pyreqwest,
    "requests": RequestsTransport,
}


def make_transport(name: str, options: TransportOptions) -> Transport:
    """Make the named transport; it belongs to one event loop.

    Raises:
        ConfigurationError: The name is unknown, ``ca_file`` or ``session_factory`` is unusable.
    """
    make = _TRANSPORTS.get(name)
    if make is None:
        raise ConfigurationError(f"transport = {name!r} is unknown; use one of {', '.join(map(repr, _TRANSPORTS))}")
    if options.session_factory is not None and name != "requests":
        raise ConfigurationError(f'session_factory needs transport = "requests", not {name!r}')
    return make(options)
