"""Functions of the user's own that a profile names as ``module:callable``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from callmill.errors import ConfigurationError


def load_callable(key: str, path: str) -> Callable[..., Any]:
    """Return the callable that the profile's ``key`` names.

    Raises:
        ConfigurationError: There is none.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ConfigurationError(f"{key} = {path!r} must be written as 'module:callable'")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # The module is the user's: it may raise anything.
        raise ConfigurationError(f"{key} = {path!r}: importing {module_name} failed: {error!r}") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigurationError(f"{key} = {path!r}: {module_name} has no callable {name!r}")
    make: Callable[..., Any] = found
    return make
