"""How much room Redis has, as a process that looks now and then sees it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from redis.exceptions import ResponseError

from callmill.ledger import memory as module
from callmill.ledger.memory import MemoryGauge, Role

MIB = 2**20


class Server:
    """A Redis of 100 MiB that says how much it has in use, and its clients' clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, watermark: float) -> None:
        self.fields: dict[str, Any] = {"maxmemory": 100 * MIB}
        self.asked = 0
        self.now_s = 50.0
        self.forbidden = False
        self.redis = self
        self.gauge = MemoryGauge(cast("Any", self), watermark)
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now_s)

    async def info(self, section: str) -> dict[str, Any]:
        """Answer."""
        assert section == "memory"
        self.asked += 1
        if self.forbidden:
            raise ResponseError("NOPERM")
        return self.fields

    async def answer(self, pending: Any) -> Any:
        """Pass the answer on."""
        return await pending

    def waits(self, role: Role, used_mib: float | None = None) -> str:
        """Say why somebody waits, a second later, with so much in use."""
        self.now_s += 1
        if used_mib is not None:
            self.fields["used_memory"] = round(used_mib * MIB)
        return asyncio.run(self.gauge.why_wait(role))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """Return a server whose producers wait from 80 % on."""
    return Server(monkeypatch, 0.8)


@pytest.mark.parametrize(("role", "mark_mib"), [(Role.PRODUCER, 80), (Role.WORKER, 90)])
def test_who_waits_goes_on_a_little_below_the_mark(server, role, mark_mib):
    """From its mark on somebody waits, until memory is a twentieth below it; then the mark counts again."""
    assert server.waits(role, mark_mib - 0.1) == ""
    assert server.waits(role, mark_mib)
    assert server.waits(role, mark_mib * 0.951)
    assert server.waits(role, mark_mib * 0.949) == ""
    assert server.waits(role, mark_mib * 0.951) == ""


def test_one_who_waits_does_not_make_the_other_wait(server):
    """Producers that wait say nothing of workers, of whom each has a mark and a state of its own."""
    assert server.waits(Role.PRODUCER, 89)
    assert server.waits(Role.WORKER) == ""


def test_the_reason_says_how_full_and_what_to_do(server):
    """Whoever waits is told the share, the size, the mark and the remedies."""
    assert server.waits(Role.WORKER, 95) == (
        "Redis has 95% of its 100 MiB in use, and workers wait from 90.0% on: "
        "read and release outcomes, delete batches, or raise maxmemory"
    )


def test_what_redis_does_not_count_itself_is_not_counted(server):
    """Buffers of replicas and of the log do not fill the memory that writes are refused for."""
    server.fields["mem_not_counted_for_evict"] = 15 * MIB
    assert server.waits(Role.PRODUCER, 94) == ""
    assert server.waits(Role.PRODUCER, 95)


def test_a_look_holds_for_a_moment(server):
    """Within a tenth of a second Redis is not asked again, by whichever role, and after it it is."""
    server.waits(Role.PRODUCER, 50)
    server.fields["used_memory"] = 99 * MIB
    server.now_s += 0.09 - 1
    assert (server.waits(Role.PRODUCER), server.asked) == ("", 1)
    server.now_s += 0.02 - 1
    assert server.waits(Role.PRODUCER)
    assert server.asked == 2


@pytest.mark.parametrize("watermark", [1.0, 0.8])
def test_nobody_waits_where_there_is_no_bound(monkeypatch, watermark):
    """Without a maxmemory nobody waits, nor with a mark at the very end, where Redis is not even asked."""
    server = Server(monkeypatch, watermark)
    if watermark < 1:
        assert server.waits(Role.PRODUCER, 95)
        server.fields["maxmemory"] = 0
    assert server.waits(Role.PRODUCER, 99) == ""
    assert server.asked == (0 if watermark == 1 else 2)
    server.fields["maxmemory"] = 100 * MIB
    assert bool(server.waits(Role.PRODUCER, 79)) is False


def test_nobody_waits_where_redis_does_not_tell(server):
    """Where the account may not ask, Redis itself says when it is full."""
    server.forbidden = True
    assert server.waits(Role.WORKER, 99) == ""


def test_a_batch_waits_while_it_takes_most_of_the_memory(server):
    """A batch with more than four times the room left waits, and says why; a small one goes on."""
    server.fields["used_memory"] = 70 * MIB
    server.now_s += 1

    def why(stored_mib: float) -> str:
        return asyncio.run(server.gauge.why_wait(Role.PRODUCER, round(stored_mib * MIB)))

    assert why(40) == why(0) == ""
    assert why(41) == (
        "the batch's waiting jobs take 41 MiB of Redis's memory and leave 10 MiB to others; "
        "it goes on when some are done"
    )


@pytest.mark.parametrize("greedy", [1, 10])
def test_small_batches_find_room_beside_those_that_take_all_they_may(server, greedy):
    """Greedy batches in turns fill no more than leaves a small one its room."""
    stored = [0] * greedy
    grown = True
    while grown:
        grown = False
        for n in range(greedy):
            server.fields["used_memory"] = sum(stored)
            server.now_s += 1
            if not asyncio.run(server.gauge.why_wait(Role.PRODUCER, stored[n])):
                stored[n] += MIB // 4
                grown = True
    server.fields["used_memory"] = sum(stored)
    server.now_s += 1
    assert asyncio.run(server.gauge.why_wait(Role.PRODUCER, 0)) == ""
    assert sum(stored) > (60 if greedy == 1 else 70) * MIB
    assert 80 * MIB - sum(stored) > MIB
