"""What becomes of the jobs of a chunk that is not run: each fails, so that the batch ends and says so."""

from __future__ import annotations

from callmill.errors import CorruptChunkError
from callmill.jobs.outcome import UNKNOWN_INDEX
from callmill.jobs.wire import WireOutcome
from callmill.ledger import Bundle, Claim
from callmill.workers.suspicion import verdict_on_all


def corrupt_outcomes(claim: Claim, error: CorruptChunkError) -> Bundle:
    """Return the outcomes of a chunk that cannot be read."""
    return _failed(claim, "corrupt", f"what Redis holds of chunk {claim.ref.number} cannot be read: {error}")


def poison_outcomes(claim: Claim) -> Bundle:
    """Return the outcomes of a chunk that kills whoever reads it."""
    return _failed(claim, "poison", verdict_on_all(claim))


def _failed(claim: Claim, code: str, message: str) -> Bundle:
    """Return an outcome for every unrecorded job; their ids and positions are in what is not read."""
    ref, outcomes = claim.ref, []
    for offset in range(claim.count):
        if offset not in claim.recorded:
            name = f"{ref.batch_id}/{ref.number}/{offset}"
            outcomes.append((offset, WireOutcome(UNKNOWN_INDEX, name, None, b"", {}, code, message, 0, 0, 0)))
    return Bundle(outcomes=outcomes)
