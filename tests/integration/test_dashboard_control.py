"""Batches steered from the dashboard: by whom, from where, and what comes of it in the ledger."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from dashboard_site import dashboard_site, fail_a_job

from callmill.ledger.records import BatchState
from callmill.producer import AsyncClient, Job

SIGN_IN = {"Authorization": "Basic " + base64.b64encode(b"someone:secret").decode()}


@pytest.fixture
def batch_id(redis_url, monkeypatch, tmp_path):
    """Submit a batch that nobody runs, and return its id."""
    monkeypatch.chdir(tmp_path)  # no profiles file: any API will do

    async def submit():
        async with AsyncClient(redis_url) as client:
            return (await client.submit([Job("GET", f"/{n}", api="crm") for n in range(3)])).id

    return asyncio.run(submit())


async def state(site, batch_id):
    """Return the batch's state in the ledger."""
    return (await (await site.figures.client.batch(batch_id)).progress()).state


def test_buttons_steer_the_batch(redis_url, batch_id):
    """Pause, resume and cancel set the batch's state in the ledger; what is over can be steered no more."""

    async def scenario():
        async with dashboard_site(redis_url) as site:
            sent = await site.token()
            for action, becomes in [
                ("pause", BatchState.PAUSED),
                ("resume", BatchState.RUNNING),
                ("cancel", BatchState.CANCELLED),
            ]:
                answer = await site.post(f"/callmill/batch/{batch_id}/{action}", sent)
                assert (answer.code, await state(site, batch_id)) == (200, becomes)
                assert json.loads(answer.body)["message"]
                seen = await site.json(f"/callmill/data/batch/{batch_id}")
                assert seen["progress"]["state"] == becomes, "what was changed is seen at once"
            answer = await site.post(f"/callmill/batch/{batch_id}/retry-failed", sent)
            assert answer.code == 409
            assert "cancelled" in json.loads(answer.body)["error"]["message"]

    asyncio.run(scenario())


def test_failed_jobs_run_again(redis_url):
    """Retry says how many jobs run again, and the ledger counts them as failed no more; with none left it says 0."""

    async def scenario():
        batch_id = await fail_a_job(redis_url)
        async with dashboard_site(redis_url) as site:
            sent = await site.token()
            said = [
                json.loads((await site.post(f"/callmill/batch/{batch_id}/retry-failed", sent)).body)["message"]
                for _ in range(2)
            ]
            assert said == ["1 failed job runs again.", "0 failed jobs run again."]
            progress = (await site.json(f"/callmill/data/batch/{batch_id}"))["progress"]
            assert (progress["failed"], progress["state"]) == (0, BatchState.RUNNING)

    asyncio.run(scenario())


def test_nobody_is_told_of_batches_that_are_not(redis_url, batch_id):
    """A batch that is not there cannot be steered, nor can what is no action be done."""

    async def scenario():
        async with dashboard_site(redis_url) as site:
            sent = await site.token()
            assert (await site.post("/callmill/batch/nobody/pause", sent)).code == 404
            assert (await site.post(f"/callmill/batch/{batch_id}/delete", sent)).code == 404
            assert (await site.get(f"/callmill/batch/{batch_id}/pause")).code == 405

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "forged",
    [
        {"X-XSRFToken": ""},
        {"X-XSRFToken": "2|aaaaaaaa|bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb|1"},
        {"Cookie": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
        {"Host": "evil.example:5555", "Origin": "http://evil.example:5555", "Sec-Fetch-Site": "same-origin"},
        {"X-Forwarded-For": "203.0.113.7"},
        {"Forwarded": "for=203.0.113.7"},
    ],
    ids=str,
)
def test_other_sites_and_machines_steer_nothing(redis_url, batch_id, forged):
    """Without authentication a change needs the page's token, its origin, and a browser on this very machine."""

    async def scenario():
        async with dashboard_site(redis_url) as site:
            sent = {**await site.token(), "Origin": f"http://{site.host}", "Sec-Fetch-Site": "same-origin"}
            assert (await site.post(f"/callmill/batch/{batch_id}/pause", sent | forged)).code in {403, 421}
            assert await state(site, batch_id) is BatchState.RUNNING
            assert (await site.post(f"/callmill/batch/{batch_id}/pause", sent)).code == 200

    asyncio.run(scenario())


def test_with_authentication_who_signed_in_steers(redis_url, batch_id):
    """Signed in, a visitor steers also through a proxy, with a token all the same; nobody else sees a figure."""

    async def scenario():
        async with dashboard_site(redis_url, basic_auth=["someone:secret"]) as site:
            proxied = {
                "Origin": "https://ops.example",
                "Sec-Fetch-Site": "same-origin",
                "X-Forwarded-For": "203.0.113.7",
            }
            url = f"/callmill/batch/{batch_id}/pause"
            sent = await site.token(SIGN_IN)
            assert (await site.post(url, {**sent, "Authorization": ""})).code == 401
            assert (await site.post(url, {**SIGN_IN, **proxied})).code == 403
            assert (await site.post(url, {**sent, "Origin": "https://evil.example"})).code == 403
            assert await state(site, batch_id) is BatchState.RUNNING
            assert (await site.post(url, sent | proxied)).code == 200
            assert await state(site, batch_id) is BatchState.PAUSED
            for path in ("batches", "apis", "processes", f"batch/{batch_id}", f"failed/{batch_id}"):
                answer = await site.get(f"/callmill/data/{path}")
                assert (answer.code, set(json.loads(answer.body))) == (401, {"error"})
            assert (await site.get("/batches")).code == 401

    asyncio.run(scenario())


def test_read_only_means_batches_too(redis_url, batch_id):
    """A dashboard that was started read-only shows no button, says why, and does nothing."""

    async def scenario():
        async with dashboard_site(redis_url, batch_control=False) as site:
            page = (await site.get(f"/batch/{batch_id}")).body.decode()
            assert "data-action=" not in page
            assert "read-only" in page
            assert (await site.post(f"/callmill/batch/{batch_id}/pause", await site.token())).code == 403
            assert await state(site, batch_id) is BatchState.RUNNING

    asyncio.run(scenario())
