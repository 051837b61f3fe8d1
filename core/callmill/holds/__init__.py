"""Holds: whether an API's credentials and host have ever worked, and which of them calls wait for."""

from callmill.holds.fingerprint import fingerprint
from callmill.holds.records import HOST, UNBOUNDED, Held, HoldReport, HoldRules, HoldState, HoldView
from callmill.holds.registry import current_holds, held_in_words, release_holds
from callmill.holds.store import HoldStore, open_stores

__all__ = [
    "HOST",
    "UNBOUNDED",
    "Held",
    "HoldReport",
    "HoldRules",
    "HoldState",
    "HoldStore",
    "HoldView",
    "current_holds",
    "fingerprint",
    "held_in_words",
    "open_stores",
    "release_holds",
]
