"""How a worker sends hints."""

from __future__ import annotations

import asyncio

import pytest

from callmill.config.cancelling import end_tasks
from callmill.errors import RedisUnavailableError
from callmill.ledger import ChunkRef
from callmill.workers import hint_sender
from callmill.workers.hint_sender import HintSender

ONE, TWO = (ChunkRef("b", number, "api") for number in (1, 2))


class Broker:
    """Takes hints, but for the first so many times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.sent: list[tuple[list[ChunkRef], bool]] = []

    def publish(self, refs: list[ChunkRef], *, first: bool = False) -> None:
        """Take hints, or be away."""
        if refs and self.failures:
            self.failures -= 1
            raise RedisUnavailableError
        if refs:
            self.sent.append((refs, first))


def run(scenario) -> None:
    """Run a scenario with a sender at work."""

    async def main() -> None:
        broker = Broker()
        sender = HintSender(broker)
        working = asyncio.create_task(sender.run())
        try:
            await scenario(broker, sender)
        finally:
            await end_tasks([working])

    asyncio.run(main())


def test_hints_wait_for_the_broker_each_once(monkeypatch):
    """What comes while the broker is away is sent when it is back: a chunk once, and first if it ever was to be."""
    monkeypatch.setattr(hint_sender, "_AGAIN_S", 0.001)

    async def scenario(broker: Broker, sender: HintSender) -> None:
        broker.failures = 3
        sender.send([ONE, TWO])
        while broker.failures:
            await asyncio.sleep(0.001)
            sender.send([ONE], first=True)
            sender.send([ONE])
        await sender.settle()
        assert broker.sent == [([TWO], False), ([ONE], True)]

    run(scenario)


def test_end_does_not_wait_for_a_broker_that_stays_away(monkeypatch, caplog):
    """A worker that ends says what it could not send, and ends."""
    monkeypatch.setattr(hint_sender, "_LAST_WORD_S", 0.01)

    async def scenario(broker: Broker, sender: HintSender) -> None:
        broker.failures = 10**6
        sender.send([ONE])
        await sender.settle()

    run(scenario)
    assert "1 hints not sent" in caplog.text


@pytest.mark.parametrize("first", [True, False])
def test_nothing_to_send_is_idle(first):
    """No hints keep nobody waiting."""

    async def scenario(broker: Broker, sender: HintSender) -> None:
        sender.send([], first=first)
        await sender.settle()
        assert broker.sent == []

    run(scenario)
