"""The dashboard's pages in this process, on a free port, and a browser's requests to them."""

from __future__ import annotations

import json
import types
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from typing import Any

from flower.urls import settings as flower_settings
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.options import options

from callmill.config.celery import app
from callmill.config.settings import load_settings
from callmill.dashboard.figures import Figures
from callmill.dashboard.flower_app import CallmillFlower
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, encode_chunk
from callmill.ledger import Batches, Bundle, ChunkRef, Chunks, Claim, Finish, LedgerSession
from callmill.producer import AsyncClient


class Site:
    """A running dashboard; ``figures`` are those that it shows."""

    def __init__(self, figures: Figures, port: int, prefix: str) -> None:
        self.figures = figures
        self.host = f"127.0.0.1:{port}"
        self.url = f"http://{self.host}{prefix}"
        self._cookie = ""

    async def get(self, path: str, headers: dict[str, str] | None = None) -> HTTPResponse:
        """Ask for a page or its figures."""
        request = HTTPRequest(self.url + path, headers=headers or {}, follow_redirects=False)
        return await AsyncHTTPClient().fetch(request, raise_error=False)

    async def json(self, path: str) -> Any:
        """Ask for figures, which must come."""
        answer = await self.get(path)
        assert answer.code == 200, answer.body
        return json.loads(answer.body)

    async def token(self, sign_in: dict[str, str] | None = None) -> dict[str, str]:
        """Open a page and return what its script sends along with a change."""
        page = await self.get("/batches", sign_in)
        assert page.code == 200
        token = SimpleCookie(page.headers["Set-Cookie"])["_xsrf"].value
        return {"Cookie": f"_xsrf={token}", "X-XSRFToken": token, **(sign_in or {})}

    async def post(self, path: str, headers: dict[str, str]) -> HTTPResponse:
        """Ask for a change."""
        request = HTTPRequest(self.url + path, method="POST", body=b"", headers=headers)
        return await AsyncHTTPClient().fetch(request, raise_error=False)


@asynccontextmanager
async def dashboard_site(
    redis_url: str,
    *,
    prefix: str = "",
    basic_auth: list[str] | None = None,
    batch_control: bool = True,
    known_hosts: Sequence[str] = (),
) -> AsyncIterator[Site]:
    """Serve the dashboard while the context lasts."""
    figures = Figures(load_settings(redis_url=redis_url))
    chosen = types.SimpleNamespace(**options.as_dict())
    chosen.url_prefix, chosen.basic_auth, chosen.enable_events = prefix.strip("/"), basic_auth, False
    settings = {**flower_settings, "static_url_prefix": f"{prefix}/static/"}
    flower = CallmillFlower(
        figures=figures, batch_control=batch_control, known_hosts=known_hosts, capp=app, options=chosen, **settings
    )
    server, sockets = HTTPServer(flower), bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    try:
        yield Site(figures, sockets[0].getsockname()[1], prefix)
    finally:
        server.stop()
        await server.close_all_connections()
        await figures.client.aclose()
        flower.executor.shutdown(wait=False)


async def fail_a_job(redis_url: str, body: bytes = b"") -> str:
    """Run a batch of two jobs, of which one fails with this answer, and return the batch's id."""
    async with AsyncClient(redis_url) as client:
        session = LedgerSession(client.connection().redis)
        batches, chunks = Batches(session), Chunks(session, worker="w")
        batch_id = await batches.create("with a failure", retention_ms=60_000)
        await batches.add(batch_id, 0, [("crm", encode_chunk(Chunk("crm", 0, [WireJob("GET", "/")] * 2)))], park=False)
        await batches.seal(batch_id)
        claim = await chunks.claim(ChunkRef(batch_id, 0, "crm"))
        assert isinstance(claim, Claim)
        outcomes = [
            WireOutcome(0, None, 200, b"{}", {}, None, None, 1, 1_000, 20_000),
            WireOutcome(
                1, None, 404, body, {"set-cookie": "secret-cookie"}, "http_404", "404 Not Found", 1, 1_000, 30_000
            ),
        ]
        await chunks.commit(claim, Bundle(outcomes=[(item.index, item) for item in outcomes]), Finish())
        return batch_id
