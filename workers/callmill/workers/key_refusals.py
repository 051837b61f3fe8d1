"""KeyRefusals: calls that the API refused because of their credential, one of several, and whose fault that was.

401 tells that the API does not know the credential, unless another one is not known either: some paths answer so to
everybody. 403 may be about the credential or about the call: the credential
is at fault where another one may do the same call, and the call is where none may. The refusals of a credential that
has never worked are counted by HoldGate, and a 401 of it is treated as a 403.
"""

from __future__ import annotations

import logging
from collections import Counter
from http import HTTPStatus

from callmill.jobs.traffic import TrafficClass
from callmill.limits import Limiter, Slot
from callmill.workers.call import Call, Postponed
from callmill.workers.hold_gate import HoldGate
from callmill.workers.verdict import Failed, KeyRefused

log = logging.getLogger(__name__)

_SET_ASIDE_S = 600.0
"""When a credential that the API did not accept is tried again."""

_CALLS_THAT_OTHERS_MADE = 3
"""A credential is set aside when others were allowed so many calls in a row that it was forbidden."""

_MOST_KEYS, _MOST_REFUSALS = 3, 12
"""A forbidden call fails after so many credentials, or so often where its turn falls on the same ones again."""

_ENOUGH_KEYS = 2
"""A call that so many credentials which have worked are refused with 401 is at fault itself."""

_UNKNOWN_TO_ALL = 20
"""So many jobs in a row that no credential was accepted for: perhaps none of them is any more."""


class KeyRefusals:
    """Decides for one API which credentials to set aside and which calls to give up."""

    def __init__(self, api: str, limiter: Limiter, holds: HoldGate) -> None:
        self._api = api
        self._limiter = limiter
        self._holds = holds
        self._made_by_others: Counter[int] = Counter()
        self._in_a_row = 0

    def accepted(self, call: Call, slot: Slot) -> None:
        """The API took a call: its credential is good, and those that it was refused with before may not be."""
        self._in_a_row = 0
        if self._made_by_others:
            self._made_by_others.pop(slot.key, None)
        for key in call.refused_keys:
            if key in call.unknown_keys:
                if key != slot.key and key in self._limiter.usable_keys:
                    self._set_aside(key, "401 Unauthorized")
            elif key != slot.key:
                self._blame(slot, key)

    def refused(self, call: Call, slot: Slot, verdict: KeyRefused) -> Postponed | Failed:
        """Try with another credential, or give the call up where it is at fault and not its credential."""
        failed = Failed(f"http_{verdict.status}", verdict.message)
        again = Postponed(failed.code, failed.message, spends_attempt=False)
        call.refusals += 1
        call.refused_keys |= {slot.key}
        if verdict.status == HTTPStatus.UNAUTHORIZED and self._holds.has_worked(slot.key):
            call.unknown_keys |= {slot.key}
            if len(call.unknown_keys) < _ENOUGH_KEYS and not self._is_forbidden(call):
                return again
            self._in_a_row += 1
            if self._in_a_row < _UNKNOWN_TO_ALL:
                return failed
            for key in call.unknown_keys & self._limiter.usable_keys:
                self._set_aside(key, verdict.message, traffic=call.owner.traffic)
            return again
        return failed if self._is_forbidden(call) else again

    def _is_forbidden(self, call: Call) -> bool:
        usable = {key for key in self._limiter.usable_keys if not self._holds.holds(key)}
        untried = usable - call.refused_keys
        return not untried or len(call.refused_keys) >= _MOST_KEYS or call.refusals >= _MOST_REFUSALS

    def _blame(self, slot: Slot, key: int) -> None:
        self._made_by_others[key] += 1
        if self._made_by_others[key] >= _CALLS_THAT_OTHERS_MADE and key in self._limiter.usable_keys:
            if self._holds.has_worked(key):
                self._set_aside(key, f"403 Forbidden, but not with {self._limiter.key_names[slot.key]}")
            else:
                self._holds.blame(key)

    def _set_aside(self, key: int, reason: str, *, traffic: TrafficClass | None = None) -> None:
        """Use a credential no more for a while; a call of another class than ``traffic`` may try it sooner."""
        name = self._limiter.key_names[key]
        log.warning(
            "credential %s is set aside: %s",
            *(name, reason),
            extra={"action": "key_refused", "api": self._api, "key": name},
        )
        self._limiter.set_aside(key, _SET_ASIDE_S, reason, traffic=traffic)
