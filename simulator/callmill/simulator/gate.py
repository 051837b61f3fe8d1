"""All limits of a simulator together: a call is charged to every one of them or to none."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from callmill.config.limit_spec import LimitSpec, Unit
from callmill.simulator.enforcers import Enforcer


class Standing(Struct, frozen=True):
    """What an answer may say about one limit.

    Attributes:
        limit: The limit.
        remaining: How much fits now.
        reset_ns: Time until all of the limit is free again.
    """

    limit: LimitSpec
    remaining: int
    reset_ns: int


class Refusal(Struct, frozen=True):
    """Why a call was not admitted.

    Attributes:
        broken: Positions of the limits that it would have broken.
        wait_ns: Time until it would fit if nothing else came.
    """

    broken: tuple[int, ...]
    wait_ns: int


class Gate:
    """Several limits, enforced all or nothing."""

    def __init__(self, enforcers: Sequence[Enforcer]) -> None:
        self._enforcers = tuple(enforcers)

    def admit(self, now_ns: int, tokens: int) -> Refusal | None:
        """Charge one call of ``tokens`` to all limits, or return why not and charge none."""
        costs = [(enforcer, tokens if enforcer.limit.unit is Unit.TOKENS else 1) for enforcer in self._enforcers]
        waits_ns = [enforcer.wait_ns(now_ns, cost) for enforcer, cost in costs]
        if any(waits_ns):
            return Refusal(tuple(n for n, wait_ns in enumerate(waits_ns) if wait_ns), max(waits_ns))
        for enforcer, cost in costs:
            enforcer.charge(now_ns, cost)
        return None

    def release(self) -> None:
        """Note that an admitted call has ended."""
        for enforcer in self._enforcers:
            enforcer.release()

    def standings(self, now_ns: int) -> list[Standing]:
        """Return where each limit stands."""
        return [Standing(e.limit, e.remaining(now_ns), e.reset_ns(now_ns)) for e in self._enforcers]
