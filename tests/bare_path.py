"""A PATH with little on it: a test that needs more than every machine has must say so by a marker."""

from __future__ import annotations

import os
import shutil
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_EVERYWHERE = ("cat", "echo", "env", "false", "make", "rm", "sh", "sleep", "timeout", "touch", "true")
_NEED_MORE = ("programs", "chaos", "docker", "browser", "netns")
_WHOLE = os.environ.get("PATH", os.defpath)


@cache
def _bare() -> TemporaryDirectory[str]:
    """Make a folder that holds the programs of every machine and this Python; it goes when the process ends."""
    folder = TemporaryDirectory(prefix="callmill-bare-path-")
    programs = {name: found for name in _EVERYWHERE if (found := shutil.which(name, path=_WHOLE))}
    for name, program in (programs | {"python3": sys.executable}).items():
        Path(folder.name, name).symlink_to(program)
    return folder


def set_path_for(item: pytest.Item) -> None:
    """Give a test the PATH that its markers ask for."""
    needs_more = any(item.get_closest_marker(name) for name in _NEED_MORE)
    os.environ["PATH"] = _WHOLE if needs_more else _bare().name
