"""The circuit breaker and the retry budget of an API, shared by all workers: when calls wait instead of failing."""

from callmill.breaker.records import BreakerRules, BreakerState, BreakerView, Report
from callmill.breaker.store import BreakerStore

__all__ = [
    "BreakerRules",
    "BreakerState",
    "BreakerStore",
    "BreakerView",
    "Report",
]
