"""Quota headers: a limit, what remains of it and when it resets, one header each, under whatever names.

The names are data. A value may be a list: the limit, then the policies behind it (``10, 10;w=1, 50;w=60``), as the
RateLimit drafts up to 06, Envoy and Docker Hub write it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from msgspec import Struct

from callmill.config.limit_spec import Unit
from callmill.limits.feedback import Observation
from callmill.limits.header_values import Delay, read_amount, read_delay
from callmill.limits.structured_fields import Item, read_list

LONGEST_NAME = 64


class QuotaHeaders(Struct, frozen=True):
    """The names of the headers of one limit.

    Attributes:
        limit: How much a window takes.
        remaining: What is left of it.
        resets: When it starts anew; the first that is there holds.
        name: What the limit is called, unless one of ``called`` says it.
        unit: What it counts.
        window_s: Length of its window, where the names tell.
        used: What is gone of it, for servers that do not say what remains.
        called: Headers whose value names the limit.
        everywhere: Headers and their values that say that it is the limit of all calls together.
        policy: Header with the policies behind the limit.
    """

    limit: str
    remaining: str
    resets: tuple[str, ...]
    name: str
    unit: Unit
    window_s: float | None = None
    used: str = ""
    called: tuple[str, ...] = ()
    everywhere: tuple[tuple[str, str], ...] = ()
    policy: str = ""

    @property
    def telling(self) -> tuple[str, ...]:
        """The names of which one must be there for the limit to be known."""
        return tuple(name for name in (self.limit, self.remaining, self.used) if name)


class Level(Struct, frozen=True):
    """A limit as read: how much, what remains, when it resets."""

    limit: int | None
    remaining: int | None
    reset: Delay | None


def _plain(prefix: str, *called: str, policy: str = "") -> QuotaHeaders:
    return QuotaHeaders(
        f"{prefix}limit",
        f"{prefix}remaining",
        (f"{prefix}reset-after", f"{prefix}reset"),
        "requests",
        Unit.REQUESTS,
        used=f"{prefix}used",
        called=called,
        everywhere=((f"{prefix}global", "true"), (f"{prefix}scope", "global")) if called else (),
        policy=policy,
    )


PLAIN = (
    _plain("ratelimit-", "ratelimit-name", policy="ratelimit-policy"),
    _plain("x-ratelimit-", "x-ratelimit-bucket", "x-ratelimit-resource"),
    _plain("x-rate-limit-"),
)
"""Ways to write the same limit: a server that uses several means one, and the first holds."""

_COUNTED = {
    "requests": ("requests", Unit.REQUESTS),
    "req": ("requests", Unit.REQUESTS),
    "tokens": ("tokens", Unit.TOKENS),
    "input-tokens": ("input tokens", Unit.INPUT_TOKENS),
    "output-tokens": ("output tokens", Unit.OUTPUT_TOKENS),
    "project-requests": ("project requests", Unit.REQUESTS),
    "project-tokens": ("project tokens", Unit.TOKENS),
}
_WINDOWS_S = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}


def _detailed() -> Iterator[QuotaHeaders]:
    for counted, (name, unit) in _COUNTED.items():
        limit, remaining, reset = (f"anthropic-ratelimit-{counted}-{field}" for field in _FIELDS)
        yield QuotaHeaders(limit, remaining, (reset,), name, unit)
        limit, remaining, reset = (f"x-ratelimit-{field}-{counted}" for field in _FIELDS)
        yield QuotaHeaders(limit, remaining, (reset,), name, unit)
        for window, window_s in _WINDOWS_S.items():
            limit, remaining, reset = (f"x-ratelimit-{field}-{counted}-{window}" for field in _FIELDS)
            yield QuotaHeaders(limit, remaining, (reset,), f"{name}/{window}", unit, window_s)
    for window, window_s in _WINDOWS_S.items():
        limit, remaining, reset = (f"x-ratelimit-{field}-{window}" for field in _FIELDS)
        yield QuotaHeaders(limit, remaining, (reset,), f"requests/{window}", Unit.REQUESTS, window_s)


_FIELDS = ("limit", "remaining", "reset")
DETAILED = tuple(_detailed())
"""Limits that a server names apart: per unit (OpenAI, Azure, Groq, Anthropic), per window (Kong), per both."""

_DETAILED_BY_NAME = {name: at for at, quota in enumerate(DETAILED) for name in quota.telling}


def read_plain(headers: Mapping[str, str], found: AbstractSet[str]) -> list[Observation]:
    """Return the limit that the headers of ``PLAIN`` tell of, and the policies behind it."""
    for quota in PLAIN:
        if found.isdisjoint(quota.telling):
            continue
        policies = read_list(headers.get(quota.policy, "")) or [] if quota.policy else []
        limits = _items(headers.get(quota.limit))
        level = Level(_first(limits), _remaining(headers, quota), _reset(headers, quota))
        if read := observations_of(_name(headers, quota), level, [*limits, *policies]):
            return read
    return []


def read_detailed(headers: Mapping[str, str], found: AbstractSet[str]) -> Iterator[Observation]:
    """Yield the limits that the headers of ``DETAILED`` tell of."""
    for at in sorted({at for name in found if (at := _DETAILED_BY_NAME.get(name)) is not None}):
        quota = DETAILED[at]
        limit = read_amount(headers.get(quota.limit)) or None
        remaining = read_amount(headers.get(quota.remaining))
        if limit is None and remaining is None:
            continue
        reset = _reset(headers, quota)
        yield Observation(
            quota.name,
            quota.unit,
            limit,
            remaining,
            None if reset is None else reset.seconds,
            0.0 if reset is None else reset.step_s,
            quota.window_s,
        )


def observations_of(name: str, level: Level, quotas: Sequence[Item]) -> list[Observation]:
    """Return a limit with what is known of it, and one more per policy with a window that is not this limit's own."""
    limit = level.limit or None
    policies = {
        (item.value, window_s): None
        for item in quotas
        if isinstance(item.value, int) and item.value > 0 and (window_s := item.integer("w"))
    }
    own = next((policy for policy in policies if policy[0] == limit), None)
    read = []
    if limit is not None or level.remaining is not None:
        read.append(
            Observation(
                name,
                Unit.REQUESTS,
                limit,
                level.remaining,
                None if level.reset is None else level.reset.seconds,
                0.0 if level.reset is None else level.reset.step_s,
                None if own is None else float(own[1]),
            )
        )
    return read + [
        Observation(f"{name}/{window_s}s", Unit.REQUESTS, amount, window_s=float(window_s))
        for amount, window_s in policies
        if (amount, window_s) != own
    ]


