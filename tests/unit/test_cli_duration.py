"""Times on the command line."""

from __future__ import annotations

import click
import pytest

from callmill.cli.duration import Duration


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [("90s", 90), ("10m", 600), ("10 min", 600), ("2h", 7200), ("1d", 86400), ("1h30m", 5400), ("0.5s", 0.5)],
)
def test_times_are_read(text, expected_s):
    """A time is read in the forms that people write."""
    assert Duration().convert(text, None, None) == expected_s


@pytest.mark.parametrize("text", ["", "10", "m", "ten minutes", "-5s", "5x", "1h30"])
def test_what_is_no_time_is_refused(text):
    """What is no time, or leaves its unit open, is a usage error that shows the forms."""
    with pytest.raises(click.BadParameter, match="write '90s'"):
        Duration().convert(text, None, None)
