"""Since when a renewed lease runs."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

from callmill.workers.lease_keeper import RENEWED, LeaseKeeper


class _Chunks:
    def renewal(self, claims: list[Any]) -> tuple[list[str], list[str]]:
        return [], [str(claim) for claim in claims]


class _Redis:
    """Renews at once; its answer is read much later, as by a process that was stopped meanwhile."""

    def __init__(self) -> None:
        self.renewed_s = self.answered_s = 0.0

    def register_script(self, _: str) -> Any:
        return self._renew

    def _renew(self, *, keys: list[str], args: list[str]) -> list[int]:
        assert keys == []
        self.renewed_s = time.monotonic()
        time.sleep(0.05)
        self.answered_s = time.monotonic()
        return [RENEWED for _ in args]

    def close(self) -> None:
        """Nothing is open."""


class _Run:
    claim = "claim"


def test_a_lease_runs_from_when_it_was_asked_for():
    """A renewal whose answer comes late is told with a time not after Redis carried it out."""
    server, told, reported = _Redis(), list[float](), threading.Event()

    def report(_runs: Any, _answers: Any, asked_s: float) -> None:
        told.append(asked_s)
        reported.set()

    keeper = LeaseKeeper(
        cast("Any", server), cast("Any", _Chunks()), lambda: [cast("Any", _Run())], report, every_s=0.01
    )
    keeper.start()
    assert reported.wait(10)
    keeper.stop()
    assert told[-1] <= server.renewed_s < server.answered_s
