"""The dashboard's pages and their figures, on a real Redis: what they show is what the ledger has."""

from __future__ import annotations

import asyncio
import json
import re

import msgspec
import pytest
from dashboard_site import dashboard_site, fail_a_job
from local_nodes import RedisProcess
from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.routing import URLSpec
from tornado.web import RequestHandler

from callmill.dashboard.guarded_application import GuardedApplication
from callmill.dashboard.scaling_site import listen
from callmill.overview.reader import Overview
from callmill.producer import AsyncClient, Job

SCRIPT = "<script>alert(1)</script>"
PAGES = ["/batches", "/batch/some-id", "/apis"]
DATA = ["/callmill/data/batches", "/callmill/data/apis", "/callmill/data/processes"]


@pytest.fixture(autouse=True)
def no_profiles(monkeypatch, tmp_path):
    """Run where no profiles file lies: any API will do."""
    monkeypatch.chdir(tmp_path)


async def submit(redis_url, *names, jobs=3):
    """Submit a batch for each name and return their ids."""
    async with AsyncClient(redis_url) as client:
        return [
            (await client.submit((Job("GET", f"/rows/{n}", api="crm") for n in range(jobs)), name=name)).id
            for name in names
        ]


@pytest.mark.parametrize("prefix", ["", "/ops/flower"])
def test_pages_stand_beside_flowers(redis_url, prefix):
    """Our pages and Flower's all answer, each with both tabs, and name nothing outside the URL prefix."""

    async def scenario():
        async with dashboard_site(redis_url, prefix=prefix) as site:
            for path in [*PAGES, "/workers", "/tasks", "/broker"]:
                page = (await site.get(path)).body.decode()
                for tab in ("batches", "apis", "workers", "tasks", "broker"):
                    assert f'href="{prefix}/{tab}"' in page, (path, tab)
                named = re.findall(r'(?:src|href|data-\w+)="([^"#][^"]*)"', page)
                assert [url for url in named if url.startswith("/") and not url.startswith(f"{prefix}/")] == []
                scripts = re.findall(r'src="([^"]+\.js)[^"]*"', page)
                assert scripts
                for script in scripts:
                    assert (await site.get(script.removeprefix(prefix))).code == 200, script
            front = await site.get("/")
            assert (front.code, front.headers["Location"]) == (302, f"{prefix}/batches")

    asyncio.run(scenario())


def test_pages_let_nothing_foreign_in(redis_url):
    """Every page of ours forbids foreign and inline scripts, frames, guessed types, and foreign readers."""

    async def scenario():
        async with dashboard_site(redis_url) as site:
            for path in [*PAGES, *DATA]:
                headers = (await site.get(path)).headers
                policy = headers["Content-Security-Policy"]
                assert "default-src 'none'" in policy
                assert "script-src 'self'" in policy
                assert "unsafe" not in policy
                assert "frame-ancestors 'none'" in policy
                assert headers["X-Content-Type-Options"] == "nosniff"
                assert "Access-Control-Allow-Origin" not in headers

    asyncio.run(scenario())


EVERYTHING = [
    *(*PAGES, *DATA, "/", "/workers", "/tasks", "/broker", "/task/some-id", "/api/workers", "/api/tasks"),
    *("/metrics", "/healthcheck", "/static/js/flower.js", "/callmill/static/batch.js", "/no-such-page"),
]


def test_every_answer_keeps_other_sites_out(redis_url, monkeypatch):
    """No answer, Flower's and errors included, may be framed, guessed at, run foreign scripts, or be read elsewhere."""
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "1")

    async def scenario():
        async with dashboard_site(redis_url) as site:
            for path in EVERYTHING:
                headers = (await site.get(path)).headers
                directives = headers["Content-Security-Policy"].split("; ")
                assert "default-src 'none'" in directives, path
                assert "script-src 'self'" in directives, path
                assert "frame-ancestors 'none'" in directives, path
                assert headers["X-Content-Type-Options"] == "nosniff", path
                assert headers["Referrer-Policy"] == "same-origin", path
                assert path.startswith("/api/") or "Access-Control-Allow-Origin" not in headers, path

    asyncio.run(scenario())


