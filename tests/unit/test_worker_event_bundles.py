"""When Celery's events about tasks are sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery import Celery
from celery.events.dispatcher import EventDispatcher
from kombu.asynchronous import Hub

from callmill.workers.event_bundles import EventBundlesStep


class _Dispatcher(EventDispatcher):  # type: ignore[misc] # celery ships no types
    def __init__(self, parent: Any) -> None:
        super().__init__(
            app=Celery(broker="memory://", set_as_current=False), connection=None, enabled=False, buffer_group=["task"]
        )
        self.enabled, self.on_send_buffered = True, parent.hub.call_soon
        self.sent: list[list[str]] = []

    def _publish(self, event: Any, *_: Any, **__: Any) -> None:
        self.sent.append([one["type"] for one in event])


def _consumer() -> Any:
    consumer = SimpleNamespace(hub=Hub())
    consumer.event_dispatcher = _Dispatcher(consumer)
    return consumer


def test_events_go_out_together():
    """Those of some turns of the loop are one message, sent when a second is over."""
    consumer = _consumer()
    EventBundlesStep(consumer).start(consumer)
    for kind in ("task-received", "task-started"):
        consumer.event_dispatcher.send(kind)
    assert not consumer.event_dispatcher.sent
    consumer.hub.timer.queue[0].entry()
    assert consumer.event_dispatcher.sent == [["task-received", "task-started"]]


def test_no_number_of_events_is_sent_by_the_one_who_brings_them():
    """Even a thousand wait for their second: whoever brings one may have interrupted the sending of another."""
    consumer = _consumer()
    EventBundlesStep(consumer).start(consumer)
    for _ in range(1000):
        consumer.event_dispatcher.send("task-cancelled")
    assert not consumer.event_dispatcher.sent
    consumer.hub.timer.queue[0].entry()
    assert [len(bundle) for bundle in consumer.event_dispatcher.sent] == [1000]


def test_what_is_left_goes_out_with_the_consumer():
    """Events of the last second are sent when the consumer stops, and none later."""
    consumer = _consumer()
    step = EventBundlesStep(consumer)
    step.start(consumer)
    timer = consumer.hub.timer.queue[0].entry
    consumer.event_dispatcher.send("task-succeeded")
    step.stop(consumer)
    assert consumer.event_dispatcher.sent == [["task-succeeded"]]
    assert timer.canceled
