"""``RateLimit`` and ``RateLimit-Policy`` of the IETF drafts: lists of named policies since 08, a dictionary in 07.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from callmill.config.limit_spec import Unit
from callmill.limits.feedback import Observation
from callmill.limits.header_values import LONGEST_RESET_S, Delay
from callmill.limits.quota_headers import LONGEST_NAME, Level, observations_of
from callmill.limits.structured_fields import Item, read_dictionary, read_list

STATE, POLICY = "ratelimit", "ratelimit-policy"

_UNITS: Mapping[int | str, Unit] = {
    "requests": Unit.REQUESTS,
    "concurrent-requests": Unit.CONCURRENT,
    "tokens": Unit.TOKENS,
    "input-tokens": Unit.INPUT_TOKENS,
    "output-tokens": Unit.OUTPUT_TOKENS,
}
"""Quota units; policies that count anything else, as bytes, say nothing about calls."""


def read_ietf(headers: Mapping[str, str]) -> list[Observation]:
    """Return the limits that the two fields tell of; a malformed field says nothing."""
    state = headers.get(STATE, "")
    policies = read_list(headers.get(POLICY, "")) or []
    if (level := read_dictionary(state)) is not None:
        return observations_of("requests", _level(level), policies)
    states = read_list(state) or []
    if any(item.integer("r") is None for item in states):
        states = []
    if any(isinstance(item.value, int) for item in policies):
        return observations_of("requests", Level(None, None, None), policies)
    if any(item.integer("q") is None for item in policies):
        policies = []
    return _named(states, policies)


def _level(read: Mapping[str, Item]) -> Level:
    limit, remaining, reset = (read.get(key) for key in ("limit", "remaining", "reset"))
    return Level(_whole(limit), _whole(remaining), _delay(_whole(reset)))


def _named(states: Sequence[Item], policies: Sequence[Item]) -> list[Observation]:
    by_name = {item.value: item for item in policies}
    read = [_observation(item, by_name.get(item.value)) for item in states]
    stated = {item.value for item in states}
    read += [_observation(None, item) for name, item in by_name.items() if name not in stated]
    return [observation for observation in read if observation is not None]


def _observation(state: Item | None, policy: Item | None) -> Observation | None:
    unit = Unit.REQUESTS if policy is None else _UNITS.get(policy.parameters.get("qu", "requests"))
    item = state or policy
    if unit is None or item is None:
        return None
    reset = _delay(None if state is None else state.integer("t"))
    window_s = None if policy is None else policy.integer("w")
    return Observation(
        str(item.value)[:LONGEST_NAME].strip() or "requests",
        unit,
        None if policy is None else policy.integer("q") or None,
        None if state is None else state.integer("r"),
        None if reset is None else reset.seconds,
        0.0 if reset is None else reset.step_s,
        float(window_s) if window_s else None,
    )


def _whole(item: Item | None) -> int | None:
    return item.value if item is not None and isinstance(item.value, int) and item.value >= 0 else None


def _delay(seconds: int | None) -> Delay | None:
    return None if seconds is None or seconds > LONGEST_RESET_S else Delay(float(seconds), 1.0)
