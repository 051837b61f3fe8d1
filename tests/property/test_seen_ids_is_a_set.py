"""SeenIds: a set of ids, for a fraction of the memory."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.jobs.seen_ids import SeenIds

IDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=4) | st.integers(0, 50).map(str)


@given(st.lists(IDS))
def test_is_a_set(ids):
    """An id is new exactly when a plain set would say so."""
    seen, known = SeenIds(), set()
    for job_id in ids:
        assert seen.add(job_id) == (job_id not in known)
        known.add(job_id)


def test_stays_a_set_while_it_grows():
    """No id is forgotten, and none invented, over three growths of the table."""
    seen = SeenIds()
    assert all(seen.add(f"row-{n}") for n in range(300_000))
    assert not any(seen.add(f"row-{n}") for n in range(300_000))
    assert all(seen.add(f"line-{n}") for n in range(1000))


@pytest.mark.parametrize("count", [100_000, 1_000_000])
def test_takes_few_bytes_an_id(count):
    """An id costs 40 bytes at most, however many there are."""
    seen = SeenIds()
    for n in range(count):
        seen.add(f"row-{n}")
    buckets = [bucket for bucket in seen._buckets if bucket is not None]
    assert sum(map(len, buckets)) == 12 * count
    taken = sys.getsizeof(seen._buckets) + sum(map(sys.getsizeof, buckets))
    assert taken / count <= 40
