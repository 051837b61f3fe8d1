"""Reading API profiles from TOML: every problem of a file at once, each naming file, table, key and remedy."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from callmill.config.alert_policy import AlertPolicy
from callmill.config.api_profile import ApiProfile, Charge, Credential, Usage
from callmill.config.failure_policy import BreakerPolicy, RetryPolicy
from callmill.config.problems import describe, unknown_key
from callmill.config.public_api import API_NAME
from callmill.config.settings import Settings
from callmill.config.throttle_policy import ThrottlePolicy
from callmill.errors import ConfigurationError

__all__ = [
    "AlertPolicy",
    "ApiProfile",
    "BreakerPolicy",
    "Charge",
    "Credential",
    "RetryPolicy",
    "ThrottlePolicy",
    "Usage",
    "find_alerts",
    "find_profiles",
    "load_profiles",
    "profiles_path",
]

_SUB_TABLES: dict[str, type[BaseModel]] = {
    "auth": Credential,
    "breaker": BreakerPolicy,
    "retry": RetryPolicy,
    "throttle": ThrottlePolicy,
    "usage": Usage,
}
_TABLES = ("alerts", "apis")
_MOST_CHARACTERS = 1 << 20
_MOST_PARTS = 16
_PART = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')"""
_DEEP_KEY = re.compile(rf"(?:^|[\[{{,])[ \t]*+(?:{_PART}[ \t]*+\.[ \t]*+){{{_MOST_PARTS}}}", re.MULTILINE)
"""Linear: it begins where a key may, and gives nothing back."""
_DEFAULT_PATHS = (Path("config/apis.toml"), Path("apis.toml"))


