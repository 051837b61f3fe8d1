"""LargeChunks: how much memory chunks with very large jobs may take of a process.

Ordinary chunks are small and as many as the process has threads; they need no leave. A chunk of one job of 16 MiB is
taken in where there is room for it, or nothing else as large is held; else others have it, or it comes again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from callmill.jobs.bounds import SMALL_CHUNK_BYTES

_SMALL_BYTES = 4 * SMALL_CHUNK_BYTES
_DEFAULT_BYTES = 256 * 1024 * 1024


class LargeChunks:
    """The room for large chunks in one process.

    Attributes:
        tight: Memory is short: only one large chunk at a time.
    """

    def __init__(self, most_bytes: int = _DEFAULT_BYTES) -> None:
        self.tight = False
        self._most_bytes = most_bytes
        self._taken_bytes = 0

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Give a place to one chunk; what it takes is free again at the end."""
        place = Place(self)
        try:
            yield place
        finally:
            self._taken_bytes -= place.bytes

    def take(self, place: Place, size_bytes: int) -> bool:
        """Let a place have so many bytes in all; False: there is no room for them."""
        if size_bytes <= _SMALL_BYTES:
            size_bytes = 0
        others_bytes = self._taken_bytes - place.bytes
        most_bytes = 0 if self.tight else self._most_bytes
        if size_bytes and others_bytes and others_bytes + size_bytes > most_bytes:
            return False
        self._taken_bytes, place.bytes = others_bytes + size_bytes, size_bytes
        return True


class Place:
    """What one chunk takes.

    Attributes:
        bytes: How much of the room for large chunks; 0: it is small.
    """

    __slots__ = ("_room", "bytes")

    def __init__(self, room: LargeChunks) -> None:
        self.bytes = 0
        self._room = room

    def take(self, size_bytes: int) -> bool:
        """Take so many bytes in all; False: there is no room for them."""
        return self._room.take(self, size_bytes)
