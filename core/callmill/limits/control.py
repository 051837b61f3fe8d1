"""Changes that people make while the limiter runs: other limits, pauses; and who changed what when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import Struct
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from callmill.config.limit_spec import AUTO, LimitSpec, check_alone, parse_limit
from callmill.config.lua_script import Call
from callmill.config.short_texts import MOST_OF_REASON, checked_length
from callmill.errors import UnknownFormatError, UsageError
from callmill.limits import scripts
from callmill.limits.keys import Keys
from callmill.limits.learned import Learned, learned
from callmill.limits.store import answer

LONGEST_PAUSE_S = 366 * 86_400.0
UNTIL_RESUMED_S = 100 * LONGEST_PAUSE_S
"""A pause without an end is one that nobody outlives."""
SURELY_ENDLESS_S = 2 * LONGEST_PAUSE_S
HISTORY_ENTRIES = 1000
_KEY_PAUSE = "pause:key:"


class Pause(Struct, frozen=True):
    """A pause that is in force.

    Attributes:
        left_s: Seconds until it is over; None: until resumed.
        reason: Why.
        by: Who paused; None where an answer of the API did.
    """

    left_s: float | None
    reason: str
    by: str | None


class InForce(Struct, frozen=True):
    """What holds for one API beside its profile or instead of it, as workers follow it.

    Attributes:
        generation: Another number after every change by people, also of pauses: a worker that finds it changed may have
            missed a message, and looks for pauses.
        limits: Limits that hold instead of the profile's; None: the profile's hold.
        learned_pace: Whether a pace that nobody wrote down is in force.
        learned_in_flight: Whether a number of calls in flight that nobody wrote down is, beside a written pace.
    """

    generation: int = 0
    limits: tuple[LimitSpec, ...] | None = None
    learned_pace: bool = False
    learned_in_flight: bool = False


class ControlState(Struct, frozen=True):
    """What people have set for one API.

    Attributes:
        generation: Another number after every change, also one of pauses; 0 when nothing was ever changed.
        limits: Limits that hold instead of the profile's; None: the profile's hold.
        pause: The pause of the whole API.
        keys: The pauses of single credentials, by name.
        learned: What the API's answers showed of its limits.
    """

    generation: int
    limits: tuple[LimitSpec, ...] | None
    pause: Pause | None
    keys: Mapping[str, Pause]
    learned: Sequence[Learned] = ()


class ChangeKind(StrEnum):
    """What a change is about."""

    LIMITS = "limits"
    PAUSE = "pause"
    RESUME = "resume"


class ControlChange(Struct, frozen=True):
    """One entry of the history.

    Attributes:
        at: When, on Redis's clock.
        by: Who.
        what: What was changed.
        key: The credential that was paused or resumed; None: the whole API.
        before: What was in force, in words.
        after: What is in force since, in words.
    """

    at: datetime
    by: str
    what: ChangeKind
    key: str | None
    before: str
    after: str


class LimitControl:
    """Changes the limits of one API and pauses it, for all workers at once.

    Every change is atomic, with its entry in the history; one that changes nothing leaves no entry.
    """

    def __init__(self, redis: Redis, api: str) -> None:
        self._redis = redis
        self._api = api
        self._keys = Keys(api)

    async def set(self, limits: Sequence[str] | None, *, by: str) -> int:
        """Let these limits hold instead of the profile's, or with None the profile's again; return the generation.

        Raises:
            UsageError: A text is no limit, two count the same, or there is none.
            RedisUnavailableError: Redis cannot be reached or refused; whether it took the change is unknown.
        """
        value = "" if limits is None else _encode(checked(limits))
        return await self._change(by, ChangeKind.LIMITS, limits=value)

    async def pause(self, seconds: float | None, reason: str, *, by: str, key: str | None = None) -> int:
        """Start no call of the API, or none with one credential, for so long; with None until resumed.

        A pause in force that ends later stays as it is: to shorten one, resume first. Returns the generation.

        Raises:
            UsageError: The time is not above 0, or longer than 366 days, or the reason is too long.
            RedisUnavailableError: Redis cannot be reached or refused; whether it took the pause is unknown.
        """
        if seconds is not None and not 0 < seconds <= LONGEST_PAUSE_S:
            raise UsageError(f"a pause of {seconds:g} s: at most 366 days; leave the time out to pause until resumed")
        checked_length(reason, MOST_OF_REASON, "the reason")
        pause_us = round((UNTIL_RESUMED_S if seconds is None else seconds) * 1e6)
        return await self._change(by, ChangeKind.PAUSE, key=key or "", pause_us=pause_us, reason=reason)

    async def resume(self, *, by: str, key: str | None = None) -> int:
        """End the pause of the API, or of one credential, whoever began it; return the generation.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; whether it took the change is unknown.
        """
        return await self._change(by, ChangeKind.RESUME, key=key or "")

    async def current(self) -> ControlState:
        """What is in force now.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
            UnknownFormatError: A newer Callmill wrote the limits.
        """
        (state,) = await current_states(self._redis, [self._api])
        return state

    async def history(self, count: int) -> list[ControlChange]:
        """The latest changes, the newest first; of the last 1000.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        entries = await answer(self._redis.xrevrange(self._keys.history, count=count))
        return [_change(_text(id_), {_text(k): _text(v) for k, v in fields.items()}) for id_, fields in entries]

    async def _change(
        self, by: str, what: ChangeKind, *, key: str = "", limits: str = "", pause_us: int = 0, reason: str = ""
    ) -> int:
        names = self._keys
        pipeline = self._redis.pipeline(transaction=True)
        told = scripts.ControlArguments(
            channel=names.channel,
            by=by,
            what=what.value,
            name=key,
            limits=limits,
            pause_us=pause_us,
            reason=reason,
            history_entries=HISTORY_ENTRIES,
            endless_us=round(SURELY_ENDLESS_S * 1e6),
        )
        where = scripts.ControlKeys(control=names.control, history=names.history, meta=names.meta)
        _add(pipeline, scripts.CONTROL.call(where, told))
        if what is ChangeKind.PAUSE:
            scope = f"key:{key}" if key else ""
            pause = scripts.PauseArguments(
                pause_us=pause_us, said_us=0, reason=reason, channel=names.channel, scope=scope
            )
            _add(pipeline, scripts.PAUSE.call(scripts.PauseKeys(names.meta, names.paused), pause))
        noted, *_ = await answer(pipeline.execute())
        return scripts.Controlled(*noted).generation


