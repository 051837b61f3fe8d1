"""Write the lock files: what pyproject.toml asks for, in versions with hashes, for every platform and Python."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parent / "pyproject.toml"


def lock(name: str, *arguments: str, given: str | None = None) -> None:
    """Write one lock file; ``given``: requirements that stand in no file."""
    subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--upgrade", *arguments),
            *("--universal", "--python-version", "3.11", "--generate-hashes", "--no-emit-index-url"),
            *("--custom-compile-command", "make lock", "--output-file", str(HERE / name)),
        ],
        input=given,
        text=True,
        check=True,
    )


if __name__ == "__main__":
    build = tomllib.loads(PROJECT.read_text())["build-system"]["requires"]
    building = "\n".join([*build, "editables"])
    lock("development.txt", "-", str(PROJECT), "--group", f"{PROJECT}:dev", given=building)
    # The others have no versions of their own.
    same = ("--constraint", str(HERE / "development.txt"))
    lock("runtime.txt", str(PROJECT), *same)
    lock("build.txt", "-", *same, given=building)
