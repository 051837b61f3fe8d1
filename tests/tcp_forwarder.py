"""A TCP address that stays while what is behind it changes, breaks, or falls silent."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine
from contextlib import suppress
from threading import Thread
from typing import Any, Self


class Link:
    """One forwarded connection."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, delay_s: float) -> None:
        self.writers = (client, server)
        self.delay_s = delay_s
        self.words = b""
        self.silent = False
        self.unheard = False
        self._due_s = dict.fromkeys(self.writers, 0.0)

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one direction until an end closes."""
        with suppress(OSError):
            while data := await reader.read(65536):
                if writer is self.writers[1]:
                    self.words = (self.words + data)[-4096:]
                    self.unheard |= self.silent
                if not self.silent and not self._later(writer, data):
                    writer.write(data)
                    await writer.drain()
        self.cut()

    def _later(self, writer: asyncio.StreamWriter, data: bytes) -> bool:
        """Send when the delay is over, behind what is on its way already; False: there is nothing to wait for."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        due_s = self._due_s[writer] = max(self._due_s[writer] + 1e-6, now_s + self.delay_s)
        if due_s <= now_s:
            return False
        loop.call_at(due_s, writer.write, data)
        return True

    def cut(self) -> None:
        """End both sides at once."""
        for writer in self.writers:
            writer.transport.abort()


class Forwarder:
    """Forwards connections to another port of its address; without one it ends them at once.

    With ``tls`` it speaks TLS to clients, and plainly to what is behind it.
    """

    def __init__(self, target: int | None, tls: ssl.SSLContext | None = None, *, host: str = "127.0.0.1") -> None:
        self._host = host
        self.port = 0
        self._tls = tls
        self._target = target
        self._silent = False
        self._delay_s = 0.0
        self._links: set[Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._serve, self._host, 0, ssl=self._tls))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """The URL of the Redis behind it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def lead_to(self, target: int | None) -> None:
        """Cut what is connected; new connections go to another port, or are ended."""
        self._do(self._lead_to(target))

    def silence(self, word: bytes = b"") -> int:
        """Let connections on which a client said this word carry nothing any more; return how many.

        Without a word that is all of them, new ones too, until it leads somewhere else.
        """
        return int(self._do(self._silence(word)))

    def unheard(self) -> int:
        """Return how many connections that carry nothing any more a client has said something on since."""
        return sum(link.unheard for link in tuple(self._links))

    def delay(self, delay_s: float) -> None:
        """Forward everything so much later, each way."""
        self._do(self._delay(delay_s))

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._target is None:
                raise ConnectionRefusedError
            other_reader, other_writer = await asyncio.open_connection(self._host, self._target)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, other_writer, self._delay_s)
        link.silent = self._silent
        self._links.add(link)
        await asyncio.gather(link.pump(reader, other_writer), link.pump(other_reader, writer))
        self._links.discard(link)

    async def _lead_to(self, target: int | None) -> None:
        self._target, self._silent = target, False
        for link in self._links:
            link.cut()

    async def _delay(self, delay_s: float) -> None:
        self._delay_s = delay_s
        for link in self._links:
            link.delay_s = delay_s

    async def _silence(self, word: bytes) -> int:
        self._silent = not word
        found = [link for link in self._links if word in link.words]
        for link in found:
            link.silent = True
        return len(found)

    async def _close(self) -> None:
        self._server.close()
        await self._lead_to(None)
        while self._links:  # noqa: ASYNC110 - they end one by one
            await asyncio.sleep(0.001)
