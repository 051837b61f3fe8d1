"""Real servers with real limits, each a process on a free port that writes down what it answered.

``with limit_req(folder, rate=10, burst=5) as served:`` starts nginx; ``served.url`` is where it is, ``served.tally()``
what came. Where this machine lacks what a server is made of, ``MissingProgramError`` says in one line what that is.
"""

from __future__ import annotations

from real_limiters.express import express_rate_limit
from real_limiters.nginx import limit_conn, limit_req
from real_limiters.python_servers import queueing, refusing, simulated, slowapi
from real_limiters.served import Call, MissingProgramError, Served, Tally

__all__ = [
    "Call",
    "MissingProgramError",
    "Served",
    "Tally",
    "express_rate_limit",
    "limit_conn",
    "limit_req",
    "queueing",
    "refusing",
    "simulated",
    "slowapi",
]
