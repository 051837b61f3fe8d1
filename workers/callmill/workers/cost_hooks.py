"""CostHooks: the user's own functions that say what calls cost; an error in one never costs a call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from callmill.config.profiles import ApiProfile
from callmill.jobs.wire import WireJob
from callmill.workers.transports.port import Response
from callmill.workers.user_callables import load_callable

log = logging.getLogger(__name__)

Stated = tuple[int, int | None]
"""Tokens, and those of them in the answer where that is known."""


class CostHooks:
    """The hooks of one API.

    Raises:
        ConfigurationError: The profile names a function that cannot be loaded.
    """

    def __init__(self, profile: ApiProfile) -> None:
        self._api = profile.name
        self._estimate = load_callable("cost", profile.cost) if profile.cost else None
        self._read = load_callable("actual_cost", profile.actual_cost) if profile.actual_cost else None
        self._reported: set[str] = set()

    def estimate(self, job: WireJob) -> Stated | None:
        """Return what the call will cost; None without a hook, or when it does not know."""
        return self._asked("cost", self._estimate, job_mapping, job) if self._estimate else None

    def read(self, answer: Response) -> Stated | None:
        """Return what the answer says that the call cost; None without a hook, or when it does not know."""
        return self._asked("actual_cost", self._read, _itself, answer) if self._read else None

    def _asked(self, key: str, hook: Callable[..., Any], given: Callable[[Any], Any], about: object) -> Stated | None:
        try:
            return stated(hook(given(about)))
        except Exception as error:  # The function is the user's: it may raise anything.
            if key not in self._reported:
                self._reported.add(key)
                log.warning(
                    "the function %s of API %r failed, as it may again without a word: %r",
                    *(key, self._api, error),
                    exc_info=error,
                    extra={"action": "cost_hook_failed", "api": self._api},
                )
            return None


def stated(value: Any) -> Stated | None:
    """Return what a hook said.

    Raises:
        ValueError: It is neither None, nor tokens, nor tokens and those of the answer.
    """
    if value is None:
        return None
    said: list[Any] = list(value) if isinstance(value, tuple | list) else [value]
    amounts = [round(part) for part in said if _is_amount(part)]
    if len(amounts) not in {1, 2} or len(said) != len(amounts) + said.count(None) or not _is_amount(said[0]):
        raise ValueError(f"{value!r} is neither tokens nor (tokens, tokens of the answer)")
    return amounts[0], min(amounts) if len(amounts) == 2 else None


def job_mapping(job: WireJob) -> dict[str, Any]:
    """Return what a hook is told of a job: ``json`` is the parsed body, None where it is no JSON."""
    cost = job.cost
    try:
        parsed = msgspec.json.decode(job.body) if job.body and job.content_type == "application/json" else None
    except (ValueError, RecursionError):
        parsed = None
    return {
        "method": job.method,
        "url": job.url,
        "id": job.id,
        "headers": job.headers or {},
        "body": job.body,
        "json": parsed,
        "weight": 1 if cost is None else cost.weight,
        "model": None if cost is None else cost.model,
    }


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15


def _itself(answer: object) -> object:
    return answer
