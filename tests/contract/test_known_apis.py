"""Which API a producer's jobs are for, where the profiles here and the fleet mean different ones by one name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from local_nodes import write_profiles
from msgspec.structs import replace

from callmill.config.public_api import ApiAddress, PublicApi
from callmill.config.redis_connections import connect
from callmill.config.settings import load_settings
from callmill.errors import ApiMismatchError, UnknownApiError
from callmill.ledger.fleet import Fleet, WorkerStatus
from callmill.ledger.session import LedgerSession
from callmill.producer import AsyncClient, Job
from callmill.producer.known_apis import KnownApis

A, B = (PublicApi(name="crm", base_url=f"https://{host}.example") for host in "ab")


def worker(name: str, *apis: PublicApi, only_batch: str = "", older: bool = False) -> WorkerStatus:
    """Return the status of a worker that serves these APIs."""
    return WorkerStatus(
        id=name, host="h", pid=1, started_ms=1, calls=0, cpu_s=0, draining=False, apis=[api.name for api in apis],
        lanes=[], serves_at={} if older else {api.name: api.at for api in apis}, only_batch=only_batch,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _place(monkeypatch, tmp_path):
    """Work in a folder without profiles."""
    monkeypatch.chdir(tmp_path)
    for variable in ("CALLMILL_APIS", "CALLMILL_REDIS_URL", "CALLMILL_BROKER_URL", "CALLMILL_LIMITER_URL"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def known(redis_url):
    """Have workers announce and report themselves, and return what a producer knows then."""

    def of(*workers: WorkerStatus, announced: tuple[PublicApi, ...] = ()) -> KnownApis:
        async def main() -> KnownApis:
            async with connect(redis_url) as redis:
                session = LedgerSession(redis)
                for api in announced:
                    await Fleet(session).announce_apis([api])
                for status in workers:
                    await Fleet(session).report(status)
                return await KnownApis.load(session, load_settings(redis_url=redis_url))

        return asyncio.run(main())

    return of


def profile(api: PublicApi) -> None:
    """Write the profile of an API here."""
    write_profiles(Path("apis.toml"), {api.name: [f'base_url = "{api.base_url}"']})


def test_the_profiles_here_and_the_fleet_differ(known):
    """Jobs are refused, with both addresses and what to do, while workers serve the other API."""
    profile(B)
    with pytest.raises(ApiMismatchError, match=r"crm is https://b\.example .*serve crm at https://a\.example.*rename"):
        known(worker("w", A), announced=(A,)).find("crm", 0)


def test_the_profiles_here_and_the_fleet_agree(known):
    """The API is the same under another spelling, and with other limits."""
    write_profiles(Path("apis.toml"), {"crm": ['base_url = "https://A.example:443/"', 'limits = ["1/second"]']})
    apis = known(worker("w", A), announced=(A,))
    assert apis.find("crm", 0).identity == A.identity
    assert apis.bound_to("crm").identity == A.identity


def test_without_profiles_the_workers_decide(known):
    """Of what was announced, what workers that live serve counts, although another API came later; two are too many."""
    apis = known(worker("w", A), worker("run", B, only_batch="b1"), announced=(A, B))
    assert (apis.find("crm", 0).base_url, apis.bound_to("crm")) == (A.base_url, A.at)
    with pytest.raises(ApiMismatchError, match=r"https://a\.example and https://b\.example.*profiles file"):
        known(worker("w", A), worker("w2", B)).find("crm", 0)


def test_nobody_lives_and_nothing_waits(known):
    """The profile here is simply adopted; without one, what was announced last is."""
    assert known(announced=(B, A)).bound_to("crm") == A.at
    profile(B)
    assert known().bound_to("crm") == B.at


def test_nobody_lives_and_batches_wait(known, redis_url):
    """Jobs are refused while unfinished batches wait for the other API, which the message names."""

    async def submit() -> None:
        async with AsyncClient(redis_url) as client:
            await client.submit([Job("GET", "/x", api="crm")])

    known(announced=(A,))
    asyncio.run(submit())
    profile(B)
    with pytest.raises(ApiMismatchError, match=r"unfinished batches wait for crm at https://a\.example"):
        asyncio.run(submit())


def test_workers_of_before_take_in_what_is_bound_to_none(known):
    """While all workers that serve a name are older than bindings, jobs go where they listen."""
    assert known(worker("w", A, older=True), announced=(A,)).bound_to("crm") is None
    assert known(worker("w2", A)).bound_to("crm") == A.at


def test_who_serves_one_batch_announces_no_other_api(redis_url):
    """A run's own workers leave what a fleet announced of another API as it is, and can be looked up themselves."""

    async def main() -> None:
        async with connect(redis_url) as redis:
            fleet = Fleet(LedgerSession(redis))
            await fleet.announce_apis([A])
            await fleet.announce_apis([B], only_batch=True)
            assert await fleet.apis() == {"crm": A}
            assert await fleet.api_at("crm", B.identity) == B
            assert await fleet.apis_of([worker("run", B, only_batch="b1")]) == {"crm": B}
            assert await fleet.apis_of([worker("run", B, only_batch="b1"), worker("w", A)]) == {"crm": A}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("to", "batch", "serves"),
    [(None, "", True), (A.at, "", True), (B.at, "", False), (ApiAddress(A.identity, "?"), "b1", True)],
)
def test_who_serves_what(to, batch, serves):
    """A worker serves chunks of its own API and those bound to none; one that serves one batch, no other's."""
    assert worker("w", A).serves("crm", to, batch) is serves
    assert worker("run", A, only_batch="b2").serves("crm", to, batch) is False
    assert worker("run", A, only_batch="b1").serves("crm", to, batch) is (serves and batch == "b1")
    assert worker("w", A, older=True).serves("crm", to, batch) is (to is None)


def test_beside_workers_of_its_own(redis_url, known):
    """What a run's own workers serve is meant by the profiles here, whatever a fleet serves under that name."""
    known(worker("w", A, PublicApi(name="geo", base_url="https://geo.example")), announced=(A, replace(A, name="old")))
    profile(B)

    async def main() -> None:
        async with AsyncClient(redis_url, own_workers=True) as client:
            apis = await client.known_apis()
            assert (apis.only, apis.bound_to("crm")) == ("crm", B.at)
            with pytest.raises(UnknownApiError):
                apis.find("old", 0)

    asyncio.run(main())
