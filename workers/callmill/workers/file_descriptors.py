"""File descriptors: a worker needs one per connection, and says so before it runs out."""

from __future__ import annotations

import resource

from callmill.errors import ConfigurationError

_BESIDES_CONNECTIONS = 256


def raise_limit(connections: int) -> None:
    """Raise the soft limit to the hard one.

    Raises:
        ConfigurationError: Even the hard limit is below what ``connections`` need.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = connections + _BESIDES_CONNECTIONS
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigurationError(
            f"this worker may open {hard} files, but needs up to {needed}: raise the hard limit (`ulimit -Hn`, "
            "LimitNOFILE= of systemd, `ulimits` of Docker), or lower max_connections or CALLMILL_CALLS_IN_FLIGHT"
        )
