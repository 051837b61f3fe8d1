"""What the browser looks at: a real Redis, simulated APIs, workers, the dashboard, and batches of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from dashboard_process import DashboardProcess
from local_nodes import RedisProcess, WorkerProcess, free_port, write_profiles

from callmill.config.limit_spec import parse_limit
from callmill.producer import Batch, Client, Job
from callmill.simulator import EnforcerKind, SimulatorOptions, SimulatorProcess
from callmill.simulator.latency import parse_latency

SECRET = "sk-a-key-that-nobody-may-see"

_GEOCODER = SimulatorOptions(
    limits=(parse_limit("150/second"),),
    enforcer=EnforcerKind.BUCKET,
    burst=20,
    error_rate=0.06,
    error_statuses=(404, 422, 500),
    latency=parse_latency("lognormal:60ms,p99=400ms"),
    seed=1,
)
_WEATHER = SimulatorOptions(latency=parse_latency("30ms"), error_rate=0.05, error_statuses=(404, 410), seed=3)
_CATALOGUE = SimulatorOptions(latency=parse_latency("lognormal:250ms,p99=1200ms"), error_rate=0.02, seed=2)


_PRICES = SimulatorOptions(limits=(parse_limit("30/second"),), latency=parse_latency("20ms"), seed=4)


class Stage:
    """Everything that runs; a context that ends it.

    Attributes:
        redis: The server, which outlives a kill.
        dashboard: The dashboard, without authentication.
        client: A producer.
        batches: Those that run or ran, by what they show.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._ends.close()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ends.close()

    def _start(self) -> None:
        self.redis = RedisProcess(self._folder, durable=True).start()
        self._ends.callback(self.redis.teardown)
        geocoder = self._ends.enter_context(SimulatorProcess(_GEOCODER))
        weather = self._ends.enter_context(SimulatorProcess(_WEATHER))
        catalogue = self._ends.enter_context(SimulatorProcess(_CATALOGUE))
        prices = self._ends.enter_context(SimulatorProcess(_PRICES))
        apis = write_profiles(
            self._folder / "apis.toml",
            {
                "geocoder": [
                    f'base_url = "{geocoder.url}"',
                    'limits = ["150/second"]',
                    'enforcer = "bucket"',
                    "burst = 20",
                    "retry = { attempts = 3, base = 0.2, cap = 2 }",
                ],
                "openai": [
                    f'base_url = "{catalogue.url}"',
                    'limits = ["600/minute", "200000 tokens/minute", "40 concurrent"]',
                    'enforcer = "bucket"',
                    "burst = 5",
                    f"auth = [{self._secret('main')}, {self._secret('spare')}]",
                ],
                "weather": [f'base_url = "{weather.url}"'],
                "prices": [f'base_url = "{prices.url}"'],
                "vat-register": [f'base_url = "http://127.0.0.1:{free_port()}"', "timeout = 2"],
                "crm": [f'base_url = "{catalogue.url}"', 'limits = ["20/second", "50000/day"]', 'enforcer = "sliding"'],
            },
        )
        self.redis.ready()
        worker = WorkerProcess(self._folder, self.redis.url, apis, {}).start()
        self._ends.callback(worker.teardown)
        self.dashboard = DashboardProcess(self._folder, {"redis_url": self.redis.url}).start()
        self._ends.callback(self.dashboard.teardown)
        worker.ready()
        self.dashboard.ready()
        self.client = self._ends.enter_context(Client(self.redis.url))
        self.batches = self._submit()

    def _secret(self, name: str) -> str:
        path = self._folder / name
        path.write_text(SECRET)
        return f'{{ bearer = "file:{path}" }}'

    def _submit(self) -> dict[str, Batch]:
        done = self.client.submit(jobs("weather", 600), name="forecast-of-march")
        done.wait(60)
        batches = {
            "done": done,
            "running": self.client.submit(jobs("geocoder", 30_000), name="addresses-of-march"),
            "bulk": self.client.submit(jobs("crm", 4_000), name="contacts-export", priority="bulk", tenant="acme"),
            "translate": self.client.submit(
                (
                    Job("POST", "/v1/chat", api="openai", id=f"row-{n}", json={"row": n}, tokens=300)
                    for n in range(4000)
                ),
                name="translate-catalogue",
            ),
            "unwritten": self.client.submit(jobs("prices", 6_000), name="price-list"),
            "down": self.client.submit(jobs("vat-register", 100), name="invoices"),
            "cancelled": self.client.submit(jobs("crm", 400), name="a mistake"),
            "paused": self.client.submit(jobs("crm", 800), name="contacts-sync"),
        }
        batches["cancelled"].cancel()
        batches["paused"].pause()
        return batches


def jobs(api: str, number: int) -> Iterator[Job]:
    """Yield calls of an API."""
    return (Job("GET", f"/rows/{n}", api=api, id=f"row-{n}") for n in range(number))
