"""The tree of errors is as it is drawn."""

from __future__ import annotations

import re

from callmill import errors
from callmill.errors import CallmillError, InternalError, OutsideError, UsageError


def _drawn_parents(drawing: str) -> dict[str, str | None]:
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for branch, name in re.findall(r"^((?:│   |    )*(?:[├└]── )?)(\w+Error)$", drawing, re.MULTILINE):
        depth = len(branch) // 4
        parents[name] = path[depth - 1] if depth else None
        path[depth:] = [name]
    return parents


def _real_parents() -> dict[str, str | None]:
    own = [thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, CallmillError)]
    return {
        error.__name__: next((base.__name__ for base in error.__bases__ if issubclass(base, CallmillError)), None)
        for error in own
    }


def test_drawing_equals_the_classes():
    """The tree in the docstring of callmill.errors has every class, and each under its parent."""
    assert _drawn_parents(errors.__doc__) == _real_parents()


def test_families_never_share_a_class():
    """Every error but the root belongs to exactly one of the three families."""
    families = (UsageError, OutsideError, InternalError)
    for name in _real_parents().keys() - {"CallmillError"}:
        assert sum(issubclass(getattr(errors, name), family) for family in families) == 1, name


def test_every_error_says_what_it_means():
    """Every error class has a docstring."""
    assert [name for name in _real_parents() if not getattr(errors, name).__doc__] == []
