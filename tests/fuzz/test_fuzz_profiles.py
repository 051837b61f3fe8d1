"""API profiles: whatever a file holds, it is read, or refused with one line for each problem that names where it is."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from fuzzing import fuzz
from hypothesis import strategies as st

from callmill.config.api_profile import ApiProfile
from callmill.config.profiles import load_profiles
from callmill.errors import ConfigurationError
from callmill.jobs.traffic import NORMAL
from callmill.limits import KeyRules, LimitRules
from callmill.limits.keys import Keys
from callmill.limits.layout import layout

_FOLDER = Path(tempfile.mkdtemp(prefix="callmill-fuzz-"))
_LONGEST_PROBLEM = 5_000

_LIMIT = st.builds(
    " ".join,
    st.lists(
        st.sampled_from(
            (
                *("100/second", "5/minute", "0/hour", "-1/day", "1e3/second", "99999999999999999999/second", "1.5/day"),
                *(
                    "20000",
                    "tokens/minute",
                    "input",
                    "output",
                    "concurrent",
                    "per",
                    "key",
                    "model",
                    "auto",
                    "none",
                    "/",
                ),
                *("second", "1/fortnight", "\u0661/second", "1 / second", "", "10/second per model"),
            )
        ),
        max_size=4,
    ),
)
_TEXT = st.one_of(
    st.text(max_size=20),
    _LIMIT,
    st.sampled_from(
        (
            *(
                "https://x.test",
                "http://[::1",
                "https://u:p@x.test/",
                "//x",
                "https://x.test/%zz",
                "env:A",
                "file:/a",
                "a.b:c",
            ),
            *(
                "/usage",
                "/a~2",
                "bucket",
                "sliding",
                "unknown",
                "requests",
                "pyreqwest",
                "x",
                "by-key",
                "\x00",
                "ü" * 300,
            ),
        )
    ),
)
_LEAF = st.one_of(
    _TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=True, allow_infinity=True)
)
_VALUE = st.recursive(
    _LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)
_POINTERS = st.dictionaries(
    st.sampled_from(("/error/code", "/message", "", "error", "/a~3")), st.lists(_TEXT, max_size=3) | _LEAF, max_size=2
)
_THROTTLE = st.fixed_dictionaries(
    {},
    optional={
        "statuses": st.lists(st.integers(-1, 700) | _LEAF, max_size=4),
        "rate": _POINTERS,
        "quota": _POINTERS,
        "concurrency": _POINTERS,
        "max_refusals": _LEAF,
        "max_wait": _LEAF,
    },
)
_LIMITS = st.lists(_LIMIT, max_size=4)
_PROFILE = st.dictionaries(
    st.sampled_from((*ApiProfile.model_fields, "x", "limit", "base-url")), _VALUE, max_size=5
).flatmap(
    lambda keys: st.fixed_dictionaries(
        {"base_url": st.just("https://x.test") | _TEXT},
        optional={
            "limits": _LIMITS | _VALUE,
            "throttle": _THROTTLE | _VALUE,
            "models": st.dictionaries(_TEXT, _LIMITS, max_size=2) | _VALUE,
            "tenants": st.dictionaries(_TEXT, _LEAF, max_size=2) | _VALUE,
            "auth": st.lists(
                st.dictionaries(st.sampled_from(("bearer", "name", "limits", "header")), _VALUE), max_size=3
            ),
        },
    ).map(lambda more: {**keys, **more})
)
_NAMES = st.sampled_from(("x", "crm", "a.b", "", "ü", "x" * 300, "__proto__"))
_DOCUMENT = st.one_of(
    st.fixed_dictionaries({"apis": st.dictionaries(_NAMES, _PROFILE, max_size=2) | _VALUE}),
    st.fixed_dictionaries({"apis": st.dictionaries(_NAMES, _PROFILE, max_size=2), "alerts": _VALUE}),
    st.dictionaries(st.text(max_size=6), _VALUE, max_size=3),
)


def _toml(value: Any) -> str:
    """Write a value as TOML, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return str(value) if math.isfinite(value) else str(value).lower()
    return json.dumps(value).replace("\x7f", "\\u007f")


def _read(content: bytes) -> None:
    path = _FOLDER / "apis.toml"
    path.write_bytes(content)
    try:
        profiles = load_profiles(path)
    except ConfigurationError as error:
        problems = str(error).splitlines()
        assert problems
        assert all(len(problem) < _LONGEST_PROBLEM for problem in problems)
        assert str(path) in problems[0]
        return
    for profile in profiles.values():  # what is accepted makes a limiter
        keys = tuple(KeyRules(name, specs) for name, specs in profile.key_limit_specs.items())
        rules = LimitRules(
            profile.limit_specs, profile.enforcer, profile.burst, keys=keys, models=profile.model_limit_specs
        )
        made = layout(rules, Keys(profile.name), "", NORMAL)
        assert 0 < made.plausible_pause_s(1) <= 3600


@fuzz(_DOCUMENT)
def test_structures_are_read_or_refused(document: dict[str, Any]) -> None:
    """A file of any structure gives profiles that limiters can be made of, or the documented error naming the file."""
    lines = "".join(f"{_toml(key)} = {_toml(value)}\n" for key, value in document.items())
    _read(lines.encode("utf-8", "surrogatepass"))


@fuzz(
    st.one_of(
        st.binary(max_size=300),
        st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.tuples(_DOCUMENT, st.integers(0, 400), st.binary(max_size=4)).map(lambda of: _mutated(*of)),
        st.tuples(
            st.sampled_from(
                (b"[", b"{a=", b"a.", b"'a' . ", b'"\\"".', b"[[", b"'''", b"a=[[[", b"a=1", b"apis={a={a=")
            ),
            st.integers(1, 200_000),
        ).map(lambda of: _repeated(*of)),
    )
)
def test_bytes_are_read_or_refused(content: bytes) -> None:
    """A file of any bytes gives profiles, or the documented error that names the file."""
    _read(content)


def _mutated(document: dict[str, Any], at: int, instead: bytes) -> bytes:
    whole = "".join(f"{_toml(key)} = {_toml(value)}\n" for key, value in document.items())
    content = whole.encode("utf-8", "surrogatepass")
    return content[:at] + instead + content[at + len(instead) :]


def _repeated(text: bytes, times: int) -> bytes:
    """Repeat a text, or where it has a key, the last character of it."""
    return text[:-1] + text[-1:] * times if text[1:2] == b"=" else text * times
