"""What the packages export."""

from __future__ import annotations

import importlib
import inspect

import pytest

PACKAGES = [
    "callmill.breaker",
    "callmill.holds",
    "callmill.jobs",
    "callmill.ledger",
    "callmill.limits",
    "callmill.producer",
    "callmill.simulator",
    "callmill.workers",
]


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_sorted_and_complete(name):
    """``__all__`` names what the package imports for others, each name once, in ruff's order of sorting."""
    package = importlib.import_module(name)
    exported = package.__all__
    assert sorted(exported, key=_rank) == exported
    public = {
        attribute
        for attribute, value in vars(package).items()
        if not attribute.startswith("_") and attribute != "annotations" and not inspect.ismodule(value)
    }
    assert public <= set(exported)
    assert all(hasattr(package, attribute) for attribute in exported)


@pytest.mark.parametrize("name", ["callmill.producer", "callmill.jobs"])
def test_everything_exported_says_what_it_is(name):
    """Every public class and its public methods have a docstring."""
    package = importlib.import_module(name)
    for exported in package.__all__:
        thing = getattr(package, exported)
        if inspect.isclass(thing):
            assert thing.__doc__
            methods = [item for at, item in vars(thing).items() if not at.startswith("_") and inspect.isfunction(item)]
            assert [method.__qualname__ for method in methods if not method.__doc__] == []


def test_producer_exports_its_contract():
    """The names that programs import from the producer are there, and no others."""
    package = importlib.import_module("callmill.producer")
    assert set(package.__all__) == {
        "AsyncBatch",
        "AsyncClient",
        "Batch",
        "Client",
        "FailedJob",
        "Failure",
        "FailureCause",
        "Job",
        "Outcome",
        "OutcomeError",
        "Progress",
    }


def _rank(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name
