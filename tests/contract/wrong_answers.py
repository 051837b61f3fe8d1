"""Many exchanges with a server that misbehaves at random, over pooled connections: whose answers do the calls get?"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from faulty_server import FaultyServer, faulty_server
from misbehaving_server import KINDS, is_proven, misbehave, misbehave_at_head
from transport_cases import options

from callmill.workers.transports.factory import make_transport
from callmill.workers.transports.port import Transport, TransportFault

_AT_ONCE = 24
_CALL_S = 10.0
_ORDINARY = ("good", "good-post", "slow", "chunked")
_BIG = ("early-read", "early-close", "early-deaf")
_TIMED = ("two-in-a-row", "late-stray")
"""What comes by itself after an answer may cross the next request on its way. Then no client can tell."""
_SLOW = ("early-slow-read", "early-asleep")
_ODD = tuple(name for name in KINDS if name not in (*_ORDINARY, *_BIG, *_TIMED, *_SLOW))


@dataclass
class Tally:
    """What came of the exchanges.

    Attributes:
        right: Answers to the request itself.
        failed: Faults, by their kind.
        wrong: Answers to another request or to none, by what the server did.
        unsent: Faults that claim that nothing was sent, although the server's answer is at fault.
        connections: Connections that it took.
    """

    right: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    unsent: int = 0
    connections: int = 0

    @property
    def exchanges(self) -> int:
        """All of them."""
        return self.right + self.failed.total() + self.wrong.total()


def measure(transport: str, count: int, seed: int, *, timed: bool = False, reuse: bool = True) -> Tally:
    """Make ``count`` exchanges, three of five of them with an answer in good order.

    ``timed``: The others are those after which something comes that may cross the next request. ``reuse``: Whether
    connections are used again.
    """
    tally = Tally()
    with faulty_server(misbehave, early=misbehave_at_head) as server:
        asyncio.run(
            _measure(
                transport, server, _kinds(count, random.Random(seed), _TIMED if timed else _ODD), tally, reuse=reuse
            )
        )
        tally.connections = server.connections
    return tally


def _kinds(count: int, chance: random.Random, odd: Sequence[str]) -> list[str]:
    kinds = chance.choices(_ORDINARY, k=count)
    for place in range(count):
        if chance.random() < 0.4:
            # Those with 8 MB in each request are rare, or they would be all that is measured.
            kinds[place] = chance.choice(_BIG if chance.random() < 0.02 else odd)
    return kinds


async def _measure(name: str, server: FaultyServer, kinds: list[str], tally: Tally, *, reuse: bool) -> None:
    transport = make_transport(name, options(max_connections=_AT_ONCE, reuse_connections=reuse))
    waiting = enumerate(kinds)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(_caller(transport, server, waiting, tally))
    finally:
        await transport.aclose()


async def _caller(transport: Transport, server: FaultyServer, waiting: enumerate[str], tally: Tally) -> None:
    for number, name in waiting:
        kind, nonce = KINDS[name], f"n{number}"
        try:
            answer = await transport.send(kind.method, server.url(f"/{name}/{nonce}"), {}, kind.body, _CALL_S)
        except TransportFault as fault:
            tally.failed[fault.kind.value] += 1
            tally.unsent += not fault.sent
            continue
        if is_proven(answer, nonce):
            tally.right += 1
        else:
            tally.wrong[f"{name} -> {answer.headers.get('x-for')}"] += 1
