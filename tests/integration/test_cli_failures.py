"""``callmill failures`` and ``callmill retry --where``, on a batch whose outcomes are in the ledger."""

from __future__ import annotations

import asyncio
import json

import pytest
from click.testing import CliRunner

from callmill.cli.program import callmill
from callmill.jobs.wire import WireOutcome
from callmill.ledger import Bundle, ChunkRef, Chunks, Claim, Finish, LedgerSession
from callmill.producer import AsyncClient, Job

BODY = b'{"error": "\x1b[31mno such thing\x1b[0m,\n[bold]really[/bold]"}'
FAILED = {0: ("http_500", 500, b""), 1: ("http_404", 404, BODY), 2: ("http_404", 404, BODY), 3: ("timeout", None, b"")}


async def submit(redis_url: str) -> str:
    """Submit six jobs of two APIs, record four failures, and return the batch's id."""
    async with AsyncClient(redis_url) as client:
        jobs = [Job("GET", "/x", api="b" if n == 3 else "a", id=f"row-{n}") for n in range(6)]
        batch = await client.submit(jobs)
        await record(client, batch.id)
        return batch.id


async def record(client: AsyncClient, batch_id: str) -> None:
    """Record what the jobs come to; those that are run again come to the same."""
    chunks = Chunks(LedgerSession(client.connection().redis), worker="w")
    for number, (api, indexes) in enumerate({"a": [0, 1, 2, 4, 5], "b": [3]}.items()):
        claim = await chunks.claim(ChunkRef(batch_id, number, api))
        if isinstance(claim, Claim):
            outcomes = [(at, outcome(index)) for at, index in enumerate(indexes) if at not in claim.recorded]
            await chunks.commit(claim, Bundle(outcomes=outcomes), Finish())


def outcome(index: int) -> WireOutcome:
    """Return what a job comes to."""
    code, status, body = FAILED.get(index, (None, 200, b"ok"))
    message = code and f"it is {code}"
    return WireOutcome(index, f"row-{index}", status, body, {}, code, message, 2, 1, 1)


@pytest.fixture
def batch_id(redis_url, monkeypatch, tmp_path):
    """Id of the batch; the commands find its server in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLMILL_REDIS_URL", redis_url)
    for name in ("CALLMILL_APIS", "CALLMILL_BROKER_URL", "CALLMILL_LIMITER_URL"):
        monkeypatch.delenv(name, raising=False)
    return asyncio.run(submit(redis_url))


def call(*arguments):
    """Run the command here."""
    return CliRunner().invoke(callmill, arguments)


def test_causes_are_shown(batch_id):
    """The table has a row for each cause, with the API's own words as text, and says how to go on from there."""
    done = call("failures", batch_id)
    assert done.exit_code == 0
    rows = done.stdout.splitlines()
    assert rows[0].split() == ["jobs", "cause", "api", "last", "example", "what", "it", "says"]
    assert [row.split()[:3] for row in rows[1:] if row[:4].strip()] == [
        ["2", "http_404", "a"],
        ["1", "http_500", "a"],
        ["1", "timeout", "b"],
    ]
    assert "[bold]really[/bold]" in done.stdout
    assert "\x1b[31m" not in done.stdout
    assert f"callmill retry {batch_id} --where cause=http_404" in done.stderr
    causes = json.loads(call("failures", batch_id, "--where", "api=a", "--json").stdout)
    assert [(cause["cause"], cause["count"]) for cause in causes] == [("http_404", 2), ("http_500", 1)]
    assert causes[0]["example"]["failures"][-1]["answer"] == BODY.decode()
    assert "no failed job of that kind" in call("failures", batch_id, "--where", "status=403").stderr


def test_jobs_are_shown(batch_id):
    """Each failed job is a line, as text or as JSON."""
    lines = call("failures", batch_id, "--jobs", "--where", "status=4xx").stdout.splitlines()
    assert sorted(line[:31] for line in lines) == [f"row-{n}: http_404: it is http_404:"[:31] for n in (1, 2)]
    assert all("2 attempts" in line and "\x1b" not in line for line in lines)
    jobs = [json.loads(line) for line in call("failures", batch_id, "--jobs", "--json").stdout.splitlines()]
    assert {job["id"]: job["failures"][0]["code"] for job in jobs} == {
        f"row-{index}": code for index, (code, _, _) in FAILED.items()
    }


def test_retry_where(batch_id, redis_url):
    """A retry runs the jobs that are meant; they are listed on request, with both failures once they failed again."""
    retried = call("retry", batch_id, "--where", "status=404", "--json")
    assert (retried.exit_code, json.loads(retried.stdout)["jobs"]) == (0, 2)
    assert len(call("failures", batch_id, "--jobs").stdout.splitlines()) == 2
    lines = call("failures", batch_id, "--jobs", "--retried").stdout.splitlines()
    assert sorted(line[:5] for line in lines if "run again since" in line) == ["row-1", "row-2"]

    async def again() -> None:
        async with AsyncClient(redis_url) as client:
            await record(client, batch_id)

    asyncio.run(again())
    assert "failed 2 times: http_404, http_404" in call("failures", batch_id, "--jobs", "--where", "id=row-1").stdout
    assert "4 jobs" in call("retry", batch_id).stdout
    assert "no failed job" in call("failures", batch_id).stderr


def test_mistakes_are_told(batch_id):
    """A wrong condition, a missing batch, and options that do not go together are usage errors that name it."""
    for arguments, words in (
        (("retry", batch_id, "--where", "state=500"), ("'state'", "api, cause, code, id, status")),
        (("failures", batch_id, "--where", "status=five"), ("'five'", "5xx")),
        (("failures", "0123"), ("no batch '0123'",)),
        (("failures", batch_id, "--retried"), ("--jobs",)),
    ):
        done = call(*arguments)
        assert done.exit_code == 2
        assert [word for word in words if word not in done.stderr] == []
