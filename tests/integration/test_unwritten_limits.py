"""Limits that nobody wrote down: workers find out from real servers' refusals how much these take."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from limits_site import limits_site
from real_limiters import (
    MissingProgramError,
    Served,
    Tally,
    express_rate_limit,
    limit_conn,
    limit_req,
    refusing,
    simulated,
)

from callmill.producer import Job, Outcome
from callmill.simulator import EnforcerKind

# All batches run at the same time, for they mostly wait. Where programs are missing, only their tests are skipped.
pytestmark = pytest.mark.programs

WORKERS = 2
MOST = 5
"""Refusals of any one job."""


@dataclass(frozen=True)
class Api:
    """A server whose profile says nothing of limits, and how many jobs it gets."""

    make: Callable[[Path], AbstractContextManager[Served]]
    jobs: int


@dataclass(frozen=True)
class End:
    """What a server saw, and what became of the jobs."""

    tally: Tally
    outcomes: list[Outcome]


APIS = {
    "rate": Api(partial(limit_req, rate=100, burst=20), 600),
    "crowd": Api(partial(limit_conn, most=4, latency_s=0.1), 150),
    "window": Api(partial(simulated, limit="100/second", kind=EnforcerKind.SLIDING), 600),
    "told": Api(partial(express_rate_limit, limit=100, window_s=1, standard_headers="draft-8"), 600),
    "one": Api(partial(refusing, seconds=4, retry_after="0"), 1),
    "ten": Api(partial(refusing, seconds=4, retry_after="0"), 10),
}


@pytest.fixture(scope="module")
def ends(redis_server, tmp_path_factory) -> dict[str, End | MissingProgramError]:
    """Let workers meet all APIs at the same time."""
    folder = tmp_path_factory.mktemp("unwritten")
    seen: dict[str, End | MissingProgramError] = {}
    with ExitStack() as running:
        servers: dict[str, Served] = {}
        for name, api in APIS.items():
            try:
                servers[name] = running.enter_context(api.make(folder))
            except MissingProgramError as missing:
                seen[name] = missing
        profiles = {name: [f'base_url = "{server.url}"'] for name, server in servers.items()}
        site = running.enter_context(limits_site(folder, redis_server.url, profiles, workers=WORKERS))
        batches = {
            name: site.client.submit([Job("POST", f"/job/{n}", api=name) for n in range(APIS[name].jobs)])
            for name in servers
        }
        for name, batch in batches.items():
            outcomes = site.outcomes(batch)
            seen[name] = End(servers[name].tally(), outcomes)
        site.assert_healthy()
    return seen


def reached(ends: dict[str, End | MissingProgramError], name: str) -> Tally:
    """Return what an API's server saw if every job was ok and paid no attempt; skip where the server is missing."""
    end = ends[name]
    if isinstance(end, MissingProgramError):
        pytest.skip(str(end))
    assert [(outcome.ok, outcome.attempts) for outcome in end.outcomes] == [(True, 1)] * APIS[name].jobs
    return end.tally


@pytest.mark.parametrize(("name", "most_percent"), [("rate", 8), ("window", 8), ("told", 4), ("crowd", 10)])
def test_few_calls_are_refused(ends, name, most_percent):
    """Whatever limits an API, few calls are refused until its limit is found, and no job again and again."""
    tally = reached(ends, name)
    assert tally.refused_percent <= most_percent
    assert tally.most_refused <= MOST


@pytest.mark.parametrize(("name", "most_calls"), [("one", 12), ("ten", 40)])
def test_a_wait_of_zero_makes_no_storm(ends, name, most_calls):
    """An API that refuses with ``Retry-After: 0`` for four seconds is asked again after pauses."""
    assert reached(ends, name).calls <= most_calls
