"""Where Prometheus asks: /metrics of the dashboard, for whoever may see its pages, and a listener for nothing else."""

from __future__ import annotations

from typing import Any

from flower.app import Flower
from flower.views import BaseHandler
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler, authenticated, url

from callmill.dashboard.metrics_exposition import Exposition
from callmill.errors import OutsideError


def add_metrics_page(flower: Flower, exposition: Exposition) -> None:
    """Put ``/metrics`` in the place of Flower's, which asks nobody for a password."""
    prefix = flower.options.url_prefix.strip("/")
    path = f"/{prefix}/metrics" if prefix else "/metrics"
    flower.add_handlers(r".*", [url(path, _Page, {"exposition": exposition})])


def listen_for_scrapes(exposition: Exposition, port: int, address: str) -> int:
    """Serve ``/metrics``, and nothing else, to whoever reaches the address; return the port, which 0 leaves open.

    Raises:
        OutsideError: The address cannot be listened on.
    """
    server = HTTPServer(Application([url(r"/metrics", _Scrape, {"exposition": exposition})], compress_response=True))
    try:
        sockets = bind_sockets(port, address=address)
    except OSError as error:
        raise OutsideError(f"metrics cannot be served on {address}:{port}: {error.strerror or error}") from error
    server.add_sockets(sockets)
    bound: int = sockets[0].getsockname()[1]
    return bound


class _Page(BaseHandler):  # type: ignore[misc]  # Flower has no types
    def initialize(self, exposition: Exposition) -> None:
        self._exposition = exposition

    @authenticated
    async def get(self) -> None:
        await _write(self, self._exposition)


class _Scrape(RequestHandler):
    def initialize(self, exposition: Exposition) -> None:
        self._exposition = exposition

    async def get(self) -> None:
        await _write(self, self._exposition)


async def _write(handler: Any, exposition: Exposition) -> None:
    body, content_type = await exposition.answer(handler.request.headers.get("Accept", ""))
    handler.set_header("Content-Type", content_type)
    handler.set_header("Cache-Control", "no-store")
    handler.write(body)
