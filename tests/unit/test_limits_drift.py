"""What headers tell that our own count does not: others' use, and nothing where a server merely counts otherwise."""

from __future__ import annotations

import pytest

from callmill.config.limit_spec import Enforcer, Unit, parse_limit
from callmill.jobs.traffic import NORMAL
from callmill.limits.drift import facts
from callmill.limits.feedback import Observation
from callmill.limits.keys import Keys
from callmill.limits.layout import layout
from callmill.limits.rules import LimitRules


def told(limit, enforcer, *, remaining, reset_s, in_flight=0):
    """Return the facts, by kind, that one answer's headers tell."""
    spec = parse_limit(limit)
    held = layout(LimitRules((spec,), enforcer), Keys("test"), "", NORMAL)
    seen = Observation("requests", Unit.REQUESTS, spec.amount, remaining, reset_s, 0.001)
    found = facts(held, 1, [seen], enforcer=enforcer, took_s=0.01, in_flight=in_flight)
    return {fact.kind: fact for fact in found}


@pytest.mark.parametrize("enforcer", [Enforcer.SLIDING, Enforcer.UNKNOWN])
def test_log_that_we_fill_ourselves_is_no_sign_of_others(enforcer):
    """A log of the latest window that our own pace fills does not slow down, be anything left of it or not."""
    assert told("100/second", enforcer, remaining=3, reset_s=0.97) == {}
    assert told("100/second", enforcer, remaining=0, reset_s=1.0) == {}


def test_window_that_ends_early_is_no_sign_of_others():
    """Where windows are known, being ahead of the even pace by the guard does not slow down."""
    assert set(told("20/second", Enforcer.FIXED, remaining=0, reset_s=0.15)) == {"aligned"}
    assert "slow" in told("20/second", Enforcer.FIXED, remaining=5, reset_s=0.8)


def test_last_of_a_window_is_not_left_to_others():
    """With little left and long to go the pace becomes what is left by the time, however large the limit is."""
    slow = told("1200/minute", Enforcer.UNKNOWN, remaining=10, reset_s=3.5)["slow"]
    assert (slow.first, slow.second) == (350_000, 3_500_000)
    assert told("1200/minute", Enforcer.UNKNOWN, remaining=1100, reset_s=57) == {}


def test_bucket_that_empties_while_calls_are_paced():
    """A bucket that is nearly empty though calls are paced slows down."""
    assert "slow" in told("100/second", Enforcer.BUCKET, remaining=5, reset_s=0.95)
    assert told("100/second", Enforcer.BUCKET, remaining=60, reset_s=0.4) == {}
