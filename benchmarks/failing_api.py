"""An API whose failures a benchmark controls: by path, for all calls, or by not being there at all."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from child import free_port

_BODY = b'{"ok": true}'


class FailingApi:
    """``/bad/...`` is always answered 500, ``/hang/...`` never, anything else 200.

    Attributes:
        url: Base URL; it stays the same while the API is away.
        status: What everybody is answered instead; None: as above.
        calls: Calls so far, by path.
    """

    def __init__(self) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.status: int | None = None
        self.calls: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="failing-api", daemon=True)
        self._thread.start()

    def appear(self) -> None:
        """Listen."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def vanish(self) -> None:
        """Close every connection, and refuse new ones."""
        asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result()

    def end(self) -> None:
        """Vanish for good."""
        self.vanish()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, backlog=1024)

    async def _leave(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        while self._writers:  # noqa: ASYNC110 - their tasks end within milliseconds
            await asyncio.sleep(0.005)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode()
                self.calls[path] += 1
                if path.startswith("/hang/") and self.status is None:
                    await reader.read()
                    return
                status = self.status or (500 if path.startswith("/bad/") else 200)
                writer.write(b"HTTP/1.1 %d Told\r\nContent-Length: %d\r\n\r\n%b" % (status, len(_BODY), _BODY))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()


@contextmanager
def failing_api() -> Iterator[FailingApi]:
    """Serve until the context ends."""
    api = FailingApi()
    api.appear()
    try:
        yield api
    finally:
        api.end()
