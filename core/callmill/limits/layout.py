"""Layout: which limits hold for one group of calls, in the order in which the scripts take them."""

from __future__ import annotations

from msgspec import Struct

from callmill.config.limit_spec import LEARNED, LEARNED_OF_KEY
from callmill.jobs.traffic import TrafficClass
from callmill.limits.keys import Keys
from callmill.limits.rules import COLUMNS, Clock, LimitRules, clocks, learned_clock

OF_API, OF_MODEL = 0, -1
"""Who a limit belongs to that holds whichever credential is used."""


LONGEST_UNCONFIRMED_S = 3600
"""For so long one answer alone may stop calls; the answer to a second one confirms a longer time."""


class Node(Struct, frozen=True):
    """One limit that holds for a group's calls.

    Attributes:
        clock: What it is.
        key: Where it is kept in Redis.
        owner: The credential that it belongs to, from 1; or OF_API, OF_MODEL.
    """

    clock: Clock
    key: str
    owner: int


class Layout(Struct, frozen=True):
    """Every limit that a group's calls meet.

    Attributes:
        model: The model that the calls name; empty for none.
        traffic: Their class.
        weight: Its part of the limits while all classes want more.
        nodes: Their limits; those that hold for every credential first.
        scopes: What pauses may name: the model, then each credential.
    """

    model: str
    traffic: TrafficClass
    weight: float
    nodes: tuple[Node, ...]
    scopes: tuple[str, ...]

    @property
    def redis_keys(self) -> list[str]:
        """The limits' keys."""
        return [node.key for node in self.nodes]

    @property
    def key_count(self) -> int:
        """How many credentials there are."""
        return len(self.scopes) - 1

    @property
    def counts_tokens(self) -> bool:
        """Whether some limit counts tokens."""
        return any(node.clock.spec.unit.is_tokens for node in self.nodes)

    def plausible_pause_s(self, key: int) -> float:
        """How long one answer alone may pause calls with a credential, from 1: the longest window, an hour at most."""
        windows = [
            node.clock.spec.window_s
            for node in self.nodes
            if node.clock.spec.amount and node.owner in {OF_API, OF_MODEL, key}
        ]
        return min(max(windows, default=LONGEST_UNCONFIRMED_S), LONGEST_UNCONFIRMED_S)

    @property
    def quotas(self) -> list[Node]:
        """The limits that are counted, not paced."""
        return [node for node in self.nodes if node.clock.quota]

    def taken_back(self) -> frozenset[int]:
        """The columns in which what was not used is of use again; a moment of a pace that has passed is not."""
        tokens = {COLUMNS[node.clock.spec.unit] for node in self.nodes if node.clock.spec.unit.is_tokens}
        return frozenset(tokens | {COLUMNS[node.clock.spec.unit] for node in self.quotas})


def learned_nodes(rules: LimitRules, keys: Keys) -> list[Node]:
    """The paces that are learned where nobody wrote one down: of the API, or of each of its credentials."""
    if len(rules.keys) == 1:
        return [Node(learned_clock(LEARNED, rules), keys.limit(LEARNED), OF_API)]
    clock = learned_clock(LEARNED_OF_KEY, rules)
    return [Node(clock, keys.limit(LEARNED_OF_KEY, key.name), number) for number, key in enumerate(rules.keys, 1)]


def layout(rules: LimitRules, keys: Keys, model: str, traffic: TrafficClass) -> Layout:
    """The limits that hold for the calls of one model and class."""
    shared = [Node(clock, keys.limit(clock.spec), OF_API) for clock in clocks(rules)]
    shared += [Node(clock, keys.limit(clock.spec, model), OF_MODEL) for clock in clocks(rules, rules.of_model(model))]
    owned = [
        Node(clock, keys.limit(clock.spec, key.name), number)
        for number, key in enumerate(rules.keys, 1)
        for clock in clocks(rules, rules.of_key(key))
    ]
    return Layout(
        model=model,
        traffic=traffic,
        weight=rules.weight_of(traffic),
        nodes=(*shared, *owned, *(learned_nodes(rules, keys) if rules.learned_pace else ())),
        scopes=(model and f"model:{model}", *(f"key:{key.name}" for key in rules.keys)),
    )
