"""The enforcers, against brute-force models over any schedule of calls."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.config.limit_spec import LimitSpec, Unit, parse_limit
from callmill.simulator.enforcers import (
    Enforcer,
    FixedWindow,
    InFlight,
    NginxLimitReq,
    SlidingLog,
    TokenBucket,
    make_enforcer,
)
from callmill.simulator.options import EnforcerKind

MS = 1_000_000
SECOND = 1000 * MS
START = 1_700_000_000 * SECOND

gaps_ns = st.one_of(st.just(0), st.integers(1, 30 * MS), st.integers(1, 2 * SECOND), st.sampled_from([MS, SECOND]))
requests = st.lists(gaps_ns, max_size=80)
token_calls = st.lists(st.tuples(gaps_ns, st.integers(0, 12)), max_size=80)
amounts = st.integers(1, 20)


def accepted(enforcer: Enforcer, calls: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the (time, cost) pairs that the enforcer takes of (gap, cost) pairs."""
    now_ns, taken = START, []
    for gap_ns, cost in calls:
        now_ns += gap_ns
        if not enforcer.wait_ns(now_ns, cost):
            enforcer.charge(now_ns, cost)
            taken.append((now_ns, cost))
    return taken


@given(amounts, token_calls)
def test_sliding_log_takes_a_call_exactly_when_its_window_has_room(amount, calls):
    """A sliding log accepts a call if and only if the accepted costs of (t - W, t] leave room for it."""
    taken = accepted(SlidingLog(LimitSpec(amount, Unit.TOKENS, 1)), calls)
    now_ns, model = START, []
    for gap_ns, cost in calls:
        now_ns += gap_ns
        if sum(c for at, c in model if at > now_ns - SECOND) + cost <= amount:
            model.append((now_ns, cost))
    assert taken == model


