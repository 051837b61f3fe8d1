"""What becomes of the jobs of a chunk that cannot be read: each fails, so that the batch ends and says so."""

from __future__ import annotations

from callmill.errors import CorruptChunkError
from callmill.jobs.outcome import UNKNOWN_INDEX
from callmill.jobs.wire import WireOutcome
from callmill.ledger import Bundle, Claim


def corrupt_outcomes(claim: Claim, error: CorruptChunkError) -> Bundle:
    """Return an outcome for every unrecorded job; their ids and positions in the batch were in what is lost."""
    ref, outcomes = claim.ref, []
    message = f"what Redis holds of chunk {ref.number} cannot be read: {error}"
    for offset in range(claim.count):
        if offset not in claim.recorded:
            name = f"{ref.batch_id}/{ref.number}/{offset}"
            outcome = WireOutcome(UNKNOWN_INDEX, name, None, b"", {}, "corrupt", message, 0, 0, 0)
            outcomes.append((offset, outcome))
    return Bundle(outcomes=outcomes)
