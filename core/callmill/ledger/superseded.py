"""Which outcomes of a stream no longer count, because their jobs were run again; written by ``batch.lua``.

For each block of 1024 positions in the batch, this stores one or more of: an entry's id as ms and sequence (8 bytes
each, floats), the length of a bitmap (2), the bitmap. The outcomes of the jobs in the bitmap are superseded up to that
entry. Ten million jobs take two megabytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence

from callmill.jobs.outcome import Outcome

BLOCK = 1024
_PREFIX = struct.Struct(">ddH")
_EntryId = tuple[float, float]


def blocks_of(bundles: Iterable[Sequence[Outcome]]) -> list[int]:
    """Return the blocks that say which of these outcomes are superseded; only failed ones can be."""
    return sorted({outcome.index // BLOCK for bundle in bundles for outcome in bundle if _may_be_superseded(outcome)})


class Superseded:
    """What some blocks say.

    Args:
        blocks: Block -> its bytes; those without any are left out.
    """

    def __init__(self, blocks: Mapping[int, bytes]) -> None:
        self._blocks = {block: list(_entries(data)) for block, data in blocks.items()}

    def newest_of(self, bundle: list[Outcome], entry_id: str) -> list[Outcome]:
        """Return the outcomes of an entry that still count."""
        if not self._blocks:
            return bundle
        ms, _, sequence = entry_id.partition("-")
        at = float(ms), float(sequence)
        return [outcome for outcome in bundle if not (_may_be_superseded(outcome) and self._says_so(outcome.index, at))]

    def _says_so(self, index: int, at: _EntryId) -> bool:
        byte, mask = index % BLOCK // 8, 1 << index % 8
        return any(
            at <= up_to and byte < len(bitmap) and bitmap[byte] & mask
            for up_to, bitmap in self._blocks.get(index // BLOCK, ())
        )


def _may_be_superseded(outcome: Outcome) -> bool:
    return not outcome.ok and outcome.index >= 0


def _entries(data: bytes) -> Iterable[tuple[_EntryId, bytes]]:
    at = 0
    while at < len(data):
        ms, sequence, length = _PREFIX.unpack_from(data, at)
        at += _PREFIX.size + length
        yield (ms, sequence), data[at - length : at]
