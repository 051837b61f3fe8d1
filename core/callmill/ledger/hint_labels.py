"""What people read of a chunk in Flower: ``translate-catalogue · openai · jobs 0-249``.

A hint carries its label, for the ledger alone would have to unpack a chunk to tell its jobs. Whoever publishes a hint
again shows the same label, as far as this process has seen the chunk or another one of its batch.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

from callmill.config.forks import in_child
from callmill.config.short_texts import MOST_OF_NAME
from callmill.jobs.line import shown_line
from callmill.ledger.keys import ChunkRef

_BETWEEN = " · "
_NAME_LENGTH = 60
_LABEL_LENGTH = 500
_CHUNKS_KNOWN = 10_000
_BATCHES_KNOWN = 1_000

_Key = TypeVar("_Key")


class HintLabels:
    """The labels that this process knows; bounded, the oldest are forgotten first. Safe to use from several threads."""

    def __init__(self) -> None:
        self._names: _Latest[str] = _Latest(_BATCHES_KNOWN)
        self._jobs: _Latest[ChunkRef] = _Latest(_CHUNKS_KNOWN)

    def note(self, ref: ChunkRef, indexes: int | Sequence[int], count: int) -> None:
        """Take note of which jobs of its batch a chunk carries.

        Args:
            ref: The chunk.
            indexes: The first job's position when the positions follow each other, else all of them.
            count: How many jobs there are.
        """
        if isinstance(indexes, int):
            self._jobs.put(ref, _positions(indexes, indexes + count - 1))
        else:
            self._jobs.put(ref, f"{count} of {_positions(indexes[0], indexes[-1])}")

    def learn(self, ref: ChunkRef, label: str) -> None:
        """Take note of the label that a hint came with; a text of another form is left alone."""
        if len(label) > _LABEL_LENGTH:
            return
        name, *rest = label.rsplit(_BETWEEN, 2)
        if len(rest) != 2 or rest[0] != shown_line(ref.line):
            return
        if name != ref.batch_id:
            self._names.put(ref.batch_id, name)
        if rest[1] != _number(ref):
            self._jobs.put(ref, rest[1])

    def text(self, ref: ChunkRef, name: str = "") -> str:
        """Return a chunk's label; ``name`` is the batch's where the caller knows it."""
        shown_name = _one_line(name)
        if shown_name:
            self._names.put(ref.batch_id, shown_name)
        shown_name = shown_name or self._names.get(ref.batch_id) or ref.batch_id
        return _BETWEEN.join((shown_name, shown_line(ref.line), self._jobs.get(ref) or _number(ref)))


class _Latest(Generic[_Key]):
    """A mapping to texts that holds the latest ``limit`` entries."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._texts: OrderedDict[_Key, str] = OrderedDict()
        self.unlock()
        in_child(self, _Latest.unlock)

    def unlock(self) -> None:
        """Start with a fresh lock."""
        self._lock = threading.Lock()

    def put(self, key: _Key, text: str) -> None:
        with self._lock:
            self._texts[key] = text
            self._texts.move_to_end(key)
            if len(self._texts) > self._limit:
                self._texts.popitem(last=False)

    def get(self, key: _Key) -> str | None:
        return self._texts.get(key)


def _positions(first: int, last: int) -> str:
    return f"job {first}" if first == last else f"jobs {first}-{last}"


def _number(ref: ChunkRef) -> str:
    return f"chunk {ref.number}"


def _one_line(name: str) -> str:
    line = " ".join(name[:MOST_OF_NAME].split())
    return line if len(line) <= _NAME_LENGTH else line[: _NAME_LENGTH - 1] + "…"


labels = HintLabels()
"""The labels of this process: a chunk's never changes, so all publishers share them."""
