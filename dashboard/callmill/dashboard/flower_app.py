"""CallmillFlower: Flower with our pages; its own stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flower.app import Flower, rewrite_handler
from tornado.web import url

from callmill.dashboard.control import ACTIONS, BatchControl
from callmill.dashboard.data import ApisData, BatchData, BatchesData, FailedJobsData, ProcessesData
from callmill.dashboard.figures import Figures
from callmill.dashboard.pages import ApisPage, BatchesPage, BatchPage, FrontPage, StaticFiles
from callmill.dashboard.templates import Templates

_STATIC = str(Path(__file__).parent / "static")
_BATCH = "([A-Za-z0-9_-]{1,64})"


class CallmillFlower(Flower):  # type: ignore[misc] # flower ships no types
    """Flower, and in front of its catch-all our pages, their data, and what steers batches.

    Args:
        figures: What the pages show.
        batch_control: Whether visitors who may do so can steer batches.
        flower: What Flower itself takes.
    """

    def __init__(self, *, figures: Figures, batch_control: bool, **flower: Any) -> None:
        super().__init__(**flower, template_loader=Templates())
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
            url("/callmill/static/(.*)", StaticFiles, {"path": _STATIC}, name="callmill_static"),
        ]
        if self.options.url_prefix:
            ours = [rewrite_handler(handler, self.options.url_prefix) for handler in ours]
        self.add_handlers(".*", ours)
