"""requirements/: the versions that images and development are installed from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ASKED = {
    "build.txt": PROJECT["build-system"]["requires"],
    "runtime.txt": PROJECT["project"]["dependencies"],
    "development.txt": PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"],
}


def locked(name: str) -> dict[str, list[str]]:
    """Return the entries of a lock file by package: several where platforms differ."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "requirements" / name).read_text())
    entries: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            entries.setdefault(canonicalize_name(line.partition("==")[0]), []).append(line)
    return entries


@pytest.mark.parametrize("name", ASKED)
def test_a_lock_file_has_what_the_project_asks_for(name):
    """Every requirement is locked, in a version that it allows; if not, run `make lock`."""
    entries = locked(name)
    for text in ASKED[name]:
        requirement = Requirement(text)
        found = entries[canonicalize_name(requirement.name)]
        versions = [re.match(r"[^=]+==([^\s;]+)", entry)[1] for entry in found]
        assert versions, text
        assert all(requirement.specifier.contains(version, prereleases=True) for version in versions), text


@pytest.mark.parametrize("name", ASKED)
def test_every_locked_file_has_a_hash_and_no_place(name):
    """Each entry carries hashes, and none says from which index it came: everybody uses their own."""
    for package, entries in locked(name).items():
        assert all("--hash=sha256:" in entry for entry in entries), package
        assert not any("://" in entry for entry in entries), package


def test_all_lock_files_agree():
    """What is tested is what runs: a package has the same version in each lock file."""
    development = locked("development.txt")
    for name in ("build.txt", "runtime.txt"):
        for package, entries in locked(name).items():
            versions = {entry.partition(" ")[0] for entry in entries}
            assert versions <= {entry.partition(" ")[0] for entry in development[package]}, package
