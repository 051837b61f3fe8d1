"""LuaScript: a script that runs in Redis, and the names that it shares with Python.

A position is written nowhere. What stands in front of a script is made from the declaration by which it is called:

    META, LIMITS         its keys: a local for each field of ``keys``, in capitals; a sequence comes last and is a table
    ARG.worker           its arguments: the fields of ``arguments``; they travel as one MessagePack map, so numbers are
                         numbers and None is nil. What is bytes travels beside it as it is.
    read_limit(key)      the fields of a hash that the script reads, by name; false where one is not set. A list of more
                         names, made at run time, may follow the key.
    answer({by = 1})     what it returns, by the names that ``answer`` has; None where one is not given
    FORMAT               a constant
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, astuple, fields

Keys = TypeVar("Keys", bound=Struct)
Arguments = TypeVar("Arguments", bound=Struct)

_encode = msgspec.msgpack.Encoder().encode


class NoArguments(Struct, frozen=True):
    """The arguments of a script that takes none."""


class Call(NamedTuple):
    """What a script is called with: KEYS and ARGV."""

    script: LuaScript[Any, Any]
    keys: list[str]
    arguments: list[bytes]


class LuaScript(Generic[Keys, Arguments]):
    """One script.

    Args:
        package: In whose folder ``lua`` its parts are.
        parts: Their names, in order.
        keys: Its keys.
        arguments: Its arguments.
        first_keys: Names of keys that come before those, as every script of a room takes them.
        answer: What it returns, where that has several parts.
        reads: The fields that it reads of hashes, by a name for the hash.
        constants: Numbers that it shares with Python.
        groups: Names of tables that hold some of its keys.
    """

    def __init__(
        self,
        package: str,
        *parts: str,
        keys: type[Keys],
        arguments: type[Arguments],
        first_keys: Sequence[str] = (),
        answer: type[Struct] | None = None,
        reads: Mapping[str, Sequence[str]] | None = None,
        constants: Mapping[str, int] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.package = package
        self.parts = parts
        self.keys = keys
        self.arguments = arguments
        self.first_keys = first_keys
        self.answer = answer
        self.reads = reads or {}
        self.constants = constants or {}
        self.groups = groups or {}
        self._many_keys: Any = next((_items(field.type) for field in fields(keys)[-1:]), None)
        self._data = [field.name for field in fields(arguments) if bytes in (field.type, _items(field.type))]
        self._many_data = any(_items(field.type) is bytes for field in fields(arguments))

    @cached_property
    def text(self) -> str:
        """The text to register with a client: what it shares with Python, then its parts."""
        folder = files(self.package) / "lua"
        return "\n".join((*self._names(), *((folder / f"{part}.lua").read_text() for part in self.parts)))

    def call(self, keys: Keys, arguments: Arguments, first_keys: Sequence[str] = ()) -> Call:
        """Return a call of the script."""
        names = [*first_keys, *astuple(keys)]
        if self._many_keys:
            many = names.pop()
            names += many if self._many_keys is str else [name for row in many for name in astuple(row)]
        if not self._data:
            return Call(self, names, [_encode(arguments)])
        packed = asdict(arguments)
        data = [packed.pop(name) for name in self._data]
        if self._many_data:
            data += data.pop()
        return Call(self, names, [_encode(packed), *data])

    def _names(self) -> Iterator[str]:
        for name, value in self.constants.items():
            yield f"local {name} = {value}"
        yield from self._keys_by_name()
        for group, members in self.groups.items():
            yield f"local {group} = {{ {', '.join(members).upper()} }}"
        yield "local ARG = cmsgpack.unpack(ARGV[1])"
        for at, name in enumerate(self._data, 2):
            many = self._many_data and name == self._data[-1]
            yield _table(f"ARG.{name}", "ARGV", at) if many else f"ARG.{name} = ARGV[{at}]"
        if self.answer is not None:
            values = ", ".join(f"parts.{name} or false" for name in self.answer.__struct_fields__)
            yield f"local function answer(parts) return {{ {values} }} end"
        if self.reads:
            yield "local NO_MORE = {}"
        for hash_name, names in self.reads.items():
            yield _reader(hash_name, names)

    def _keys_by_name(self) -> Iterator[str]:
        names = [*self.first_keys, *self.keys.__struct_fields__]
        many = names.pop() if self._many_keys else None
        if names:
            positions = ", ".join(f"KEYS[{at}]" for at in range(1, len(names) + 1))
            yield f"local {', '.join(names).upper()} = {positions}"
        if many is not None:
            columns = () if self._many_keys is str else self._many_keys.__struct_fields__
            yield "local " + _table(many.upper(), "KEYS", len(names) + 1, columns)


def _items(declared: Any) -> Any:
    """Return what a field is a sequence of; None: it is none."""
    return get_args(declared)[0] if get_origin(declared) is Sequence else None


def _table(name: str, source: str, first: int, columns: Sequence[str] = ()) -> str:
    """Return Lua that makes a table of what begins at ``first``; with columns, of rows by name."""
    row = ", ".join(f"{column} = {source}[i + {at}]" for at, column in enumerate(columns))
    item = f"{{ {row} }}" if columns else f"{source}[i]"
    return f"{name} = {{}} for i = {first}, #{source}, {len(columns) or 1} do {name}[#{name} + 1] = {item} end"


def _reader(hash_name: str, names: Sequence[str]) -> str:
    """Return a Lua function that reads fields of a hash. Spelled out: a loop would take longer than Redis does."""
    asked = "".join(f"'{name}', " for name in names)
    named = ", ".join(f"{name} = values[{at}]" for at, name in enumerate(names, 1))
    return (
        f"local function read_{hash_name}(key, more)\n"
        f"  local values = redis.call('HMGET', key, {asked}unpack(more or NO_MORE))\n"
        f"  local named = {{ {named} }}\n"
        f"  for i, name in ipairs(more or NO_MORE) do named[name] = values[{len(names)} + i] end\n"
        "  return named\n"
        "end"
    )
