"""What a line of the log says of a chunk: built here, so that it is the same everywhere."""

from __future__ import annotations

from typing import Any

from callmill.ledger import ChunkRef, Claim


def of_ref(ref: ChunkRef) -> dict[str, Any]:
    """Return the ids of a chunk."""
    return {"batch": ref.batch_id, "chunk": ref.number, "api": ref.api}


def of_claim(claim: Claim) -> dict[str, Any]:
    """Return the ids of a chunk that was claimed, and its batch's name."""
    return {
        "batch": claim.ref.batch_id,
        "batch_name": claim.batch_name,
        "chunk": claim.ref.number,
        "api": claim.ref.api,
    }
