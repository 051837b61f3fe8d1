"""An API with slowapi in front of it: ``slowapi_api.py PORT LOG LIMIT STRATEGY [headers]``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn
from slowapi import Limiter
from slowapi.middleware import SlowAPIASGIMiddleware
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def answer(_request: Request) -> JSONResponse:
    """Take any call."""
    return JSONResponse({"ok": True})


class Logged:
    """Writes one line per answer: Unix time of its end, seconds that it took, status, path."""

    def __init__(self, app: Any, log: Path) -> None:
        self._app = app
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a call and note it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def noted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        await self._app(scope, receive, noted)
        line = f"{time.time():.6f} {time.monotonic() - began:.6f} {status} {scope['path']}\n"
        os.write(self._log, line.encode())


def main() -> None:
    """Serve until the process is ended."""
    port, log, limit, strategy, *headers = sys.argv[1:]
    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    app.state.limiter = Limiter(
        key_func=lambda: "everybody", application_limits=[limit], strategy=strategy, headers_enabled=bool(headers)
    )
    app.add_middleware(SlowAPIASGIMiddleware)
    uvicorn.run(Logged(app, Path(log)), host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
