"""CallCosts: what calls take from the limits before they are made, and what answers say after."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from callmill.config.api_profile import ApiProfile
from callmill.config.limit_spec import parse_limit
from callmill.errors import ConfigurationError
from callmill.jobs.wire import WireCost, WireJob
from callmill.limits import LimitRules
from callmill.workers.call import Call, CallCost
from callmill.workers.call_cost import MOST_WEIGHTS, REFUNDED, CallCosts
from callmill.workers.cost_hooks import stated
from callmill.workers.transports.port import Response

BASE = "https://api.example.com"
USAGE = {"total": "/usage/total", "input": "/usage/in", "output": "/usage/out"}


def costs(**fields: Any) -> CallCosts:
    """Return the costs of an API; its smallest token limit is 20 000 unless given."""
    profile = ApiProfile(name="api", base_url=BASE, **{"limits": ["20000 tokens/minute"], **fields})
    rules = LimitRules(profile.limit_specs, profile.enforcer, profile.burst, models=profile.model_limit_specs)
    return CallCosts(profile, lambda: rules)


def call(body: Any = None, *, tokens: int | None = None, cost: WireCost | None = None) -> Call:
    """Return a call."""
    encoded = None if body is None else json.dumps(body).encode()
    job = WireJob("POST", "/x", body=encoded, content_type="application/json", tokens=tokens, cost=cost)
    return Call(job, None, 0, 0, "k")  # type: ignore[arg-type] # nobody asks its owner


def answer(body: Any = None, status: int = 200, **headers: str) -> Response:
    """Return an answer."""
    return Response(status, headers, body if isinstance(body, bytes) else json.dumps(body).encode())


def run(api: CallCosts, one: Call, total: int, times: int) -> list[int]:
    """Make calls that all cost the same; return what was estimated for each."""
    estimates = []
    for _ in range(times):
        estimates.append(api.estimate(one).tokens)
        api.used(one, answer({"usage": {"total": total}}))
    return estimates


@pytest.mark.parametrize(
    ("pointer", "body", "used"),
    [
        (None, {"usage": 7}, None),
        ("/usage/total", {"usage": {"total": 7}}, (7, None)),
        (USAGE, {"usage": {"total": 7, "in": 4, "out": 3}}, (7, 3)),
        ({"input": "/i", "output": "/o"}, {"i": 4, "o": 3}, (7, 3)),
        ({"total": "/t", "input": "/i"}, {"t": 9, "i": 3}, (9, 6)),
        ({"total": "/t", "input": "/i"}, {"t": 2, "i": 3}, (2, 0)),
        ({"total": "/t", "output": "/o"}, {"t": 2, "o": 3}, (2, 2)),
        ({"input": "/i", "output": "/o"}, {"i": 4}, None),
        ("/0/n", [{"n": 8}], (8, None)),
        ("/a~1b/c~0d", {"a/b": {"c~d": 9}}, (9, None)),
        ("/usage/total", {"usage": {}}, None),
        ("/usage/total", {"usage": 3}, None),
        ("/usage/total", {"usage": {"total": None}}, None),
        ("/usage/total", {"usage": {"total": True}}, None),
        ("/usage/total", {"usage": {"total": "many"}}, None),
        ("/usage/total", {"usage": {"total": "12"}}, (12, None)),
        ("/usage/total", {"usage": {"total": 1e9}}, None),
        ("/9", [1], None),
        ("/x", [1], None),
        ("/usage", b"no json", None),
        ("/usage", b"", None),
        ("/usage", b"\xff\xfe", None),
        ("/usage", b'{"usage": 1e400}', None),
        ("/usage", b'{"usage": NaN}', None),
        ("/usage", b'{"usage": -5}', None),
        ("/usage", b"[" * 100_000, None),
    ],
)
def test_cost_that_an_answer_states(pointer, body, used):
    """The real cost is read where the profile points to; an answer that does not state a possible one is no trouble."""
    assert costs(usage=pointer).used(call(), answer(body)) == used


@pytest.mark.parametrize(
    ("charge", "status", "used"),
    [
        ("actual", 200, None),
        ("actual", 400, REFUNDED),
        ("actual", 429, REFUNDED),
        ("actual", 500, None),
        ("actual", 503, REFUNDED),
        ("admission", 200, None),
        ("admission", 400, None),
        ("admission", 429, REFUNDED),
    ],
)
def test_refunds(charge, status, used):
    """A call that the API refused is given back, one of which it is not known is not."""
    assert costs(usage="/n", charge=charge).used(call(), answer({}, status)) == used


def test_no_answer_keeps_the_charge():
    """A call without an answer may have been counted: what was reserved stays charged."""
    assert costs(usage="/n").used(call(), None) is None


def test_admission_settles_nothing():
    """Where the server counts what a call asks for, the real cost changes nothing, neither now nor for later calls."""
    api, one = costs(usage="/usage/total", charge="admission"), call(tokens=300)
    assert run(api, one, 1000, 50) == [300] * 50
    assert api.used(one, answer({"usage": {"total": 1000}})) is None


def test_nothing_is_decoded_where_nothing_needs_it():
    """Without limits in tokens or of models a call costs one request, whatever it states, and bodies stay unread."""
    api = costs(limits=["5/second"], usage="/n", model="/model", cost=f"{__name__}:broken_hook")
    assert api.estimate(call({"model": "m"}, tokens=7)) == CallCost()
    assert api.estimate(call(cost=WireCost(weight=3))) == CallCost(weight=3)
    assert api.used(call(), answer({"n": 5})) is None


@pytest.mark.parametrize(
    ("body", "cost", "model"),
    [
        ({"model": "m"}, None, "m"),
        ({"model": "m"}, WireCost(model="own"), "own"),
        ({"model": 7}, None, ""),
        ({"model": "m" * 201}, None, ""),
        ({}, None, ""),
        (None, None, ""),
    ],
)
@pytest.mark.parametrize(
    "fields",
    [{"limits": ["5/second per model"]}, {"limits": [], "models": {"m": ["5/second"], "own": ["5/second"]}}],
)
def test_model(body, cost, model, fields):
    """The model is the job's own word, else what the body has at the profile's pointer, else none."""
    assert costs(model="/model", **fields).estimate(call(body, cost=cost)).model == model


@pytest.mark.parametrize("fields", [{}, {"models": {"other": ["5/second"]}}])
def test_a_model_without_limits_is_not_told(fields):
    """The limiter hears of a model only where that has limits of its own."""
    assert costs(model="/model", **fields).estimate(call({"model": "m"})).model == ""


def test_given_estimate_too_low_is_corrected_from_the_third_call_on():
    """Calls given 300 that really cost 1000 are reserved at 1000 from the third one on."""
    estimates = run(costs(usage="/usage/total"), call(tokens=300), 1000, 10)
    assert estimates == [300, 300, *[1000] * 8]


def test_given_estimate_too_high_is_corrected_when_that_is_sure():
    """Calls given 4000 that really cost 1000 are reserved a little above 1000 after thirty of them."""
    estimates = run(costs(usage="/usage/total"), call(tokens=4000), 1000, 40)
    assert estimates == [4000] * 30 + [1050] * 10


def test_each_call_keeps_its_part_of_a_correction():
    """A correction scales what is given: a call given twice as much is reserved at twice as much."""
    api = costs(usage="/usage/total")
    run(api, call(tokens=300), 600, 5)
    assert api.estimate(call(tokens=50)).tokens == 100
    assert api.estimate(call(tokens=15_000)).tokens == 20_000  # never above what a window has


def test_models_are_learned_apart():
    """What one model's calls cost says nothing about another's."""
    api = costs(usage="/usage/total", model="/model")
    run(api, call({"model": "large"}), 5000, 30)
    run(api, call({"model": "small"}), 100, 30)
    assert api.estimate(call({"model": "large"})).tokens == 5250
    assert api.estimate(call({"model": "small"})).tokens == 105
    assert api.estimate(call({"model": "new"})).tokens > 1000


@pytest.mark.parametrize(
    ("fields", "body", "tokens"),
    [
        ({"max_tokens": "/max"}, {"max": 700, "text": "x" * 400}, 700 + 424 // 4),
        ({"max_tokens": "/max"}, {"max": 50_000}, 20_000),
        ({"max_tokens": "/max"}, None, 1),
        ({"max_tokens": "/max", "usage": "/n"}, None, 1000),
        ({"usage": "/n"}, "x" * 398, 100 + 1000),
        ({}, "x" * 398, 100),
        ({"cost": f"{__name__}:points"}, {"points": 77}, 77),
        ({"cost": f"{__name__}:points"}, {"points": 10**9}, 20_000),
    ],
)
def test_first_estimate(fields, body, tokens):
    """Before anything is learned: the hook's word, else a token per four bytes and the most, or likely, answer."""
    assert costs(**fields).estimate(call(body)).tokens == tokens


