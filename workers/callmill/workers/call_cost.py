"""CallCosts: what a call of one API takes from its limits, before it is made and after.

Before: what the job states, else what the profile's hook says, else what was learned, else a guess that is rather too
high. After: what the answer says. Where nothing is counted in tokens, and no model has limits, all this costs nothing.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis

from callmill.config.limit_spec import Enforcer, Scope, Unit
from callmill.config.profiles import ApiProfile, Charge
from callmill.jobs.bounds import MAX_MODEL_LENGTH
from callmill.jobs.json_pointers import JsonPointers
from callmill.limits.cost_sharing import CostSharing
from callmill.limits.costs import ABSURD, CostBook, CostEstimator, Origin
from callmill.limits.rules import LimitRules
from callmill.workers.call import Call, CallCost
from callmill.workers.cost_hooks import CostHooks, Stated
from callmill.workers.fair_queue import PLAIN, Kind
from callmill.workers.transports.port import Response

log = logging.getLogger(__name__)

_BYTES_PER_TOKEN = 4
_LIKELY_ANSWER = 4096
_ANSWER_SHARE = 20
"""An answer of which nothing is known is thought to cost so much, or this part of the smallest window if less."""

MOST_WEIGHTS = 16
"""So many different weights have slots of their own: each costs a task and exchanges with Redis."""

_ONE_CALL = CallCost()
REFUNDED: Stated = (0, 0)
_ADMITTED_NOTHING = frozenset({429, 503, 529})


class CallCosts:
    """Costs of one API's calls, under the limits that hold at the time.

    Attributes:
        counts_tokens: Whether some limit counts tokens.

    Raises:
        ConfigurationError: The profile names a hook that cannot be loaded.
    """

    def __init__(self, profile: ApiProfile, rules: Callable[[], LimitRules]) -> None:
        self._rules = rules
        self._followed: LimitRules | None = None
        self._api = profile.name
        self._at_admission = profile.charge is Charge.ADMISSION
        self._book = CostBook()
        self._sharing: CostSharing | None = None
        self._estimator = CostEstimator(self._book, corrects=not self._at_admission)
        self._hooks = CostHooks(profile)
        self._in_request = JsonPointers({"model": profile.model, "max_tokens": profile.max_tokens})
        usage = profile.usage
        self._in_answer = JsonPointers(usage.model_dump() if usage else {})
        self._learns = usage is not None or profile.actual_cost is not None
        self._reported_absurd = False
        self.follow()

    async def share(self, redis: Redis, name: str) -> None:
        """Start with what the fleet knows under this name, and stay in sync with it."""
        self._sharing = CostSharing(redis, name, self._book)
        await self._sharing.start()

    async def aclose(self) -> None:
        """Tell the fleet the last news. Idempotent."""
        if self._sharing is not None:
            await self._sharing.aclose()

    def kind(self, call: Call) -> Kind:
        """Return what the limiter tells calls apart by: a model that has limits of its own, and the weight."""
        cost = call.job.cost
        if cost is None and not self._limits_models:
            return PLAIN
        weight = self._counted(cost.weight) if cost is not None and cost.weight > 1 and self._weighs else 1
        return self._limited_model(call) if self._limits_models else "", weight

    def estimate(self, call: Call) -> CallCost:
        """Return what the call's next attempt takes from the limits; what is stated of it is noted with the call."""
        self.follow()
        cost = call.job.cost
        weight = 1 if cost is None else cost.weight
        model = self._limited_model(call) if self.counts_tokens or self._limits_models else ""
        if not self.counts_tokens:
            return _ONE_CALL if weight == 1 and not model else CallCost(weight=weight, model=model)
        tokens, output = self._tokens(call, _amount(self._said(call).get("max_tokens")))
        return CallCost(tokens, min(output, tokens), weight, model)

    def used(self, call: Call, answer: Response | None) -> Stated | None:
        """Return what the call really cost; None where that is not known and the charge stands.

        Without an answer nobody knows whether the API counted the call. An answer that refuses the call costs nothing
        unless it says otherwise. What a good answer says is learned.
        """
        if not self.counts_tokens or answer is None:
            return None
        real = self._read(answer)
        if real is not None and 200 <= answer.status < 300:
            self._estimator.learn(call.model, call.stated, *real)
        if self._at_admission:
            return REFUNDED if answer.status in _ADMITTED_NOTHING else None
        if real is None and (400 <= answer.status < 500 or answer.status in _ADMITTED_NOTHING):
            return REFUNDED
        return real

    def follow(self) -> None:
        """Adopt the limits of now."""
        rules = self._rules()
        if rules is self._followed:
            return
        specs = rules.all()
        amounts = [spec.amount for spec in specs if spec.unit.is_tokens and spec.amount]
        self.counts_tokens = bool(amounts)
        self._largest = self._estimator.largest = min(amounts, default=1)
        self._holds = [spec.amount for spec in specs if spec.unit is Unit.REQUESTS and spec.amount]
        if rules.enforcer is Enforcer.BUCKET:
            self._holds.append(rules.burst)
        self._weighs = rules.learned_pace or any(spec.unit is Unit.REQUESTS for spec in specs)
        self._weights = set[int]()
        self._limits_models = rules.limits_models
        self._limits_any_model = any(spec.scope is Scope.MODEL for spec in rules.limits)
        self._limited_models = frozenset(rules.models)
        self._followed = rules

    def _counted(self, weight: int) -> int:
        """Return how many requests a call of this weight counts as: where there are many weights, perhaps more."""
        if weight in self._weights or len(self._weights) < MOST_WEIGHTS:
            self._weights.add(weight)
            return weight
        # No more than any limit or bucket holds that holds the call at all: it could never start.
        return min(1 << (weight - 1).bit_length(), *(most for most in self._holds if most >= weight), sys.maxsize)

    def _said(self, call: Call) -> dict[str, Any]:
        """What the call's body says: read once, however often it is asked for."""
        if call.said is None:
            call.said = self._in_request.read(call.job.body)
        return call.said

    def _limited_model(self, call: Call) -> str:
        """The call's model, if it has limits of its own; which it is otherwise is noted with the call."""
        cost = call.job.cost
        call.model = _model(self._said(call).get("model")) if cost is None or cost.model is None else cost.model
        return call.model if self._limits_any_model or call.model in self._limited_models else ""

    def _tokens(self, call: Call, max_tokens: int | None) -> tuple[int, int]:
        job = call.job
        # Of the part of the answer, what the body allows is known when nothing else is.
        unknown_output = min(self._largest, max_tokens) if max_tokens is not None else 0
        stated = self._stated(call)
        if stated is not None:
            origin, tokens, output = stated
            call.stated = (origin, tokens)
            tokens, output = self._estimator.of_stated(call.model, origin, tokens, output)
        else:
            call.stated = None
            guess = min(self._largest, len(job.body or b"") // _BYTES_PER_TOKEN + self._likely_answer(max_tokens))
            if self._at_admission and max_tokens is not None:
                tokens, output = guess, self._estimator.output_part(call.model, guess)
            else:
                tokens, output = self._estimator.of_unknown(call.model, max(1, guess))
        return tokens, unknown_output if output is None else output

    def _stated(self, call: Call) -> tuple[Origin, int, int | None] | None:
        job = call.job
        if job.tokens is not None:
            return Origin.GIVEN, job.tokens, None if job.cost is None else job.cost.output_tokens
        hooked = self._hooks.estimate(job)
        return None if hooked is None else (Origin.HOOK, min(hooked[0], self._largest), hooked[1])

    def _likely_answer(self, max_tokens: int | None) -> int:
        if max_tokens is not None:
            return max_tokens
        # Where no answer ever tells what a call cost, a high guess would stay for good.
        return min(_LIKELY_ANSWER, self._largest // _ANSWER_SHARE) if self._learns else 0

    def _read(self, answer: Response) -> Stated | None:
        real = self._hooks.read(answer) or self._usage(answer)
        if real is None or real[0] <= ABSURD * self._largest:
            return real
        if not self._reported_absurd:
            self._reported_absurd = True
            log.warning(
                "an answer of API %r claims a cost of %d tokens, more than %d of its windows; such are not believed",
                *(self._api, real[0], ABSURD),
                extra={"action": "cost_absurd", "api": self._api},
            )
        return None

    def _usage(self, answer: Response) -> Stated | None:
        if not self._in_answer:
            return None
        found = self._in_answer.read(answer.body)
        total, of_input, of_output = (_amount(found.get(name)) for name in ("total", "input", "output"))
        if total is None:
            return None if of_input is None or of_output is None else (of_input + of_output, of_output)
        if of_output is None and of_input is not None:
            of_output = max(0, total - of_input)
        return total, None if of_output is None else min(total, of_output)


def _model(value: Any) -> str:
    return value if isinstance(value, str) and len(value) <= MAX_MODEL_LENGTH else ""


def _amount(value: Any) -> int | None:
    """Return a number of tokens as answers write it, a text included; None for what is none."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if 0 <= number < math.inf else None
