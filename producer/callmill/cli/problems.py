"""What is wrong now and wants somebody to look, the worst first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from msgspec import Struct

from callmill.cli.limits_view import pause_in_words
from callmill.ledger.fleet import WorkerStatus
from callmill.overview.api_now import ApiNow
from callmill.overview.served import WaitsElsewhere

_WORTH_TELLING_S = 2.0
"""A shorter pause is how an API that refuses a call now and then is paced."""


class Problem(Struct, frozen=True):
    """One thing that is wrong.

    Attributes:
        what: Its kind, a stable word for programs.
        about: The API or the worker; empty: all of them.
        text: What it is, and the remedy where there is one, in words.
    """

    what: str
    about: str
    text: str


def fleet_problems(
    apis: Sequence[ApiNow],
    workers: Sequence[WorkerStatus],
    waiting: Sequence[str],
    memory: str,
    elsewhere: Sequence[WaitsElsewhere] = (),
) -> list[Problem]:
    """Return what is wrong.

    Args:
        apis: Every API.
        workers: Every worker.
        waiting: APIs of which chunks wait to be taken.
        memory: Why Redis has no room; empty where it has.
        elsewhere: Chunks that wait for workers serving another API of the same name.
    """
    others = [Problem("other_api", waits.api, waits.text) for waits in elsewhere]
    return [*_redis(memory), *_workers(workers, waiting), *others, *_versions(workers), *_apis(apis)]


def _redis(memory: str) -> Iterator[Problem]:
    if memory:
        yield Problem("redis_full", "", memory)


def _workers(workers: Sequence[WorkerStatus], waiting: Sequence[str]) -> Iterator[Problem]:
    if not workers:
        yield Problem("no_worker", "", "no worker runs: start one with `callmill worker`")
        return
    served = {api for worker in workers for api in worker.apis}
    for api in waiting:
        if api not in served and not any(worker.unreadable for worker in workers):
            yield Problem("no_worker", api, f"no worker serves {api}: start one with `callmill worker`")
    held = defaultdict(list)
    for worker in workers:
        if worker.held:
            held[worker.held].append(f"{worker.host}/{worker.pid}")
    for reason, names in held.items():
        which = f"worker {names[0]} holds" if len(names) == 1 else f"{len(names)} workers hold"
        yield Problem("held", "", f"{which}: {reason}")


def _versions(workers: Sequence[WorkerStatus]) -> Iterator[Problem]:
    for worker in workers:
        if worker.newer_format:
            which, who = ", ".join(worker.newer_format), f"worker {worker.host}/{worker.pid}"
            text = f"{who} leaves {which} alone: a newer Callmill wrote it; upgrade this worker"
            yield Problem("newer_format", worker.id, text)
        if worker.unreadable:
            text = f"worker {worker.id} is of a newer Callmill, whose reports cannot be read here: upgrade this program"
            yield Problem("newer_worker", worker.id, text)


def _apis(apis: Sequence[ApiNow]) -> Iterator[Problem]:
    for api in apis:
        if api.paused_s is None or api.paused_s >= _WORTH_TELLING_S:
            served = f"; its calls go to {api.diverted_to}" if api.diverted_to else ""
            how = pause_in_words(api.paused_s, api.pause_reason, api.paused_by)
            yield Problem("paused", api.api, f"{api.api} is paused {how}{served}")
        if api.held:
            yield Problem("api_held", api.api, api.held)
        if api.down:
            yield Problem("breaker_open", api.api, api.down)
        aside = [key.name for key in api.keys if key.paused_s != 0]
        if aside:
            yield Problem(
                "key_aside", api.api, f"{api.api}: {len(aside)} of {len(api.keys)} keys set aside: {', '.join(aside)}"
            )
