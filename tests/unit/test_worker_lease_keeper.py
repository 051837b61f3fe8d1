"""Since when a renewed lease runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from callmill.workers.lease_keeper import RENEWED, LeaseKeeper


class _Chunks:
    def renewal(self, claims: list[Any]) -> tuple[list[str], list[str]]:
        return [], [str(claim) for claim in claims]


class _Redis:
    """Renews at once; its answer is read much later, as by a process that was stopped meanwhile."""

    def __init__(self) -> None:
        self.renewed_s = self.answered_s = 0.0
        self.closed = False

    def register_script(self, _: str) -> Any:
        return self._renew

    def _renew(self, *, keys: list[str], args: list[str]) -> list[int]:
        assert keys == []
        self.renewed_s = time.monotonic()
        time.sleep(0.05)
        self.answered_s = time.monotonic()
        return [RENEWED for _ in args]

    def close(self) -> None:
        """Take note."""
        self.closed = True


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
    assert server.closed
    assert not keeper.is_alive()


class _OverError(Exception):
    """The script of a test has come to its end."""


class _Beats:
    """Waits for no time: keeps how long each wait would be, and does what the test wants to happen then."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self.waits_s: list[float] = []
        self.cleared = 0
        self._steps = iter(steps)

    def wait(self, timeout: float) -> None:
        self.waits_s.append(timeout)
        step = next(self._steps, None)
        if step is None:
            raise _OverError
        step()

    def clear(self) -> None:
        self.cleared += 1


class _Leases:
    """What a keeper is asked to keep, and the Redis that it asks."""

    def __init__(self, every_s: float) -> None:
        self.runs: list[_Run] = []
        self.trouble: Exception | None = None
        self.asked: list[list[str]] = []
        self.told: list[Any] = []
        this = cast("Any", self)
        self.keeper = LeaseKeeper(
            this, cast("Any", _Chunks()), lambda: this.runs, lambda *what: self.told.append(what[:2]), every_s=every_s
        )

    def register_script(self, _: str) -> Any:
        return self._renew

    def _renew(self, *, keys: list[str], args: list[str]) -> list[int]:
        assert keys == []
        if self.trouble is not None:
            raise self.trouble
        self.asked.append(args)
        return [RENEWED for _ in args]

    def set(self, **state: Any) -> Callable[[], None]:
        """Return a step that changes what there is."""
        return lambda: self.__dict__.update(state)

    def play(self, *steps: Callable[[], object]) -> list[float]:
        """Let the keeper run through these steps, in this thread; return the seconds that it wanted to wait."""
        beats = self.keeper._wanted = cast("Any", _Beats(*steps))
        with pytest.raises(_OverError):
            self.keeper.run()
        assert beats.cleared == len(steps)
        return cast("list[float]", beats.waits_s)


def test_leases_are_renewed_all_at_once_on_every_beat():
    """On every beat all chunks held then are renewed and reported; where none is held Redis is not asked."""
    leases, run, other = _Leases(3.0), _Run(), _Run()
    waits_s = leases.play(leases.set(), leases.set(runs=[run]), leases.set(runs=[run, other]), leases.set(runs=[]))
    assert waits_s == [3.0] * 5
    assert leases.asked == [["claim"], ["claim", "claim"]]
    assert leases.told == [([run], [RENEWED]), ([run, other], [RENEWED, RENEWED])]


@pytest.mark.parametrize(("every_s", "again_s"), [(3.0, 1.0), (0.5, 0.5)])
@pytest.mark.parametrize("trouble", [ConnectionError("refused"), RedisConnectionError("gone")])
def test_renewals_are_tried_again_soon_while_redis_is_away(every_s, again_s, trouble):
    """A renewal that failed reports nothing and is repeated within a second, until one succeeds."""
    leases = _Leases(every_s)
    leases.runs = [_Run()]
    failing, better, same = leases.set(trouble=trouble), leases.set(trouble=None), leases.set()
    assert leases.play(same, failing, same, better) == [every_s, every_s, again_s, again_s, every_s]
    assert len(leases.told) == 2


def test_a_keeper_can_be_woken():
    """Who wants to know what became of batches does not wait for the next beat."""
    server, reported = _Redis(), threading.Event()
    keeper = LeaseKeeper(
        cast("Any", server), cast("Any", _Chunks()), lambda: [cast("Any", _Run())], lambda *_: reported.set(),
        every_s=3600,
    )  # fmt: skip
    keeper.start()
    keeper.renew_now()
    assert reported.wait(10)
    keeper.stop()
