"""A run, watched and steered in the browser: bars move, numbers are the ledger's, buttons work."""

from __future__ import annotations

import re

import pytest
from local_nodes import until
from playwright.sync_api import expect
from stage import SECRET, jobs

pytestmark = pytest.mark.browser

SCRIPT = "<script>document.title='broken in'</script>"


def numbers(text):
    """Return the whole numbers in a text."""
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


def counts(page):
    """Return how many jobs the page says have succeeded, failed, and wait, and how many there are."""
    total, succeeded, failed, waiting = numbers(page.locator("[data-counts]").inner_text())
    return succeeded, failed, waiting, total


def bar_width(page):
    """Return how wide the bar of done jobs is, in pixels."""
    return sum(part.bounding_box()["width"] for part in page.locator("[data-bar] .cm-part").all())


def test_bars_move_by_themselves(window, stage):
    """While a batch runs its page's numbers and its bar grow without anybody touching it."""
    page = window.open(f"/batch/{stage.batches['running'].id}")
    page.locator(".cm-part-ok").wait_for()
    first, width = counts(page), bar_width(page)
    until(lambda: sum(counts(page)[:2]) > sum(first[:2]), what="more jobs are done")
    until(lambda: bar_width(page) > width, what="the bar grows")
    assert sum(counts(page)[:3]) == counts(page)[3]


def test_numbers_are_the_ledgers(window, stage):
    """What stands on the page of a batch that is over is what the ledger has, to the job."""
    batch = stage.batches["done"]
    told = batch.progress()
    page = window.open(f"/batch/{batch.id}")
    assert counts(page) == (told.succeeded, told.failed, 0, told.total)
    metric = {name: page.locator(f'[data-metric="{name}"]').inner_text() for name in ("calls", "failed", "eta")}
    assert metric == {"calls": f"{told.calls:,}", "failed": f"{told.failed:,}", "eta": "over"}
    causes = {cause.cause: [cause.count] for cause in batch.failures()}
    lines = page.locator("[data-causes] > li").all()
    shown = {line.locator("code").inner_text(): numbers(line.locator(".cm-cause-jobs").inner_text()) for line in lines}
    assert shown == causes
    assert page.locator("[data-slowest] tr").count() == 10


def test_failed_jobs_open_by_cause(window, stage):
    """A cause opens to some of its jobs, by the keyboard as well, and closes again."""
    page = window.open(f"/batch/{stage.batches['done'].id}")
    button = page.get_by_role("button", name="Show jobs").first
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".cm-examples p").first).to_contain_text("row-")
    page.get_by_role("button", name="Hide jobs").click()
    expect(page.locator(".cm-examples").first).to_be_hidden()


def test_buttons_steer_the_batch(window, stage):
    """Resume, pause and cancel do in the ledger what they say, a cancel only once it is confirmed."""
    batch = stage.batches["paused"]
    page = window.open(f"/batch/{batch.id}")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("[data-badges]")).to_contain_text("running")
    assert batch.progress().state == "running"
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()
    assert batch.progress().state == "paused"
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Keep it running").click()
    assert batch.progress().state == "paused"
    page.get_by_role("button", name="Cancel…").click()
    page.get_by_role("button", name="Cancel the batch").click()
    expect(page.locator("[data-badges]")).to_contain_text("cancelled")
    assert batch.progress().state == "cancelled"
    expect(page.get_by_role("button", name="Cancel…")).to_be_hidden()


def test_retry_failed_runs_them_again(window, stage):
    """Retry failed asks with the number of jobs, says how many run again, and the ledger has them done anew."""
    batch = stage.batches["done"]
    calls, failed = (told := batch.progress()).calls, told.failed
    page = window.open(f"/batch/{batch.id}")
    page.get_by_role("button", name="Retry failed…").click()
    expect(page.locator("[data-confirm-failed]")).to_contain_text(f"{failed} failed job")
    page.get_by_role("button", name="Leave them").click()
    assert batch.progress().calls == calls
    page.get_by_role("button", name="Retry failed…").click()
    page.get_by_role("button", name="Run them again").click()
    expect(page.locator(".toast")).to_contain_text(f"{failed} failed job")
    told = batch.wait(60)
    assert told.calls > calls
    until(lambda: counts(page) == (told.succeeded, told.failed, 0, told.total), what="the page shows the new end")


