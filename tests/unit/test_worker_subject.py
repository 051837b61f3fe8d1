"""What a process remembers of a host or a credential when Redis says what became of it."""

from __future__ import annotations

from typing import Any, cast

from callmill.holds import HoldReport, HoldState, HoldView
from callmill.workers.subject import Subject


def test_release_forgets_how_it_was_refused():
    """What was held and is released starts anew: some more calls may start while its first answer takes long."""
    subject = Subject(cast("Any", None))
    subject.refused = 401
    subject.adopt(HoldView(state=HoldState.HELD), HoldReport())
    assert subject.refused == 401
    subject.adopt(HoldView(), HoldReport())
    assert subject.refused == 0


def test_calls_in_flight_keep_their_part():
    """A process whose calls with what never worked are under way gives its part to nobody, though none waits."""
    subject = Subject(cast("Any", None))
    subject.in_flight = 2
    assert subject.take_report(wants=False).wants
    subject.adopt(HoldView(state=HoldState.HELD), HoldReport())
    assert not subject.take_report(wants=False).wants
