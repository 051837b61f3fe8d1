"""ExactHeadersTransport: sends the calls whose header names must keep their case over a client that keeps it."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any

from callmill.workers.transports.port import Response, Transport, TransportOptions
from callmill.workers.transports.pyreqwest_transport import PyreqwestTransport
from callmill.workers.transports.requests_transport import RequestsTransport


class ExactHeadersTransport:
    """pyreqwest, which writes ``Soapaction`` over HTTP/1.1, and requests for calls that say ``SOAPAction``.

    Names are case-insensitive in HTTP; yet a few servers, most of them of SOAP, compare them letter by letter.
    """

    def __init__(self, options: TransportOptions) -> None:
        self._options = options
        self._names = frozenset(options.exact_headers)
        self._usual = PyreqwestTransport(options)
        self._exact: Transport | None = None

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> Coroutine[Any, Any, Response]:
        """See the port."""
        if self._names.isdisjoint(headers):
            return self._usual.send(method, url, headers, body, timeout_s)
        if self._exact is None:
            self._exact = RequestsTransport(self._options, most_threads=self._options.max_connections)
        return self._exact.send(method, url, headers, body, timeout_s)

    async def warm_up(self, url: str) -> None:
        """See the port."""
        await self._usual.warm_up(url)

    async def aclose(self) -> None:
        """See the port."""
        await self._usual.aclose()
        if self._exact is not None:
            await self._exact.aclose()