def _add(pipeline: Pipeline, call: Call) -> None:
    pipeline.eval(call.script.text, len(call.keys), *call.keys, *call.arguments)


async def current_states(redis: Redis, apis: Sequence[str]) -> list[ControlState]:
    """What is in force now for each of these APIs, in one round trip.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
        UnknownFormatError: A newer Callmill wrote the limits.
    """
    pipeline = redis.pipeline(transaction=True)
    pipeline.time()
    for keys in map(Keys, apis):
        pipeline.hgetall(keys.control)
        pipeline.hgetall(keys.meta)
    (seconds, micros), *looks = await answer(pipeline.execute())
    now_us = seconds * 1e6 + micros
    return [
        _state(_texts(control), _texts(meta), now_us) for control, meta in zip(looks[::2], looks[1::2], strict=True)
    ]


def _state(noted: Mapping[str, str], state: Mapping[str, str], now_us: float) -> ControlState:
    now_us = max(now_us + float(state.get("skew", 0)), float(state.get("now", 0)))
    generation, limits = _override(noted.get("generation"), noted.get("limits"))
    names = sorted(field.removeprefix(_KEY_PAUSE) for field in state if field.startswith(_KEY_PAUSE))
    keys = {name: _pause(noted, state, name, f":key:{name}", now_us) for name in names}
    whole = _pause(noted, state, "", "", now_us)
    paused_keys = {name: pause for name, pause in keys.items() if pause}
    return ControlState(generation, limits, whole, paused_keys, learned(state))


async def load_in_force(redis: Redis, api: str) -> InForce:
    """What holds now beside the profile or instead of it; one round trip.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
        UnknownFormatError: A newer Callmill wrote the limits.
    """
    keys = Keys(api)
    pipeline = redis.pipeline(transaction=False)
    pipeline.hmget(keys.control, ["generation", "limits"])
    pipeline.hmget(keys.meta, ["learned_pace", "learned_in_flight"])
    (generation, limits), (pace, in_flight) = await answer(pipeline.execute())
    return InForce(*_override(generation, limits), bool(pace), bool(in_flight))


def checked(limits: Iterable[str]) -> tuple[LimitSpec, ...]:
    """Read the limits of an API.

    Raises:
        UsageError: A text is no limit, two count the same, or there is none.
    """
    seen: dict[tuple[str, int, str, bool], str] = {}
    specs = []
    for text in limits:
        try:
            spec = parse_limit(text)
        except ValueError as error:
            raise UsageError(str(error)) from None
        counted = (spec.unit.value, spec.window_s, spec.scope.value, spec == AUTO)
        if counted in seen:
            raise UsageError(f"{seen[counted]!r} and {text!r} count the same: keep one of them")
        seen[counted] = text
        specs.append(spec)
    try:
        check_alone(specs)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not specs:
        raise UsageError("name at least one limit; to go back to those of the profile, reset")
    return tuple(specs)


def _encode(specs: Sequence[LimitSpec]) -> str:
    return msgspec.json.encode([str(spec) for spec in specs]).decode()


def _override(generation: bytes | str | None, limits: bytes | str | None) -> tuple[int, tuple[LimitSpec, ...] | None]:
    if not limits:
        return int(generation or 0), None
    try:
        texts = msgspec.json.decode(limits, type=list[str])
        return int(generation or 0), tuple(parse_limit(text) for text in texts)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UnknownFormatError(
            f"limits set at run time that this Callmill cannot read: {error}; upgrade it, or set them again"
        ) from error


def _pause(noted: Mapping[str, str], state: Mapping[str, str], name: str, suffix: str, now_us: float) -> Pause | None:
    left_us = float(state.get(f"pause{suffix}", 0)) - now_us
    if left_us <= 0:
        return None
    reason = state.get(f"reason{suffix}", "")
    return Pause(_left_s(left_us), reason, noted.get(f"by:{name}") if noted.get(f"reason:{name}") == reason else None)


def _left_s(left_us: float) -> float | None:
    return None if left_us > SURELY_ENDLESS_S * 1e6 else left_us / 1e6


def _change(entry_id: str, fields: Mapping[str, str]) -> ControlChange:
    what = ChangeKind(fields["what"])
    words = _limits_in_words if what is ChangeKind.LIMITS else _pause_in_words
    at = datetime.fromtimestamp(int(entry_id.partition("-")[0]) / 1000, UTC)
    return ControlChange(at, fields["by"], what, fields["key"] or None, words(fields["before"]), words(fields["after"]))


def _limits_in_words(encoded: str) -> str:
    return ", ".join(msgspec.json.decode(encoded, type=list[str])) if encoded else "those of the profile"


def _pause_in_words(noted: str) -> str:
    if not noted:
        return "running"
    left_us, _, reason = noted.partition(" ")
    time = "until resumed" if left_us == "endless" else f"for {float(left_us) / 1e6:.0f} s"
    return f"paused {time}: {reason}" if reason else f"paused {time}"


def _texts(fields: Mapping[Any, Any]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in fields.items()}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
