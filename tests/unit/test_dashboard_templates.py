"""Our templates in Flower's: what we rely on of its pages, and what comes of a version without it."""

from __future__ import annotations

import pytest

from callmill.dashboard import templates
from callmill.dashboard.templates import Templates
from callmill.errors import InternalError


@pytest.mark.parametrize(
    "name", ["navbar.html", "workers.html", "base.html", "batches.html", "batch.html", "apis.html"]
)
def test_templates_compile(name):
    """Every template that we show, or add to, is there and compiles with what is inserted."""
    assert Templates().load(name)


def test_a_changed_flower_is_told_of(monkeypatch):
    """A Flower without the place of our tabs is an error that names it, not a page without them."""
    monkeypatch.setattr(templates, "_INSERTIONS", {"navbar.html": ("no such place", "tabs.html")})
    with pytest.raises(InternalError, match=r"navbar\.html has changed"):
        Templates().load("navbar.html")
