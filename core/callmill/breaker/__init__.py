"""The circuit breaker and the retry budget of an API, shared by all workers: when calls wait instead of failing."""

from callmill.breaker.records import WITNESSES, BreakerRules, BreakerState, BreakerView, Evidence, Report
from callmill.breaker.store import BreakerStore

__all__ = [
    "WITNESSES",
    "BreakerRules",
    "BreakerState",
    "BreakerStore",
    "BreakerView",
    "Evidence",
    "Report",
]
