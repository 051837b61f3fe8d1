"""The checker finds what it is there for: each violation planted into a history that is right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from checker import check
from history import Call, Commit, Event, Exit, Fault, Final, History, Lease, Progress, Read, Snapshot, read_events
from msgspec.structs import replace

CHUNK = "b/0/free"
WORKER, OTHER = 11, 12
JOBS = 4


def call(index: int, *, number: int | None = None, worker: int = WORKER, fence: int = 1, at_s: float = 1.0) -> Call:
    """A call that ends well."""
    number = index + 1 if number is None else number
    return Call(number, "free", f"b-{index}", worker, CHUNK, fence, at_s, at_s + 0.01, at_s + 0.1, 200, True)


def read(index: int, *, number: int | None = None, cursor: str = "", at_s: float = 1.3) -> Read:
    """The outcome of that call, as a consumer read it."""
    number = index + 1 if number is None else number
    return Read("b", f"b-{index}", True, number, f"b-{index}", cursor or f"1-0/{index + 1}", at_s)


def right() -> list[Event]:
    """Return the history of four jobs that one worker does as it should."""
    return [
        Lease(WORKER, CHUNK, 1, 0.9),
        *map(call, range(JOBS)),
        Commit(WORKER, CHUNK, 1, [f"b-{index}" for index in range(JOBS)], 1.15, 1.2, "recorded"),
        Progress("b", 1.0, 0, JOBS, sealed=True, ended=False),
        Progress("b", 1.2, JOBS, JOBS, sealed=True, ended=True),
        Snapshot("b", 1.0, 0, JOBS, {0: (JOBS, 0, 0)}),
        *map(read, range(JOBS)),
        final(),
    ]


def final(outcomes: list[Read] | None = None, **changed: int) -> Final:
    """How the batch ended."""
    outcomes = [*map(read, range(JOBS))] if outcomes is None else outcomes
    made = Final("b", JOBS, JOBS, JOBS, 0, 0, ended=True, unfinished_chunks=0, outcomes=outcomes, left_over=[])
    return replace(made, **changed)


def rules(events: list[Event]) -> set[str]:
    """The rules that a history breaks."""
    return {violation.rule for violation in check(History(events, lease_s=2.0))}


def without(kind: type, events: list[Event]) -> list[Event]:
    """A history without one kind of events."""
    return [event for event in events if not isinstance(event, kind)]


def with_final(made: Final) -> Callable[[list[Event]], list[Event]]:
    """Plant another end of the batch."""
    return lambda events: [*without(Final, events), made]


def adding(*more: Event) -> Callable[[list[Event]], list[Event]]:
    """Plant further events."""
    return lambda events: [*events, *more]


PLANTED: dict[str, tuple[Callable[[list[Event]], list[Event]], set[str]]] = {
    "a lost job": (
        lambda events: [
            *(event for event in without(Final, events) if not (isinstance(event, Read) and event.job == "b-3")),
            final([*map(read, range(3))], succeeded=3),
        ],
        {"lost", "counters"},
    ),
    "an outcome recorded twice": (
        with_final(final([*map(read, range(JOBS)), read(0, cursor="2-0/1")])),
        {"twice", "counters", "read", "read twice"},
    ),
    "a failed job": (with_final(final([replace(read(0), ok=False), *map(read, range(1, JOBS))])), {"failed"}),
    "an outcome of no job": (
        with_final(final([*map(read, range(JOBS)), read(9)])),
        {"unknown job", "counters", "read", "no such call"},
    ),
    "an outcome without a call": (
        lambda events: [event for event in events if not (isinstance(event, Call) and event.job == "b-2")],
        {"no such call"},
    ),
    "an outcome with the answer to another job": (
        with_final(final([replace(read(0), call=2, told="b-1"), *map(read, range(1, JOBS))])),
        {"no such call"},
    ),
    "an outcome of a call that failed": (
        lambda events: [replace(e, status=500) if isinstance(e, Call) and e.number == 1 else e for e in events],
        {"no such call"},
    ),
    "an outcome that the consumer missed": (
        lambda events: [event for event in events if not (isinstance(event, Read) and event.job == "b-1")],
        {"read"},
    ),
    "an outcome that the consumer got again": (adding(read(1)), {"read"}),
    "an outcome that the consumer got as two": (adding(read(1, cursor="9-0/1")), {"read twice"}),
    "a counter off by one": (with_final(final(succeeded=JOBS - 1)), {"counters"}),
    "a lease never given back": (with_final(final(leased=1)), {"counters"}),
    "a bitmap that disagrees": (adding(Snapshot("b", 1.1, 2, JOBS, {0: (JOBS, 2, 1)})), {"bitmap"}),
    "a counter that disagrees with the chunks": (adding(Snapshot("b", 1.1, 3, JOBS, {0: (JOBS, 2, 2)})), {"counters"}),
    "progress running backwards": (adding(Progress("b", 1.3, JOBS - 1, JOBS, sealed=True, ended=False)), {"backwards"}),
    "a total running backwards": (adding(Progress("b", 1.3, JOBS, JOBS - 1, sealed=True, ended=True)), {"backwards"}),
    "a half-submitted batch that counts as complete": (
        adding(Progress("b", 1.3, JOBS, JOBS, sealed=False, ended=True)),
        {"ended unsealed"},
    ),
    "a call after its lease": (adding(replace(call(8, number=9, at_s=4.0), status=500)), {"outside its lease"}),
    "a call without a lease": (adding(replace(call(8, number=9, fence=2), status=500)), {"outside its lease"}),
    "a call long on its way": (adding(replace(call(8, number=9), status=500, began_s=5.0)), {"outside its lease"}),
    "a broken limit": (adding(replace(call(8, number=9), status=429, broken=True)), {"limit"}),
    "a call repeated by a healthy worker": (adding(call(0, number=9, at_s=1.5)), {"repeated"}),
    "a call repeated that a killed worker had recorded": (
        adding(
            Fault("kill", "workers", 1.5, 1.5, WORKER),
            Lease(OTHER, CHUNK, 2, 3.0),
            call(0, number=9, worker=OTHER, fence=2, at_s=3.0),
        ),
        {"repeated"},
    ),
    "a call repeated because a worker was asked to stop": (
        adding(
            Fault("term", "workers", 1.05, 1.4, WORKER, None, "exit code 0"),
            Lease(OTHER, CHUNK, 2, 1.4),
            call(0, number=9, worker=OTHER, fence=2, at_s=1.5),
        ),
        {"repeated"},
    ),
    "a key left over": (with_final(replace(final(), left_over=["callmill:b:b:meta"])), {"left over"}),
    "a worker that ended by itself": (adding(Exit(WORKER, 2.0, 70, meant=False)), {"worker ended by itself"}),
    "a stop that failed": (adding(Fault("term", "workers", 1.0, 2.0, WORKER, None, "exit code 1")), {"stopped badly"}),
}


def test_a_right_history_is_right():
    """Nothing is found where nothing is wrong."""
    assert rules(right()) == set()


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_is_found(planted):
    """Each planted violation is found, and nothing else beside what follows from it."""
    change, found = PLANTED[planted]
    assert rules(change(right())) == found


def test_a_kill_explains_what_was_in_hand():
    """A call that a killed worker made and had not recorded may be made again by another worker."""
    events = [
        *without(Commit, right()),
        Commit(WORKER, CHUNK, 1, ["b-0", "b-1", "b-2"], 1.15, 1.2, "recorded"),
        Fault("kill", "workers", 1.21, 1.21, WORKER),
        Lease(OTHER, CHUNK, 2, 3.3),
        call(3, number=9, worker=OTHER, fence=2, at_s=3.4),
        Commit(OTHER, CHUNK, 2, ["b-3"], 3.6, 3.7, "recorded"),
    ]
    assert rules(events) == set()


def test_a_lost_second_excuses_what_was_in_it_once():
    """Progress may run back once by what was recorded in the second that Redis lost, and its outcomes come again."""
    lost = Fault("redis-lost-second", "redis", 1.3, 1.6, 0, 1.0)
    back = Progress("b", 1.7, 0, JOBS, sealed=True, ended=False)
    kept = [read(index, number=index + 11, cursor=f"9-0/{index + 1}", at_s=4.5) for index in range(JOBS)]
    events = [
        *without(Final, right()),
        lost,
        back,
        Lease(OTHER, CHUNK, 1, 3.0),
        *(call(index, number=index + 11, worker=OTHER, at_s=4.0) for index in range(JOBS)),
        Commit(OTHER, CHUNK, 1, [f"b-{index}" for index in range(JOBS)], 4.2, 4.3, "recorded"),
        Progress("b", 4.4, JOBS, JOBS, sealed=True, ended=True),
        *kept,
        final(kept),
    ]
    assert rules(events) == set()
    assert rules([*events, replace(back, at_s=4.6)]) == {"backwards"}


def test_a_call_on_its_way_when_its_worker_was_stopped_is_excused():
    """What had left the engine when its process was stopped arrives when it goes on; what starts then does not."""
    stop = Fault("stop", "workers", 1.4, 6.0, WORKER)
    on_its_way = replace(call(0, number=9, at_s=1.4), status=None, began_s=6.1, ended_s=6.2)
    assert rules([*right(), stop, on_its_way]) == set()
    assert rules([*right(), stop, replace(on_its_way, built_s=6.05)]) == {"outside its lease"}


def test_a_slow_redis_excuses_a_limit():
    """A limit broken while the way to Redis changed by more than the guard covers is no violation; later it is."""
    slow = Fault("redis-slow", "redis", 0.5, 1.0)
    broken = replace(call(8, number=9), status=429, broken=True)
    assert rules([*right(), slow, broken]) == set()
    assert rules([*right(), replace(slow, began_s=-5.0, ended_s=-4.0), broken]) == {"limit"}


def test_a_call_that_arrived_late_breaks_no_limit():
    """What the API refuses because an earlier call came late to it was started in time; what was not, was not."""
    first = replace(call(0, at_s=0.5), began_s=0.9)
    rest = [*without(Call, right()), Lease(WORKER, CHUNK, 1, 0.4), first, *map(call, range(1, JOBS))]
    broken = replace(call(8, number=9, at_s=1.55), status=429, broken=True)
    assert rules([*rest, broken]) == set()
    assert rules([*rest, replace(broken, built_s=1.45)]) == {"limit"}


def test_a_line_that_a_kill_cut_is_passed_over(tmp_path):
    """A history is read although a participant died while it wrote."""
    (tmp_path / "one.jsonl").write_bytes(b'{"k":"lease","worker":1,"chunk":"c","fence":1,"asked_s":2.0}\n{"k":"lea')
    assert list(read_events(tmp_path)) == [Lease(1, "c", 1, 2.0)]
