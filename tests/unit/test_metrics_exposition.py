"""What Prometheus reads: one reading for all who ask at once, in the format that each asks for."""

from __future__ import annotations

import asyncio

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from callmill.dashboard.metrics_exposition import Exposition

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"


class Fleet:
    """Readings that can be counted, and that wait until they may go on."""

    def __init__(self) -> None:
        self.readings = 0
        self.may_go_on = asyncio.Event()

    async def read(self):
        """Read."""
        self.readings += 1
        await self.may_go_on.wait()
        return [GaugeMetricFamily("callmill_readings", "How often it was read.", self.readings)]


def test_a_reading_serves_all_who_ask_within_a_second():
    """Any number of scrapes at once, and later ones within a second, read Redis once; then it is read anew."""
    now_s = 100.0

    async def scrape():
        nonlocal now_s
        fleet = Fleet()
        exposition = Exposition(fleet.read, lambda: None, lambda: now_s)
        asked = [asyncio.create_task(exposition.answer("")) for _ in range(20)]
        await asyncio.sleep(0)
        asked.pop().cancel()  # whoever goes away takes it from nobody else
        fleet.may_go_on.set()
        bodies = [body for body, _ in await asyncio.gather(*asked)]
        for passed_s in (0.9, 0.2):
            now_s += passed_s
            bodies.append((await exposition.answer(""))[0])
        return bodies

    *same, last = asyncio.run(scrape())
    assert len(same) == 20
    assert all(b"callmill_readings 1.0" in body for body in same)
    assert b"callmill_readings 2.0" in last


def test_whoever_asks_for_openmetrics_gets_it():
    """The Accept header chooses the format, and the answer can be parsed as that; it has this process's own, too."""

    async def scrape():
        fleet = Fleet()
        fleet.may_go_on.set()
        return await Exposition(fleet.read, lambda: None).answer(OPENMETRICS)

    body, content_type = asyncio.run(scrape())
    assert content_type.startswith("application/openmetrics-text")
    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {"callmill_readings", "process_cpu_seconds"} <= names
