"""Options for files whose lines are bodies and nothing else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from callmill.cli.job_line import BareBodies
from callmill.errors import UsageError


def bare_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--url``, ``--method`` and ``--without`` to a command, which gets them as ``bare``."""

    @functools.wraps(command)
    def with_bare(*, url: str | None, method: str | None, without: tuple[str, ...], **others: Any) -> Any:
        return command(bare=_bare_bodies(url, method, without), **others)

    without = click.option(
        "--without", metavar="KEY", multiple=True, help="With --url: a key of such bodies that is not sent; repeatable."
    )
    method = click.option("--method", help="With --url: the method of such lines; POST when left out.")
    url = click.option("--url", help="Where lines go that are bodies and nothing else (no custom_id, method, url).")
    return url(method(without(with_bare)))


def _bare_bodies(url: str | None, method: str | None, without: tuple[str, ...]) -> BareBodies | None:
    if url is not None:
        return BareBodies(url=url, method=(method or "POST").upper(), without=without)
    if method is not None or without:
        raise UsageError(f"{'--without' if method is None else '--method'} belongs to --url: say where the bodies go")
    return None
