"""Whoever stops workers gives them the time that they take to stop in order."""

from __future__ import annotations

import re
from pathlib import Path

from callmill.cli.local_fleet import KILL_AFTER_GRACE_S
from callmill.config.settings import Settings

ROOT = Path(__file__).parents[2]
GRACE_S = Settings.model_fields["shutdown_grace_s"].default


def test_systemd_waits_longer_than_callmill_up():
    """A service is killed after ``callmill up`` itself has given its workers up."""
    (given_s,) = re.findall(r"TimeoutStopSec=(\d+)", (ROOT / "config/systemd/callmill.service").read_text())
    assert int(given_s) > GRACE_S + KILL_AFTER_GRACE_S


def test_compose_waits_longer_than_a_worker():
    """A container is killed after calls in flight had their grace, and time to be recorded."""
    (given_s,) = re.findall(r"stop_grace_period: (\d+)s", (ROOT / "docker-compose.yml").read_text())
    assert int(given_s) >= GRACE_S + 15
