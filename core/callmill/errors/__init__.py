"""Every error that Callmill raises, in one tree.

CallmillError
├── UsageError
│   ├── ApiHeldError
│   ├── ApiMismatchError
│   ├── ConfigurationError
│   ├── JobError
│   │   ├── DuplicateIdError
│   │   └── UnknownApiError
│   ├── BatchNotFoundError
│   ├── BatchStateError
│   └── InputFileError
├── OutsideError
│   ├── CorruptChunkError
│   ├── RedisUnavailableError
│   │   ├── CorruptBatchError
│   │   └── RedisFullError
│   ├── ServerNotFoundError
│   ├── StaleLeaseError
│   ├── UnknownFormatError
│   └── WaitTimeoutError
└── InternalError

Three families that never share a class: what the user can mend (UsageError), what the world did and may undo
(OutsideError), and our own bugs (InternalError).
"""

from __future__ import annotations


class CallmillError(Exception):
    """The root of every error raised by Callmill."""


class UsageError(CallmillError):
    """The caller can mend this; the message names the thing and the remedy."""


class ApiHeldError(UsageError):
    """An API cannot work as configured, so its calls wait; the message names cause and remedy."""


class ApiMismatchError(UsageError):
    """One API name stands for two different APIs; the message names both addresses and the remedies."""


class ConfigurationError(UsageError):
    """A setting or an API profile is wrong; the message names file, table, key and remedy."""


class JobError(UsageError):
    """A job cannot be accepted.

    Attributes:
        position: 0-based position of the job in what was submitted.
        field: name of the offending field of the job; where the field holds others, with the path in it: ``json.a[3]``.
    """

    def __init__(self, message: str, *, position: int, field: str) -> None:
        super().__init__(f"job {position}: {field}: {message}")
        self.message = message
        self.position = position
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        return _job_error, (type(self), self.message, self.position, self.field)


def _job_error(kind: type[JobError], message: str, position: int, field: str) -> JobError:
    return kind(message, position=position, field=field)


class DuplicateIdError(JobError):
    """Two jobs of one batch carry the same id."""


class UnknownApiError(JobError):
    """No worker and no profile knows the API that a job names."""


class BatchNotFoundError(UsageError):
    """No batch has this id: it was never submitted, or its retention is over."""


class BatchStateError(UsageError):
    """The batch is in a state that does not allow what was asked."""


class InputFileError(UsageError):
    """An input file cannot be read or does not match the run that it should continue."""


class OutsideError(CallmillError):
    """Something outside Callmill failed; the same call may succeed later."""


class CorruptChunkError(OutsideError):
    """What Redis holds of a chunk is not what was written; its jobs cannot be run."""


class RedisUnavailableError(OutsideError):
    """Redis cannot be reached or refuses to serve."""


class CorruptBatchError(RedisUnavailableError):
    """What Redis holds of a batch is not what was written, and Redis cannot work with it; others are not concerned."""


class RedisFullError(RedisUnavailableError):
    """Redis has reached its maxmemory and takes no more; what it has stays, and can be read and deleted."""


class ServerNotFoundError(OutsideError):
    """No Redis is configured and no embedded server runs."""


class StaleLeaseError(OutsideError):
    """The chunk belongs to another worker now; nothing was recorded."""


class UnknownFormatError(OutsideError):
    """Written by a newer Callmill: this process leaves it alone; upgrade it."""


class WaitTimeoutError(OutsideError, TimeoutError):
    """What was waited for did not happen within the time given."""


class InternalError(CallmillError):
    """This should never happen: a bug in Callmill; please report it."""
