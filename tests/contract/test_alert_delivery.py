"""How what was noted reaches webhooks, against a real Redis and a real HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from alerts_site import Hook, Site, runner, webhook

from callmill.config.alert_policy import AlertEvent
from callmill.ledger import alert_log, keys
from callmill.ledger.alert_log import Alert
from callmill.workers import alert_sender
from callmill.workers.alert_sender import AlertSender


@pytest.fixture
def hook() -> Iterator[Hook]:
    """Run a webhook."""
    with webhook() as made:
        yield made


@pytest.fixture
def run(redis_url, hook) -> Callable[[Callable], None]:
    """Run a coroutine function on a site of its own."""
    return runner(redis_url, hook)


async def noted(site: Site, event: str = "batch_done", at: str | None = None) -> Alert:
    """Note an alert."""
    at = at or datetime.now(UTC).isoformat()
    alert = Alert(id=f"{event}-{await site.redis.xlen(keys.ALERTS)}", event=event, at=at, text="Callmill: a text")
    assert await site.log.change("", None, None, alert)
    return alert


def test_workers_that_send_at_the_same_time_post_once(run, hook):
    """However many workers have the webhook, each alert is posted once, in order."""

    async def test(site: Site) -> None:
        alerts = [await noted(site) for _ in range(5)]
        senders = [site.another_sender(f"w{n}") for n in range(4)]
        await asyncio.gather(*(sender.send_waiting() for sender in senders))
        await asyncio.gather(*(sender.send_waiting() for sender in senders))
        assert [post["id"] for post in hook.posts] == [alert.id for alert in alerts]

    run(test)


def test_alert_survives_the_worker_that_was_to_post_it(run, hook, monkeypatch):
    """What a worker had in hand when it was killed is posted by another one, once its time is over."""
    monkeypatch.setattr(alert_sender, "_MARGIN_S", 0.05)
    monkeypatch.setattr(alert_sender, "TIMEOUT_S", 0.05)

    async def test(site: Site) -> None:
        alert = await noted(site)
        webhook = site.sender._webhooks[0].name
        assert await site.log.next(webhook, "killed", lease_s=0.2)
        other = site.another_sender("w2")
        await other.send_waiting()
        assert hook.posts == []
        while not hook.posts:
            await other.send_waiting()
            await asyncio.sleep(0.01)
        assert [post["id"] for post in hook.posts] == [alert.id]

    run(test)


@pytest.mark.parametrize("status", ["500 Oops", "503 Later", "429 Slow", "408 Slow"])
def test_refused_alert_is_posted_again_with_its_id(run, hook, caplog, status):
    """A webhook that cannot take an alert now gets it again, the same, before any newer one."""
    hook.answers += [status, status]

    async def test(site: Site) -> None:
        first, second = [await noted(site) for _ in range(2)]
        delays = [await site.sender.send_waiting() for _ in range(3)]
        assert delays[0] < delays[1]
        assert [post["id"] for post in hook.posts] == [first.id] * 3 + [second.id]

    run(test)
    assert [record.action for record in caplog.records].count("alert_retry") == 2
    assert "hook-secret-1" not in caplog.text


def test_alert_that_is_not_taken_does_not_hold_up_others(run, hook, caplog):
    """An alert that is refused for good, or that is too old by now, is lost with a word; the next one goes out."""
    hook.answers += ["400 Bad Request", "503 Later", "200 OK"]

    async def test(site: Site) -> None:
        await noted(site)
        await noted(site, at="2020-01-01T00:00:00Z")
        last = await noted(site)
        await site.sender.send_waiting()
        assert hook.posts[-1]["id"] == last.id

    run(test)
    lost = [record for record in caplog.records if record.action == "alert_lost"]
    assert [record.reason for record in lost] == ["400 Bad Request", "503 Service Unavailable"]
    assert "hook-secret-1" not in caplog.text


def test_webhook_that_cannot_be_reached_is_tried_again(run, hook, caplog):
    """An address where nobody listens is a matter of time, and its alerts wait."""

    async def test(site: Site) -> None:
        dead = AlertSender(
            site.log, ["http://127.0.0.1:1/hook-secret-2"], list(AlertEvent), worker="w", transport=site.transport
        )
        await dead.send_waiting()
        await noted(site)
        await dead.send_waiting()
        await site.sender.send_waiting()
        assert len(hook.posts) == 1

    run(test)
    assert "webhook 1: connect" in caplog.text
    assert "hook-secret-2" not in caplog.text


def test_only_chosen_events_are_posted(run, hook):
    """Events that were not asked for are passed over."""

    async def test(site: Site) -> None:
        for event in ("batch_done", "lane_paused", "batch_failed"):
            await noted(site, event)
        await site.another_sender("w", events=("batch_failed",)).send_waiting()
        assert hook.events == ["batch_failed"]

    run(test)


def test_new_webhook_is_not_told_what_is_past(run, hook):
    """A webhook that is configured today hears of what happens from now on."""

    async def test(site: Site) -> None:
        await noted(site)
        await site.redis.delete(keys.ALERTS_SENT)
        await site.sender.send_waiting()
        await noted(site, "lane_paused")
        await site.sender.send_waiting()
        assert hook.events == ["lane_paused"]

    run(test)


def test_alerts_that_wait_are_bounded(run, monkeypatch):
    """Where no webhook takes them, the oldest are dropped."""
    monkeypatch.setattr(alert_log, "KEPT", 10)

    async def test(site: Site) -> None:
        for _ in range(15):
            await noted(site)
        assert await site.redis.xlen(keys.ALERTS) == 10

    run(test)


def test_names_neither_mention_nor_mark_up(run, hook):
    """What a batch is called is shown as it is, and wakes nobody in the chat."""

    async def test(site: Site) -> None:
        await site.record(await site.submit("<!channel> `@all`\nsecond line"), 4)
        await site.watch.look()
        await site.sender.send_waiting()
        text = hook.posts[0]["text"]
        assert "<" not in text
        assert "@all" not in text
        assert "\n" not in text
        assert text.count("`") == 2

    run(test)
