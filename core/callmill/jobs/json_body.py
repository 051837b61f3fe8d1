"""JSON bodies: what a caller's objects become, and where the first one stands that JSON cannot carry.

Beyond what JSON knows, msgspec writes dataclasses, attrs and structs as objects, sets as arrays, dates and times as
ISO 8601, and UUIDs, Decimals (every digit kept) and bytes (Base64) as text. ``_plain`` adds what other libraries bring.
NaN and infinity, which msgspec writes as null without a word, are refused.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from datetime import date, time
from typing import Any

import msgspec
from msgspec import Raw

_LONGEST_PATH, _LONGEST_KEY = 200, 60
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FLOAT, _FLOAT_BYTES = 0xCB, 8
_NOT_FINITE = re.compile(rb"\xcb[\x7f\xff]")
"""How MessagePack begins NaN and infinity. In JSON both are null, and a look at each value would take long."""
_FLOATS_ONE_BY_ONE = 4
_NO_NUMBER = "is no number that JSON knows; give None to send null, or leave it out"
_TOO_DEEP = "cannot be written as JSON: it is nested too deeply, or contains itself"
_REMEDY = "convert it to what JSON knows: text, numbers, true, None, lists and dicts"


class NotJsonError(ValueError):
    """Something cannot be written as JSON.

    Attributes:
        path: Where it stands in what was given, such as ``.items[3].when``; empty: it is all of it.
        message: What is wrong with it, and the remedy.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = _cut(path, _LONGEST_PATH)
        self.message = message


def encode_json(value: Any) -> bytes:
    """Return the value as JSON.

    Raises:
        NotJsonError: It has something that JSON cannot carry.
    """
    if type(value) is Raw:
        return _encode(value)
    try:
        body, packed = _encode(value), _pack(value)
        if _FLOAT not in packed or not (_is_not_finite(packed) and (found := _first_problem(value, ""))):
            return body
    except RecursionError as error:
        raise NotJsonError("", _TOO_DEEP) from error
    except (TypeError, ValueError, msgspec.MsgspecError, OverflowError) as error:
        if (found := _found(value, error)) is None:
            return _encode(value)
        raise NotJsonError(*found) from error
    raise NotJsonError(*found)


def _found(value: Any, error: Exception) -> tuple[str, str] | None:
    """Return what the error is about, as far as that can be found; None if MessagePack alone cannot write it."""
    try:
        found = _first_problem(value, "")
        if found is None and not _is_written(value):
            return "", f"cannot be written as JSON: {_printable(error)}"
    except RecursionError:
        return "", _TOO_DEEP
    return found


def _plain(value: Any) -> Any:
    """Return what stands for an object that msgspec does not know, by what its library offers."""
    if isinstance(value, type):
        raise TypeError(f"the class {value.__name__} cannot be written as JSON; give an instance")
    for known in (str, float, int):
        if isinstance(value, known):  # of a class of its own, as numpy.float64 is a float
            return known(value)
    if isinstance(value, date | time) and value == value:  # noqa: PLR0124 - a pandas.NaT is a date, but not itself
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if callable(dump := getattr(value, "model_dump", None)):  # a model of pydantic
        return dump(mode="json")
    if callable(to_list := getattr(value, "tolist", None)) and getattr(
        getattr(value, "dtype", None), "kind", "M"
    ) not in {"M", "m"}:  # numpy's arrays and numbers, series of pandas; but times of numpy would become bare integers
        return to_list()
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON; {_REMEDY}")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode
_encode_known = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder(enc_hook=_plain).encode


def _is_not_finite(packed: bytes) -> bool:
    """Say whether NaN or infinity may be among the floats: too often rather than too rarely."""
    at = -1
    for _ in range(_FLOATS_ONE_BY_ONE):
        if (at := packed.find(_FLOAT, at + 1, -_FLOAT_BYTES)) < 0:
            return False
        if packed[at + 1] & 0x7F == 0x7F:
            return True
    return _NOT_FINITE.search(packed, at) is not None


def _first_problem(value: Any, path: str) -> tuple[str, str] | None:
    """Return where the first thing stands that cannot be written, and what is wrong with it."""
    if isinstance(value, Mapping):
        return _first_in_mapping(value, path)
    if isinstance(value, list | tuple | set | frozenset):
        return _first_of((f"{path}[{index}]", inner) for index, inner in enumerate(value))
    if (members := _members(value)) is not None:
        return _first_of((path + _step(name), inner) for name, inner in members)
    try:
        return _problem_of_one(value, path)
    except UnicodeEncodeError:
        return path, "holds half a character (a lone surrogate), which no encoding can carry; remove or replace it"
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        return path, _printable(error)


def _problem_of_one(value: Any, path: str) -> tuple[str, str] | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else (path, f"{float(value)} {_NO_NUMBER}")
    return None if _is_known(value) else _first_problem(_plain(value), path)


def _first_of(parts: Iterable[tuple[str, Any]]) -> tuple[str, str] | None:
    return next((found for path, inner in parts if (found := _first_problem(inner, path)) is not None), None)


def _first_in_mapping(value: Mapping[Any, Any], path: str) -> tuple[str, str] | None:
    for key, inner in value.items():
        if isinstance(key, float) and not math.isfinite(key):
            return path, f"has {key} as a key, which is no name; give text"
        try:
            _encode({key: None})
        except UnicodeEncodeError:
            return path, f"has a key with half a character (a lone surrogate): {_cut(ascii(key))}"
        except (TypeError, ValueError, msgspec.MsgspecError):
            return path, f"has {_cut(ascii(key))} as a key, a {type(key).__name__}; JSON's keys are text"
        if (found := _first_problem(inner, path + _step(key))) is not None:
            return found
    return None


def _members(value: Any) -> list[tuple[str, Any]] | None:
    """Return the names and values of an object that is written as a JSON object; None when it is no such object."""
    names: Iterable[str]
    if isinstance(value, type):
        return None
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    elif dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    elif hasattr(value, "__attrs_attrs__"):
        names = [field.name for field in value.__attrs_attrs__]
    else:
        return None
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]


def _is_written(value: Any) -> bool:
    try:
        _encode(value)
    except (TypeError, ValueError, msgspec.MsgspecError):
        return False
    return True


def _is_known(value: Any) -> bool:
    """Say whether msgspec can write it without help; what it can write but not encode raises."""
    try:
        _encode_known(value)
    except TypeError:
        return False
    return True


def _step(key: Any) -> str:
    is_plain = isinstance(key, str) and len(key) <= _LONGEST_KEY and _NAME.fullmatch(key) is not None
    return f".{key}" if is_plain else f"[{_cut(ascii(key))}]"


def _cut(text: str, longest: int = _LONGEST_KEY) -> str:
    return text if len(text) <= longest else f"{text[:longest]}..."


def _printable(error: Exception) -> str:
    return _cut(str(error).encode(errors="backslashreplace").decode(), _LONGEST_PATH)
