"""Hostile tenants of every kind beside a victim: the API they meet, what they submit, how long the victim waits."""

from __future__ import annotations

import asyncio
import json
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from faulty_server import Exchange, faulty_server
from local_nodes import until

from callmill.errors import BatchStateError
from callmill.producer import Batch, Client, Job

CALLS = 20
WAIT_S = 30.0
WEEK_S = 604_800
LARGE = 4 << 20
POOL = "abc"


class WhimsicalApi:
    """Answers as the first part of a path says: ``/500/...`` is always answered 500, ``/good/...`` 200.

    Attributes:
        url: Base URL.
        calls: Calls so far, by the first part of their path.
    """

    def __init__(self) -> None:
        self.url = ""
        self.calls: Counter[str] = Counter()

    async def answer(self, exchange: Exchange) -> None:
        """Answer a call."""
        kind = exchange.target.split("/")[1]
        self.calls[kind] += 1
        answer = self._ODD.get(kind)
        if answer is not None:
            await answer(exchange, self.calls[kind])
        elif kind.isdecimal():
            await exchange.answer(f"{kind} Told")
        else:
            await exchange.answer(body=b"{}")

    @staticmethod
    async def _hang(exchange: Exchange, _call: int) -> None:
        await exchange.reader.read()

    @staticmethod
    async def _slow(exchange: Exchange, _call: int) -> None:
        await asyncio.sleep(1.0)
        await exchange.answer(body=b"{}")

    @staticmethod
    async def _reset(exchange: Exchange, _call: int) -> None:
        exchange.reset()

    @staticmethod
    async def _drip(exchange: Exchange, _call: int) -> None:
        await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            await exchange.raw(b".")
            await asyncio.sleep(0.1)

    @staticmethod
    async def _loop(exchange: Exchange, _call: int) -> None:
        await exchange.answer("307 Told", f"Location: {exchange.target}\r\n")

    @staticmethod
    async def _busy(exchange: Exchange, _call: int) -> None:
        await exchange.answer("503 Told", "Retry-After: 600\r\n")

    @staticmethod
    async def _week(exchange: Exchange, call: int) -> None:
        await exchange.answer("429 Told" if call == 1 else "200 OK", f"Retry-After: {WEEK_S}\r\n" if call == 1 else "")

    @staticmethod
    async def _spent(exchange: Exchange, _call: int) -> None:
        spent = ("Limit: 10000", "Remaining: 0", f"Reset: {WEEK_S}")
        await exchange.answer(headers="".join(f"X-RateLimit-{each}\r\n" for each in spent), body=b"{}")

    @staticmethod
    async def _large(exchange: Exchange, _call: int) -> None:
        await exchange.answer(body=b"x" * LARGE)

    _ODD: ClassVar = {
        "hang": _hang,
        "slow": _slow,
        "reset": _reset,
        "drip": _drip,
        "loop": _loop,
        "busy": _busy,
        "week": _week,
        "spent": _spent,
        "large": _large,
    }


