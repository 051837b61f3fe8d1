"""The options that say how urgent a batch is and on whose behalf its calls are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from callmill.jobs.traffic import Priority


def traffic_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--priority`` and ``--tenant``; each is None when left out."""
    command = click.option("--tenant", help="On whose behalf the calls are made: tenants share an API's limits.")(
        command
    )
    priority = click.Choice([priority.value for priority in Priority])
    return click.option("--priority", type=priority, help="How urgent the calls are beside other batches'.")(command)