@given(amounts, token_calls)
def test_fixed_window_takes_a_call_exactly_when_its_window_has_room(amount, calls):
    """A fixed window accepts a call if and only if the accepted costs of the same floor(t / W) leave room for it."""
    taken = accepted(FixedWindow(LimitSpec(amount, Unit.TOKENS, 1)), calls)
    now_ns, model = START, []
    for gap_ns, cost in calls:
        now_ns += gap_ns
        if sum(c for at, c in model if at // SECOND == now_ns // SECOND) + cost <= amount:
            model.append((now_ns, cost))
    assert taken == model


@given(amounts, st.integers(1, 30), token_calls)
def test_token_bucket_equals_the_bucket_in_exact_fractions(amount, capacity, calls):
    """A token bucket accepts exactly what a bucket computed with unlimited precision accepts."""
    taken = accepted(TokenBucket(LimitSpec(amount, Unit.TOKENS, 1), capacity), calls)
    now_ns, level, model = START, Fraction(capacity), []
    for gap_ns, cost in calls:
        now_ns += gap_ns
        level = min(Fraction(capacity), level + Fraction(gap_ns * amount, SECOND))
        if cost <= level:
            level -= cost
            model.append((now_ns, cost))
    assert taken == model


@given(amounts, st.integers(1, 10), requests)
def test_token_bucket_never_gives_more_than_its_burst_and_its_rate(amount, capacity, gaps):
    """Between any two accepted calls, both counted, lie at most burst + rate * distance accepted calls."""
    times = [at for at, _cost in accepted(TokenBucket(LimitSpec(amount, Unit.REQUESTS, 1), capacity), one_each(gaps))]
    for first in range(len(times)):
        for last in range(first, len(times)):
            most = capacity + Fraction((times[last] - times[first]) * amount, SECOND)
            assert last - first + 1 <= most


def one_each(gaps: list[int]) -> list[tuple[int, int]]:
    """Return the gaps as calls of cost 1."""
    return [(gap, 1) for gap in gaps]


class NginxModel:
    """ngx_http_limit_req_lookup, statement by statement, for one key with nodelay."""

    def __init__(self, rate: int, scale: int, burst: int) -> None:
        self.rate = rate * 1000 // scale
        self.burst = burst * 1000
        self.node: dict[str, int] | None = None

    def busy(self, now_ms: int) -> bool:
        """Return whether nginx would refuse the call."""
        if self.node is None:
            self.node = {"last": now_ms, "excess": 0}
            return False
        ms = now_ms - self.node["last"]
        excess = max(0, self.node["excess"] - self.rate * ms // 1000 + 1000)
        if excess > self.burst:
            return True
        self.node["excess"] = excess
        if ms:
            self.node["last"] = now_ms
        return False


@given(st.integers(1, 2000), st.sampled_from([1, 60]), st.integers(0, 5), requests)
def test_nginx_enforcer_equals_limit_req(amount, window_s, burst, gaps):
    """The nginx enforcer takes exactly the calls that ngx_http_limit_req_module takes."""
    taken = accepted(NginxLimitReq(LimitSpec(amount, Unit.REQUESTS, window_s), burst), one_each(gaps))
    model, now_ns, expected = NginxModel(amount, window_s, burst), START, []
    for gap_ns in gaps:
        now_ns += gap_ns
        if not model.busy(now_ns // MS):
            expected.append((now_ns, 1))
    assert taken == expected


@pytest.mark.parametrize(("limit", "least_gap_ms"), [("1/minute", 62_500), ("10/minute", 6_025), ("100/minute", 601)])
def test_nginx_rates_are_rounded_down(limit, least_gap_ms):
    """A rate per minute is enforced in whole 1/1000 requests per second, so a literally legal gap is refused."""
    enforcer = make_enforcer(parse_limit(limit), EnforcerKind.NGINX, None)
    enforcer.charge(START, 1)
    assert enforcer.wait_ns(START + (least_gap_ms - 1) * MS, 1)
    assert not enforcer.wait_ns(START + least_gap_ms * MS, 1)


enforcers = st.one_of(
    st.builds(lambda n: SlidingLog(LimitSpec(n, Unit.REQUESTS, 1)), amounts),
    st.builds(lambda n: FixedWindow(LimitSpec(n, Unit.REQUESTS, 1)), amounts),
    st.builds(lambda n, b: TokenBucket(LimitSpec(n, Unit.REQUESTS, 1), b), amounts, st.integers(1, 5)),
    st.builds(lambda n, b: NginxLimitReq(LimitSpec(n, Unit.REQUESTS, 60), b), amounts, st.integers(0, 5)),
)


@given(enforcers, requests)
def test_wait_is_the_first_time_at_which_the_call_fits(enforcer, gaps):
    """A refused call fits after exactly the wait that it was told and not a nanosecond earlier."""
    now_ns = START
    for gap_ns in gaps:
        now_ns += gap_ns
        if wait_ns := enforcer.wait_ns(now_ns, 1):
            assert enforcer.wait_ns(now_ns + wait_ns - 1, 1) == 1
            now_ns += wait_ns
        assert enforcer.wait_ns(now_ns, 1) == 0
        enforcer.charge(now_ns, 1)


@given(enforcers, requests)
def test_remaining_is_how_many_calls_fit_at_once(enforcer, gaps):
    """``remaining`` calls fit at the same instant, and one more does not."""
    accepted(enforcer, one_each(gaps))
    now_ns = START + sum(gaps)
    for _ in range(enforcer.remaining(now_ns)):
        assert enforcer.wait_ns(now_ns, 1) == 0
        enforcer.charge(now_ns, 1)
    assert enforcer.remaining(now_ns) == 0
    assert enforcer.wait_ns(now_ns, 1) > 0


@given(enforcers, requests)
def test_after_the_reset_time_the_whole_limit_is_free(enforcer, gaps):
    """When nothing comes until ``reset_ns`` is over, as much fits as at first, and time alone never takes room."""
    accepted(enforcer, one_each(gaps))
    now_ns = START + sum(gaps)
    reset_at_ns = now_ns + enforcer.reset_ns(now_ns)
    later = [enforcer.remaining(now_ns + step) for step in (0, MS, SECOND, 10 * SECOND)]
    assert all(before <= after for before, after in pairwise(later))
    assert enforcer.remaining(reset_at_ns) == enforcer.remaining(reset_at_ns + 1000 * SECOND)


def test_calls_in_flight_are_freed_by_their_end_alone():
    """A concurrent limit is full until a call ends, however much time passes."""
    enforcer = InFlight(parse_limit("2 concurrent"))
    for _ in range(2):
        assert enforcer.wait_ns(START, 1) == 0
        enforcer.charge(START, 1)
    assert enforcer.wait_ns(START + 3600 * SECOND, 1) > 0
    enforcer.release()
    assert enforcer.wait_ns(START, 1) == 0


@pytest.mark.parametrize(
    ("limit", "kind", "burst", "at_once"),
    [
        ("5/second", EnforcerKind.SLIDING, None, 5),
        ("5/second", EnforcerKind.FIXED, None, 5),
        ("5/second", EnforcerKind.BUCKET, None, 1),
        ("5/second", EnforcerKind.BUCKET, 3, 3),
        ("5 tokens/second", EnforcerKind.BUCKET, 3, 5),
        ("5/second", EnforcerKind.NGINX, None, 1),
        ("5/second", EnforcerKind.NGINX, 2, 3),
        ("5 concurrent", EnforcerKind.NGINX, 2, 5),
    ],
)
def test_each_kind_takes_its_burst_at_once(limit, kind, burst, at_once):
    """The enforcer made for a kind and a burst takes as many calls at once as the documentation says."""
    assert make_enforcer(parse_limit(limit), kind, burst).remaining(START) == at_once
