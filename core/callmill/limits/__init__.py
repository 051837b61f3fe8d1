"""The limiter: exact start times for calls, so that any number of processes together keep the limits of an API."""

from callmill.limits.limiter import Limiter, LimiterStatus
from callmill.limits.rules import LimitRules
from callmill.limits.slots import Slot

__all__ = ["LimitRules", "Limiter", "LimiterStatus", "Slot"]
