"""The ledger: batches, chunks, leases, outcomes and counters in Redis. The source of truth."""

from callmill.ledger.batches import FIRST, Batches
from callmill.ledger.chunks import Bundle, Chunks, Finish
from callmill.ledger.keys import ChunkRef
from callmill.ledger.lines import Lines
from callmill.ledger.records import (
    BatchRecord,
    BatchState,
    Claim,
    ClaimRefused,
    CommitResult,
    Requeued,
    Suspect,
    Throttles,
)
from callmill.ledger.session import LedgerSession

__all__ = [
    "FIRST",
    "BatchRecord",
    "BatchState",
    "Batches",
    "Bundle",
    "ChunkRef",
    "Chunks",
    "Claim",
    "ClaimRefused",
    "CommitResult",
    "Finish",
    "LedgerSession",
    "Lines",
    "Requeued",
    "Suspect",
    "Throttles",
]
