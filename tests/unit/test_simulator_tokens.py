"""Costs that the simulator draws: their distribution, their seed, and when they are charged."""

from __future__ import annotations

import statistics
from random import Random

import pytest
from test_simulator_simulation import SECOND, Api

from callmill.simulator.tokens import Charging, TokenDraw, parse_token_draw


@pytest.mark.parametrize(
    ("text", "draw"), [("1000:1", TokenDraw(1000, 1.0)), ("7", TokenDraw(7)), (" 5:0.5 ", TokenDraw(5, 0.5))]
)
def test_reading(text, draw):
    """A mean alone is a constant cost; what is written is what is shown."""
    assert parse_token_draw(text) == draw
    assert parse_token_draw(str(draw)) == draw


@pytest.mark.parametrize("text", ["", "0:1", "many", "10:", "10:-1", "1.5:1"])
def test_what_is_no_cost(text):
    """Nonsense is refused with the form that is right."""
    with pytest.raises(ValueError, match="1000:1"):
        parse_token_draw(text)


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0])
def test_distribution(cv):
    """Costs have the mean and the variation asked for, and each part of a cost is a good part of it."""
    random = Random(1)
    drawn = [TokenDraw(1000, cv).draw(random) for _ in range(20_000)]
    totals = [tokens.total for tokens in drawn]
    assert statistics.mean(totals) == pytest.approx(1000, rel=0.03)
    assert statistics.pstdev(totals) == pytest.approx(1000 * cv, rel=0.06, abs=1)
    assert min(totals) >= 1
    assert all(0.19 <= tokens.prompt / tokens.total <= 0.81 for tokens in drawn if tokens.total >= 100)


def test_answers_tell_what_was_charged():
    """The usage of every answer is what the limit was charged, the same again with the same seed, other for another."""
    runs = []
    for seed in (1, 1, 2):
        api = Api(limits=["1000000 tokens/minute"], tokens=TokenDraw(1000, 1.0), seed=seed)
        api.simulation = type(api.simulation)(api.simulation._options, seed, lambda api=api: api.now_ns, api.log)
        totals = []
        for path in ("/x", "/v1/chat/completions"):
            _, headers, body = api.call("POST", path, b'{"messages": [{"content": "hi"}]}')
            totals.append(body["usage"]["total_tokens"])
            assert headers["x-ratelimit-remaining-tokens"] == str(1_000_000 - sum(totals))
        assert api.stats()["tokens"] == sum(totals)
        runs.append(totals)
    assert runs[0] == runs[1] != runs[2]


def test_a_refused_call_leaves_its_cost_to_the_next():
    """The n-th accepted call costs the same however many are refused before it."""
    free, tight = (Api(limits=[limit], tokens=TokenDraw(100, 1.0)) for limit in ("100/second", "1/second"))
    costs = []
    for api in (free, tight):
        answers = []
        while len(answers) < 3:
            status, _, body = api.call()
            if status == 200:
                answers.append(body["usage"]["total_tokens"])
            api.now_ns += SECOND // 4
        costs.append(answers)
    assert costs[0] == costs[1]
    assert tight.stats()["rejected"] > 0


def test_charged_at_the_answer():
    """Tokens count from the answer on: before it nothing is used, after it what the call cost, in the peaks too."""
    api = Api(limits=["100 tokens/minute"], tokens=TokenDraw(80), charge=Charging.ANSWER)
    first, second = api.arrive(), api.arrive()
    assert api.stats()["tokens"] == 0
    for answer in (first, second):
        assert answer.ended is not None
        answer.ended(True)
    assert api.call()[0] == 429
    stats = api.stats()
    assert (stats["tokens"], stats["limits"][0]["largest_in_any_window"]) == (160, 160)


def test_an_error_costs_no_tokens_at_the_answer():
    """A call that was answered with an error is not charged where answers are."""
    api = Api(limits=["100 tokens/minute"], tokens=TokenDraw(80), charge=Charging.ANSWER, error_rate=1.0)
    assert api.call()[0] >= 500
    assert api.stats()["tokens"] == 0
