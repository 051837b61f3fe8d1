"""What is kept of the jobs of a chunk that was given up, and how much of it other versions may leave out."""

from __future__ import annotations

import msgspec
import pytest

from callmill.ledger import Throttles
from callmill.ledger.rests import Rest, encode_rest, read_rest

BEYOND = 2**32
EDGES = (0, 1, 499)


def packed(numbers: object, times: object) -> bytes:
    """Return what a worker of another version wrote."""
    return msgspec.msgpack.encode((numbers, times))


def test_everything_comes_back_for_the_job_that_it_is_of():
    """Attempts, times, spared failures and refusals of the first, second and last job do not get into each other."""
    rest = Rest(
        attempts={at: 10 + at for at in EDGES},
        not_before_ms={at: 2000 + at for at in EDGES},
        spared={at: 30 + at for at in EDGES},
        throttles={at: Throttles(40 + at, 5000 + at) for at in EDGES},
    )
    assert read_rest(encode_rest(rest.attempts, rest.not_before_ms, rest.spared, rest.throttles)) == rest


def test_older_versions_know_only_part_of_it():
    """What holds attempts and times only is read; and these are all that an older version finds under the offsets."""
    assert read_rest(packed({2: 3}, {0: 99})) == Rest(attempts={2: 3}, not_before_ms={0: 99})
    written = encode_rest({2: 3}, {0: 99}, {2: 1}, {0: Throttles(4, 7)})
    numbers, times = msgspec.msgpack.decode(written, type=tuple[dict[int, int], dict[int, int]])
    assert numbers == {2: 3, -3: 1, -1 - BEYOND: 4}
    assert times == {0: 99, -1 - BEYOND: 7}


def test_a_refusal_without_its_time_is_left_out():
    """Of refusals whose first time is lost nothing is known, and the rest is read."""
    assert read_rest(packed({-1 - BEYOND: 4, -2 - BEYOND: 5, 0: 1}, {-2 - BEYOND: 7})) == Rest(
        attempts={0: 1}, throttles={1: Throttles(5, 7)}
    )


@pytest.mark.parametrize("data", [b"", b"\xff", packed({0: "x"}, {}), msgspec.msgpack.encode([{}])])
def test_nothing_is_known_where_it_cannot_be_read(data):
    """A chunk whose rest is empty, damaged or of another form is claimed as if nothing was kept."""
    assert read_rest(data) == Rest()
