"""The version of what a batch is in Redis, and how one of a newer version is told from it.

A batch has one format from its creation to its end; every program that touches it looks first. The number stands in the
field ``format`` of its META, and in the names of its lines, so that its hints reach only who can read them.
"""

from __future__ import annotations

from callmill.errors import UnknownFormatError

FORMAT = 1
"""Version of a batch in Redis: its keys and their layouts, its chunks, its bundles of outcomes. To be raised with any
change of them that a program of the version before would not understand, or would undo."""


def newer_batch(batch_id: str, written: int) -> UnknownFormatError:
    """Return the error of who meets a batch of a newer format."""
    return UnknownFormatError(
        f"batch {batch_id} was written by Callmill with ledger format {written}, "
        f"this program knows {FORMAT}: upgrade it"
    )