def test_pages_have_no_inline_scripts(redis_url):
    """What the policy forbids, no page needs."""

    async def scenario():
        async with dashboard_site(redis_url) as site:
            for path in [*PAGES, "/workers", "/tasks", "/broker"]:
                page = (await site.get(path)).body.decode()
                assert "<script" in page
                assert not re.findall(r"<script(?![^>]*src=)|\son\w+=|javascript:", page), path

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:5555", "localhost.evil.example", "[", "10.0.0.7"]
)
def test_unknown_names_are_refused(redis_url, host):
    """Without a sign-in nothing is told to who opens it by a name that is not this machine's, whatever the page."""

    async def scenario():
        async with dashboard_site(redis_url) as site:
            for path in EVERYTHING:
                answer = await site.get(path, {"Host": host})
                assert answer.code == 421, path
                assert b"--known-host NAME" in answer.body
            assert (await site.post("/tasks/datatable", {"Host": host})).code == 421

    asyncio.run(scenario())


def test_known_names_are_answered(redis_url):
    """This machine's own names, those that were named, and with a sign-in every name, are answered."""

    async def scenario():
        async with dashboard_site(redis_url, known_hosts=["Ops.example"]) as site:
            for host in (site.host, "localhost", "localhost:8080", "[::1]:5555", "127.1.2.3", "ops.example:443"):
                assert (await site.get("/batches", {"Host": host})).code == 200, host
        async with dashboard_site(redis_url, basic_auth=["me:secret"]) as site:
            assert (await site.get("/batches", {"Host": "evil.example"})).code == 401
            signed_in = {"Host": "ops.example", "Authorization": "Basic bWU6c2VjcmV0"}
            assert (await site.get("/batches", signed_in)).code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(("address", "status"), [("127.0.0.1", 421), ("0.0.0.0", 200)])
def test_metrics_listener_knows_its_names(address, status):
    """On the loopback the listener for metrics answers by this machine's names alone; elsewhere by every name."""

    class Page(RequestHandler):
        def get(self) -> None:
            self.write("figures")

    async def scenario():
        at = listen(GuardedApplication([URLSpec("/metrics", Page)]), 0, address, what="metrics").replace(
            "0.0.0.0", "127.0.0.1"
        )
        for host, expected in (("evil.example", status), ("localhost:1", 200)):
            request = HTTPRequest(f"{at}/metrics", headers={"Host": host})
            assert (await AsyncHTTPClient().fetch(request, raise_error=False)).code == expected

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/../server.py", "/..%2f..%2fserver.py", "//etc/passwd", "/no-such-file"])
def test_static_files_are_ours_alone(redis_url, path):
    """The static folder gives away nothing that lies outside it."""

    async def scenario():
        async with dashboard_site(redis_url) as site:
            assert (await site.get(f"/callmill/static{path}")).code in {403, 404}

    asyncio.run(scenario())


def test_batches_are_the_ledgers(redis_url):
    """The list shows what the ledger has of every batch, the newest first, and counts them all on each of its pages."""

    async def scenario():
        ids = await submit(redis_url, *(f"batch {n}" for n in range(7)))
        async with dashboard_site(redis_url) as site:
            first = await site.json("/callmill/data/batches?limit=5")
            rest = await site.json("/callmill/data/batches?limit=5&offset=5")
            assert (first["total"], rest["total"]) == (7, 7)
            rows = first["rows"] + rest["rows"]
            assert [row["id"] for row in rows] == ids[::-1]
            for row in rows:
                told = msgspec.to_builtins(await (await site.figures.client.batch(row["id"])).progress())
                assert row | {"elapsed": 0, "mean_rate": 0} == told | {"elapsed": 0, "mean_rate": 0}

    asyncio.run(scenario())


def test_batches_are_chosen_by_state_and_name(redis_url):
    """State and a part of the name or id, in any case, choose batches on the server; the total is of those."""

    async def scenario():
        ids = await submit(redis_url, "Import ä", "import 2", "export", SCRIPT)
        async with dashboard_site(redis_url) as site:
            await (await site.figures.client.batch(ids[1])).pause()

            async def chosen(query):
                found = await site.json(f"/callmill/data/batches?{query}")
                assert found["total"] == len(found["rows"])
                return {row["id"] for row in found["rows"]}

            assert await chosen("name=IMPORT") == {ids[0], ids[1]}
            assert await chosen("name=import&state=paused") == {ids[1]}
            assert await chosen("state=running") == {ids[0], ids[2], ids[3]}
            assert await chosen(f"name={ids[2][:8]}") == {ids[2]}
            assert await chosen("name=%3Cscript%3E") == {ids[3]}
            assert await chosen("name=nobody") == set()

    asyncio.run(scenario())


