"""The limiter: exact start times for calls, so that any number of processes together keep the limits of an API."""

from callmill.limits.blocking import BlockingLimiter
from callmill.limits.limiter import Limiter
from callmill.limits.opening import open_limiter
from callmill.limits.rules import KeyRules, LimitRules
from callmill.limits.slots import Slot
from callmill.limits.status import KeyStatus, LimiterStatus

__all__ = [
    "BlockingLimiter",
    "KeyRules",
    "KeyStatus",
    "LimitRules",
    "Limiter",
    "LimiterStatus",
    "Slot",
    "open_limiter",
]
