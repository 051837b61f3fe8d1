"""How often a worker looks at what may have changed."""

from __future__ import annotations

import asyncio

import pytest

from callmill.config.beat import until_beat_s
from callmill.workers.rhythm import Rhythm


def test_what_comes_at_rest_comes_together(monkeypatch):
    """Looks that are due every half and every whole second fall on the same moments, at whatever time they ask."""

    async def due_s(every_s: float, asked_s: float) -> float:
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: asked_s)
        return asked_s + until_beat_s(every_s)

    first_s = asyncio.run(due_s(1.0, 100.0))
    for asked_s in (100.1, 100.35, 100.6, 101.85, 107.3):
        for every_s in (0.5, 1.0):
            beats = (asyncio.run(due_s(every_s, asked_s)) - first_s) / every_s
            assert beats == pytest.approx(round(beats), abs=1e-6)


def test_no_beat_comes_twice(monkeypatch):
    """Who is woken a little early waits for the next beat, not for the rest of this one."""

    async def wait_s() -> float:
        loop = asyncio.get_running_loop()
        left_s = until_beat_s(1.0)
        early_s = loop.time() + left_s - 0.001
        monkeypatch.setattr(loop, "time", lambda: early_s)
        return until_beat_s(1.0)

    assert asyncio.run(wait_s()) == pytest.approx(1.001, abs=0.02)


@pytest.mark.parametrize(("at_rest", "least_s"), [(False, 0.0), (True, 0.05)])
def test_a_worker_that_works_looks_often(at_rest, least_s):
    """A pause is as short as it was asked for while there is work, and no shorter than a beat is at rest."""

    async def waited_s() -> float:
        return await Rhythm(lambda: at_rest).pause(0.001, at_rest_s=0.3)

    waited = asyncio.run(waited_s())
    assert least_s < waited < 0.002 if not at_rest else waited > least_s
