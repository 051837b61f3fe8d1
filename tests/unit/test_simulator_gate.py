"""The gate: several limits, all or nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from callmill.config.limit_spec import parse_limit
from callmill.simulator.enforcers import make_enforcer
from callmill.simulator.gate import Gate
from callmill.simulator.options import EnforcerKind
from callmill.simulator.tokens import Charging, Tokens

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
LIMITS = ("3/second", "8/minute", "20 tokens/second", "60 tokens/minute")

kinds = st.sampled_from([EnforcerKind.SLIDING, EnforcerKind.FIXED, EnforcerKind.BUCKET])
calls = st.lists(st.tuples(st.integers(0, 2 * SECOND), st.integers(0, 25)), max_size=60)


def gate(kind: EnforcerKind) -> Gate:
    """Return a gate with all of LIMITS."""
    return Gate([make_enforcer(parse_limit(limit), kind, None) for limit in LIMITS])


@given(kinds, calls)
def test_a_refused_call_is_charged_to_no_limit(kind, schedule):
    """A gate that saw refused calls stands, at every instant, exactly as one that never saw them."""
    tried, spared, now_ns = gate(kind), gate(kind), START
    for gap_ns, tokens in schedule:
        now_ns += gap_ns
        if tried.admit(now_ns, Tokens(tokens)) is None:
            assert spared.admit(now_ns, Tokens(tokens)) is None
        assert tried.standings(now_ns) == spared.standings(now_ns)


@given(kinds, calls)
def test_an_admitted_call_fits_every_limit_on_its_own(kind, schedule):
    """A call is admitted if and only if each limit alone has room for it."""
    together, now_ns = gate(kind), START
    for gap_ns, tokens in schedule:
        now_ns += gap_ns
        room = [standing.remaining for standing in together.standings(now_ns)]
        costs = [1, 1, tokens, tokens]
        full = tuple(n for n, (left, cost) in enumerate(zip(room, costs, strict=True)) if cost > left)
        refusal = together.admit(now_ns, Tokens(tokens))
        assert (refusal.broken if refusal else ()) == full


def test_a_refusal_waits_for_the_slowest_limit():
    """The time to wait is that of the limit that has room last."""
    both = gate(EnforcerKind.SLIDING)
    for _ in range(3):
        assert both.admit(START, Tokens(20 // 3)) is None
    refusal = both.admit(START, Tokens(60))
    assert refusal is not None
    assert refusal.broken == (0, 2, 3)
    assert refusal.wait_ns == 60 * SECOND


def test_input_and_output_tokens_are_counted_apart():
    """A limit in tokens of the request or of the answer counts these, a limit in tokens both."""
    limits = ("100 tokens/second", "100 input tokens/second", "100 output tokens/second", "100/second")
    several = Gate([make_enforcer(parse_limit(limit), EnforcerKind.SLIDING, None) for limit in limits])
    assert several.admit(START, Tokens(30, 20)) is None
    assert [standing.remaining for standing in several.standings(START)] == [50, 70, 80, 99]


def test_charged_at_the_answer():
    """A call is let in while a token is left; its answer may leave a debt, which the calls after it wait for."""
    late = Gate([make_enforcer(parse_limit("60 tokens/minute"), EnforcerKind.BUCKET, None)], Charging.ANSWER)
    assert late.admit(START, Tokens(1000)) is None
    assert late.standings(START)[0].remaining == 60
    late.settle(START, Tokens(60, 5))
    assert late.standings(START)[0].remaining == 0
    refusal = late.admit(START, Tokens(1))
    assert refusal is not None
    assert refusal.wait_ns == 6 * SECOND
    assert late.admit(START + 6 * SECOND, Tokens(1000)) is None
