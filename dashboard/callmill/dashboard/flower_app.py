"""CallmillFlower: Flower with our pages; its own stay as they are."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from flower.app import Flower, rewrite_handler
from tornado.web import RequestHandler, url

from callmill.dashboard.control import ACTIONS, BatchControl
from callmill.dashboard.data import ApisData, BatchData, BatchesData, FailedJobsData, ProcessesData
from callmill.dashboard.figures import Figures
from callmill.dashboard.guarded_application import GuardedApplication, SafeHeaders
from callmill.dashboard.pages import ApisPage, BatchesPage, BatchPage, FrontPage, StaticFiles
from callmill.dashboard.templates import Templates

_STATIC = str(Path(__file__).parent / "static")
_BATCH = "([A-Za-z0-9_-]{1,64})"


_UNSERVED = r"/api/(?!(?:workers|tasks|task/types|queues/length|task/info/.*)$).*"
"""What Flower's API does beyond telling of workers and chunks: it sends tasks, reads results, stops workers."""


class CallmillFlower(Flower, GuardedApplication):  # type: ignore[misc] # flower ships no types
    """Flower, and in front of its catch-all our pages, their data, and what steers batches.

    Args:
        figures: What the pages show.
        batch_control: Whether visitors who may do so can steer batches.
        known_hosts: Names by which it answers beside the loopback's, where nobody signs in.
        flower: What Flower itself takes.
    """

    def __init__(
        self, *, figures: Figures, batch_control: bool, known_hosts: Collection[str] = (), **flower: Any
    ) -> None:
        super().__init__(**flower, template_loader=Templates())
        self.add_transform(SafeHeaders)
        if not (self.options.basic_auth or self.options.auth or self.options.unix_socket):
            self.known_hosts = frozenset(name.lower() for name in known_hosts)
        self.figures = figures
        self.batch_control = batch_control
        ours = [
            url("/", FrontPage),
            url("/batches", BatchesPage, name="batches"),
            url(f"/batch/{_BATCH}", BatchPage, name="batch"),
            url("/apis", ApisPage, name="apis"),
            url("/callmill/data/batches", BatchesData, name="batches_data"),
            url(f"/callmill/data/batch/{_BATCH}", BatchData, name="batch_data"),
            url(f"/callmill/data/failed/{_BATCH}", FailedJobsData, name="failed_data"),
            url("/callmill/data/apis", ApisData, name="apis_data"),
            url("/callmill/data/processes", ProcessesData, name="processes_data"),
            url(f"/callmill/batch/{_BATCH}/({ACTIONS})", BatchControl, name="batch_control"),
            url(_UNSERVED, _Unserved),
            url("/callmill/static/(.*)", StaticFiles, {"path": _STATIC}, name="callmill_static"),
        ]
        if self.options.url_prefix:
            ours = [rewrite_handler(handler, self.options.url_prefix) for handler in ours]
        self.add_handlers(".*", ours)


class _Unserved(RequestHandler):
    def prepare(self) -> None:
        self.set_status(404)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.finish("Workers take no remote control: stop them with SIGTERM, and steer batches on their pages.\n")

    def check_xsrf_cookie(self) -> None:
        """Refuse whatever it is."""
