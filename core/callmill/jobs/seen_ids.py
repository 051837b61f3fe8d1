"""SeenIds: which ids a batch has had, in some twenty bytes each.

A Python set of strings costs 100 bytes an id and more. Here an id is 96 bits of fingerprint, and fingerprints lie one
after the other in buckets of bytes, which C code searches. At 10^8 ids the chance that any two different ids are taken
for the same is below 10^-12 (birthday bound, n^2 / 2^97).
"""

from __future__ import annotations

from zlib import crc32

_MARK_BYTES = 12
_FIRST_BUCKETS = 1 << 8
_MARKS_PER_BUCKET = 64
_GROWTH = 16


class SeenIds:
    """The ids seen so far, by fingerprint."""

    def __init__(self) -> None:
        self._buckets: list[bytearray | None] = [None] * _FIRST_BUCKETS
        self._mask = _FIRST_BUCKETS - 1
        self._room = _FIRST_BUCKETS * _MARKS_PER_BUCKET

    def add(self, job_id: str) -> bool:
        """Note an id; False when it was there already."""
        # hash() is keyed per process (SipHash), so nobody can prepare ids that collide.
        number = hash(job_id)
        mark = number.to_bytes(8, "little", signed=True) + crc32(job_id.encode()).to_bytes(4, "little")
        bucket = self._buckets[number & self._mask]
        if bucket is None:
            self._buckets[number & self._mask] = bytearray(mark)
        elif _holds(bucket, mark):
            return False
        else:
            bucket += mark
        self._room -= 1
        if not self._room:
            self._grow()
        return True

    def _grow(self) -> None:
        former, count = self._buckets, (self._mask + 1) * _GROWTH
        self._buckets = [None] * count
        self._mask = count - 1
        self._room = (count - len(former)) * _MARKS_PER_BUCKET
        for at, bucket in enumerate(former):
            former[at] = None
            for start in range(0, len(bucket or b""), _MARK_BYTES):
                self._put(bucket[start : start + _MARK_BYTES])  # type: ignore[index] # empty when None

    def _put(self, mark: bytearray) -> None:
        at = int.from_bytes(mark[:8], "little", signed=True) & self._mask
        bucket = self._buckets[at]
        if bucket is None:
            self._buckets[at] = mark
        else:
            bucket += mark


def _holds(bucket: bytearray, mark: bytes) -> bool:
    at = bucket.find(mark)
    while at > 0 and at % _MARK_BYTES:  # found across two neighbours
        at = bucket.find(mark, at + 1)
    return at >= 0
