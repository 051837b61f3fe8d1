"""When a worker looks for limits that people have changed, where no message told it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from callmill.limits import overrides
from callmill.limits.control import InForce
from callmill.limits.overrides import Overrides


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    while not condition():  # noqa: ASYNC110 - what it waits for has no event
        await asyncio.sleep(0.001)


def test_the_first_call_after_a_rest_makes_it_look(monkeypatch):
    """While no call asks or waits nobody looks for long; the first that asks has what was changed looked up at once."""
    looks = 0

    async def load_in_force(*_: object) -> InForce:
        nonlocal looks
        looks += 1
        return InForce()

    monkeypatch.setattr(overrides, "load_in_force", load_in_force)
    monkeypatch.setattr(overrides, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(overrides, "_AT_REST_EVERY_S", 3600.0)

    async def scenario() -> None:
        waiting = 1
        followed = Overrides(
            cast("Any", None), "api", on_change=lambda _: None, on_news=lambda: None, waiting=lambda: waiting
        )
        task = asyncio.create_task(followed.run())
        await until(lambda: looks >= 5)
        waiting = 0
        await until(lambda: followed._rests)
        looked = looks
        await asyncio.sleep(0.1)
        assert looks == looked
        followed.used()
        await until(lambda: looks > looked)
        task.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 20))
