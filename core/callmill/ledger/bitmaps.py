"""Bitmaps of the jobs of a chunk, as the ledger's scripts write them: job 0 is the lowest bit of the first byte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def members(bitmap: bytes) -> Iterator[int]:
    """Yield the offsets whose bit is set."""
    for at, byte in enumerate(bitmap):
        for bit in range(8):
            if byte & (1 << bit):
                yield at * 8 + bit


def bitmap_of(offsets: Iterable[int]) -> bytes:
    """Return a bitmap with these bits set, as short as may be."""
    number = sum(1 << offset for offset in set(offsets))
    return number.to_bytes((number.bit_length() + 7) // 8, "little")
