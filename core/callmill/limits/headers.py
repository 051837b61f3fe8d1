"""Headers: what the headers of an answer say about the server's limits, whatever names and notations it uses."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import islice

from callmill.config.limit_spec import Unit
from callmill.limits import ietf_headers, quota_headers
from callmill.limits.feedback import Feedback, Observation
from callmill.limits.header_values import read_amount, read_http_date, read_iso_time

LONGEST_RETRY_AFTER_S = 7 * 86_400.0
"""No server means more than that: it is asked again after ``ABSURD_RETRY_AFTER_S``."""

ABSURD_RETRY_AFTER_S = 3600.0

_MOST_OBSERVATIONS = 16
_LONGEST_NUMBER = 1024
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_SHOPIFY = "x-shopify-shop-api-call-limit"
_RETRY_MS = ("retry-after-ms", "x-ms-retry-after-ms")
_RETRY = frozenset({"retry-after", *_RETRY_MS})
_DRAFT = frozenset({ietf_headers.STATE, ietf_headers.POLICY})
_TELLING = {
    *_RETRY,
    *_DRAFT,
    _SHOPIFY,
    *(name for quota in (*quota_headers.PLAIN, *quota_headers.DETAILED) for name in quota.telling),
}  # no frozenset: only with a set does the intersection with a dict's keys cost as much as the dict is long


def read_feedback(headers: Mapping[str, str]) -> Feedback | None:
    """Return what the headers (names in lower case) say about limits; None when that is nothing.

    Never raises. A value that is not understood says nothing. An answer from a cache (``Age``) tells of no limit.
    """
    found = headers.keys() & _TELLING
    if not found:
        return None
    asked_s = None if found.isdisjoint(_RETRY) else _retry_after_s(headers)
    observations = () if read_amount(headers.get("age")) else _observations(headers, found)
    if asked_s is None and not observations:
        return None
    if asked_s is not None and asked_s > LONGEST_RETRY_AFTER_S:
        return Feedback(ABSURD_RETRY_AFTER_S, observations, absurd=True)
    return Feedback(asked_s, observations)


def _observations(headers: Mapping[str, str], found: AbstractSet[str]) -> tuple[Observation, ...]:
    each: dict[tuple[str, Unit, float | None], Observation] = {}
    for seen in islice(_read(headers, found), _MOST_OBSERVATIONS):
        each.setdefault((seen.name, seen.unit, seen.window_s), seen)
    return tuple(each.values())


def _read(headers: Mapping[str, str], found: AbstractSet[str]) -> Iterator[Observation]:
    """Yield every limit; the plain headers only where the fields of the drafts do not tell the same already."""
    drafted = [] if found.isdisjoint(_DRAFT) else ietf_headers.read_ietf(headers)
    plain = quota_headers.read_plain(headers, found)
    states = [seen for seen in drafted if seen.remaining is not None]
    yield from drafted if states or not plain else plain
    yield from quota_headers.read_detailed(headers, found)
    if _SHOPIFY in found:
        yield from _shopify(headers[_SHOPIFY])


def _shopify(text: str) -> Iterator[Observation]:
    used, _, size = (read_amount(part) if part != "/" else None for part in text.partition("/"))
    if used is not None and size:
        yield Observation("requests", Unit.REQUESTS, size, max(0, size - used))


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the wish of a header in milliseconds, else of ``Retry-After``: seconds, a fraction too, or a date.

    A date is held against the ``Date`` of the answer, so that no clock of ours matters (RFC 9110, section 10.2.3);
    only where that is missing, against ours.
    """
    for name in _RETRY_MS:
        if (milliseconds := _number(headers.get(name, ""))) is not None:
            return milliseconds / 1000
    text = headers.get("retry-after", "")
    if (seconds := _number(text)) is not None:
        return seconds
    until_s = read_http_date(text) or read_iso_time(text)
    if until_s is None:
        return None
    now_s = read_http_date(headers.get("date", ""))
    return max(0.0, until_s - (time.time() if now_s is None else now_s))


def _number(text: str) -> float | None:
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text.strip()):
        return None
    return float(text)
