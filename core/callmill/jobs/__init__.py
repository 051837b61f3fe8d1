"""Job and Outcome, and the wire format in which chunks carry them."""

from msgspec import UNSET

from callmill.jobs.failure import FailedJob, Failure, FailureCause
from callmill.jobs.job import Job, JSONValue
from callmill.jobs.outcome import Outcome, OutcomeError

__all__ = ["UNSET", "FailedJob", "Failure", "FailureCause", "JSONValue", "Job", "Outcome", "OutcomeError"]
