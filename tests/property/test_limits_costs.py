"""What is learned of costs: right soon, corrected, and bounded whatever answers claim."""

from __future__ import annotations

import statistics
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.limits.costs import MEMORY, CostBook, CostEstimator, Origin, Tally
from callmill.simulator.tokens import TokenDraw

LARGEST = 200_000
MEAN = 1000
COSTS = st.integers(-10, 10**12)
SUMS = st.floats(0, 1e12)
TALLIES = st.builds(Tally, st.floats(0, MEMORY), SUMS, SUMS, SUMS, SUMS, SUMS)


def estimator() -> CostEstimator:
    """Return an estimator that knows nothing."""
    return CostEstimator(CostBook(), largest=LARGEST)


def learned(calls: int, seed: int, cv: float = 1.0) -> float:
    """Return the estimate, without its margin, after so many calls of random cost."""
    made, random = estimator(), Random(seed)
    for _ in range(calls):
        made.learn("m", None, TokenDraw(MEAN, cv).draw(random).total, None)
    return made.of_unknown("m", 4096)[0] / 1.05


def test_learned_after_thirty_calls():
    """After 30 calls with cv 1 estimates have no bias, and are as near as the mean of so many can be (18 %)."""
    estimates = [learned(30, seed) for seed in range(300)]
    assert statistics.mean(estimates) == pytest.approx(MEAN, rel=0.03)
    assert statistics.pstdev(estimates) / MEAN < 0.2


def test_learned_for_good():
    """After 400 calls with cv 1 two estimates of three are within 6 %, and nearly all within 16 %."""
    errors = sorted(abs(learned(400, seed) / MEAN - 1) for seed in range(100))
    assert errors[66] < 0.06
    assert errors[97] < 0.16


def test_steady_costs_are_learned_from_five_calls():
    """Calls that cost the same need no thirty of them."""
    assert learned(4, 1, cv=0.0) * 1.05 == 4096
    assert learned(5, 1, cv=0.0) == MEAN


@pytest.mark.parametrize("ratio", [0.2, 5.0])
def test_a_change_is_followed(ratio):
    """When calls begin to cost a fifth, or five times as much, 300 calls later so does the estimate."""
    made = estimator()
    for _ in range(500):
        made.learn("m", None, MEAN, None)
    for _ in range(300):
        made.learn("m", None, round(ratio * MEAN), None)
    assert made.of_unknown("m", 1)[0] == pytest.approx(1.05 * ratio * MEAN, rel=0.25 if ratio > 1 else 1.0)
    for _ in range(700):
        made.learn("m", None, round(ratio * MEAN), None)
    assert made.of_unknown("m", 1)[0] == pytest.approx(1.05 * ratio * MEAN, rel=0.05)


def test_one_outlier_does_not_rule():
    """One call that claims as much as a window has raises what is learned by no more than a tenth."""
    made = estimator()
    for _ in range(MEMORY):
        made.learn("m", None, MEAN, None)
    made.learn("m", None, LARGEST, None)
    assert made.of_unknown("m", 1)[0] <= 1.1 * 1.05 * MEAN


@given(given_tokens=st.integers(0, LARGEST), costs=st.lists(COSTS, max_size=60), outputs=st.integers(0, 10**12))
def test_estimates_are_bounded(given_tokens, costs, outputs):
    """Whatever answers claim, estimates are between one token and a window's, and the answer's part is a part."""
    made = estimator()
    for cost in costs:
        made.learn("m", (Origin.GIVEN, given_tokens), cost, outputs)
        for tokens, output in (
            made.of_unknown("m", 500),
            made.of_stated("m", Origin.GIVEN, given_tokens, None),
            made.of_stated("m", Origin.GIVEN, given_tokens, given_tokens // 2),
        ):
            assert min(1, given_tokens) <= tokens <= LARGEST
            assert output is None or 0 <= output <= tokens


@given(given_tokens=st.integers(1, 10_000), ratio=st.floats(1.2, 15))
def test_estimates_too_low_are_corrected_from_the_third_on(given_tokens, ratio):
    """Two calls that cost more than was given raise what the third one reserves to what it will cost."""
    made, real = estimator(), round(given_tokens * ratio)
    for _ in range(2):
        assert made.of_stated("m", Origin.GIVEN, given_tokens, None)[0] == given_tokens
        made.learn("m", (Origin.GIVEN, given_tokens), real, None)
    assert made.of_stated("m", Origin.GIVEN, given_tokens, None)[0] == real


@given(tallies=st.lists(TALLIES, max_size=20))
def test_tallies_count_no_more_than_their_memory(tallies):
    """However tallies are added up, no more calls count than the memory holds, and no sum is negative."""
    total = Tally()
    for tally in tallies:
        total = total.plus(tally)
        assert total.count <= MEMORY * (1 + 1e-9)
        assert min(total.tokens, total.squares, total.stated, total.parted, total.output) >= 0


def test_what_could_not_be_told_is_kept():
    """A book whose news did not reach the fleet knows what it knew, and tells it the next time."""
    book = CostBook()
    book.add("all:m", Tally(1, 10, 100))
    before = book["all:m"]
    book.tell()
    book.add("all:m", Tally(1, 20, 400))
    assert book["all:m"].tokens == 30
    book.unheard()
    assert (before.count, book.tell()["all:m"]) == (1, Tally(2, 30, 500))