@pytest.mark.parametrize("query", ["state=gone", "limit=-1", "limit=101", "offset=x", "offset=٣", "name=" + "n" * 201])
def test_wrong_choices_are_refused(redis_url, query):
    """What is no choice gets an answer that says what would be one."""

    async def scenario():
        async with dashboard_site(redis_url) as site:
            answer = await site.get(f"/callmill/data/batches?{query}")
            assert answer.code == 400
            assert json.loads(answer.body)["error"]["message"]

    asyncio.run(scenario())


def test_names_are_text(redis_url):
    """A batch's name reaches the browser as JSON, never within a page, so that no markup in it can come alive."""

    async def scenario():
        (batch_id,) = await submit(redis_url, SCRIPT)
        async with dashboard_site(redis_url) as site:
            for path in ("/batches", f"/batch/{batch_id}"):
                assert SCRIPT not in (await site.get(path)).body.decode()
            answer = await site.get(f"/callmill/data/batch/{batch_id}")
            assert answer.headers["Content-Type"] == "application/json; charset=UTF-8"
            assert json.loads(answer.body)["progress"]["name"] == SCRIPT

    asyncio.run(scenario())


def test_no_body_and_no_header_is_shown(redis_url):
    """Failed jobs come with cause and reason; what the API answered, body and headers, stands in no figure."""

    async def scenario():
        batch_id = await fail_a_job(redis_url, b"body of an answer")
        async with dashboard_site(redis_url) as site:
            view = await site.json(f"/callmill/data/batch/{batch_id}")
            assert view["errors"] == [{"cause": "http_404", "jobs": 1}]
            found = await site.json(f"/callmill/data/failed/{batch_id}?cause=http_404")
            assert [(job["index"], job["message"]) for job in found["jobs"]] == [(1, "404 Not Found")]
            assert (await site.json(f"/callmill/data/failed/{batch_id}?cause=http_500"))["jobs"] == []
            for path in (*DATA, f"/callmill/data/batch/{batch_id}", f"/callmill/data/failed/{batch_id}"):
                text = (await site.get(path)).body.decode()
                assert "body of an answer" not in text
                assert "secret-cookie" not in text

    asyncio.run(scenario())


def test_unknown_batch(redis_url):
    """Figures of a batch that is not there are a 404, which the page tells from a fault."""

    async def scenario():
        async with dashboard_site(redis_url) as site:
            for path in ("batch", "failed"):
                assert (await site.get(f"/callmill/data/{path}/nobody")).code == 404
            assert (await site.get("/batch/no%20id")).code == 404

    asyncio.run(scenario())


def test_many_viewers_cost_as_one(redis_url, monkeypatch):
    """Who asks within the same second for the same figures gets the same answer, read once."""
    reads = []
    read = Overview.apis

    async def counted(self):
        reads.append(1)
        return await read(self)

    monkeypatch.setattr(Overview, "apis", counted)

    async def scenario():
        async with dashboard_site(redis_url) as site:
            answers = await asyncio.gather(*(site.get("/callmill/data/apis") for _ in range(30)))
            assert {answer.code for answer in answers} == {200}
            assert len({answer.body for answer in answers}) == 1

    asyncio.run(scenario())
    assert len(reads) == 1


def test_redis_away_and_back(tmp_path):
    """While Redis is away figures are a 503 that says so and pages are still served; when it is back, all is well."""
    node = RedisProcess(tmp_path, durable=True).start()
    node.ready()

    async def scenario():
        await submit(node.url, "lasting")
        async with dashboard_site(node.url) as site:
            assert (await site.json("/callmill/data/batches"))["total"] == 1
            node.kill()
            site.figures.changed()
            for path in DATA:
                answer = await site.get(path)
                assert answer.code == 503, path
                assert "Redis" in json.loads(answer.body)["error"]["message"]
            assert (await site.get("/batches")).code == 200
            node.restart()
            site.figures.changed()
            assert (await site.json("/callmill/data/batches"))["total"] == 1

    try:
        asyncio.run(scenario())
    finally:
        node.teardown()
