"""Bitmaps of the jobs of a chunk."""

from __future__ import annotations

import pytest

from callmill.ledger.bitmaps import bitmap_of, members


@pytest.mark.parametrize(
    ("offsets", "bitmap"),
    [
        ([], b""),
        ([0], b"\x01"),
        ([7], b"\x80"),
        ([8], b"\x00\x01"),
        ([1, 15], b"\x02\x80"),
        ([0, 2, 16, 499], b"\x05\x00\x01" + bytes(59) + b"\x08"),
    ],
)
def test_a_bitmap_has_the_bits_of_its_jobs(offsets, bitmap):
    """Job 0 is the lowest bit of the first byte, no byte is more than needed, and the jobs come back in order."""
    assert bitmap_of([*reversed(offsets), *offsets]) == bitmap
    assert list(members(bitmap)) == offsets
    assert list(members(bitmap + b"\x00")) == offsets