def test_lists_are_chosen_and_kept_in_the_address(window, stage):
    """Name and state choose batches while one types, and a reload shows the same choice."""
    page = window.open("/batches")
    page.get_by_label("Name contains").fill("OF-MARCH")
    expect(page.locator("tr[data-key]")).to_have_count(2)
    page.get_by_text("Done", exact=True).click()
    expect(page.locator("tr[data-key]")).to_have_count(1)
    page.reload()
    expect(page.locator("tr[data-key]")).to_have_count(1)
    expect(page.locator("tr[data-key]")).to_contain_text("forecast-of-march")
    page.get_by_label("Name contains").fill("no such name")
    page.get_by_role("button", name="Show all").click()
    expect(page.locator("tr[data-key]")).to_have_count(len(stage.batches))
    assert page.url.endswith("/batches")


def test_a_name_is_never_markup(window, stage):
    """A batch whose name is a script shows it as it was written; it does nothing, on no page."""
    batch = stage.client.submit(jobs("weather", 3), name=SCRIPT)
    try:
        for path in ("/batches", f"/batch/{batch.id}"):
            page = window.open(path)
            expect(page.locator("main")).to_contain_text(SCRIPT)
            assert not page.title().startswith("broken in")
    finally:
        batch.delete()


def test_tasks_of_a_batch_are_one_click_away(window, stage):
    """The link of a batch opens Flower's task list with the chunks of that batch, and of no other."""
    page = window.open(f"/batch/{stage.batches['done'].id}")
    page.get_by_role("link", name="Its tasks").click()
    rows = page.locator("#tasks-table tbody tr")
    expect(rows.first).to_contain_text("forecast-of-march")
    assert all("forecast-of-march" in row.inner_text() for row in rows.all())


def test_apis_show_what_limits_them(window, stage):  # noqa: ARG001 - it must run
    """Every API stands there with its limits, what of them is used, its credentials by name, and what limits it."""
    page = window.open("/apis")
    for api in ("vat-register", "crm", "geocoder", "openai", "weather"):
        expect(page.get_by_role("article", name=f"API {api}")).to_be_visible()
    geocoder = page.get_by_role("article", name="API geocoder")
    expect(geocoder.locator("[data-limits-by]")).not_to_be_empty()  # which of them depends on the machine
    expect(geocoder.locator("[data-shares]")).to_contain_text("150/second")
    until(lambda: numbers(geocoder.locator("[data-now] b").first.inner_text())[0] > 0, what="its limit is used")
    register = page.get_by_role("article", name="API vat-register")
    expect(register.locator("[data-state]")).to_have_text("held")  # its host was never reached
    expect(register.locator("[data-limits-by]")).to_contain_text("vat-register is held")
    openai = page.get_by_role("article", name="API openai")
    expect(openai.locator("[data-keys] li")).to_have_count(2)
    assert SECRET not in page.content()


def test_apis_show_what_was_learned(window, stage):  # noqa: ARG001 - it must run
    """An API whose profile has no limit shows the pace that its refusals taught, and since when."""
    page = window.open("/apis")
    prices = page.get_by_role("article", name="API prices")
    learned = re.compile(r"learned: [\d.]+/s since \d\d:\d\d")
    expect(prices.locator("[data-learned] li").first).to_contain_text(learned, timeout=30_000)


def test_a_hidden_page_rests(window, stage):  # noqa: ARG001 - it must run
    """A page that nobody sees asks for nothing, and goes on at once when it is seen again."""
    page = window.open("/batches")
    page.evaluate("""() => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => window.unseen ?? false });
      window.unseen = true;
      document.dispatchEvent(new Event("visibilitychange"));
    }""")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3_000)  # longer than the pause between two questions
    assert asked == []
    with page.expect_request("**/callmill/data/batches**"):
        page.evaluate("() => { window.unseen = false; document.dispatchEvent(new Event('visibilitychange')); }")


def test_nothing_is_asked_of_other_hosts(window, stage):
    """No page loads anything from anywhere but the dashboard."""
    asked = []
    window.page.on("request", lambda request: asked.append(request.url))
    for path in ("/batches", f"/batch/{stage.batches['done'].id}", "/apis", "/workers"):
        window.open(path)
    assert asked
    assert [url for url in asked if not url.startswith((stage.dashboard.url, "data:"))] == []
