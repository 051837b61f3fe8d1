"""What Prometheus reads: Flower's metrics and ours, in the format that it asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_FRESH_S = 1.0
"""So long a reading of Redis serves everybody who asks."""


class Exposition:
    """The metrics of this process and those that it reads about the fleet, for one event loop.

    Args:
        read: Reads the fleet's; it must not raise.
        before: Called before Flower's own are written.
        clock: Seconds, from any beginning.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[Sequence[Metric]]],
        before: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._before = before
        self._clock = clock
        self._reading: asyncio.Task[Sequence[Metric]] | None = None
        self._read_at_s = float("-inf")

    async def answer(self, accept: str) -> tuple[bytes, str]:
        """Return the body and its content type for whoever accepts that."""
        encode, content_type = choose_encoder(accept)
        fleet = await self._fleet()
        self._before()
        return encode(_Together(REGISTRY, fleet)), content_type

    async def _fleet(self) -> Sequence[Metric]:
        if self._reading is None or (self._reading.done() and self._clock() - self._read_at_s >= _FRESH_S):
            self._reading = asyncio.create_task(self._once())
        # One reading for all who ask meanwhile; who goes away does not end it for the others.
        return await asyncio.shield(self._reading)

    async def _once(self) -> Sequence[Metric]:
        metrics = await self._read()
        self._read_at_s = self._clock()
        return metrics


class _Together(Collector):
    """A registry's metrics and further ones."""

    def __init__(self, registry: Collector, further: Sequence[Metric]) -> None:
        self._registry = registry
        self._further = further

    def collect(self) -> Iterable[Metric]:
        yield from self._registry.collect()
        yield from self._further
