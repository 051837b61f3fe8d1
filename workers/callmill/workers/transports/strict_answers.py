"""StrictAnswer: http.client's response, made safe for reused connections.

http.client mistakes an interim answer (102, 103) for the final one, drops what it read beyond an answer's end, and
guesses when lengths contradict each other. Each of these can give the next request on the connection another request's
answer. Here interim answers are skipped. An answer whose end is uncertain, or that is followed by anything, fails or
ends its connection.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse, IncompleteRead, parse_headers
from string import hexdigits

_LONGEST_LINE = 65536
_MOST_TRAILERS = 100
_MOST_LENGTH_DIGITS = 19
_BODILESS_STATUSES = frozenset({204, 304})
_HEX = frozenset(hexdigits.encode())


class BrokenAnswerError(HTTPException):
    """The answer violates HTTP/1.1, so that its end is uncertain."""


class StrictAnswer(HTTPResponse):
    """One answer on a connection.

    Args:
        sock: The connection's socket.
        method: The method of the request.
        early: The answer began before the request was sent completely: the connection is not reused.
        end_connection: Called when something follows the answer.
    """

    def __init__(
        self, sock: socket.socket, method: str | None, *, early: bool, end_connection: Callable[[], None]
    ) -> None:
        super().__init__(sock, method=method)
        self._sock = sock
        self._bodiless_method = method == "HEAD"
        self._early = early
        self._end_connection = end_connection
        self._in_chunk = 0

    def begin(self) -> None:
        """Read the head of the answer.

        Raises:
            BrokenAnswerError: The head is malformed, or contradicts itself.
        """
        if self.headers is None:
            super().begin()
            self._find_end()

    def read(self, amt: int | None = None) -> bytes:
        """Read the body, or ``amt`` bytes of it at most.

        Raises:
            BrokenAnswerError: The chunks are malformed.
        """
        if self.fp is None or not self.chunked:
            return super().read(amt)
        if amt is not None:
            return self._read_from_chunk(amt)
        pieces = []
        while piece := self._read_from_chunk(_LONGEST_LINE):
            pieces.append(piece)
        return b"".join(pieces)

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc] # not in typeshed
            if status == 101:
                raise BrokenAnswerError("101 Switching Protocols, which the request did not ask for")
            if status >= 200:
                return version, status, reason
            parse_headers(self.fp)

    def _find_end(self) -> None:
        """Determine how the body ends; any doubt closes the connection after the answer."""
        headers = self.headers
        if headers.defects or headers.get_payload():  # what follows such a line was not read, be it the body's length
            raise BrokenAnswerError("malformed header line")
        lengths = {part.strip() for value in headers.get_all("content-length", ()) for part in value.split(",")}
        codings = [
            part.strip().lower() for value in headers.get_all("transfer-encoding", ()) for part in value.split(",")
        ]
        if len(lengths) > 1 or not all(map(_is_length, lengths)):
            raise BrokenAnswerError(f"Content-Length: {', '.join(sorted(lengths))[:100]}")
        if codings and lengths and codings[-1] != "chunked":
            raise BrokenAnswerError("both Content-Length and a Transfer-Encoding other than chunked")
        forbidden = bool(codings or lengths - {"0"}) and self.status == 204
        unclear = bool(codings) and (codings != ["chunked"] or bool(lengths) or self.version == 10)
        self.chunked, self.length = False, None
        if self._bodiless_method or self.status in _BODILESS_STATUSES:
            self.length = 0
        elif codings:
            self.chunked = codings[-1] == "chunked"
        elif lengths:
            self.length = int(lengths.pop())
        endless = self.length is None and not self.chunked
        self.will_close = self._check_close() or endless or forbidden or unclear or self._early  # type: ignore[attr-defined]

    def _read_from_chunk(self, amt: int) -> bytes:
        if not self._in_chunk:
            self._in_chunk = self._next_chunk()
            if not self._in_chunk:
                self._skip_trailers()
                self._close_conn()
                return b""
        data = self._exactly(min(amt, self._in_chunk))
        self._in_chunk -= len(data)
        if not self._in_chunk and self._exactly(2) != b"\r\n":
            raise BrokenAnswerError("a chunk is longer than its stated size")
        return data

    def _skip_trailers(self) -> None:
        for _ in range(_MOST_TRAILERS):
            line = self._line()
            if not line:
                return
            if b":" not in line:
                raise BrokenAnswerError(f"invalid trailer {line[:40]!r}")
        raise BrokenAnswerError(f"more than {_MOST_TRAILERS} trailers")

    def _next_chunk(self) -> int:
        size = self._line().partition(b";")[0].strip()
        if not size or len(size) > 16 or not _HEX.issuperset(size):
            raise BrokenAnswerError(f"invalid chunk size {size[:40]!r}")
        return int(size, 16)

    def _line(self) -> bytes:
        line = self.fp.readline(_LONGEST_LINE + 1)
        if not line.endswith(b"\n"):
            if len(line) > _LONGEST_LINE:
                raise BrokenAnswerError("a line between chunks is too long")
            raise IncompleteRead(line)
        return line.rstrip(b"\r\n")

    def _exactly(self, amt: int) -> bytes:
        data = self.fp.read(amt)
        if len(data) < amt:
            raise IncompleteRead(data, amt - len(data))
        return data

    def _close_conn(self) -> None:
        followed = not self.will_close and self._is_followed()
        super()._close_conn()  # type: ignore[misc] # not in typeshed
        if followed:
            self._end_connection()

    def _is_followed(self) -> bool:
        """Say whether more has come than the answer: in the buffer, in the TLS layer, or on the socket."""
        timeout_s = self._sock.gettimeout()
        try:
            self._sock.settimeout(0)
            try:
                return bool(self.fp.peek(1))
            except ssl.SSLWantReadError:
                return False
            finally:
                self._sock.settimeout(timeout_s)
        except (OSError, ValueError):
            return True


def _is_length(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MOST_LENGTH_DIGITS
