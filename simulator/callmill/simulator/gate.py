"""All limits of a simulator together: a call is charged to every one of them or to none."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from callmill.config.limit_spec import LimitSpec
from callmill.simulator.enforcers import Enforcer
from callmill.simulator.tokens import Charging, Tokens


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

    def __init__(self, enforcers: Sequence[Enforcer], charging: Charging = Charging.ADMISSION) -> None:
        self._enforcers = tuple(enforcers)
        self._settled = [
            enforcer for enforcer in enforcers if charging is Charging.ANSWER and enforcer.limit.unit.is_tokens
        ]

    def admit(self, now_ns: int, tokens: Tokens) -> Refusal | None:
        """Charge one call of ``tokens`` to all limits, or return why not and charge none.

        A limit that is charged at the answer takes no part in the charge, and lets the call in while a token is left.
        """
        costs = [
            (enforcer, 1 if enforcer in self._settled else tokens.counted(enforcer.limit.unit))
            for enforcer in self._enforcers
        ]
        waits_ns = [enforcer.wait_ns(now_ns, cost) for enforcer, cost in costs]
        if any(waits_ns):
            return Refusal(tuple(n for n, wait_ns in enumerate(waits_ns) if wait_ns), max(waits_ns))
        for enforcer, cost in costs:
            if enforcer not in self._settled:
                enforcer.charge(now_ns, cost)
        return None

    def settle(self, now_ns: int, tokens: Tokens) -> None:
        """Charge the limits that are charged at the answer, whatever is left of them."""
        for enforcer in self._settled:
            enforcer.charge(now_ns, tokens.counted(enforcer.limit.unit))

    def release(self) -> None:
        """Note that an admitted call has ended."""
        for enforcer in self._enforcers:
            enforcer.release()

    def standings(self, now_ns: int) -> list[Standing]:
        """Return where each limit stands."""
        return [Standing(e.limit, max(0, e.remaining(now_ns)), e.reset_ns(now_ns)) for e in self._enforcers]
