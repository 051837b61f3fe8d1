"""What the headers of answers teach, from end to end: limits nobody wrote down, windows, and what others use."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from urllib.parse import urlsplit

import pytest
from limits_site import Site, limits_site
from local_nodes import until
from strict_api import StrictApi, strict_api

from callmill.config.limit_spec import parse_limit
from callmill.simulator import SimulatorOptions, SimulatorProcess
from callmill.simulator.options import EnforcerKind, HeaderStyle

WAIT_S = 30


def simulator(limit: str, kind: EnforcerKind, burst: int | None, headers: HeaderStyle, log: str) -> SimulatorProcess:
    """Return a simulator with one limit."""
    return SimulatorProcess(
        SimulatorOptions(limits=(parse_limit(limit),), enforcer=kind, burst=burst, headers=headers, seed=1, log=log)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return where profiles and logs are."""
    return tmp_path_factory.mktemp("headers")


@pytest.fixture(scope="module")
def servers(folder) -> Iterator[dict[str, SimulatorProcess]]:
    """Run an API for each test."""
    bucket, fixed = EnforcerKind.BUCKET, EnforcerKind.FIXED
    with (
        simulator("50/second", bucket, 10, HeaderStyle.NONE, folder / "silent.log") as silent,
        simulator("50/second", bucket, 10, HeaderStyle.IETF, folder / "telling.log") as telling,
        simulator("20/second", fixed, None, HeaderStyle.OPENAI, folder / "fixed.log") as windows,
    ):
        yield {"silent": silent, "telling": telling, "fixed": windows}


@pytest.fixture(scope="module")
def shared() -> Iterator[StrictApi]:
    """Serve an API that others use too."""
    with strict_api() as served:
        yield served


@pytest.fixture(scope="module")
def site(redis_server, folder, servers, shared) -> Iterator[Site]:
    """Run two workers."""
    profiles = {name: [f'base_url = "{server.url}"', 'limits = ["auto"]'] for name, server in servers.items()}
    profiles["fixed"][1:] = ['limits = ["20/second"]', 'enforcer = "fixed"']
    profiles["shared"] = [f'base_url = "{shared.url}"', 'limits = ["1200/minute"]']
    with limits_site(folder, redis_server.url, profiles, workers=2) as running:
        yield running
        running.assert_healthy()


def calls_of(folder, name: str) -> list[tuple[float, int]]:
    """Return time and status of every call that a simulator logged."""
    lines = [json.loads(line) for line in (folder / f"{name}.log").read_text().splitlines()]
    return [(line["time"], line["status"]) for line in lines]


def usual_pace(times: list[float]) -> float:
    """Return the calls per second that most neighbours are apart, whatever a machine that stalled did to a few."""
    return 1 / median(later - sooner for sooner, later in pairwise(times))


def test_unknown_limit_is_found(site, servers, folder):
    """Where nobody knows the limit the pace grows until the first refusal, and then stays near it with few refusals."""
    batch = site.submit("silent", 700)
    outcomes = site.outcomes(batch)
    assert [(outcome.ok, outcome.attempts) for outcome in outcomes] == [(True, 1)] * 700
    servers["silent"].stats()
    calls = calls_of(folder, "silent")
    refused = [at_s for at_s, status in calls if status == 429]
    assert 1 <= len(refused) <= 12
    settled = [at_s for at_s, _ in calls if at_s > refused[0] + 1.5]
    assert usual_pace(settled) > 38
    assert len(settled) / (settled[-1] - settled[0]) < 51
    assert sum(at_s >= settled[0] for at_s in refused) <= 4


def test_policy_of_the_server_is_adopted_at_once(site, servers, folder):
    """Where answers tell the policy, the pace is the policy's within a second, and no call is refused."""
    outcomes = site.outcomes(site.submit("telling", 200))
    assert all(outcome.ok for outcome in outcomes)
    assert servers["telling"].stats()["rejected"] == 0
    times = [at_s for at_s, _ in calls_of(folder, "telling")]
    late = [at_s for at_s in times if at_s > times[0] + 1.5]
    assert usual_pace(late) > 45
    assert len(late) / (late[-1] - late[0]) < 51


def test_windows_of_the_server_are_met(site, servers, folder):
    """Where headers tell when a fixed window resets, every window takes its whole amount and none a call more."""
    outcomes = site.outcomes(site.submit("fixed", 130))
    assert all(outcome.ok for outcome in outcomes)
    assert servers["fixed"].stats()["rejected"] == 0
    windows = Counter(int(at_s) for at_s, _ in calls_of(folder, "fixed"))
    whole = [windows[second] for second in sorted(windows)[2:-1]]
    assert max(whole) == 20
    assert median(whole) > 15  # where the machine stalls, calls come too late for their window


class Foreigner:
    """Another client of the same account; it makes so many calls a second, whatever it is answered."""

    def __init__(self, url: str, per_s: float) -> None:
        self._url, self._per_s = url, per_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(urlsplit(self._url).netloc, timeout=10)
        while not self._over.wait(1 / self._per_s):
            connection.request("GET", "/foreign")
            connection.getresponse().read()
        connection.close()


def test_pace_leaves_room_for_others(site, shared):
    """Where headers tell that others use the same limit, the workers slow down before the server has to refuse."""
    ends_s, left = time.monotonic() + 9.0, 100  # of 1200: a paced client alone would make 180 calls until then

    def standing() -> dict[str, str]:
        used = len(shared.accepted()) + 1
        reset_s = max(0.0, ends_s - time.monotonic())
        remaining = str(max(0, left - used))
        return {
            "x-ratelimit-limit-requests": "1200",
            "x-ratelimit-remaining-requests": remaining,
            "x-ratelimit-reset-requests": f"{reset_s * 1000:.0f}ms",
        }

    shared.headers = standing
    batch = site.submit("shared", 400)
    with Foreigner(shared.url, per_s=5):
        until(lambda: time.monotonic() > ends_s - 0.5, WAIT_S)
    calls = Counter(call.target for call in shared.accepted() if call.at_s < ends_s - 0.5)
    assert calls["/foreign"] > 20
    assert calls.total() <= 1.15 * left
    assert calls.total() > 0.8 * left
    batch.cancel()
