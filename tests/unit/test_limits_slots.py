"""When slots are taken: how late they may be, which are used together, and how many calls start at once."""

from __future__ import annotations

import asyncio

import pytest

from callmill.config.limit_spec import Enforcer, parse_limit
from callmill.jobs.traffic import NORMAL
from callmill.limits.cost import ONE_REQUEST
from callmill.limits.dispatcher import MOST_AT_ONCE, Dispatcher
from callmill.limits.group import Group
from callmill.limits.key_ring import KeyRing
from callmill.limits.keys import Keys
from callmill.limits.layout import layout
from callmill.limits.permits import Permits, PermitSet
from callmill.limits.rules import LimitRules, fixed_guard_s, validity_s
from callmill.limits.settlements import Settlements
from callmill.limits.slots import FRESH, PLENTY, Slot, Stock
from callmill.limits.timing import LONGEST_GATHER_S, TIMER_STEP_S, Timing
from callmill.limits.turns import Turn
from callmill.limits.waiting import Acquirers, Programs

VALIDITY_S = 0.008


def stock_of(timing: Timing, *starts: float) -> Stock:
    """Return a stock with slots at these times, for which calls wait."""
    limits = layout(LimitRules((parse_limit("10/second"),)), Keys("test"), "", NORMAL)
    stock = Stock(timing, Settlements(limits), lambda: True, keys=1)
    stock.add([Slot(start) for start in starts])
    return stock


def test_a_lone_slot_is_good_until_its_validity_is_over():
    """Where few slots are due, one that is nearly too late is used; one that is too late is not."""
    now, late_s = 100.0, 0.95 * VALIDITY_S
    stock = stock_of(Timing(VALIDITY_S, None), now - late_s, now)
    assert stock.take_due(now).start == now - late_s
    stock = stock_of(Timing(VALIDITY_S, None), now - 1.05 * VALIDITY_S, now)
    assert stock.take_due(now).start == now
    assert stock.missed == 1


def test_where_slots_are_plenty_none_is_taken_that_is_nearly_too_late():
    """Of many that are due, the first is taken that will still be good when the event loop has run its call."""
    now, step_s = 100.0, VALIDITY_S / 16
    starts = [now - late * step_s for late in range(16, -1, -1)]
    stock = stock_of(Timing(VALIDITY_S, None), *starts)
    assert stock.take_due(now).start == pytest.approx(now - FRESH * VALIDITY_S)
    few = stock_of(Timing(VALIDITY_S, None), *starts[:PLENTY])
    assert few.take_due(now).start == starts[0]


def test_slots_that_are_due_soon_after_each_other_are_used_together_under_a_fixed_guard():
    """With a fixed guard one waits for those that come within most of its validity, as far as calls wait for them."""
    starts = [100.0, 100.002, 100.0036, 100.0045, 100.02]
    assert stock_of(Timing(VALIDITY_S, 0.02), *starts).gathered_start(5) == 100.0036
    assert stock_of(Timing(VALIDITY_S, 0.02), *starts).gathered_start(2) == 100.002
    assert stock_of(Timing(VALIDITY_S, 0.02), *starts).gathered_start(1) == 100.0
    assert stock_of(Timing(VALIDITY_S, None), *starts).gathered_start(5) == 100.0
    assert stock_of(Timing(0.002, 0.02), *starts).gathered_start(5) == 100.0
    assert Timing(1.0, 0.02).gather_s == LONGEST_GATHER_S
    assert stock_of(Timing(VALIDITY_S, 0.02)).gathered_start(1) is None


@pytest.mark.parametrize("per_second", [50, 500, 1000, 2000, 20_000])
def test_slots_wait_for_others_well_within_their_validity(per_second):
    """However fast a bucket's limit is, two fifths of the validity are left when the timer has come."""
    rules = LimitRules((parse_limit(f"{per_second}/second"),), enforcer=Enforcer.BUCKET, burst=20)
    timing = Timing(validity_s(rules), fixed_guard_s(rules))
    most_s = 0.6 * timing.validity_s - TIMER_STEP_S
    assert timing.gather_s == pytest.approx(min(LONGEST_GATHER_S, max(0.0, most_s)))


def test_no_more_calls_start_at_once_than_the_loop_runs_in_time():
    """A crowd that may start all at once starts in parts: the loop runs each before the next one takes its slots."""
    rules = LimitRules()
    calls, turn = Acquirers(), Turn(1.0)
    group = Group(
        layout(rules, Keys("test"), "", NORMAL),
        calls,
        PermitSet([Permits(None)], turn=turn),
        weight=1,
        turn=turn,
        ring=KeyRing([key.name for key in rules.keys]),
        timing=Timing(VALIDITY_S, None),
    )

    async def start_all() -> list[int]:
        dispatcher = Dispatcher(Programs(), on_used=lambda _group: None, on_no_permit=lambda: None)
        waiting = [calls.enter(ONE_REQUEST) for _ in range(3 * MOST_AT_ONCE)]
        started_before_run: list[int] = []

        async def run(future: asyncio.Future[Slot]) -> None:
            await future
            started_before_run.append(sum(other.done() for other in waiting))

        runs = [asyncio.create_task(run(future)) for future in waiting]
        await asyncio.sleep(0)
        dispatcher.wake(group)
        assert sum(future.done() for future in waiting) == MOST_AT_ONCE
        async with asyncio.timeout(10):
            await asyncio.gather(*runs)
        dispatcher.close()
        return started_before_run

    seen = asyncio.run(start_all())
    assert seen[:MOST_AT_ONCE] == [MOST_AT_ONCE] * MOST_AT_ONCE
    assert len(seen) == 3 * MOST_AT_ONCE
