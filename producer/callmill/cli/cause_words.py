"""Why jobs failed, in one line: the most frequent causes, and what to check where known."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from msgspec import Struct

from callmill.config.api_profile import ApiProfile
from callmill.config.secret_refs import is_reference, split_reference
from callmill.overview.batch_view import OTHER, error_counts
from callmill.producer import AsyncClient

_MOST = 3
_REFUSED = {"http_401", "http_403"}
"""Causes that point to a wrong credential."""


class CauseInWords(Struct, frozen=True):
    """How many jobs failed for a cause, and the cause in words, with the remedy where known."""

    cause: str
    jobs: int
    words: str

    def __str__(self) -> str:
        return f"{self.jobs:,} x {self.words}"


async def top_causes(client: AsyncClient, batch_id: str, profile: ApiProfile | None = None) -> list[CauseInWords]:
    """Return the three most frequent causes of the failed jobs of a batch.

    Args:
        client: The connection to the ledger.
        batch_id: The batch.
        profile: The profile of the API that all its calls go to, if available.

    Raises:
        BatchNotFoundError: There is no such batch.
    """
    batches = client.connection().batches
    record = await batches.record(batch_id)
    if not record.failed:
        return []
    counts = error_counts(await batches.error_counters(batch_id), record.failed)
    if profile is not None and record.apis != [profile.name]:
        profile = None
    return [CauseInWords(count.cause, count.jobs, in_words(count.cause, profile)) for count in counts[:_MOST]]


def in_words(cause: str, profile: ApiProfile | None = None) -> str:
    """Return a cause (``http_401``, ``timeout``, ...) in words: ``401 Unauthorized: check CRM_TOKEN``."""
    if cause == OTHER:
        return "other causes"
    words = _status_in_words(cause.removeprefix("http_")) if cause.startswith("http_") else cause
    names = _credentials(profile) if profile is not None and cause in _REFUSED else []
    return f"{words}: check {' and '.join(names)}" if names else words


def in_a_line(causes: Sequence[CauseInWords]) -> str:
    """Return causes in one line."""
    return "; ".join(map(str, causes))


def _status_in_words(status: str) -> str:
    try:
        return f"{status} {HTTPStatus(int(status)).phrase}"
    except ValueError:
        return status


def _credentials(profile: ApiProfile) -> list[str]:
    """Return the variables and files that hold a profile's credentials."""
    found = []
    for credential in profile.auth:
        for value in credential.model_dump(exclude_none=True).values():
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
            found += [split_reference(part)[2] for part in parts if isinstance(part, str) and is_reference(part)]
    return list(dict.fromkeys(found))
