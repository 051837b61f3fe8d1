"""Where monitoring asks: /metrics of the dashboard, for whoever may see its pages, and a listener for nothing else."""

from __future__ import annotations

from collections.abc import Collection

from flower.app import Flower, rewrite_handler
from flower.views import BaseHandler
from tornado.web import RequestHandler, authenticated, url

from callmill.dashboard.figures import Figures
from callmill.dashboard.guarded_application import GuardedApplication
from callmill.dashboard.metrics_exposition import Exposition
from callmill.dashboard.metrics_reader import MetricsReader
from callmill.dashboard.scaling_site import ScalingReader, listen, scaling_page


def add_metrics_page(flower: Flower, figures: Figures, scaling: ScalingReader) -> Exposition:
    """Put ``/metrics`` in the place of Flower's, which asks nobody for a password; return what it tells."""
    exposition = Exposition(MetricsReader(figures, scaling).read, flower.purge_offline_worker_metrics)
    page = url(r"/metrics", _Page, {"exposition": exposition})
    prefix = flower.options.url_prefix
    flower.add_handlers(r".*", [rewrite_handler(page, prefix) if prefix else page])
    return exposition


def listen_for_scrapes(
    exposition: Exposition, scaling: ScalingReader, port: int, address: str, known_hosts: Collection[str] = ()
) -> str:
    """Serve ``/metrics`` and ``/workers-wanted``, and nothing else, to whoever reaches the address; return its URL.

    Port 0: a free one.

    Raises:
        OutsideError: The address cannot be listened on.
    """
    page = url(r"/metrics", _Scrape, {"exposition": exposition})
    application = GuardedApplication([page, scaling_page(scaling)], compress_response=True)
    return listen(application, port, address, what="metrics", known_hosts=known_hosts) + "/metrics"


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


async def _write(handler: RequestHandler, exposition: Exposition) -> None:
    body, content_type = await exposition.answer(handler.request.headers.get("Accept", ""))
    handler.set_header("Content-Type", content_type)
    handler.set_header("Cache-Control", "no-store")
    handler.write(body)
