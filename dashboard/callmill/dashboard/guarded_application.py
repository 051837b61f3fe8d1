"""What every answer of the dashboard has, Flower's included, and the names by which it answers at all."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import Application, OutputTransform, RequestHandler

from callmill.dashboard.access import is_known_host

FLOWERS_POLICY = (
    # Images as data: are Bootstrap's arrows and ticks. Flower and DataTables write styles into elements.
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": FLOWERS_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TO_OTHER_SITES = "Access-Control-"


class SafeHeaders(OutputTransform):
    """Adds to an answer what its handler did not say, and takes from pages what opens them to other sites."""

    def __init__(self, request: HTTPServerRequest) -> None:
        super().__init__(request)
        self._is_api = "/api/" in request.path

    def transform_first_chunk(
        self,
        status_code: int,
        headers: HTTPHeaders,
        chunk: bytes,
        finishing: bool,  # noqa: FBT001, ARG002 - Tornado's signature
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Do it."""
        for name, value in _HEADERS.items():
            if name not in headers:
                headers[name] = value
        if not self._is_api:
            for name in [name for name in headers if name.startswith(_TO_OTHER_SITES)]:
                del headers[name]
        return status_code, headers, chunk


class GuardedApplication(Application):
    """An application that answers by known names only, where ``known_hosts`` are set.

    Attributes:
        known_hosts: The names beside those of the loopback; None: every name.
    """

    known_hosts: Collection[str] | None = None

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Return the handler of a request."""
        if self.known_hosts is not None and not is_known_host(request.host, self.known_hosts):
            return self.get_handler_delegate(request, _UnknownHost)
        return super().find_handler(request, **kwargs)


class _UnknownHost(RequestHandler):
    def prepare(self) -> None:
        self.set_status(421)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish(
            "This name is not known here. Open it as http://127.0.0.1 or http://localhost with this port, or have it "
            "answer by this name: callmill dashboard --known-host NAME, or CALLMILL_DASHBOARD_HOSTS.\n"
        )

    def check_xsrf_cookie(self) -> None:
        """Refuse whatever it is."""
