"""Kinship: what calls have in common that may be the reason why they fail."""

from __future__ import annotations

import re

from callmill.workers.call import Call

_WITH_DIGIT = re.compile(r"(?<![^/])[^/\d]*\d[^/]*")
"""From the start of a segment only: tried at each character, a long segment would take its length squared."""


def batch_of(call: Call) -> str:
    """Return the part that the keys of a batch's jobs share."""
    return "batch " + call.key.rpartition("-")[0]


def path_of(call: Call) -> str:
    """Return a call's path without its variable parts: ``/users/17`` and ``/users/18`` are the same."""
    return "path " + _WITH_DIGIT.sub("*", call.url.partition("?")[0])
