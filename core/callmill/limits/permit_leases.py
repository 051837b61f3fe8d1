"""PermitLeases: every concurrency limit of an API, of its models and of its credentials, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from time import monotonic

from callmill.config.cancelling import end_tasks
from callmill.errors import RedisUnavailableError
from callmill.limits.permits import UNLIMITED, PermitLease, Permits, PermitSet, PermitStore
from callmill.limits.rules import LimitRules, concurrency
from callmill.limits.slots import Slot
from callmill.limits.turns import Turn


class PermitLeases:
    """Permits of every scope, and the tasks that keep their leases."""

    def __init__(
        self, store: PermitStore, rules: LimitRules, *, waiting: Callable[[str], int], on_change: Callable[[str], None]
    ) -> None:
        self._store = store
        self._rules = rules
        self._waiting = waiting
        self._on_change = on_change
        self._leases: dict[str, PermitLease] = {}
        self._contended: set[PermitLease] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Future[None]] = set()
        self._running = False
        self._api = Permits(None)
        self._models: dict[str, Permits] = {}
        self._keys = [Permits(None, f"key:{key.name}") for key in rules.keys]
        self.adopt(rules)

    def of(self, model: str, turn: Turn, traffic: str) -> PermitSet:
        """What the calls of a model and class need permits of."""
        shared = [self._api]
        limit = concurrency(self._rules.of_model(model))
        if limit is not None:
            if model not in self._models:
                self._models[model] = Permits(limit, f"model:{model}")
                self._keep(self._models[model], traffic)
            shared.append(self._models[model])
        return PermitSet(shared, self._keys if any(keys.limited for keys in self._keys) else (), turn=turn)

    def has_own(self, model: str) -> bool:
        """Whether the calls of a model need permits that others do not."""
        return model in self._models

    def learner(self, key: int) -> Permits:
        """The permits that show how many calls may be in flight with a credential, where nobody wrote it down."""
        return self._api if len(self._keys) == 1 else self._keys[key]

    def is_crowded(self, permits: Permits) -> bool:
        """Whether calls wait for permits of a limit that is learned."""
        return permits.learns and permits.free <= 0 and self._waiting(permits.scope) > 0

    def answered(self, slot: Slot) -> None:
        """A call is over that was not refused: what its latency tells counts where calls in flight are learned."""
        if (permits := self.learner(slot.key)).learns:
            permits.answered(monotonic() - slot.start)

    def try_with(self, most: int) -> None:
        """Have no more calls in flight here than so many, with each credential, until the API takes one."""
        for permits in self._tried() if most < UNLIMITED else [self._api, *self._keys]:
            permits.try_with(most)
        self._on_change(self._api.scope)

    def exceed(self) -> None:
        """Let one call of a class that has none in flight start without a permit: another worker may have it."""
        for permits in self._tried():
            permits.exceed()

    def lift(self) -> None:
        """Redis has been told of a refusal: it says how many calls there may be in flight."""
        for permits in [self._api, *self._keys]:
            permits.lift()
        self.sync()

    @property
    def limited(self) -> bool:
        """Whether there is any such limit, or calls are few after a pause."""
        return bool(self._leases) or self._api.cap < UNLIMITED

    @property
    def in_flight(self) -> int:
        """Calls started and not settled."""
        return self._api.used

    @property
    def granted(self) -> int | None:
        """Permits of the API held here; None without such a limit."""
        return self._api.granted if self._api.limited else None

    @property
    def round_trips(self) -> int:
        """Exchanges with Redis since the start."""
        return sum(lease.round_trips for lease in self._leases.values())

    def demand(self, model: str) -> None:
        """Calls of a model wait: see whether they lack permits."""
        for permits in (self._api, *self._keys, self._models.get(model)):
            if permits is not None and (lease := self._leases.get(permits.scope)) is not None:
                lease.demand()

    def sync(self) -> None:
        """Redis may have forgotten the leases: tell them soon."""
        for lease in self._leases.values():
            lease.sync()

    def sync_one(self, scope: str) -> None:
        """Redis may have forgotten the lease of a scope, or others lack its permits: tell soon what is in use."""
        if (lease := self._leases.get(scope)) is not None:
            lease.sync()

    def adopt(self, rules: LimitRules) -> None:
        """Let other limits hold; calls in flight keep what they have."""
        self._rules = rules
        self._api.limit = concurrency(rules.of_api())
        for permits, key in zip(self._keys, rules.keys, strict=True):
            permits.limit = concurrency(rules.of_key(key))
        for model, permits in self._models.items():
            permits.limit = concurrency(rules.of_model(model))
        for permits in self._keys if len(self._keys) > 1 else [self._api]:
            permits.learns = rules.learns_in_flight
        for permits in self._all():
            if permits.limited:
                self._keep(permits)

    def keep(self, models: Collection[str]) -> None:
        """Forget the permits of all other models that are not in use."""
        for model in [name for name, permits in self._models.items() if name not in models and not permits.used]:
            scope = self._models.pop(model).scope
            lease, task = self._leases.pop(scope, None), self._tasks.pop(scope, None)
            if lease is not None and task is not None:
                task.cancel()
                self._ending.add(ending := asyncio.ensure_future(_end(task, lease)))
                ending.add_done_callback(self._ending.discard)

    def start(self) -> None:
        """Keep the leases from now on."""
        self._running = True
        for scope, lease in self._leases.items():
            self._tasks[scope] = asyncio.create_task(lease.run())

    async def aclose(self) -> None:
        """Stop, and give back what is not in use. Idempotent."""
        tasks, self._tasks = self._tasks, {}
        self._running = False
        await asyncio.gather(*self._ending)
        for scope, task in tasks.items():
            await end_tasks([task])
            with suppress(RedisUnavailableError):
                await self._leases[scope].release()

    def _tried(self) -> list[Permits]:
        """What is held back after a pause: each credential where it has permits of its own, else all calls."""
        return self._keys if any(permits.limited for permits in self._keys) else [self._api]

    def _all(self) -> Iterator[Permits]:
        yield self._api
        yield from self._keys
        yield from self._models.values()

    def _wanting(self, permits: Permits) -> int:
        """How many more permits are of use: for the calls that wait, and for a credential's part of all calls."""
        waiting = self._waiting(permits.scope)
        if not permits.learns or len(self._keys) == 1:
            return waiting
        calls = waiting + sum(keys.used for keys in self._keys)
        return max(waiting, -(-calls // len(self._keys)) - permits.used)

    def _keep(self, permits: Permits, traffic: str = "") -> None:
        if permits.scope in self._leases:
            return
        lease = PermitLease(
            self._store,
            permits,
            wanting=lambda: self._wanting(permits),
            on_change=lambda: self._on_change(permits.scope),
            contended=self._contended,
            traffic=traffic,
        )
        self._leases[permits.scope] = lease
        if self._running:
            self._tasks[permits.scope] = asyncio.create_task(lease.run())


async def _end(task: asyncio.Task[None], lease: PermitLease) -> None:
    await end_tasks([task])
    with suppress(RedisUnavailableError):
        await lease.release()
