"""Lua and Python agree by names: what the scripts of Redis use is what Python declares, and nothing has a number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from types import NoneType
from typing import Any, get_args

import pytest
from msgspec import Struct
from msgspec.structs import fields

import callmill.breaker.scripts
import callmill.holds.scripts
import callmill.ledger.scripts
import callmill.limits.scripts
from callmill.config.lua_script import LuaScript

ROOMS = (callmill.limits.scripts, callmill.ledger.scripts, callmill.breaker.scripts, callmill.holds.scripts)
SCRIPTS: list[LuaScript[Any, Any]] = [script for room in ROOMS for script in room.SCRIPTS]
MOST_LOCALS = 150
"""Lua allows 200 in a function; what is outside of all functions is one."""

every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda one: f"{one.package}-{one.parts[-1]}")


def source(script: LuaScript[Any, Any], part: str) -> str:
    """Return the text of a part of a script."""
    return (files(script.package) / "lua" / f"{part}.lua").read_text()


def code(script: LuaScript[Any, Any], part: str) -> str:
    """Return a part of a script without its comments."""
    return re.sub(r"--.*", "", source(script, part))


def structs_by_name(script: LuaScript[Any, Any], text: str) -> dict[str, type[Struct]]:
    """Return which tables in the text are of which declaration: the arguments, and the parts of them that it names."""
    tables: dict[str, type[Struct]] = {"ARG": script.arguments}
    if fields(script.keys) and is_struct(item := (get_args(fields(script.keys)[-1].type) or [None])[0]):
        name = fields(script.keys)[-1].name.upper()
        tables |= dict.fromkeys([rf"{name}\[i\]", *re.findall(rf"local (\w+) = {name}\[i\]", text)], item)
    for names, values in re.findall(r"^ *local ([\w, ]+) = (.*)$", text, re.MULTILINE):
        for name, value in zip(names.split(", "), values.split(", "), strict=False):
            if is_struct(declared := type_of(tables, value)):
                tables[name] = declared
    for name, value in re.findall(r"for \w+, (\w+) in ipairs\(([\w.]+)\)", text):
        for item in get_args(type_of(tables, value)):
            if is_struct(item):
                tables[name] = item
    return tables


def type_of(tables: dict[str, type[Struct]], path: str) -> Any:
    """Return what is declared of a value such as ``ARG.request``; None: nothing."""
    table, _, name = path.partition(".")
    declared = (
        next((field.type for field in fields(tables[table]) if field.name == name), None) if table in tables else None
    )
    return (
        next((part for part in get_args(declared) if part is not NoneType), None) if is_optional(declared) else declared
    )


def is_optional(declared: object) -> bool:
    """Say whether nothing may stand in the place of a value."""
    return NoneType in get_args(declared)


def is_struct(declared: object) -> bool:
    """Say whether it is a struct whose fields have names in Lua."""
    return isinstance(declared, type) and issubclass(declared, Struct) and not declared.__struct_config__.array_like


def argument_names(script: LuaScript[Any, Any]) -> Iterator[tuple[type[Struct], str]]:
    """Yield every field of the arguments and of their parts."""
    open_structs = [script.arguments]
    for struct in open_structs:
        for field in fields(struct):
            yield struct, field.name
            inside = [part for part in (field.type, *get_args(field.type)) if is_struct(part)]
            open_structs += [part for part in inside if part not in open_structs]


def test_every_lua_file_belongs_to_a_script():
    """No Lua file is left out of what is checked here."""
    known = {(script.package, part) for script in SCRIPTS for part in script.parts}
    there = {
        (package, path.name.removesuffix(".lua"))
        for package in {script.package for script in SCRIPTS}
        for path in (files(package) / "lua").iterdir()
    }
    assert there == known


@every_script
def test_nothing_has_a_number(script):
    """No script takes a key, an argument or a field of a hash by its position."""
    for part in script.parts:
        text = code(script, part)
        assert re.findall(r"\b(?:KEYS|ARGV)\b|HMGET", text) == [], part
        for name in re.findall(r"local (\w+) = read_\w+\(", text):
            assert re.findall(rf"\b{name}\[[\d#]", text) == [], part


@every_script
def test_arguments_are_those_that_are_declared(script):
    """A script uses the arguments that its declaration has, all of them and no others."""
    text = "\n".join(code(script, part) for part in script.parts)
    used = {
        (struct, name)
        for table, struct in structs_by_name(script, text).items()
        for name in re.findall(rf"(?<![\w.]){table}\.(\w+)", text)
    }
    assert [name for struct, name in used if name not in struct.__struct_fields__] == []
    assert set(argument_names(script)) - used == set()


@every_script
def test_fields_are_those_that_are_declared(script):
    """A script uses the fields of hashes that its declaration reads, all of them and no others."""
    used: dict[str, set[str]] = {name: set() for name in script.reads}
    for part in script.parts:
        text = code(script, part)
        for read in re.finditer(rf"( *)(?:local (\w+) = |.*)read_({'|'.join(script.reads)})\(", text):
            indent, table, hash_name = read.groups()
            block = text[read.end() :].partition("\nend")[0] if indent else text[read.end() :]
            if table is None or f"pairs({table})" in block:
                used[hash_name] |= set(script.reads[hash_name])
                continue
            used[hash_name] |= set(re.findall(rf"(?<![\w.]){table}\.(\w+)", block))
            if f"tonumber({table}[name] or 0)" in block:
                used[hash_name] |= set(re.findall(r"\bfield\('(\w+)'\)", block))
    assert used == {name: set(names) for name, names in script.reads.items()}


@every_script
def test_answers_are_those_that_are_declared(script):
    """A script answers with the parts that its declaration has, all of them and no others."""
    text = "\n".join(code(script, part) for part in script.parts)
    answers = re.findall(r"\banswer\(\{(.*?)\}\)", text, re.DOTALL)
    given = {name for answer in answers for name in re.findall(r"(\w+) = ", answer)}
    if script.answer is None:
        assert answers == []
    elif not re.search(r"answer\(read_", text):
        assert given == set(script.answer.__struct_fields__)


@every_script
def test_the_contract_names_what_is_declared(script):
    """The contract on top of a script tells of each key, argument and part of the answer by its name."""
    contract = source(script, script.parts[-1]).partition("\n\n")[0]
    contract = "\n".join(re.findall(r"^--.*", contract, re.MULTILINE))
    names = [name.upper() for name in script.keys.__struct_fields__]
    names += script.arguments.__struct_fields__
    names += script.answer.__struct_fields__ if script.answer else ()
    assert [name for name in names if not re.search(rf"\b{name}\b", contract)] == []


@every_script
def test_locals_are_far_from_their_limit(script):
    """No script comes near the number of locals beyond which Lua refuses to load it."""
    locals_ = re.findall(r"^local (?:function \w+|[\w, ]+)", script.text, re.MULTILINE)
    assert sum(names.count(",") + 1 for names in locals_) < MOST_LOCALS
