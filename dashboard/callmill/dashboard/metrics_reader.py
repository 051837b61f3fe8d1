"""MetricsReader: reads the fleet's metrics, and answers also when Redis does not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from prometheus_client.metrics_core import Metric

from callmill.dashboard.figures import Figures
from callmill.dashboard.metrics_families import Reading, families, is_up
from callmill.dashboard.scaling_site import ScalingReader
from callmill.errors import CallmillError

_PATIENCE_S = 4.0
"""Less than Prometheus's own patience with a scrape, 10 s: that Redis is silent is to be told."""

log = logging.getLogger(__name__)


class MetricsReader:
    """Reads the overview as metrics.

    Args:
        figures: Where the pages' figures come from: the same connections serve both.
        scaling: Who says how many workers there should be.
    """

    def __init__(self, figures: Figures, scaling: ScalingReader) -> None:
        self._figures = figures
        self._scaling = scaling
        self._was_up = True

    async def read(self) -> Sequence[Metric]:
        """Return everything there is to tell; where Redis does not answer, that alone."""
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                told = families(await self._reading())
        except (CallmillError, TimeoutError) as error:
            if self._was_up:
                log.warning(
                    "no metrics of the fleet: %s",
                    str(error) or f"no answer within {_PATIENCE_S:g} s",
                    extra={"action": "metrics_failed"},
                )
            self._was_up = False
            return is_up(False, time.monotonic() - began_s)
        self._was_up = True
        return [*is_up(True, time.monotonic() - began_s), *told]

    async def _reading(self) -> Reading:
        overview = self._figures.overview
        apis, workers = await overview.apis(), await overview.workers()
        return Reading(
            apis=apis,
            workers=workers,
            scaling=self._scaling.advise(await overview.load_of(apis, workers)),
            batches=await overview.batch_counts(),
            reconciled=await overview.reconciled(),
            redis=await overview.redis_state(),
        )
