"""What is kept of a chunk's unrecorded jobs when it is given up, for whoever claims it next. Pure.

Two maps in msgpack, of numbers and of times (ms, on the clock of Redis):

    key                     the number is             the time is
    offset                  attempts spent            when the job may run
    -1 - offset             failures spared
    -1 - offset - 2**32     refusals for limits       when the first of them was

Older versions know the first line only, or the first two. What else there is belongs to no job that they find, so they
skip it. ``open_failed`` in ``batch.lua`` forgets what is kept of jobs that run again.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from callmill.ledger.records import Throttles

_BEYOND = 1 << 32
"""More than a chunk can have jobs."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[dict[int, int], dict[int, int]])


class Rest(Struct, frozen=True):
    """What whoever claims a chunk again must know, by offset: see ``Claim``."""

    attempts: dict[int, int] = {}
    not_before_ms: dict[int, int] = {}
    spared: dict[int, int] = {}
    throttles: dict[int, Throttles] = {}


def encode_rest(
    attempts: Mapping[int, int],
    not_before_ms: Mapping[int, int],
    spared: Mapping[int, int],
    throttles: Mapping[int, Throttles],
) -> bytes:
    """Write what is kept."""
    numbers, times = dict(attempts), dict(not_before_ms)
    for offset, number in spared.items():
        numbers[_spared_key(offset)] = number
    for offset, refused in throttles.items():
        key = _throttles_key(offset)
        numbers[key], times[key] = refused.count, refused.since_ms
    return _encoder.encode((numbers, times))


def read_rest(data: bytes) -> Rest:
    """Read what is kept; nothing where it is corrupt: better a few attempts too many than a chunk nobody can claim."""
    if not data:
        return Rest()
    try:
        numbers, times = _decoder.decode(data)
    except msgspec.MsgspecError:
        return Rest()
    return Rest(
        attempts={key: number for key, number in numbers.items() if key >= 0},
        not_before_ms={key: ms for key, ms in times.items() if key >= 0},
        spared={_spared_key(key): number for key, number in numbers.items() if -_BEYOND <= key < 0},
        throttles={
            _throttles_key(key): Throttles(number, times[key])
            for key, number in numbers.items()
            if key < -_BEYOND and key in times
        },
    )


def _spared_key(offset: int) -> int:
    """Convert an offset to the key of its spared failures, and back."""
    return -1 - offset


def _throttles_key(offset: int) -> int:
    """Convert an offset to the key of its refusals, and back."""
    return -1 - offset - _BEYOND
