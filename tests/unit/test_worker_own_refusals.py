"""Refusals that are one kind of calls' own matter: told from those of a limit that all calls meet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from callmill.jobs.traffic import NORMAL, TrafficClass
from callmill.jobs.wire import WireJob
from callmill.workers.call import Call
from callmill.workers.own_refusals import OwnRefusals, described, wait_s

OTHER = TrafficClass(tenant="other")


class Api:
    """Refuses and takes calls, one a second."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.refusals = OwnRefusals(lambda: self.now_s)

    def refuses(self, call: Call) -> float | str | None:
        """Refuse a call a second after the last one; return since when that is its own matter, or ``"not"``."""
        self.now_s += 1.0
        own = self.refusals.refused(call, self.now_s - 0.1)
        return "not" if own is None else own.since_s

    def takes(self, call: Call) -> None:
        """Take a call."""
        self.now_s += 1.0
        self.refusals.taken(call, self.now_s - 0.1)


def call(url: str, traffic: TrafficClass = NORMAL) -> Call:
    """Return a call of a class."""
    return Call(WireJob("GET", url), cast("Any", SimpleNamespace(traffic=traffic)), 0, 0, "b-0")


def test_a_path_that_is_refused_while_others_are_taken_waits_alone():
    """From the third refusal of a path on, if others were taken meanwhile, it is its own matter; that is news once."""
    api = Api()
    assert [api.refuses(call("/a/1")), api.refuses(call("/a/2"))] == ["not"] * 2
    api.takes(call("/b"))
    assert api.refuses(call("/a/3")) == 3.0
    assert api.refuses(call("/a/4")) is None


def test_a_class_whose_paths_are_all_refused_waits_alone():
    """Whatever its paths are, a class of which no call is taken while those of another are is at fault itself."""
    api = Api()
    refused = [api.refuses(call(f"/{path}")) for path in "abc"]
    api.takes(call("/a", OTHER))
    assert refused == ["not"] * 3
    assert api.refuses(call("/d")) == 4.0


def test_a_limit_that_all_meet_is_the_matter_of_all():
    """While nothing else is taken, or calls of the same kind are taken in between, refusals concern the API."""
    api = Api()
    assert {api.refuses(call("/a")) for _ in range(50)} == {"not"}
    api.takes(call("/a"))
    for _ in range(20):
        assert api.refuses(call("/a")) == "not"
        assert api.refuses(call("/b")) == "not"
        api.takes(call("/b"))
        api.takes(call("/a"))


def test_refusals_of_one_moment_count_once():
    """Fifty calls that start together and are refused are one refusal."""
    api = Api()
    api.refuses(call("/a"))
    api.takes(call("/b"))
    api.now_s += 1.0
    assert [api.refusals.refused(call("/a"), api.now_s - 0.9) for _ in range(50)] == [None] * 50


def test_quick_refusals_of_one_moment_count_once():
    """Calls that were under way when another of them was refused are no further evidence, however fast the API is."""
    api = Api()
    api.refuses(call("/a"))
    api.takes(call("/b"))
    began_s = [api.now_s + 1.0 + n / 1000 for n in range(5)]
    for start_s in began_s:
        api.now_s = start_s + 0.005
        assert api.refusals.refused(call("/a"), start_s) is None


def test_what_other_processes_tell_counts():
    """A call that another process saw taken contradicts as one of this process does; nonsense does not."""
    api = Api()
    api.refuses(call("/a"))
    api.refuses(call("/a"))
    api.refusals.heard_taken("{nonsense")
    assert api.refuses(call("/a")) == "not"
    api.now_s += 1.0
    api.refusals.heard_taken(described(call("/b")))
    assert api.refuses(call("/a")) == 4.0
    api.refusals.heard_taken(described(call("/a")))
    assert api.refuses(call("/a")) == "not"


def test_what_is_remembered_is_bounded():
    """However many paths and tenants are refused, few are remembered."""
    api = Api()
    for n in range(2000):
        api.refuses(call(f"/{'x' * (n % 50)}", TrafficClass(tenant=str(n))))
    assert len(api.refusals.rows) <= 256


def test_it_waits_longer_each_time_and_as_long_as_it_is_asked_to():
    """The wait of a call grows with its refusals, up to a minute; what the API asks for is kept, up to an hour."""
    refused = call("/a")
    refused.throttles = 500
    assert 0 <= wait_s(refused, None) <= 60
    assert wait_s(refused, 300.0) == 300.0
    assert wait_s(refused, 604_800.0) == 3600.0


def test_processes_count_together():
    """Refusals that other processes tell count as well, one for each wave, also what comes back to its teller."""
    api, elsewhere = Api(), Api()
    for second in (1.0, 2.0):
        elsewhere.now_s = second
        assert elsewhere.refusals.refused(call("/a/1"), second - 0.1) is None
        assert elsewhere.refusals.is_news
        for process in (api, elsewhere):
            process.now_s = second + 0.01
            process.refusals.heard_refused(described(call("/a/1")))
        assert elsewhere.refusals.refused(call("/a/2"), second - 0.1) is None
        assert not elsewhere.refusals.is_news
    api.takes(call("/b"))
    assert api.refuses(call("/a/3")) != "not"


def test_of_a_thousand_calls_that_are_refused_at_once_few_are_told():
    """However many calls a moment refuses, other processes are told of it once for each of its kinds at most."""
    api = Api()
    told = 0
    for number in range(1000):
        api.now_s = 1.0 + number / 100_000
        api.refusals.refused(call("/a"), api.now_s - 0.005)
        told += api.refusals.is_news
    assert told == 1