def test_part_of_the_answer():
    """The tokens of the answer are the job's word, else the learned part, else what the body allows."""
    api = costs(usage=USAGE, max_tokens="/max")
    assert api.estimate(call({"max": 60}, tokens=100)).output_tokens == 60
    one = call(tokens=100)
    for _ in range(5):
        api.estimate(one)
        api.used(one, answer({"usage": {"total": 100, "in": 75, "out": 25}}))
    assert api.estimate(one).output_tokens == 25
    assert api.estimate(call(tokens=100, cost=WireCost(output_tokens=40))).output_tokens == 40


def points(job: Any) -> Any:
    """Estimate as a user's function does."""
    return job["json"]["points"]


def header_points(found: Any) -> Any:
    """Read the cost as a user's function does."""
    return None if "x-points" not in found.headers else (int(found.headers["x-points"]), 1)


def broken_hook(_: object) -> Any:
    """Fail as a user's function may."""
    raise KeyError("points")


def nonsense_hook(_: object) -> Any:
    """Return what is no cost."""
    return "seven"


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (None, None),
        (7, (7, None)),
        (6.6, (7, None)),
        ((7, 3), (7, 3)),
        ([7, None], (7, None)),
        ((3, 7), (3, 3)),
    ],
)
def test_what_a_hook_may_say(said, read):
    """A function says tokens, or tokens and those of the answer, or that it does not know."""
    assert stated(said) == read


