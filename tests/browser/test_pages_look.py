"""Every page in both themes, on a screen and on a phone: nothing is broken, and everybody can read and use it."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import WIDTHS

pytestmark = pytest.mark.browser

THEMES = ("light", "dark")
LOOKS = [pytest.param((theme, width), id=f"{theme}-{name}") for theme in THEMES for name, width in WIDTHS.items()]
PAGES = ("batches", "batch", "apis", "workers")
PICTURE_HEIGHTS = {"batches": 900, "batch": 1110, "apis": 960, "workers": 760}
"""How much of each page its picture shows; a phone's shows as much as it does at once."""
PICTURE_BYTES = 150_000


def open_page(window, stage, name):
    """Open a page by the name of its picture, and wait until it shows what it has."""
    path = f"/batch/{stage.batches['running'].id}" if name == "batch" else f"/{name}"
    page = window.open(path)
    shown = {"batch": ".cm-part-ok", "apis": "article.cm-api", "batches": "tr[data-key]", "workers": "tr[data-key]"}
    page.locator(shown[name]).first.wait_for()
    return page


@pytest.mark.parametrize("window", LOOKS, indirect=True)
@pytest.mark.parametrize("name", PAGES)
def test_everybody_can_use_it(window, stage, name):
    """axe-core finds no serious and no critical fault; Flower's own part of a page is Flower's."""
    page = open_page(window, stage, name)
    part = ".cm-processes" if name == "workers" else "[data-page]"
    found = Axe().run(page, context={"include": [[part]]}).response["violations"]
    faults = [
        (fault["id"], [node["html"][:200] for node in fault["nodes"]][:3])
        for fault in found
        if fault["impact"] in {"serious", "critical"}
    ]
    assert faults == []


@pytest.mark.parametrize("window", LOOKS, indirect=True)
@pytest.mark.parametrize("name", PAGES)
def test_fits_its_screen(window, stage, name):
    """No page is wider than its window, so that nobody scrolls sideways; Flower's own tables scroll by themselves."""
    page = open_page(window, stage, name)
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


@pytest.mark.parametrize("theme", THEMES)
def test_pictures(chromium, stage, pictures, theme):
    """Pictures of every page, for the documentation."""
    if pictures is None:
        pytest.skip("only with --pictures: make screenshots")
    pictures.mkdir(exist_ok=True)
    for size, width in WIDTHS.items():
        context = chromium.new_context(color_scheme=theme)
        page = context.new_page()
        for name in PAGES:
            page.set_viewport_size({"width": width, "height": PICTURE_HEIGHTS[name] if size == "wide" else 800})
            path = f"/batch/{stage.batches['running'].id}" if name == "batch" else f"/{name}"
            page.goto(stage.dashboard.url + path)
            page.locator(".cm-part-ok, article.cm-api, tr[data-key]").first.wait_for()
            page.wait_for_timeout(2_500)  # charts and bars have moved to where they belong
            picture = pictures / f"dashboard-{name}-{theme}{'' if size == 'wide' else '-phone'}.png"
            page.screenshot(path=picture)
            assert picture.stat().st_size < PICTURE_BYTES
        context.close()
