"""The retries that a process may make within the budget of the fleet."""

from __future__ import annotations

from typing import Any, cast

import pytest

from callmill.jobs.wire import WireJob
from callmill.workers.call import Call
from callmill.workers.retry_tokens import RetryTokens


def calls(number: int) -> list[Call]:
    """Return so many calls."""
    return [Call(WireJob("GET", "/"), cast("Any", None), offset, offset, "") for offset in range(number)]


def announced(number: int) -> RetryTokens:
    """Return tokens of which so many calls want one."""
    tokens = RetryTokens()
    for call in calls(number):
        tokens.announce(call)
    return tokens


def waits_s(tokens: RetryTokens) -> list[float]:
    """Return many waits, in order."""
    return sorted(tokens.wait_s() for _ in range(400))


def test_a_call_is_announced_once_and_takes_one_token():
    """However often a call says that it wants a token it wants one, and whoever took one wants none any more."""
    tokens, (call, other) = RetryTokens(), calls(2)
    for _ in range(3):
        tokens.announce(call)
        assert not tokens.take(call)
    assert tokens.wanted == 1
    tokens.announce(other)
    tokens.granted(1, 2, 1.0)
    assert tokens.wanted == 1
    assert tokens.take(call)
    assert (tokens.wanted, tokens.take(other), tokens.wanted) == (1, False, 1)


def test_tokens_add_up_and_none_is_kept_for_nobody():
    """Tokens of several grants add up, to no more than there are calls that want one."""
    tokens = announced(5)
    tokens.granted(2, 5, 1.0)
    tokens.granted(1, 3, 1.0)
    assert tokens.wanted == 2
    tokens.granted(100, 2, 1.0)
    late = calls(6)
    assert [tokens.take(call) for call in late] == [True] * 5 + [False]


def test_one_process_does_not_ask_for_the_whole_budget():
    """However many calls wait, one exchange asks for a thousand tokens at most, and never for fewer than none."""
    assert announced(1500).wanted == 1000
    tokens, both = RetryTokens(), calls(2)
    for call in both:
        tokens.announce(call)
    tokens.granted(2, 2, 1.0)
    tokens.withdraw(both[0])
    assert tokens.wanted == 0


def test_a_grant_within_no_time_is_a_grant():
    """Tokens that come within the same reading of the clock count like others."""
    tokens = announced(1)
    tokens.granted(1, 1, 0.0)
    assert (tokens.wanted, tokens.take(calls(1)[0])) == (0, True)


@pytest.mark.parametrize(
    ("asked", "granted", "over_s", "middle_s"),
    [
        (13, 0, 1.0, 5.0),  # at the least that the budget gives: 13 s, cut to the longest wait
        (3, 0, 1.0, 3.0),
        (33, 31, 1.0, 0.2),  # 2 left at 0.7 + 0.3 * 31 = 10 a second
        (62, 31, 0.5, 31 / 19.3),
        (10, 10, 1.0, 0.1),  # all that was asked for came
    ],
)
def test_a_call_without_a_token_comes_again_about_when_its_turn_is(asked, granted, over_s, middle_s):
    """A call waits as long as the budget of late makes expect, give or take half, and neither hardly nor very long."""
    tokens = announced(asked)
    tokens.granted(granted, asked, over_s)
    waits = waits_s(tokens)
    assert 0.5 * middle_s <= waits[0] < 0.6 * middle_s
    assert 1.4 * middle_s < waits[-1] <= 1.5 * middle_s