@pytest.mark.parametrize("said", ["7", True, -1, float("nan"), (), (1, 2, 3), (None, 3), (None,), ("a", 1), {}, 1e300])
def test_what_a_hook_may_not_say(said):
    """Anything else is the function's mistake."""
    with pytest.raises(ValueError, match="neither tokens"):
        stated(said)


def test_actual_cost_hook():
    """The function reads the cost from the answer; where it knows nothing, the pointers are asked."""
    api = costs(usage="/n", actual_cost=f"{__name__}:header_points")
    assert api.used(call(), answer({"n": 5}, **{"x-points": "9"})) == (9, 1)
    assert api.used(call(), answer({"n": 5})) == (5, None)


@pytest.mark.parametrize("hook", ["broken_hook", "nonsense_hook"])
def test_a_failing_hook_costs_no_call(hook, caplog):
    """A function that fails or answers nonsense is logged once per API and key, and the cost is found otherwise."""
    api = costs(usage="/n", cost=f"{__name__}:{hook}", actual_cost=f"{__name__}:{hook}")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert api.estimate(call()).tokens == 1000
            assert api.used(call(), answer({"n": 5})) == (5, None)
    assert [record.action for record in caplog.records] == ["cost_hook_failed"] * 2


@pytest.mark.parametrize("name", ["callmill.nowhere:f", f"{__name__}:nothing", f"{__name__}:BASE"])
def test_a_hook_that_is_not_there_is_told_at_start(name):
    """A function that cannot be loaded is a mistake in the profile, named with its key."""
    with pytest.raises(ConfigurationError, match=r"^cost = "):
        costs(cost=name)


def test_absurd_costs_are_not_believed(caplog):
    """An answer that claims more than ten whole windows is logged once, keeps the charge, and teaches nothing."""
    api = costs(usage="/n")
    with caplog.at_level(logging.WARNING):
        assert [api.used(call(), answer({"n": 200_001})) for _ in range(3)] == [None] * 3
    assert [record.action for record in caplog.records] == ["cost_absurd"]
    assert api.used(call(), answer({"n": 200_000})) == (200_000, None)
    assert api.estimate(call()).tokens == 1000


def test_limits_that_change_are_followed():
    """A limit in tokens that is set at run time is counted from the next call on, and bounds what is taken for true."""
    profile = ApiProfile(name="api", base_url=BASE, limits=["5/second"], usage="/n")
    rules = [LimitRules(profile.limit_specs)]
    api = CallCosts(profile, lambda: rules[-1])
    assert api.estimate(call(tokens=7)).tokens == 0
    rules.append(LimitRules((parse_limit("5 tokens/second"),)))
    assert api.estimate(call(tokens=7)).tokens == 7
    assert api.estimate(call("x" * 400)).tokens == 5
    assert (api.used(call(), answer({"n": 50})), api.used(call(), answer({"n": 51}))) == ((50, None), None)


def test_many_weights_are_few_kinds():
    """However many weights jobs bring, few are told apart; a call counts as its weight at least, and can start."""
    api, heaviest = costs(limits=["1000/minute"]), 1000
    counted = {weight: api.kind(call(cost=WireCost(weight=weight)))[1] for weight in range(1, heaviest + 1)}
    assert len(set(counted.values())) <= MOST_WEIGHTS + heaviest.bit_length()
    assert all(weight <= as_many <= min(2 * weight, heaviest) for weight, as_many in counted.items())
    assert all(counted[weight] == weight for weight in range(1, MOST_WEIGHTS + 1))


def test_calls_heavier_than_a_limit_are_few_kinds():
    """Weights that no limit allows for, since it was lowered after the jobs came, are few kinds as well."""
    api = costs(limits=["1000/minute"])
    kinds = {api.kind(call(cost=WireCost(weight=weight))) for weight in range(2000, 4000)}
    assert len(kinds) <= MOST_WEIGHTS + 2


def test_a_bucket_holds_what_a_call_of_one_of_many_weights_counts_as():
    """Where a call is counted as more than it weighs, that still fits the server's bucket."""
    api = costs(limits=["1000/minute"], enforcer="bucket", burst=100)
    assert max(api.kind(call(cost=WireCost(weight=weight)))[1] for weight in range(1, 101)) == 100


def test_a_call_too_heavy_for_the_bucket_still_fits_its_limit():
    """A call heavier than what a bucket forgives counts as no more than its window takes, so that it can start."""
    api = costs(limits=["100/minute"], enforcer="bucket", burst=2)
    assert max(api.kind(call(cost=WireCost(weight=weight)))[1] for weight in range(1, 101)) == 100