def profiles_path(settings: Settings) -> Path | None:
    """Return the path of the profiles: the one that is set, else the default path that exists, else None."""
    if settings.apis is not None:
        return settings.apis
    return next((path for path in _DEFAULT_PATHS if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    with suppress(PermissionError):  # in a folder that is closed to this user, and so is none of ours
        return path.is_file()
    return False


def find_profiles(settings: Settings) -> dict[str, ApiProfile] | None:
    """Load the profiles that the settings point to; None when no path is set and no default path exists.

    Raises:
        ConfigurationError: The file cannot be read, or something in it is wrong.
    """
    path = profiles_path(settings)
    return None if path is None else load_profiles(path)


def find_alerts(settings: Settings) -> AlertPolicy | None:
    """Load the table [alerts] of the file that the settings point to; None where there is none.

    Raises:
        ConfigurationError: The file cannot be read, or something in the table is wrong.
    """
    path = profiles_path(settings)
    if path is None:
        return None
    policy, problems = _alerts(_document(path), path)
    if problems:
        raise ConfigurationError("\n".join(problems))
    return policy


def load_profiles(path: Path) -> dict[str, ApiProfile]:
    """Load the profiles of one file, by name.

    Raises:
        ConfigurationError: The file cannot be read, or something in it is wrong; all problems, one a line.
    """
    document = _document(path)
    problems = [f"{path}: [{key}]: {unknown_key(key, _TABLES)}" for key in document if key not in _TABLES]
    problems += _alerts(document, path)[1]
    tables = document.get("apis", {})
    if not isinstance(tables, dict):
        problems.append(f"{path}: apis: must be tables; write [apis.NAME]")
        tables = {}
    profiles = {}
    for name, table in tables.items():
        profile, wrong = _profile(name, table, path)
        problems += [f"{path}: [apis.{name}]{problem}" for problem in wrong]
        if profile is not None:
            profiles[name] = profile
    problems += [f"{path}: [apis.{name}] fallback: {wrong}" for name, wrong in _wrong_fallbacks(profiles, tables)]
    if problems:
        raise ConfigurationError("\n".join(problems))
    return profiles


def _wrong_fallbacks(profiles: Mapping[str, ApiProfile], known: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name, profile in profiles.items():
        if profile.fallback is not None and profile.fallback not in known:
            yield name, f"no table [apis.{profile.fallback}]; known: {', '.join(sorted(known))}"
            continue
        way = [name]
        while (last := profiles.get(way[-1])) is not None and last.fallback is not None and way.count(way[-1]) < 2:
            way.append(last.fallback)
        if way[-1] == name and len(way) > 1:
            yield name, f"goes in a circle: {' -> '.join(way)}; leave it out of one of them"


def _document(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)
        _refuse_costly(text, path)
        return tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: there is no such file; create it, or set CALLMILL_APIS") from None
    except PermissionError:
        raise ConfigurationError(f"{path}: not readable by this user; check its mode and owner") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8: {error.reason} at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: is not TOML: {error}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise ConfigurationError(f"{path}: holds what is no number here: {error}") from error
    except RecursionError:
        raise ConfigurationError(f"{path}: is nested too deeply; profiles need three levels") from None


def _refuse_costly(text: str, path: Path) -> None:
    """Refuse what tomllib would work on for minutes: its time grows with the square of a key's parts."""
    if len(text) > _MOST_CHARACTERS:
        raise ConfigurationError(
            f"{path}: has more than {_MOST_CHARACTERS:,} characters; a profile needs a few hundred"
        )
    if deep := _DEEP_KEY.search(text):
        line = text.count("\n", 0, deep.start()) + 1
        raise ConfigurationError(f"{path}: line {line}: a key of more than {_MOST_PARTS} parts; profiles need four")


def _alerts(document: dict[str, Any], path: Path) -> tuple[AlertPolicy | None, list[str]]:
    table = document.get("alerts")
    if table is None:
        return None, []
    if not isinstance(table, dict):
        return None, [f"{path}: alerts: must be a table; write [alerts] and its keys below"]
    try:
        policy = AlertPolicy.model_validate(table)
    except ValidationError as invalid:
        errors = invalid.errors(include_input=False, include_url=False)
        return None, [f"{path}: [alerts]{_problem(error, table, AlertPolicy)}" for error in errors]
    policy._source = path  # noqa: SLF001 - as below
    return policy, []


def _profile(name: str, table: Any, path: Path) -> tuple[ApiProfile | None, list[str]]:
    if not API_NAME.fullmatch(name):
        return None, [": an API's name is up to 100 letters, digits, '-' and '_', and begins with a letter or digit"]
    if not isinstance(table, dict):
        return None, [": must be a table; write [apis.NAME] and its keys below"]
    if "name" in table:
        return None, [" name: the table's name is the API's name; remove the key"]
    try:
        profile = ApiProfile.model_validate({**table, "name": name})
    except ValidationError as invalid:
        return None, [_problem(error, table) for error in invalid.errors(include_input=False, include_url=False)]
    profile._source = path  # noqa: SLF001 - a private attribute so that no key of the file can set it
    return profile, []


def _problem(error: ErrorDetails, table: dict[str, Any], whole: type[BaseModel] = ApiProfile) -> str:
    loc = error["loc"]
    key = _key(loc, table)
    if error["type"] == "extra_forbidden":
        *above, unknown = map(str, loc)
        model = _SUB_TABLES[above[0]] if above else whole
        return f" {key}: {unknown_key(unknown, set(model.model_fields) - {'name'})}"
    return f" {key}: {describe(error)}" if key else f": {describe(error)}"


def _key(loc: tuple[int | str, ...], table: dict[str, Any]) -> str:
    """Write the place as the file has it: ``limits[0]``, ``retry.base``, ``auth.bearer`` where auth is no list."""
    if loc[:1] == ("usage",) and isinstance(table.get("usage"), str):
        loc = ("usage",)
    if loc[:2] == ("auth", 0) and isinstance(table.get("auth"), dict):
        loc = ("auth", *loc[2:])
    if loc[:1] == ("webhook",) and isinstance(table.get("webhook"), str):
        loc = ("webhook",)
    key = ""
    for part in loc:
        if part == "[key]":
            continue
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    return key.removeprefix(".")
