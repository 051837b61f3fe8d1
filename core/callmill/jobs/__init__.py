"""Job and Outcome, and the wire format in which chunks carry them."""

from callmill.jobs.job import UNSET, Job, JSONValue
from callmill.jobs.outcome import Outcome, OutcomeError

__all__ = ["UNSET", "JSONValue", "Job", "Outcome", "OutcomeError"]
