"""A real run to look at, and a real browser to look with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard_process import DashboardProcess
from local_nodes import RedisProcess
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from stage import Stage

PICTURES = Path(__file__).parents[2] / "docs" / "images"
WIDTHS = {"wide": 1280, "narrow": 400}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `make screenshots` gives."""
    parser.addoption("--pictures", action="store_true", help="write docs/images anew")


@pytest.fixture(scope="session")
def pictures(request: pytest.FixtureRequest) -> Path | None:
    """Return where pictures go; None: none are wanted."""
    return PICTURES if request.config.getoption("--pictures", default=False) else None


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Run Debian's Chromium without a window."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on PATH (Debian: apt install chromium)")
    # Root has no sandbox.
    arguments = ["--disable-lcd-text", *(["--no-sandbox"] if os.geteuid() == 0 else [])]  # grey text: smaller pictures
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def stage(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:  # noqa: ARG001 - or skip
    """Run Redis, simulators, workers and the dashboard, and batches of every kind."""
    with Stage(tmp_path_factory.mktemp("stage")) as running:
        yield running


class Window:
    """A browser's window on the dashboard; what its console complained of is kept."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self._url = url
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)

    def open(self, path: str) -> Page:
        """Open a page of the dashboard and wait until it is live."""
        self.page.goto(self._url + path)
        self.page.locator("[data-live-text]", has_text="Live").first.wait_for()
        return self.page


@pytest.fixture
def window(chromium: Browser, stage: Stage, request: pytest.FixtureRequest) -> Iterator[Window]:
    """Open a window: its theme and width are the parameters, light and 1280 where there are none."""
    theme, width = getattr(request, "param", ("light", 1280))
    context = chromium.new_context(color_scheme=theme, viewport={"width": width, "height": 900})
    context.set_default_timeout(20_000)
    made = Window(context, stage.dashboard.url)
    yield made
    context.close()
    assert made.complaints == []


@pytest.fixture
def empty_dashboard(tmp_path: Path) -> Iterator[DashboardProcess]:
    """Run a dashboard on a Redis that holds nothing."""
    redis = RedisProcess(tmp_path).start()
    redis.ready()
    node = DashboardProcess(tmp_path, {"redis_url": redis.url}).start()
    try:
        node.ready()
        yield node
    finally:
        node.teardown()
        redis.teardown()
