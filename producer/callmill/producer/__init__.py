"""The producer's side: submit jobs, follow batches, read outcomes."""

from callmill.jobs import FailedJob, Failure, FailureCause, Job, Outcome, OutcomeError
from callmill.overview.progress import Progress
from callmill.producer.async_batch import AsyncBatch
from callmill.producer.async_client import AsyncClient
from callmill.producer.client import Batch, Client

__all__ = [
    "AsyncBatch",
    "AsyncClient",
    "Batch",
    "Client",
    "FailedJob",
    "Failure",
    "FailureCause",
    "Job",
    "Outcome",
    "OutcomeError",
    "Progress",
]
