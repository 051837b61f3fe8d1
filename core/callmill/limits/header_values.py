"""Values as rate limit headers have them: amounts, times until something, in every notation that servers use.

All functions are total: text that is not of the grammar, too long or beyond reason gives None. ASCII digits only.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

from msgspec import Struct

LONGEST_RESET_S = 400 * 86_400.0
"""No limit is longer than a year; a reset beyond that is a mistake."""

_EPOCH_S, _EPOCH_MS = 1e9, 1e12
"""Plain numbers above these are Unix times in seconds (from 2001 on) and in milliseconds."""

_CLOCK_STEP_S = 1.0
"""Resolution of the ``Date`` that moments are held against."""

_LONGEST = 64
_AMOUNT = re.compile(r"([0-9]{1,15})(?:\.[0-9]{1,9})?")
_NUMBER = re.compile(r"[0-9]{1,24}(?:\.([0-9]{1,9})[0-9]*)?")
_DURATION = re.compile(
    r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,12})m)?"
    r"(?:([0-9]{1,15})(?:\.([0-9]{1,9})[0-9]*)?(s|ms|us|\u00b5s|\u03bcs|ns))?"
)
_FRACTIONS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ns": 1e-9}
_FIXDATE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{2}) (\w{3}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT", re.ASCII
)
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec"
_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:]{5,8}(?:[.,][0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})?")


class Delay(Struct, frozen=True):
    """A time from the answer on, in seconds, and how far it may be off."""

    seconds: float
    step_s: float


def read_amount(text: str | None) -> int | None:
    """Return a count of calls or tokens, rounded down; None for anything else, a negative one too."""
    match = None if text is None or len(text) > _LONGEST else _AMOUNT.fullmatch(text.strip())
    return None if match is None else int(match[1])


def read_delay(text: str, date: str | None) -> Delay | None:
    """Return the time until a reset.

    Seconds, a Go duration, a Unix time in s or ms, an ISO 8601 time, an HTTP date. Moments are held against ``date``,
    the ``Date`` of the same answer, never against a clock of ours; without one they say nothing. A moment that is past
    is 0.
    """
    if len(text) > _LONGEST:
        return None
    text = text.strip()
    if match := _NUMBER.fullmatch(text):
        return _bounded(_of_number(text, _step_s(match[1]), date))
    if text[-1:] in {"s", "m", "h", "d"}:
        return _bounded(_of_duration(text))
    return _bounded(_until(read_iso_time(text) or read_http_date(text), date, _CLOCK_STEP_S))


def read_http_date(text: str) -> float | None:
    """Return an HTTP date, in any of its three forms, as a Unix time."""
    return _http_date(text.strip()) if len(text) <= _LONGEST else None


def read_iso_time(text: str) -> float | None:
    """Return an ISO 8601 (RFC 3339) time as a Unix time; without a zone it is UTC."""
    if len(text) > _LONGEST or not _ISO.fullmatch(text.strip()):
        return None
    try:
        return _unix_s(datetime.fromisoformat(text.strip().upper()))
    except (ValueError, OverflowError):
        return None


def _of_number(text: str, step_s: float, date: str | None) -> Delay | None:
    number = float(text)
    if number > _EPOCH_MS:
        return _until(number / 1000, date, _CLOCK_STEP_S)
    if number > _EPOCH_S:
        return _until(number, date, _CLOCK_STEP_S)
    return Delay(number, step_s)


def _of_duration(text: str) -> Delay | None:
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        return None
    days, hours, minutes, whole, fraction, unit = match.groups()
    seconds = int(days or 0) * 86_400.0 + int(hours or 0) * 3600 + int(minutes or 0) * 60
    if whole is None:
        return Delay(seconds, 60.0 if minutes else 3600.0 if hours else 86_400.0)
    scale_s = _FRACTIONS_S[unit]
    return Delay(seconds + float(f"{whole}.{fraction or 0}") * scale_s, _step_s(fraction) * scale_s)


def _until(moment_s: float | None, date: str | None, step_s: float) -> Delay | None:
    now_s = None if date is None else read_http_date(date)
    return None if moment_s is None or now_s is None else Delay(max(0.0, moment_s - now_s), step_s)


def _step_s(fraction: str | None) -> float:
    return 10.0 ** -len(fraction) if fraction else 1.0


def _bounded(delay: Delay | None) -> Delay | None:
    return delay if delay is not None and delay.seconds <= LONGEST_RESET_S else None


@lru_cache(maxsize=256)  # the Date of all answers of one second is one
def _http_date(text: str) -> float | None:
    try:
        if match := _FIXDATE.fullmatch(text):
            day, month, year, *clock = match.groups()
            hour, minute, second = map(int, clock)
            return datetime(
                int(year), _MONTHS.index(month) // 4 + 1, int(day), hour, minute, min(second, 59), tzinfo=UTC
            ).timestamp()
        return _unix_s(parsedate_to_datetime(text)) if text.isascii() else None
    except (ValueError, OverflowError, IndexError, TypeError):  # the last two: bugs of email.utils with broken dates
        return None


def _unix_s(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
