"""Capacity: whether a call can ever pass under the limits of its API; one that cannot is refused when it is given."""

from __future__ import annotations

from collections.abc import Iterable

from callmill.config.limit_spec import LimitSpec, Unit, parse_limit
from callmill.config.public_api import PublicApi
from callmill.jobs.json_pointers import JsonPointers
from callmill.jobs.wire import WireJob

_FIELDS = {
    Unit.REQUESTS: "weight",
    Unit.TOKENS: "tokens",
    Unit.INPUT_TOKENS: "tokens",
    Unit.OUTPUT_TOKENS: "output_tokens",
}


class Capacity:
    """The smallest limit of each unit, for any model and for those that have limits of their own.

    A window takes its amount and no more, and a bucket holds as much, so a call that costs more waits for ever.
    """

    def __init__(self, facts: PublicApi | None) -> None:
        self._api = facts.name if facts else ""
        self._limits = _smallest(parse_limit(text) for text in (facts.limits if facts else ()))
        models = facts.models if facts else {}
        self._models = {
            name: _smallest([*self._limits.values(), *map(parse_limit, texts)]) for name, texts in models.items()
        }
        self._model_pointer = JsonPointers({"model": facts.model if facts and self._models else None})

    def problem(self, job: WireJob) -> tuple[str, str] | None:
        """Return the field that asks for more than a limit has, and why that is refused; None when all is well."""
        cost = job.cost
        if job.tokens is None and (cost is None or cost.weight == 1):
            return None
        output = None if cost is None else cost.output_tokens
        asked = {
            Unit.REQUESTS: 1 if cost is None else cost.weight,
            Unit.TOKENS: job.tokens,
            Unit.INPUT_TOKENS: None if job.tokens is None or output is None else job.tokens - output,
            Unit.OUTPUT_TOKENS: output,
        }
        model = self._model_of(job)
        for unit, limit in self._models.get(model, self._limits).items():
            amount = asked.get(unit)
            if amount is not None and amount > limit.amount:
                return _FIELDS[unit], self._sentence(amount, limit, model)
        return None

    def _model_of(self, job: WireJob) -> str:
        if not self._models:
            return ""
        if job.cost is not None and job.cost.model is not None:
            return job.cost.model
        model = self._model_pointer.read(job.body).get("model")
        return model if isinstance(model, str) else ""

    def _sentence(self, amount: int, limit: LimitSpec, model: str) -> str:
        whose = f"model {model!r} of API {self._api!r}" if model in self._models else f"API {self._api!r}"
        unit = "requests" if limit.unit is Unit.REQUESTS else limit.unit.value
        return (
            f"{amount:,} {unit} can never pass: the limit {str(limit)!r} of {whose} has {limit.amount:,}. "
            "Split the call, or raise the limit in the API's profile"
        )


def _smallest(specs: Iterable[LimitSpec]) -> dict[Unit, LimitSpec]:
    smallest: dict[Unit, LimitSpec] = {}
    for spec in specs:
        known = smallest.get(spec.unit)
        # An amount of 0 is not known, and what is in flight is counted in calls whatever they weigh.
        if spec.amount and spec.unit is not Unit.CONCURRENT and (known is None or spec.amount < known.amount):
            smallest[spec.unit] = spec
    return smallest
