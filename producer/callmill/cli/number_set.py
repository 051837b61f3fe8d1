"""NumberSet: a set of small numbers in one bit each."""

from __future__ import annotations


class NumberSet:
    """Non-negative numbers; takes one bit for every number up to the largest."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._count = 0

    def add(self, number: int) -> bool:
        """Take a number in; False when it was in already."""
        at, mask = number >> 3, 1 << (number & 7)
        if at >= len(self._bits):
            self._bits.extend(bytes(at - len(self._bits) + 1 + len(self._bits) // 8))
        elif self._bits[at] & mask:
            return False
        self._bits[at] |= mask
        self._count += 1
        return True

    def discard(self, number: int) -> None:
        """Take a number out, if it is in."""
        if number in self:
            self._bits[number >> 3] &= ~(1 << (number & 7))
            self._count -= 1

    def __contains__(self, number: int) -> bool:
        at = number >> 3
        return at < len(self._bits) and bool(self._bits[at] & 1 << (number & 7))

    def __len__(self) -> int:
        return self._count
