"""Which waiting call becomes the next probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from callmill.jobs.traffic import NORMAL, Priority, TrafficClass
from callmill.jobs.wire import WireJob
from callmill.workers.call import Call
from callmill.workers.fair_queue import PLAIN, FairQueue
from callmill.workers.probe_choice import ProbeChoice

BULK = TrafficClass(priority=Priority.BULK)


LONG = 1_000_000
"""Characters of a path segment, for which the square of its length would take hours."""


@dataclass(eq=False)
class Owner:
    """Owns calls of one class."""

    traffic: TrafficClass


class Play:
    """A queue and what chooses from it."""

    def __init__(self) -> None:
        self.queue = FairQueue(lambda _traffic: 1.0)
        self.choice = ProbeChoice(self.queue)

    def wait(
        self, url: str = "/x", *, batch: str = "b1", traffic: TrafficClass = NORMAL, attempts: int = 0, spared: int = 0
    ) -> Call:
        """Let a call wait."""
        owner = cast("Any", Owner(traffic))
        call = Call(WireJob("GET", url), owner, 0, 0, f"{batch}-0")
        call.attempts, call.spared = attempts, spared
        self.queue.of_kind(traffic, PLAIN).add(owner, [call])
        return call

    def take(self) -> Call | None:
        """Take the next probe, from whichever queue it is to come."""
        queue = self.choice.queue()
        return None if queue is None else self.choice.take(queue)

    def fail(self) -> Call:
        """Let the next probe fail, and wait again at the head of its line."""
        call = self.take()
        assert call is not None
        self.choice.failed(call)
        call.attempts += 1
        self.queue.of_kind(call.owner.traffic, PLAIN).add(call.owner, [call], first=True)
        return call


def test_every_job_has_its_turn():
    """However a failed probe comes back, the next ones are others, until all have been tried."""
    play = Play()
    calls = {play.wait() for _ in range(20)}
    for _ in range(3):
        assert {play.fail() for _ in range(20)} == calls


def test_a_failed_probe_sends_the_next_one_elsewhere():
    """The next probe is of another class, then of another batch or path, however many wait beside those that failed."""
    play = Play()
    for number in range(50):
        play.wait(f"/bad/{number}")
    play.fail()
    others = {play.wait("/good/1"), play.wait("/bad/51", batch="b2")}
    bulk = play.wait("/bad/0", traffic=BULK)
    assert play.take() is bulk
    assert {play.take(), play.take()} == others


def test_more_is_taken_in_until_something_new_waits():
    """While the API is down, calls that are like those that failed leave room for others, up to a bound."""
    play = Play()
    waiting = play.queue.of_class(NORMAL)
    assert play.choice.has_room(waiting)
    play.wait()
    assert not play.choice.has_room(waiting)
    play.fail()
    assert play.choice.has_room(waiting)
    for _ in range(200):
        play.wait()
    assert not play.choice.has_room(waiting)


def test_what_failed_least_goes_first():
    """Among calls that have all in common, spent and spared attempts count alike."""
    play = Play()
    tried, spared, new = play.wait(attempts=2), play.wait(spared=1), play.wait()
    assert [play.take() for _ in range(3)] == [new, spared, tried]
    assert play.take() is None


def test_calls_are_new_until_one_of_their_class_and_batch_failed():
    """A call is new while none of its class, or of its batch, has failed; and again once the API was up."""
    play = Play()
    assert not play.choice.has_new()
    call = play.wait()
    assert play.choice.has_new()
    play.choice.met(call)
    assert not play.choice.has_new()
    play.wait(batch="b2")
    assert play.choice.is_new(play.queue.of_class(NORMAL))
    play.choice.forget()
    assert play.choice.has_new()


def test_once_the_api_is_up_others_go_before_what_is_like_the_failed():
    """Calls of the batch and path that failed as probes wait behind all others; apart from that the order stays."""
    play = Play()
    bad = [play.wait("/bad") for _ in range(3)]
    failed = play.fail()
    good = [play.wait("/good", batch="b2") for _ in range(3)]
    play.choice.api_is_up()
    bad.remove(failed)
    assert [play.queue.of_kind(NORMAL, PLAIN).take() for _ in range(6)] == [*good, *bad, failed]


def test_a_long_path_costs_no_more_than_its_length():
    """A path segment of any length is looked at once, whether or not a digit is in it."""
    play = Play()
    for segment in ("x" * LONG, "x" * LONG + "1"):
        failed, other = play.wait(f"/{segment}"), play.wait("/y")
        play.choice.met(failed)
        assert play.take() is other
        assert play.take() is failed
        play.choice.forget()
