"""Where autoscalers ask how many workers there should be: /workers-wanted, as JSON."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection

import msgspec
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.routing import URLSpec
from tornado.web import RequestHandler

from callmill.dashboard.access import is_loopback
from callmill.dashboard.answer_cache import AnswerCache
from callmill.dashboard.guarded_application import GuardedApplication, SafeHeaders
from callmill.errors import CallmillError, OutsideError
from callmill.overview.scaling_adviser import ScalingAdvice, ScalingAdviser
from callmill.overview.workers_wanted import FleetLoad

PATH = "/workers-wanted"
_FRESH_S = 1.0
_PATIENCE_S = 2.5
"""Less than KEDA's own patience with an answer, 3 s (KEDA_HTTP_DEFAULT_TIMEOUT): why there is none is to be told."""


class ScalingReader:
    """Reads the load and advises.

    Args:
        read: Reads the load of the fleet.
        adviser: Remembers what was wanted: one for everybody who asks.
    """

    def __init__(self, read: Callable[[], Awaitable[FleetLoad]], adviser: ScalingAdviser) -> None:
        self._read = read
        self._adviser = adviser
        self._cache = AnswerCache(for_s=_FRESH_S, timeout_s=_PATIENCE_S)

    async def advice(self) -> ScalingAdvice:
        """Return how many workers there should be.

        Raises:
            CallmillError: The load cannot be read.
        """
        return self.advise(await self._read())

    def advise(self, load: FleetLoad) -> ScalingAdvice:
        """Return how many workers there should be for a load that was just read."""
        return self._adviser.advise(load, time.monotonic())

    async def fresh(self) -> ScalingAdvice:
        """Return the same, at most a second old.

        Raises:
            CallmillError: The load cannot be read, or not in time.
        """
        return _decode(await self.answer())

    async def answer(self) -> bytes:
        """Return the same as JSON, at most a second old; it raises what ``fresh`` raises."""

        async def read() -> bytes:
            return msgspec.json.encode(await self.advice())

        return await self._cache.get(PATH, read)


_decode = msgspec.json.Decoder(ScalingAdvice).decode


def scaling_page(reader: ScalingReader) -> URLSpec:
    """Return the route of the page."""
    return URLSpec(PATH, _Wanted, {"reader": reader})


def scaling_families(advice: ScalingAdvice) -> list[Metric]:
    """Return the advice as metrics."""
    shares = GaugeMetricFamily(
        "callmill_api_workers_wanted",
        "What the API alone needs of worker processes, a share of one where it is less.",
        labels=["api"],
    )
    for api in advice.apis:
        shares.add_metric([api.api], api.processes)
    text = "Worker processes that there should be: up at once, down when fewer were enough for a minute."
    return [GaugeMetricFamily("callmill_workers_wanted", text, advice.wanted), shares]


def listen(
    application: GuardedApplication, port: int, address: str, *, what: str, known_hosts: Collection[str] = ()
) -> str:
    """Serve an application to whoever reaches the address; return its URL. Port 0: a free one.

    On the loopback it answers by the loopback's names, and by ``known_hosts``.

    Raises:
        OutsideError: The address cannot be listened on; the message says ``what`` cannot be served.
    """
    try:
        sockets = bind_sockets(port, address=address)
    except OSError as error:
        raise OutsideError(f"{what} cannot be served on {address}:{port}: {error.strerror or error}") from error
    application.add_transform(SafeHeaders)
    if is_loopback(address):
        application.known_hosts = frozenset(name.lower() for name in known_hosts)
    HTTPServer(application).add_sockets(sockets)
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{sockets[0].getsockname()[1]}"


class _Wanted(RequestHandler):
    def initialize(self, reader: ScalingReader) -> None:
        self._reader = reader

    async def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        try:
            self.write(await self._reader.answer())
        except CallmillError as error:  # no number at all: who asks keeps what it has
            self.set_status(503)
            self.write(msgspec.json.encode({"error": str(error)}))