@contextmanager
def whimsical_api() -> Iterator[WhimsicalApi]:
    """Serve until the block ends, also calls that hang by the thousand."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most if most == resource.RLIM_INFINITY else min(most, 65_536), most))
    api = WhimsicalApi()
    with faulty_server(api.answer) as server:
        api.url = server.url("")
        yield api


Attack = Callable[[Client, str], Sequence[Batch]]
"""Submits what a hostile tenant does to an API of this name, and returns its batches."""


@dataclass(frozen=True)
class Hostile:
    """A kind of hostile tenant.

    Attributes:
        attack: What it submits.
        profile: Lines of the profile of the API that it shares with the victim, beyond the usual ones.
        calls: So many of its calls have reached the API before the victim's begin.
        of: What the first part of their paths is.
        own_model: Whether half of the victim's calls name a model, which is its own.
    """

    attack: Attack
    profile: tuple[str, ...] = ()
    calls: int = 5
    of: str = ""
    own_model: bool = False


def _jobs(path: str, count: int = 300, **fields: object) -> Attack:
    def attack(client: Client, api: str) -> Sequence[Batch]:
        jobs = [Job("GET", f"/{path}/{n}", api=api, **fields) for n in range(count)]  # type: ignore[arg-type]
        return [client.submit(jobs, tenant="hostile")]

    return attack


def _failing(path: str, *profile: str, count: int = 300, calls: int = 5) -> Hostile:
    return Hostile(_jobs(path, count), profile, calls, path)


def models(count: int) -> Attack:
    """Return the attack of one tenant whose jobs name so many models."""

    def attack(client: Client, api: str) -> Sequence[Batch]:
        jobs = [Job("POST", "/models", api=api, json={"model": f"model-{n}"}) for n in range(count)]
        return [client.submit(jobs, tenant="hostile")]

    return attack


def _of_models(*limits: str, own_model: bool = True) -> Hostile:
    lines = (f"limits = {json.dumps(limits)}", 'model = "/model"', 'enforcer = "bucket"', "burst = 20")
    return Hostile(models(3000), lines, 30, "models", own_model)


def _weights(client: Client, api: str) -> Sequence[Batch]:
    return [client.submit([Job("GET", "/w", api=api, weight=1 + n % 90) for n in range(2000)], tenant="hostile")]


def _tokens(client: Client, api: str) -> Sequence[Batch]:
    return [client.submit([Job("GET", "/t", api=api, tokens=90_000) for n in range(500)], tenant="hostile")]


def tenants(count: int) -> Attack:
    """Return the attack of so many tenants with a job each."""

    def attack(client: Client, api: str) -> Sequence[Batch]:
        return [client.submit([Job("GET", "/many", api=api)], tenant=f"hostile-{n}") for n in range(count)]

    return attack


def _priorities(client: Client, api: str) -> Sequence[Batch]:
    batches = []
    for n in range(30):
        jobs = [Job("GET", "/p", api=api) for _ in range(100)]
        batches.append(
            client.submit(jobs, tenant=f"hostile-{n % 3}", priority=("interactive", "normal", "bulk")[n % 3])
        )
    return batches


def _batches(client: Client, api: str) -> Sequence[Batch]:
    return [client.submit([Job("GET", "/b", api=api) for _ in range(3)], tenant="hostile") for _ in range(500)]


def _hanging_batches(client: Client, api: str) -> Sequence[Batch]:
    return [client.submit([Job("GET", "/hang", api=api, timeout=3600)], tenant="hostile") for _ in range(500)]


def _pausing(client: Client, api: str) -> Sequence[Batch]:
    batch = client.submit([Job("GET", "/pausing", api=api) for _ in range(20_000)], tenant="hostile")

    def run() -> None:
        with suppress(BatchStateError):  # it is over
            for _ in range(100):
                batch.pause()
                batch.resume()
                time.sleep(0.02)

    threading.Thread(target=run, daemon=True).start()
    return [batch]


_SECOND = ('limits = ["100/second"]', 'enforcer = "bucket"', "burst = 20")

HOSTILE = {
    "500 for ever": _failing("500", *_SECOND),
    "500 for ever, no limits": _failing("500"),
    "hangs": _failing("hang", *_SECOND, "timeout = 5"),
    "hangs, no limits": _failing("hang", "timeout = 5"),
    "hangs for an hour": Hostile(
        _jobs("hang", 5000, timeout=3600), ('limits = ["2000/second"]', 'enforcer = "bucket"'), 200, "hang"
    ),
    "hangs for an hour, 500 batches": Hostile(_hanging_batches, _SECOND, 2, "hang"),
    "slow calls, no limits": _failing("slow", calls=30),
    "resets": _failing("reset", *_SECOND),
    "drips": _failing("drip", *_SECOND, "timeout = 5"),
    "redirects to itself": _failing("loop", *_SECOND),
    "429 for ever": _failing("429", *_SECOND),
    "429 for ever, no limits": _failing("429"),
    "429 for ever, one job": _failing("429", *_SECOND, count=1),
    "429 for ever, per-day limit": _failing(
        "429", 'limits = ["100/second", "10000/day"]', 'enforcer = "bucket"', "burst = 20"
    ),
    "401 for ever": _failing("401", *_SECOND),
    "403 for ever": _failing("403", *_SECOND),
    "401 for ever, pool of keys": _failing("401", *_SECOND, "POOL", count=1, calls=2),
    "403 for ever, pool of keys": _failing("403", *_SECOND, "POOL", count=30),
    "503 with Retry-After": _failing("busy", *_SECOND),
    "503 with Retry-After, a refusal": _failing("busy", *_SECOND, "throttle = { statuses = [503] }", calls=1),
    "one 429 that asks for a week": _failing("week", *_SECOND, "throttle = { max_wait = 10 }", count=1, calls=1),
    "remaining 0, reset in a week": _failing(
        "spent", 'limits = ["100/second", "10000/day"]', 'enforcer = "bucket"', "burst = 20", calls=1
    ),
    "large answers": _failing("large", *_SECOND, count=100, calls=2),
    "3,000 models": _of_models("100/second", "50/second per model"),
    "3,000 models, a few calls at once": _of_models("100/second", "5 concurrent per model"),
    "3,000 models, a call a minute": _of_models("100/second", "1/minute per model", own_model=False),
    "3,000 models, no other limits": _of_models("5 concurrent per model"),
    "heavy calls": Hostile(_weights, ('limits = ["100/second"]',), 5, "w"),
    "dear calls": Hostile(_tokens, ('limits = ["100/second", "6000000 tokens/minute"]',), 5, "t"),
    "1,500 tenants": Hostile(tenants(1500), _SECOND, 20, "many"),
    "all priorities": Hostile(_priorities, _SECOND, 20, "p"),
    "500 batches": Hostile(_batches, _SECOND, 20, "b"),
    "pauses and resumes": Hostile(_pausing, _SECOND, 20, "pausing"),
}
"""Kinds of hostile tenants, by name."""


def api_name(kind: str) -> str:
    """Return the name of the API that a kind of hostile tenant shares with the victim."""
    return "".join(character if character.isalnum() else "-" for character in kind.casefold())


def profiles(url: str, folder: Path, kinds: Sequence[str]) -> dict[str, list[str]]:
    """Return the profiles of the APIs that these kinds of hostile tenants meet."""
    for name in POOL:
        (folder / f"secret-{name}").write_text(f"secret-{name}")
    pool = ", ".join(f'{{ bearer = "file:{folder}/secret-{name}", name = "{name}" }}' for name in POOL)
    return {
        api_name(kind): [
            f'base_url = "{url}"',
            "retry = { attempts = 3, base = 0.2 }",
            *(f"auth = [{pool}]" if line == "POOL" else line for line in HOSTILE[kind].profile),
        ]
        for kind in kinds
    }


def slowest_s(client: Client, api: str, *, own_model: bool = False) -> float:
    """Return how long it took until the last of the victim's calls was over; each must succeed."""
    began_s = time.monotonic()
    jobs = [
        Job("POST", f"/good/{n}", api=api, json={"model": "own"})
        if own_model and n % 2
        else Job("GET", f"/good/{n}", api=api)
        for n in range(CALLS)
    ]
    batch = client.submit(jobs, tenant="victim")
    try:
        batch.wait(WAIT_S)
    except TimeoutError:
        batch.cancel()
        return float("inf")
    took_s = time.monotonic() - began_s
    bad = [outcome.error for outcome in batch.outcomes() if not outcome.ok]
    assert not bad, bad
    return took_s


def alone_and_beside_s(client: Client, api: WhimsicalApi, kind: str) -> tuple[float, float]:
    """Return how long the victim's calls take alone and beside a hostile tenant of this kind."""
    name, hostile = api_name(kind), HOSTILE[kind]

    def slowest() -> float:
        return slowest_s(client, name, own_model=hostile.own_model)

    slowest()  # what has never worked starts slowly
    alone_s = min(slowest() for _ in range(2))
    before = api.calls[hostile.of]
    batches = hostile.attack(client, name)
    try:
        until(lambda: api.calls[hostile.of] >= before + hostile.calls, WAIT_S, f"{kind} under way")
        time.sleep(1.0)
        return alone_s, max(slowest() for _ in range(2))
    finally:
        for batch in batches:
            with suppress(BatchStateError):  # it is over
                batch.cancel()
