"""The house: a namespace over several folders, and what it must not contain."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = sorted({path.parent for path in ROOT.glob("*/callmill")})
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_namespace_has_no_init():
    """No folder makes callmill a plain package, which would hide all the other folders."""
    assert len(PARTS) == 6
    assert list(ROOT.glob("*/callmill/__init__.py")) == []


def test_every_package_is_typed():
    """Every package of the namespace carries py.typed, so that users' type checkers look inside."""
    packages = [path.parent for path in ROOT.glob("*/callmill/*/__init__.py")]
    assert len(packages) >= 10
    assert [package for package in packages if not (package / "py.typed").is_file()] == []


def test_every_folder_is_a_package_folder():
    """No folder with Python code inside the namespace lacks its __init__.py: tools would pass it over silently."""
    folders = {path.parent for part in PARTS for path in part.glob("callmill/*/**/*.py")}
    assert sorted(folder for folder in folders if not (folder / "__init__.py").is_file()) == []


@pytest.mark.parametrize(
    ("table", "key", "suffix"),
    [
        (PYPROJECT["tool"]["hatch"]["build"], "dev-mode-dirs", ""),
        (PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"], "packages", "/callmill"),
        (PYPROJECT["tool"]["mypy"], "mypy_path", ""),
        (PYPROJECT["tool"]["ruff"], "namespace-packages", "/callmill"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_build_and_tools_know_every_part(table, key, suffix):
    """The build and the tools list every part: a forgotten one is left out without an error."""
    assert sorted(table[key]) == [f"{part.name}{suffix}" for part in PARTS]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("callmill.config", ("pydantic", "celery", "redis", "msgspec")),
        ("callmill.config.public_api", ("pydantic", "celery", "redis")),
        ("callmill.config.limit_spec", ("pydantic", "celery", "redis")),
        ("callmill.config.profiles", ("celery", "redis")),
    ],
)
def test_light_modules_stay_light(module, heavy):
    """A module that producers need does not pull in libraries that it does not use."""
    program = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
