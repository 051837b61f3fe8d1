"""How many files this process may open: connections count as files, and the usual soft limit is low."""

from __future__ import annotations

import resource
from contextlib import suppress


def raise_soft_limit() -> int | None:
    """Raise the soft limit to the hard one where the system allows it; return the new limit, None if there is none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some kernels refuse soft limits above one of their own, even if the hard limit is infinite.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return None if soft in {resource.RLIM_INFINITY, -1} else soft


def hard_limit() -> int | None:
    """Return the hard limit of open files; None if there is none."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if hard in {resource.RLIM_INFINITY, -1} else hard
