"""A batch as the ledger has it at one moment, and what follows from that."""

from __future__ import annotations

from typing import Any

import pytest

from callmill.jobs.formats import FORMAT
from callmill.jobs.line import Line
from callmill.jobs.traffic import Priority, TrafficClass
from callmill.ledger import BatchRecord, BatchState
from callmill.ledger.records import recorded_per_s

META = {b"name": b"nightly", b"control": b"run", b"phase": b"sealed"}


def record(**fields: Any) -> BatchRecord:
    """Return a batch whose META has these fields besides those that each has."""
    return BatchRecord.read("b", META | {name.encode(): str(value).encode() for name, value in fields.items()})


@pytest.mark.parametrize(
    ("control", "phase", "ended", "state"),
    [
        (b"run", b"open", False, BatchState.SUBMITTING),
        (b"run", b"sealed", False, BatchState.RUNNING),
        (b"paused", b"sealed", False, BatchState.PAUSED),
        (b"paused", b"open", False, BatchState.PAUSED),
        (b"paused", b"sealed", True, BatchState.DONE),
        (b"run", b"sealed", True, BatchState.DONE),
        (b"cancelled", b"open", False, BatchState.CANCELLED),
        (b"cancelled", b"sealed", True, BatchState.CANCELLED),
        (None, None, False, BatchState.SUBMITTING),
    ],
)
def test_a_state_follows_from_control_and_phase(control, phase, ended, state):
    """A cancelled batch stays so, an ended one is done, a paused one not running; the others run once sealed."""
    assert BatchState.read(control, phase, ended=ended) is state


def test_a_batch_is_read_from_its_fields():
    """Every field comes from the one of its name; what is missing is nought."""
    numbers = {
        "total": 100, "chunks": 3, "succeeded": 40, "failed": 5, "calls": 60, "retries": 7, "throttled": 8, "leased": 2,
        "created_ms": 1000, "sealed_ms": 2000, "ended_ms": 3000, "deadline_ms": 9000, "max_unread_bytes": 500,
    }  # fmt: skip
    read = record(
        **numbers, out_bytes=300, released_bytes=120, full=1, priority="bulk", tenant="t", reason="late", own_lines=1
    )
    assert {name: getattr(read, name) for name in numbers} == numbers
    assert (read.id, read.name, read.state, read.sealed, read.ended) == ("b", "nightly", BatchState.DONE, True, True)
    assert (read.unread_bytes, read.full, read.reason, read.own_lines) == (180, True, "late", True)
    assert (read.traffic, read.recorded, read.newer) == (TrafficClass(Priority.BULK, "t"), 45, False)
    bare = record()
    assert (bare.total, bare.unread_bytes, bare.full, bare.own_lines, bare.ended) == (0, 0, False, False, False)
    assert (bare.traffic, bare.apis, bare.bound_to, bare.format) == (TrafficClass(), [], {}, 1)


def test_of_a_newer_batch_only_the_name_is_known():
    """Fields of a batch in a newer format are not read, for they may mean something else."""
    newer = record(format=FORMAT + 1, total=5, tenant="t", ended_ms=7)
    assert (newer.newer, newer.name, newer.format) == (True, "nightly", FORMAT + 1)
    assert (newer.total, newer.traffic, newer.ended) == (0, TrafficClass(), False)
    assert BatchRecord.read("b", {b"format": b"9"}).name == ""


def test_jobs_that_run_again_begin_the_batch_anew():
    """After a batch was over, what runs again counts from then, and only what has its outcome since."""
    first = record(total=10, succeeded=4, failed=1, created_ms=1000)
    assert (first.began_ms, first.recorded_since) == (1000, 5)
    again = record(total=10, succeeded=7, failed=1, created_ms=1000, again_ms=5000, again_jobs=3)
    assert (again.began_ms, again.recorded_since) == (5000, 1)


def test_lines_of_a_batch_name_its_api_and_its_class():
    """A chunk waits in the line of its API as bound, of its class, and of its batch alone where that has its own."""
    bound = record(**{"api:crm": "3fa94c2110 https://crm.test", "api:erp": "", "priority": "bulk", "own_lines": 1})
    traffic = TrafficClass(Priority.BULK)
    assert bound.apis == ["crm", "erp"]
    assert list(bound.bound_to) == ["crm"]
    assert bound.line("crm") == Line("crm", traffic, FORMAT, bound.bound_to["crm"].identity, "b")
    assert bound.line("erp") == Line("erp", traffic, FORMAT, "", "b")
    assert record().line("crm") == Line("crm")


def test_former_lines_are_those_that_the_batch_is_not_in_now():
    """Of the lines in which chunks waited before the one of now is left out; each may have been the batch's own."""
    was = {"was:crm": "- 0123456789/own 3fa94c2110", "was:erp": "-"}
    moved = record(**{"api:crm": "3fa94c2110 https://crm.test", "api:erp": "", "priority": "bulk", **was})
    traffic = TrafficClass(Priority.BULK)
    assert moved.former_lines == [Line("crm", traffic), Line("crm", traffic, 1, "0123456789", "b")]
    assert record().former_lines == []


@pytest.mark.parametrize(
    ("now_s", "began_ms", "per_s"),
    [
        (110, 0, 3.5),  # 100 to 109, not the second under way
        (110, 105_900, 15 / 5),  # since it began
        (110, 110_000, 0.0),  # just begun
        (121, 0, 0.0),
    ],
)
def test_the_rate_is_that_of_whole_seconds(now_s, began_ms, per_s):
    """Outcomes count in the last ten whole seconds, or in those since the batch began."""
    ring = [b"99 1000", b"100 20", b"105 7", b"109 8", b"110 500"]
    assert recorded_per_s(record(created_ms=began_ms), ring, now_s) == pytest.approx(per_s)
