"""A limiter that starts the calls of a caller: when, how many, whose, and what does not hold what back."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from itertools import count, islice
from statistics import median
from time import monotonic

from limits_kit import rules
from msgspec.structs import replace
from redis.asyncio import Redis
from started_limiter import started, until

from callmill.jobs.traffic import NORMAL, Priority, TrafficClass
from callmill.limits import Limiter, Slot
from callmill.limits.cost import ONE_REQUEST, Cost
from callmill.limits.layout import Layout
from callmill.limits.limiter import MOST_IDLE_GROUPS
from callmill.limits.refill import EXCHANGE_GAP_S
from callmill.limits.reservation import Grant, Request
from callmill.limits.store import LimitStore

BULK, URGENT = TrafficClass(Priority.BULK), TrafficClass(Priority.INTERACTIVE)
PATIENCE_S = 20

Kind = tuple[TrafficClass, str, int]


class Queue:
    """The calls of one kind: no more than a count."""

    def __init__(self, crowd: Crowd, kind: Kind) -> None:
        self.wanting = self.held = 0
        self._crowd = crowd
        self._kind = kind

    @property
    def any(self) -> bool:
        """Whether there are calls, though they may be held."""
        return self.wanting + self.held > 0

    def costs(self, skip: int, count: int) -> list[Cost]:
        """What the next calls cost."""
        return [ONE_REQUEST] * min(count, self.wanting - skip)

    def start(self, slot: Slot) -> bool:
        """Start one."""
        if not self.wanting:
            return False
        self.wanting -= 1
        self._crowd.begin(self._kind, slot)
        return True


class Crowd:
    """Calls of many kinds, of which so many may be under way."""

    def __init__(self, limiter: Limiter, room: int) -> None:
        self.most = room
        self.under_way: deque[Slot] = deque()
        self.began: list[tuple[Kind, float, float]] = []
        self._limiter = limiter
        self._queues: dict[Kind, Queue] = {}
        self._news = asyncio.Event()
        limiter.serve(self)

    def room(self) -> int:
        """What is left of it."""
        return self.most - len(self.under_way)

    places = room

    def calls(self, traffic: TrafficClass, model: str, weight: int) -> Queue:
        """The queue of a kind."""
        return self._queues.setdefault((traffic, model, weight), Queue(self, (traffic, model, weight)))

    def adopt(self) -> None:
        """Tell the limiter of all that waits."""
        for (traffic, model, weight), queue in list(self._queues.items()):
            if queue.wanting:
                self._limiter.wanted(traffic, model, weight)

    def add(
        self, count: int, *, traffic: TrafficClass = NORMAL, model: str = "", weight: int = 1, held: bool = False
    ) -> None:
        """Let calls wait; those that are ``held`` may not start yet."""
        queue = self.calls(traffic, model, weight)
        queue.wanting, queue.held = queue.wanting + count * (not held), queue.held + count * held
        self._limiter.wanted(traffic, model, weight)

    def begin(self, kind: Kind, slot: Slot) -> None:
        """Note a call that starts; one that is late waits for another slot."""
        if not self._limiter.accept(slot):
            self.calls(*kind).wanting += 1
            return
        self.began.append((kind, slot.start, monotonic()))
        self.under_way.append(slot)
        self._news.set()

    def hold(self) -> None:
        """Let no call start that waits."""
        for queue in self._queues.values():
            queue.held, queue.wanting = queue.wanting, 0

    def let_go(self) -> None:
        """Let them start again."""
        for queue in self._queues.values():
            queue.wanting, queue.held = queue.held, 0
        self._limiter.look()

    def end(self, count: int = 1) -> None:
        """Let the oldest calls be over."""
        for _ in range(count):
            slot = self.under_way.popleft()
            self._limiter.settle(slot, None)

    async def come_to(self, count: int) -> None:
        """Wait until so many have begun."""
        while len(self.began) < count:
            self._news.clear()
            await self._news.wait()

    @property
    def by_class(self) -> Counter[TrafficClass]:
        """How many of each class have begun."""
        return Counter(kind[0] for kind, _, _ in self.began)


def run(redis_url: str, scene: Callable[[Limiter], Awaitable[None]], *limits: str) -> None:
    """Play a scene with a limiter of these limits."""

    async def main() -> None:
        async with started(redis_url, rules(*limits)) as limiter, asyncio.timeout(PATIENCE_S):
            await scene(limiter)

    asyncio.run(main())


def test_each_call_starts_when_its_slot_is_due(redis_url):
    """Calls begin by themselves, one in each slot, none before its time."""

    async def scene(limiter: Limiter) -> None:
        crowd = Crowd(limiter, 1000)
        crowd.add(60)
        await crowd.come_to(60)
        assert all(at >= start for _, start, at in crowd.began)
        starts = [start for _, start, _ in crowd.began]
        assert starts == sorted(set(starts))
        assert limiter.status().fired == 60

    run(redis_url, scene, "300/second")


def test_no_more_calls_are_under_way_than_there_is_room_for(redis_url):
    """With room for three the fourth begins when one of them is over, and not before."""

    async def scene(limiter: Limiter) -> None:
        crowd = Crowd(limiter, 3)
        crowd.add(10)
        await crowd.come_to(3)
        await asyncio.sleep(0)
        assert len(crowd.began) == 3
        crowd.end()
        await crowd.come_to(4)
        assert len(crowd.began) == 4
        crowd.end(3)
        await crowd.come_to(7)
        assert (len(crowd.began), crowd.room()) == (7, 0)

    run(redis_url, scene, "none")


def test_classes_share_what_room_there_is_by_their_weights(redis_url):
    """Where only room is scarce, an interactive class gets eight calls for one of a bulk class that came before it."""

    async def scene(limiter: Limiter) -> None:
        crowd = Crowd(limiter, 1)
        crowd.add(500, traffic=BULK)
        crowd.add(500, traffic=URGENT)
        for _ in range(179):
            crowd.end()
        assert crowd.by_class[URGENT] in {159, 160, 161}
        assert crowd.by_class.total() == 180

    run(redis_url, scene, "none")


def test_a_model_that_may_not_start_holds_no_other_back(redis_url):
    """Behind a thousand calls of a model that is paused, those of another one start as ever."""

    async def scene(limiter: Limiter) -> None:
        crowd = Crowd(limiter, 100)
        await limiter.pause(60, "429", "model:slow")
        crowd.add(1000, model="slow")
        crowd.add(40, model="fast")
        await crowd.come_to(40)
        assert {kind[1] for kind, _, _ in crowd.began} == {"fast"}

    run(redis_url, scene, "200/second per model")


def test_what_waits_goes_on_when_other_limits_hold(redis_url):
    """Calls that wait behind a limit of five a second go on at once when a higher one holds, and keep that."""

    async def scene(limiter: Limiter) -> None:
        crowd = Crowd(limiter, 1000)
        crowd.add(1000)
        await crowd.come_to(1)
        limiter.reconfigure(rules("400/second"))
        began = monotonic()
        await crowd.come_to(200)
        assert 0.4 < monotonic() - began < 5

    run(redis_url, scene, "5/second")


def test_a_place_that_a_start_itself_takes_away_is_seen(redis_url):
    """A call that starts may leave no room for the next one, or bring room for others: both hold at once."""

    async def scene(limiter: Limiter) -> None:
        crowd = Crowd(limiter, 5)
        before, crowd_begin = len(crowd.began), crowd.begin

        def begin(kind: Kind, slot: Slot) -> None:
            crowd_begin(kind, slot)
            if len(crowd.began) == 2:
                crowd.most = 8
                limiter.look()

        crowd.begin = begin  # type: ignore[method-assign]
        crowd.add(20)
        assert len(crowd.began) - before == 8

    run(redis_url, scene, "none")


def test_calls_that_may_not_start_for_a_while_are_not_forgotten(redis_url):
    """However many kinds of calls are held, as those of an API that is down, all of them start when they may again."""

    async def scene(limiter: Limiter) -> None:
        crowd = Crowd(limiter, 1000)
        limiter.hold(0.2, "until all have come")
        for number in range(2 * MOST_IDLE_GROUPS):
            crowd.add(1, model=f"m{number}")
        crowd.hold()
        limiter._look_for_idle()
        crowd.let_go()
        await crowd.come_to(2 * MOST_IDLE_GROUPS)

    run(redis_url, scene, "5 concurrent per model", "none")


def test_slots_are_asked_for_when_permits_are_back(redis_url):
    """A call that waits for a slot while its worker has no permits gets one when permits are there again."""

    async def scene(limiter: Limiter) -> None:
        async with started(redis_url, limiter.rules, "other") as other:
            held = [await other.acquire() for _ in range(5)]
            waiting = asyncio.create_task(limiter.acquire())
            await until(lambda: limiter.status().waiting)
            for slot in held:
                other.settle(slot, None)
            limiter.settle(await waiting, None)

    run(redis_url, scene, "20/second", "5 concurrent")


def test_calls_that_hang_leave_places_to_other_classes(redis_url):
    """However many calls of one class hang, a call of another class has a place in the process at once."""

    async def scene(limiter: Limiter) -> None:
        crowd = Crowd(limiter, 200)
        crowd.add(1000)
        await crowd.come_to(190)
        crowd.add(1, traffic=URGENT)
        while not crowd.by_class[URGENT]:
            await crowd.come_to(len(crowd.began) + 1)
        assert 0 < crowd.room() < 200 // 64 + 2

    run(redis_url, scene, "none")


def test_calls_that_hang_hold_no_other_class_up_where_places_are_learned(redis_url):
    """When calls of one class hang in all places that were learned, another has half as many, and none beyond them."""

    async def scene(limiter: Limiter) -> None:
        crowd = Crowd(limiter, 1000)
        crowd.add(1000)
        await crowd.come_to(4)
        crowd.add(1000, traffic=URGENT)
        while not crowd.by_class[URGENT]:
            await crowd.come_to(len(crowd.began) + 1)
        granted = limiter.status().permits
        assert granted is not None
        assert crowd.by_class[NORMAL] + crowd.by_class[URGENT] <= granted + max(1, granted // 2)

    run(redis_url, scene)


def test_a_slot_that_was_too_late_leaves_its_place_to_another_call(redis_url):
    """The end of a call that did not start, for its slot was gone, is an end: the next one has its place."""

    async def scene(limiter: Limiter) -> None:
        crowd = Crowd(limiter, 1)
        crowd.add(2)
        slot = crowd.under_way.popleft()
        slot.open = False
        slot.give_permits()
        limiter.settle(slot, None)
        await crowd.come_to(2)

    run(redis_url, scene, "none")


def test_who_gives_up_with_a_slot_in_hand_has_started_nothing(redis_url):
    """A caller that is cancelled in the moment in which it gets its slot is not counted among those that started."""

    async def scene(limiter: Limiter) -> None:
        waiting = asyncio.create_task(limiter.acquire())
        while not limiter.status().fired:  # noqa: ASYNC110 - the limiter tells its state only to those who ask
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
        assert limiter.status().fired == 0

    run(redis_url, scene, "20/second")


def test_slots_that_are_lost_now_and_then_hold_nobody_up(redis_url):
    """Under a limit out of reach, calls do not pile up where exchanges take a while and some slots are lost."""

    async def scene(limiter: Limiter) -> None:
        crowd, stock, reserve = Crowd(limiter, 1000), limiter._default.stock, limiter._store.reserve
        waiting: list[int] = []

        async def reserve_slowly(layout: Layout, request: Request) -> Grant:
            await asyncio.sleep(0.004)
            return await reserve(layout, request)

        async def turn(number: int) -> None:
            if limiter.status().waiting < 1000:
                crowd.add(8)
            await asyncio.sleep(0.001)
            crowd.end(len(crowd.under_way))
            stock.missed += number % 20 == 0
            waiting.append(limiter.status().waiting)

        limiter._store.reserve = reserve_slowly  # type: ignore[method-assign]
        turns = count()
        while limiter.status().fired < 4000:  # its first slots are due half a second later, and it learns its pace
            await turn(next(turns))
        waiting.clear()
        for number in islice(turns, 1000):
            await turn(number)
        assert median(waiting) < 500

    run(redis_url, scene, "50000/second")


def test_a_call_asks_for_its_slot_though_another_waits_with_one(redis_url):
    """A call that comes while another waits for its slot to be due asks for one at once."""

    async def scene(limiter: Limiter) -> None:
        limiter.settle(await limiter.acquire(), None)
        group = limiter._default
        first = asyncio.create_task(limiter.acquire())
        while not len(group.stock):  # noqa: ASYNC110 - the limiter tells its state only to those who ask
            await asyncio.sleep(0.001)
        second = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        assert limiter._refills[group]._next_at() <= monotonic() + EXCHANGE_GAP_S
        for waiting in (first, second):
            limiter.settle(await waiting, None)

    run(redis_url, scene, "10/second")


def test_a_resume_during_an_exchange_is_not_forgotten(redis_url):
    """What an exchange learnt of when to ask again is void if its limits were freed while it was under way."""

    async def scene(limiter: Limiter) -> None:
        refill, reserve = limiter._refills[limiter._default], limiter._store.reserve

        async def reserve_and_resume(layout: Layout, request: Request) -> Grant:
            grant = await reserve(layout, request)
            limiter._store.reserve = reserve  # type: ignore[method-assign]
            refill.sync(ask_again=True)
            return replace(grant, again_us=int(1e12))

        limiter._store.reserve = reserve_and_resume  # type: ignore[method-assign]
        await refill.exchange(calls=1)
        assert refill._next_at() <= monotonic()

    run(redis_url, scene, "10/second")


def test_calls_that_may_start_now_need_not_wait_for_the_end_of_a_guess(redis_url):
    """Calls that something else held while another class's refusal paused the API start soon once that lets go."""

    async def scene(limiter: Limiter) -> None:
        crowd = Crowd(limiter, 0)
        async with Redis.from_url(redis_url) as redis:
            await LimitStore(redis, "api", "other").pause([], 60, "429", guessed_s=60, refused=str(BULK))
        await until(lambda: limiter.status().paused_for_s)
        crowd.add(1, traffic=URGENT, held=True)
        crowd.most = 10
        crowd.let_go()
        await crowd.come_to(1)

    run(redis_url, scene, "100/second")