def _name(headers: Mapping[str, str], quota: QuotaHeaders) -> str:
    if any(headers.get(header) == value for header, value in quota.everywhere):
        return "global"
    for header in quota.called:
        name = headers.get(header, "")
        if len(name) <= LONGEST_NAME and name.isascii() and name.isprintable() and (name := name.strip()):
            return name
    return quota.name


def _remaining(headers: Mapping[str, str], quota: QuotaHeaders) -> int | None:
    remaining = _first(_items(headers.get(quota.remaining)))
    if remaining is not None:
        return remaining
    limit, used = _first(_items(headers.get(quota.limit))), read_amount(headers.get(quota.used))
    return None if limit is None or used is None else max(0, limit - used)


def _reset(headers: Mapping[str, str], quota: QuotaHeaders) -> Delay | None:
    for name in quota.resets:
        if (text := headers.get(name)) is not None:
            return read_delay(text, headers.get("date"))
    return None


def _items(text: str | None) -> list[Item]:
    """Return the members of a value: a number, or a list that begins with one."""
    if text is None:
        return []
    if (amount := read_amount(text)) is not None:
        return [Item(amount, {})]
    return read_list(text) or []


def _first(items: Sequence[Item]) -> int | None:
    value = items[0].value if items else None
    return value if isinstance(value, int) and value >= 0 else None
