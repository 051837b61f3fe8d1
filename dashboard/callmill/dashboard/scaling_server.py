"""The server of ``callmill autoscale --serve``: the number of workers wanted, for whoever cannot ask a dashboard."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from tornado.routing import URLSpec
from tornado.web import RequestHandler

from callmill.dashboard.guarded_application import GuardedApplication
from callmill.dashboard.scaling_site import PATH, ScalingReader, listen, scaling_families, scaling_page
from callmill.errors import CallmillError
from callmill.overview.scaling_adviser import ScalingAdvice


async def serve_scaling(reader: ScalingReader, port: int, address: str, say: Callable[[str], None]) -> None:
    """Serve ``/workers-wanted``, ``/metrics`` and ``/healthz`` until SIGTERM or Ctrl-C; ``say`` takes the URL.

    Raises:
        OutsideError: The address cannot be listened on.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    pages = [scaling_page(reader), URLSpec("/metrics", _Metrics, {"reader": reader}), URLSpec("/healthz", _Healthy)]
    say(listen(GuardedApplication(pages), port, address, what="the number of workers") + PATH)
    await stop.wait()


class _Metrics(RequestHandler):
    def initialize(self, reader: ScalingReader) -> None:
        self._reader = reader

    async def get(self) -> None:
        try:
            advice = await self._reader.fresh()
        except CallmillError as error:  # no number at all: who asks keeps what it has
            self.set_status(503)
            self.write(str(error))
            return
        encode, content_type = choose_encoder(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", content_type)
        self.write(encode(_Told(advice)))


class _Healthy(RequestHandler):
    def get(self) -> None:
        """Answer that this process serves; of Redis it says nothing."""
        self.write("ok\n")


class _Told(Collector):
    def __init__(self, advice: ScalingAdvice) -> None:
        self._advice = advice

    def collect(self) -> Iterator[Metric]:
        yield from scaling_families(self._advice)
