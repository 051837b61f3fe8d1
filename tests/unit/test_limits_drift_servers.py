"""Headers of model servers that our own pace meets, in every notation, and policies that end a search."""

from __future__ import annotations

import pytest

from callmill.config.limit_spec import AUTO, Enforcer, Unit, parse_limit
from callmill.jobs.traffic import NORMAL
from callmill.limits.drift import facts
from callmill.limits.feedback import Observation
from callmill.limits.headers import read_feedback
from callmill.limits.keys import Keys
from callmill.limits.layout import layout
from callmill.limits.rules import FIRST_GUESS_PER_S, LimitRules
from callmill.simulator.enforcers import make_enforcer
from callmill.simulator.gate import Standing
from callmill.simulator.options import EnforcerKind, HeaderStyle
from callmill.simulator.rate_headers import rate_headers

MS, SECOND = 1_000_000, 1_000_000_000
GUARD_S = 0.008


def learn(
    limit: str, *seen: Observation, enforcer: Enforcer = Enforcer.UNKNOWN, took_s: float = 0.0, in_flight: int = 0
):
    """Return the facts about the one limit, as (kind, first, second)."""
    limits = layout(LimitRules((parse_limit(limit),), enforcer), Keys("test"), "", NORMAL)
    found = facts(limits, 1, seen, enforcer=enforcer, took_s=took_s, in_flight=in_flight)
    return [(fact.kind, fact.first, fact.second) for fact in found]


def requests(limit=None, remaining=None, reset_s=None, *, step_s=0.0, window_s=None) -> Observation:
    """Return what is said of a limit of requests."""
    return Observation("requests", Unit.REQUESTS, limit, remaining, reset_s, step_s, window_s)


def test_an_unknown_limit_is_told_by_the_slowest_policy():
    """Policies in headers end the search at the slowest of them; quotas and limits without a window do not."""
    burst, minute, day = requests(50, window_s=1.0), requests(1200, window_s=60.0), requests(9000, window_s=86_400.0)
    assert learn("auto", burst, minute, day) == [("most", 20 / FIRST_GUESS_PER_S, 0)]
    assert learn("auto", day) == []
    assert learn("auto", requests(100, 0, 5.0)) == []
    assert learn("auto", Observation("tokens", Unit.TOKENS, 1000, window_s=60.0)) == []


def test_what_cannot_be_assigned_teaches_nothing():
    """With two limits of a unit, only one that matches in amount is meant; with none, no fact follows."""
    both = LimitRules((parse_limit("10/second"), parse_limit("100/minute"), AUTO))
    limits = layout(both, Keys("test"), "", NORMAL)
    for seen, kinds in ((requests(100, 2, 50.0), ["slow"]), (requests(70, 2, 50.0), []), (requests(None, 2, 50.0), [])):
        found = facts(limits, 1, [seen], enforcer=Enforcer.UNKNOWN, took_s=0.0, in_flight=0)
        assert [fact.kind for fact in found] == kinds


@pytest.mark.parametrize("style", [HeaderStyle.OPENAI, HeaderStyle.GITHUB, HeaderStyle.IETF])
@pytest.mark.parametrize(
    ("kind", "enforcer"),
    [
        (EnforcerKind.FIXED, Enforcer.FIXED),
        (EnforcerKind.FIXED, Enforcer.UNKNOWN),
        (EnforcerKind.SLIDING, Enforcer.SLIDING),
        (EnforcerKind.SLIDING, Enforcer.UNKNOWN),
        (EnforcerKind.BUCKET, Enforcer.BUCKET),
    ],
)
@pytest.mark.parametrize("limit", ["10/second", "1000/second", "600/minute", "6000/minute", "60/minute"])
def test_our_own_pace_teaches_nothing(limit, kind, enforcer, style):
    """While only we use a limit, at its full pace, no header of any server in any notation slows us down."""
    spec = parse_limit(limit)
    burst = 20 if kind is EnforcerKind.BUCKET else None
    server = make_enforcer(spec, kind, burst)
    paced = layout(LimitRules((spec,), enforcer, burst or 1), Keys("test"), "", NORMAL)
    guard_s = 0.0 if kind is EnforcerKind.BUCKET else GUARD_S
    emission = round((spec.window_s + guard_s) / spec.amount * SECOND)
    now, step = 1_700_000_000 * SECOND + 370 * MS, max(1, spec.amount // 50)
    for call in range(2 * spec.amount + 5):
        assert server.wait_ns(now, 1) == 0, "our own pace breaks the limit"
        server.charge(now, 1)
        if call % step == 0:
            standing = Standing(spec, server.remaining(now), server.reset_ns(now))
            headers = dict(rate_headers(style, [standing], now_ns=now, retry_after_ns=None))
            seen = read_feedback(headers)
            observations = seen.observations if seen else ()
            found = facts(paced, 1, observations, enforcer=enforcer, took_s=0.05, in_flight=3)
            assert not [fact for fact in found if fact.kind in {"slow", "block"}], headers
        now += emission
