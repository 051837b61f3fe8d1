"""``callmill apis``: who waits for which API, who serves it, and moving what waits."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from local_nodes import write_profiles
from msgspec.structs import replace
from terminal import Terminal

from callmill.cli.program import callmill
from callmill.config.public_api import PublicApi
from callmill.ledger.fleet import WorkerStatus
from callmill.overview.progress import Progress
from callmill.producer import AsyncClient, Job

A, B = (PublicApi(name="crm", base_url=f"https://{host}.example") for host in "ab")
WORKER = WorkerStatus(
    id="w", host="h", pid=1, started_ms=1, calls=0, cpu_s=0, draining=False, apis=["crm"], lanes=[],
    serves_at={"crm": B.at},
)  # fmt: skip


@pytest.fixture
def batch_id(redis_url, monkeypatch, tmp_path):
    """Submit a batch for the API at a, and have a worker serve b."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLMILL_REDIS_URL", redis_url)
    for name in ("CALLMILL_APIS", "CALLMILL_BROKER_URL", "CALLMILL_LIMITER_URL"):
        monkeypatch.delenv(name, raising=False)

    async def submit() -> str:
        async with AsyncClient(redis_url) as client:
            fleet = client.connection().fleet
            await fleet.announce_apis([A])
            batch = await client.submit([Job("GET", f"/{n}", api="crm") for n in range(278)])
            await fleet.announce_apis([B])
            await fleet.report(WORKER)
            return batch.id

    return asyncio.run(submit())


def call(*arguments):
    """Run the command here, while the worker is there."""
    asyncio.run(report())
    return CliRunner().invoke(callmill, arguments)


async def report() -> None:
    """Have the worker say that it is there, which holds for some seconds."""
    async with AsyncClient() as client:
        await client.connection().fleet.report(WORKER)


async def progress(batch_id: str) -> Progress:
    """Return the progress of a batch while the worker is there."""
    await report()
    async with AsyncClient() as client:
        return await (await client.batch(batch_id)).progress()


def test_who_waits_for_what(batch_id):
    """Each API of the name has a row; views say who waits for which workers, and where the API is served."""
    rows = {row["address"]: row for row in json.loads(call("apis", "--json").stdout)}
    assert {address: (row["workers"], row["batches"], row["jobs"]) for address, row in rows.items()} == {
        A.address: (0, [batch_id], 278),
        B.address: (1, [], 0),
    }
    words = asyncio.run(progress(batch_id)).limited_by
    assert words.startswith(f"it needs workers that serve crm at {A.address}; crm is served only at {B.address}")
    (problem,) = json.loads(call("status", "--json").stdout)["problems"]
    assert (problem["what"], problem["about"]) == ("other_api", "crm")
    assert f"for workers that serve crm at {A.address}; crm is served only at {B.address}" in problem["text"]
    found = [row for row in json.loads(call("doctor", "--json").stdout) if row["check"] == "apis"]
    assert [(row["level"], A.address in row["found"]) for row in found] == [("warn", True)]


@pytest.mark.parametrize("profile", [True, False])
def test_move(batch_id, profile):
    """What waits goes to where the profile here, or else the workers, say that the API is; again, nothing is left."""
    if profile:
        write_profiles(Path("apis.toml"), {"crm": [f'base_url = "{B.base_url}"']})
    refused = call("apis", "move", "crm")
    assert refused.exit_code == 2
    assert f"1 batch (278 jobs left) was made for crm at {A.address}" in refused.stderr
    assert "pass --yes to confirm" in refused.stderr
    moved = call("apis", "move", "crm", "--yes")
    assert (moved.exit_code, moved.stdout) == (0, f"crm: 1 batch (278 jobs left) now waits for {B.address}\n")
    assert "another API of this name" in call("apis", "move", "crm", "--yes").stdout
    assert "it needs" not in asyncio.run(progress(batch_id)).limited_by


@pytest.mark.parametrize(("answer", "code", "jobs_at_b"), [(b"n\n", 2, 0), (b"y\n", 0, 278)])
def test_the_question(batch_id, answer, code, jobs_at_b):
    """On a terminal the command asks, and does nothing unless the answer is yes."""
    write_profiles(Path("apis.toml"), {"crm": [f'base_url = "{B.base_url}"']})
    with Terminal("apis", "move", "crm", columns=200, lines=10, environment={}) as terminal:
        terminal.until_written(f"Send them to {B.address} instead? [y/N]:")
        terminal.write(answer)
        assert terminal.wait(30) == code
    rows = {row["address"]: row["jobs"] for row in json.loads(call("apis", "--json").stdout)}
    assert (rows.get(B.address), rows.get(A.address, 0)) == (jobs_at_b, 278 - jobs_at_b)
    assert batch_id


@pytest.mark.parametrize(
    ("more", "words"),
    [(0, "1 batch (1 job left) now waits for"), (2, "3 batches (1,003 jobs left) now wait for")],
)
def test_the_words_of_a_move(batch_id, more, words):
    """Batches and jobs are counted in grammatical English."""

    async def submit() -> None:
        async with AsyncClient() as client:
            await (await client.batch(batch_id)).delete()
            await client.connection().fleet.leave(WORKER.id)
            await client.connection().fleet.announce_apis([A])
            for jobs in (1, 501, 501)[: more + 1]:
                await client.submit([Job("GET", f"/{n}", api="crm") for n in range(jobs)])

    asyncio.run(submit())
    assert call("apis", "move", "crm", "--yes").stdout == f"crm: {words} {B.address}\n"


def test_one_api_in_two_spellings(batch_id):
    """Workers that spell one base URL in two ways serve one API: what waits goes there."""
    again = replace(WORKER, id="again", serves_at={"crm": PublicApi(name="crm", base_url="https://B.example:443").at})

    async def join() -> None:
        async with AsyncClient() as client:
            await client.connection().fleet.report(again)

    asyncio.run(join())
    moved = call("apis", "move", "crm", "--yes", "--json")
    assert moved.exit_code == 0, moved.stderr
    assert (json.loads(moved.stdout)["identity"], json.loads(moved.stdout)["batches"]) == (B.identity, [batch_id])


def test_where_nobody_knows_where_it_is_now(batch_id):
    """Where neither a profile here nor a worker has the API, the command says what it needs, and moves nothing."""

    async def leave() -> None:
        async with AsyncClient() as client:
            await client.connection().fleet.leave(WORKER.id)

    asyncio.run(leave())
    refused = CliRunner().invoke(callmill, ["apis", "move", "crm", "--yes"])
    assert refused.exit_code == 2
    assert "no worker serves it" in refused.stderr
    assert [row["batches"] for row in json.loads(call("apis", "--json").stdout) if row["jobs"]] == [[batch_id]]
