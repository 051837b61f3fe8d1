"""express-rate-limit: fixed windows that begin with the first call, with headers of any draft, or without any."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from real_limiters.served import MissingProgramError, Served, ServerProcess, running

_HERE = Path(__file__).parent / "programs/express"
_CACHE = Path(__file__).parents[2] / ".node"
_INSTALL_S = 120


class ExpressProcess(ServerProcess):
    """Node with an API of its own."""

    def __init__(self, folder: Path, limiter: dict[str, object]) -> None:
        super().__init__(folder)
        self._node, self._modules = _node_and_modules()
        self._limiter = limiter

    def command(self) -> list[str]:
        """Return node's command line."""
        told = {"port": self.port, "log": str(self.answers), "limiter": self._limiter}
        return [self._node, str(_HERE / "server.js"), json.dumps(told)]

    def environment(self) -> dict[str, str]:
        """Say where the packages are."""
        return {"NODE_PATH": str(self._modules), "NODE_ENV": "production"}


@contextmanager
def express_rate_limit(
    folder: Path, *, limit: int, window_s: float, standard_headers: str = "", legacy_headers: bool = False
) -> Iterator[Served]:
    """Let ``limit`` calls pass per window. ``standard_headers``: ``draft-6``, ``draft-7``, ``draft-8`` or nothing."""
    limiter = {
        "limit": limit,
        "windowMs": round(window_s * 1000),
        "standardHeaders": standard_headers or False,
        "legacyHeaders": legacy_headers,
    }
    with running(ExpressProcess(folder, limiter)) as express:
        yield express


def _node_and_modules() -> tuple[str, Path]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise MissingProgramError("no node, or no npm: Debian's packages nodejs and npm have them")
    lock = (_HERE / "package-lock.json").read_bytes()
    installed = _CACHE / hashlib.sha256(lock).hexdigest()[:16]
    if not installed.exists():
        _install(npm, installed)
    return node, installed / "node_modules"


def _install(npm: str, installed: Path) -> None:
    """Install what the lock names, beside its place first: two who do so at once do not meet."""
    _CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as parent:
        folder = Path(parent, "express")
        folder.mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_HERE / name, folder)
        command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_INSTALL_S)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            raise MissingProgramError(
                f"no express-rate-limit: npm could not install it: {_first_line(error)}"
            ) from error
        with suppress(OSError):  # another one was faster
            folder.rename(installed)


def _first_line(error: subprocess.CalledProcessError | subprocess.TimeoutExpired) -> str:
    lines = (error.stderr or b"").decode(errors="replace").strip().splitlines()
    return lines[0] if lines else str(error)
