"""Redis goes away under a page, and comes back."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_redis_down_is_said_and_over_by_itself(window, stage, pictures):
    """A page that loses Redis keeps its last figures and says so; one opened meanwhile says so; both recover."""
    page = window.open("/batches")
    page.locator("tr[data-key]").first.wait_for()
    other = page.context.new_page()
    stage.redis.kill()
    try:
        expect(page.get_by_role("heading", name="Redis does not answer")).to_be_visible(timeout=20_000)
        expect(page.locator("[data-trouble-since]")).to_contain_text("figures below are from")
        expect(page.locator("tr[data-key]").first).to_be_visible()
        other.goto(stage.dashboard.url + "/apis")
        expect(other.get_by_role("heading", name="Redis does not answer")).to_be_visible(timeout=20_000)
        expect(other.locator("[data-figures]")).to_be_hidden()
        if pictures is not None:
            page.set_viewport_size({"width": 1280, "height": 700})
            page.screenshot(path=pictures / "dashboard-redis-down-light.png")
    finally:
        stage.redis.restart()
    page.get_by_role("button", name="Try now").click()
    for one in (page, other):
        expect(one.locator("[data-live-text]")).to_have_text("Live", timeout=40_000)
        expect(one.locator("[data-trouble]")).to_be_hidden()
    # A browser notes answers of 503 in its console; nothing else may stand there.
    window.complaints[:] = [said for said in window.complaints if "503" not in said]


def test_nothing_yet_is_designed(chromium, empty_dashboard, pictures):
    """On an empty Redis every page says what is missing and how to begin."""
    page = chromium.new_context(viewport={"width": 1280, "height": 700}).new_page()
    page.goto(empty_dashboard.url + "/batches")
    expect(page.get_by_role("heading", name="No batch yet")).to_be_visible()
    if pictures is not None:
        page.screenshot(path=pictures / "dashboard-empty-light.png")
    page.goto(empty_dashboard.url + "/apis")
    expect(page.get_by_role("heading", name="No API yet")).to_be_visible()
    page.goto(empty_dashboard.url + "/batch/nobody")
    expect(page.get_by_role("heading", name="No such batch")).to_be_visible()
    page.goto(empty_dashboard.url + "/workers")
    expect(page.get_by_text("No worker process reports")).to_be_visible()
    page.context.close()
