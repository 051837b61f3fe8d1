"""Connection: what a client holds open on one event loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from redis.asyncio import Redis

from callmill.ledger.batches import Batches
from callmill.ledger.fleet import Fleet
from callmill.ledger.hints import HintPublisher
from callmill.ledger.memory import MemoryGauge
from callmill.ledger.session import LedgerSession


@dataclass(frozen=True, slots=True)
class Connection:
    """The ledger and the broker, as reached from one event loop."""

    loop: asyncio.AbstractEventLoop
    redis: Redis
    session: LedgerSession
    batches: Batches
    fleet: Fleet
    hints: HintPublisher
    memory: MemoryGauge
