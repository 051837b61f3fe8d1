"""Subject: the host or one credential of an API, as one process knows it."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from time import monotonic

from callmill.holds import UNBOUNDED, HoldReport, HoldState, HoldStore, HoldView

STREAK = 20
"""Refusals in a row, of different jobs, that hold a credential which has worked."""

STREAK_LASTS_S = 60.0
"""Refusals that are further apart are no row: whatever refused the earlier ones may be over."""


class Subject:
    """The host or a credential, as this process knows it.

    Attributes:
        more: Calls that it may have in flight besides those granted, as the API answers, if with no proof.
        unheard: Failures that Redis has not heard of.
        streak: Refusals in a row, of different jobs, of one that has worked.
        unlike: Whether a call waits of a class of which none was refused, while others are held back.
        trials: Calls in flight that try whether it works now.
        refused: The status of the last refusal, 1 where no answer came; 0: there was none.
    """

    def __init__(self, store: HoldStore) -> None:
        self.store = store
        self.view = HoldView()
        self.report = HoldReport()
        self.in_flight = self.unheard = self.more = self.streak = self.trials = 0
        self.refused = 0
        self.unlike = False
        self._refused_s = 0.0
        self._asked = False

    @property
    def held(self) -> bool:
        """Whether calls wait for it."""
        return self.view.state is HoldState.HELD

    @property
    def proven(self) -> bool:
        """Whether it has worked."""
        return self.view.state in {HoldState.PROVEN, HoldState.SUSPECTED}

    @property
    def blocked(self) -> bool:
        """Whether it is held, or will be if no process sees it work."""
        return self.held or self.streak >= STREAK

    @property
    def settled(self) -> bool:
        """Whether it works, as far as anybody knows."""
        return self.view.state is HoldState.PROVEN and not self.streak

    @property
    def startable(self) -> float:
        """Calls that may start with it now."""
        if self.view.grant == UNBOUNDED:
            return inf if self.streak < STREAK else max(0, self.unlike - self.in_flight)
        more = self.more if self.view.grant and not self.held else 0
        return max(0, self.view.grant + more - self.in_flight - self.unheard)

    @property
    def within_reach(self) -> bool:
        """Whether a call may start with it, or may be granted at the next exchange."""
        return not self.held or bool(self.view.grant) or self.view.next_in_s == 0

    def refused_once_more(self) -> None:
        """Take note of a refusal in a row of one that has worked."""
        now_s = monotonic()
        self._end_streak(now_s)
        self.streak, self._refused_s = self.streak + 1, now_s

    def take_report(self, *, wants: bool) -> HoldReport:
        """Return what Redis has to hear, and begin anew; ``wants``: a call waits that could start with it."""
        self._end_streak(monotonic())
        report, self.report = self.report, HoldReport()
        report.wants = wants or (self.view.state is HoldState.UNPROVEN and self.in_flight > 0)
        report.streak, report.asked, report.trying = self.streak, self._asked, self.trials > 0
        return report

    def adopt(self, view: HoldView, told: HoldReport) -> None:
        """Take note of what Redis answered to a report."""
        before, self.view = self.view, view
        if view.state is not before.state:
            self.more = self.trials = 0
            self.refused = self.refused if self.held else 0
        if view.state is HoldState.HELD or (
            view.state is HoldState.PROVEN and (view.state is not before.state or told.asked)
        ):
            self.streak = 0  # it is held, or others saw it work
        self._asked = view.state is HoldState.SUSPECTED and told.streak >= STREAK

    def _end_streak(self, now_s: float) -> None:
        if self.streak and now_s - self._refused_s > STREAK_LASTS_S:
            self.streak = 0


def key_is_wanted(key: Subject, host: Subject) -> bool:
    """Say whether a process with a call should take its part of a credential.

    A process that could not use it would keep it from those that can. So parts are taken in one order: of a held
    credential, then of the host, then of any other credential; where the host is not held, of the host at last.
    """
    return bool(host.view.grant) if host.held and not key.held else host.within_reach


def host_is_wanted(host: Subject, keys: Iterable[Subject]) -> bool:
    """Say the same of the host, for a process that has a call and could use these credentials."""
    return any(key.view.grant or (host.held and not key.held) for key in keys)


def add(report: HoldReport, earlier: HoldReport) -> None:
    """Add what an earlier report told, which Redis may not have heard."""
    report.good += earlier.good
    report.good_age_s = max(report.good_age_s, earlier.good_age_s)
    report.plain += earlier.plain
    report.hard += earlier.hard
    report.soft += earlier.soft
    report.tried |= earlier.tried
    report.guilty |= earlier.guilty
    if not report.cause:
        report.cause, report.remedy = earlier.cause, earlier.remedy
