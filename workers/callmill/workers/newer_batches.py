"""NewerBatches: what a worker has met and leaves alone, because only a newer Callmill can read it."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict

from callmill.errors import UnknownFormatError

log = logging.getLogger(__name__)

_LATELY_S = 30.0
_REMEMBERED = 1000
"""Batches of which it is known that they were told of; of more the one met longest ago is told of again."""


class NewerBatches:
    """Tells of each such batch once, and says which were met lately. Belongs to one event loop."""

    def __init__(self) -> None:
        self._met_s: OrderedDict[str, float] = OrderedDict()

    def met(self, batch_id: str, why: UnknownFormatError) -> None:
        """Take note that a batch, or a chunk of it, cannot be read."""
        if batch_id not in self._met_s:
            log.error("left alone: %s", why, extra={"action": "unknown_format", "batch": batch_id})
        self._met_s[batch_id] = time.monotonic()
        self._met_s.move_to_end(batch_id)
        if len(self._met_s) > _REMEMBERED:
            self._met_s.popitem(last=False)

    @property
    def lately(self) -> list[str]:
        """The batches met within the last half minute."""
        since_s = time.monotonic() - _LATELY_S
        return [batch_id for batch_id, met_s in self._met_s.items() if met_s > since_s]
