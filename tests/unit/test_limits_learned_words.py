"""What was learned of limits, in words for people, and what it is learned from."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from callmill.config.limit_spec import parse_limit
from callmill.limits.learned import learned
from callmill.limits.taken_lately import TakenLately, Untold

SINCE_US = 1_700_000_000_000_000
WRITTEN = (parse_limit("20/second"),)


@pytest.mark.parametrize(
    ("field", "value", "before", "after"),
    [
        ("pace:learned:0", "9.8 {} 10.4", "learned: 9.8/s", ""),
        ("pace:learned:0", "12 {} 0", "learned: 12/s", ", still searching"),
        ("pace:key:main:learned:0", "9.8 {} 10.4", "learned: 9.8/s with key main", ""),
        ("pace:requests:1", "8.2 {} 20", "openai answers 429 at 8.2/s", " though 20/second is configured"),
        ("pace:requests:60", "8.2 {} 20", "learned: 8.2/s", ""),
        ("in_flight", "4 {} refused", "learned: 4 calls at once", ", it refuses more"),
        ("in_flight:key:main", "16 {} slow", "learned: 16 calls at once with key main", ", it becomes slow beyond"),
    ],
)
def test_what_was_learned_is_a_sentence_with_the_time_in_it(field, value, before, after):
    """Words stand before and after the time since when it is known; a limit that is gone is not named."""
    (found,) = learned({field: value.format(SINCE_US), "boot": "1/w1"})
    assert found.in_words("openai", WRITTEN) == (before, after)
    assert found.since == datetime.fromtimestamp(SINCE_US / 1e6, UTC)


@pytest.mark.parametrize("value", ["9.8", "1 2 3 4", ""])
def test_what_a_newer_callmill_wrote_otherwise_is_left_out(value):
    """Fields of another shape are no reason to show nothing else."""
    assert learned({"pace:learned:0": value, "in_flight": value}) == []


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("pace:learned:0", "12 {} 0", "openai has a limit that nobody wrote down; learned: 12/s, still searching"),
        ("pace:requests:1", "8.2 {} 20", "openai answers 429 at 8.2/s though 20/second is configured"),
    ],
)
def test_one_line_of_the_log_names_the_api(field, value, line):
    """The line says which API it is about, once."""
    (found,) = learned({field: value.format(SINCE_US)})
    assert found.in_one_line("openai", WRITTEN) == line


def test_calls_that_were_taken_are_forgotten_after_a_second():
    """Twenty calls within 0.2 s count as half a second's, forty a second; a second later they count no more."""
    taken = TakenLately()
    for number in range(20):
        taken.add(100 + number / 100)
    assert taken.per_s(100.2, under_way=0) == pytest.approx(40)
    assert taken.per_s(100.2, under_way=4) == pytest.approx(48)
    assert taken.per_s(101.5, under_way=0) == 0


def test_each_call_is_told_once():
    """What was told of one credential or of all is not told again."""
    untold = Untold(2)
    for key in (0, 1, 1):
        untold.add(key)
    assert untold.pop(1) == 2
    assert untold.pop_all() == [1, 0]
    assert untold.pop_all() == [0, 0]
