"""Breakers, retry budgets and fallbacks in API profiles."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from callmill.config.profiles import BreakerPolicy, load_profiles
from callmill.errors import ConfigurationError

PAGE = (Path(__file__).parents[2] / "docs/resilience.md").read_text()


def api(name: str, *lines: str) -> str:
    """Return the table of an API."""
    return "\n".join([f"[apis.{name}]", f'base_url = "https://{name}.example.com"', *lines, ""])


@pytest.fixture
def load(tmp_path):
    """Return what loads tables from a file."""

    def load(*tables: str):
        path = tmp_path / "apis.toml"
        path.write_text("\n".join(tables))
        return load_profiles(path)

    return load


def test_every_key_is_read(load):
    """A profile's breaker, budget and fallback are what it says; without a word a breaker is on."""
    full = "breaker = { errors = 0.25, calls = 50, window = 30, streak = 9, probe = 1, cap = 10 }"
    profiles = load(api("a", full, 'fallback = "b"', "retry = { budget = 1 }"), api("b", "breaker = false"), api("c"))
    assert profiles["a"].breaker == BreakerPolicy(errors=0.25, calls=50, window=30, streak=9, probe=1, cap=10)
    assert (profiles["a"].fallback, profiles["a"].retry.budget) == ("b", 1)
    assert (profiles["b"].breaker, profiles["b"].fallback) == (None, None)
    assert profiles["c"].breaker == BreakerPolicy()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("breaker = { erors = 1 }", "breaker.erors: unknown key; did you mean 'errors'?"),
        ("breaker = { errors = 0 }", "breaker.errors: should be greater than 0"),
        ("breaker = { window = 0.5 }", "breaker.window: should be greater than or equal to 1"),
        ("breaker = { probe = 9, cap = 5 }", "breaker: cap is below probe, 9 s: no wait could keep both"),
        ("breaker = true", "breaker: must be a table, such as { errors = 0.5, calls = 20 }, or false for none"),
        ("retry = { budget = 0 }", "retry.budget: should be greater than 0"),
        ('fallback = "none"', "fallback: no table [apis.none]; known: a"),
        ('fallback = "a"', "fallback: goes in a circle: a -> a; leave it out of one of them"),
    ],
)
def test_problem_names_place_and_remedy(load, line, problem):
    """What is wrong is told with file, table and key."""
    with pytest.raises(ConfigurationError) as raised:
        load(api("a", line))
    assert re.fullmatch(rf".*/apis\.toml: \[apis\.a\] {re.escape(problem)}", str(raised.value))


def test_a_circle_of_fallbacks_is_told_where_it_is(load):
    """Each table of a circle is named, and none that only leads into it."""
    tables = [api(name, f'fallback = "{to}"') for name, to in [("a", "b"), ("b", "c"), ("c", "b")]]
    with pytest.raises(ConfigurationError) as raised:
        load(*tables)
    assert [line.partition(": ")[2] for line in str(raised.value).splitlines()] == [
        "[apis.b] fallback: goes in a circle: b -> c -> b; leave it out of one of them",
        "[apis.c] fallback: goes in a circle: c -> b -> c; leave it out of one of them",
    ]


def test_examples_of_the_page_load(load):
    """Every TOML example of the page is a file that loads."""
    examples = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 1
    assert all(load(example) for example in examples)
