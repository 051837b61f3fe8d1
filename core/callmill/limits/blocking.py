"""BlockingLimiter: a limiter for programs that use threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, suppress
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias, TypeVar

from callmill.errors import UsageError, WaitTimeoutError
from callmill.jobs.traffic import NORMAL, TrafficClass
from callmill.limits.feedback import Observation
from callmill.limits.learning import Cause
from callmill.limits.limiter import Limiter
from callmill.limits.opening import open_limiter
from callmill.limits.slots import Slot
from callmill.limits.status import LimiterStatus

GUARD_KNOWN_FOR_S = 1.0

T = TypeVar("T")
Acquire: TypeAlias = Callable[[], Coroutine[Any, Any, Slot]]


class _Granted(NamedTuple):
    """A slot, and until when its thread may start the call."""

    slot: Slot
    latest: float


class _Turn:
    """One thread's wait for a slot, and what it got."""

    def __init__(self) -> None:
        self.future: Future[_Granted] = Future()


class BlockingLimiter(AbstractContextManager["BlockingLimiter"]):
    """A running limiter that any number of threads of a process share; see ``open_limiter`` for what it takes.

    It lives on an event loop in a thread of its own. A process that forks makes one in each child. Whatever a call
    costs or meets may still be reported when the limiter is closed; then it is ignored.

    Raises:
        UsageError: The name, a limit or an option is none.
        ConfigurationError: The URL is none of Redis.
    """

    def __init__(
        self,
        url: str,
        name: str,
        limits: Sequence[str],
        *,
        enforcer: str = "unknown",
        burst: int = 1,
        quantum: float | None = None,
        guard: float | None = None,
        keys: Sequence[str] = (),
    ) -> None:
        self._name = name
        self._pid = os.getpid()
        self._lock = threading.RLock()  # handlers of signals report, too
        self._closed = False
        self._closing: Future[None] = Future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._guard_s, self._guard_read = 0.0, float("-inf")
        opened = open_limiter(
            url, name, limits, enforcer=enforcer, burst=burst, quantum=quantum, guard=guard, keys=keys
        )
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run_loop, args=(opened, ready), name=f"callmill-limiter-{name}", daemon=True
        )
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            self._closing.set_result(None)
            raise

    def acquire(
        self,
        tokens: int = 0,
        *,
        output_tokens: int = 0,
        weight: int = 1,
        model: str = "",
        traffic: TrafficClass = NORMAL,
        timeout: float | None = None,
    ) -> Slot:
        """Wait for the start time of a call and return its slot, which has to be settled.

        Args:
            tokens: What the call is reserved to cost, its answer included.
            output_tokens: The part of it that is the answer's.
            weight: How many requests it counts as.
            model: The model that it names, where the API limits models.
            traffic: Its class.
            timeout: Seconds to wait at most; 0: do not wait; None: as long as it takes.

        Raises:
            WaitTimeoutError: No slot was due in time; nothing was taken.
            UsageError: The limiter is closed, or was while the call waited.
        """
        turn = _Turn()
        try:
            return self._wait(
                turn,
                lambda: self._limiter.acquire(
                    tokens, output_tokens=output_tokens, weight=weight, model=model, traffic=traffic
                ),
                timeout,
            )
        except BaseException:
            self._end(turn, 0)
            raise

    @contextmanager
    def slot(
        self,
        tokens: int = 0,
        *,
        output_tokens: int = 0,
        weight: int = 1,
        model: str = "",
        traffic: TrafficClass = NORMAL,
        timeout: float | None = None,
    ) -> Iterator[Slot]:
        """Make one call inside: wait for its slot, and settle it as reserved at the end unless that was done.

        Raises:
            WaitTimeoutError: No slot was due in time; nothing was taken.
            UsageError: The limiter is closed, or was while the call waited.
        """
        turn = _Turn()  # here before it is asked for, so that whatever interrupts us, what it got is found
        try:
            yield self._wait(
                turn,
                lambda: self._limiter.acquire(
                    tokens, output_tokens=output_tokens, weight=weight, model=model, traffic=traffic
                ),
                timeout,
            )
        finally:
            self._end(turn, None)

    def settle(self, slot: Slot, tokens_used: int | None, output_tokens_used: int | None = None) -> None:
        """The call is over: charge what it really cost, where known, and free its permit; repeats are ignored."""
        self._report(partial(self._limiter.settle, slot, tokens_used, output_tokens_used))

    def refused(self, slot: Slot, after_s: float | None, reason: str, *, cause: Cause = "", witness: str = "") -> None:
        """The API refused a call because of its limits: pause the fleet, and learn from it; see ``Limiter.refused``."""
        self._report(partial(self._limiter.refused, slot, after_s, reason, cause=cause, witness=witness))

    def accepted(self, slot: Slot) -> None:
        """The API took a call: refusals of earlier ones are over."""
        self._report(partial(self._limiter.accepted, slot))

    def feed(self, slot: Slot, observations: Sequence[Observation]) -> None:
        """Take what the headers of a call's answer say of the limits; see ``callmill.limits.headers``."""
        self._report(partial(self._limiter.feed, slot, observations))

    def pause(self, seconds: float, reason: str) -> None:
        """Let no call start for ``seconds``, here at once and in the fleet within milliseconds.

        Raises:
            UsageError: The limiter is closed.
        """
        self._ask(lambda: self._limiter.pause(seconds, reason))

    def status(self) -> LimiterStatus:
        """What this limiter does now.

        Raises:
            UsageError: The limiter is closed.
        """
        return self._ask(self._status)

    def close(self) -> None:
        """Stop; who waits gets a UsageError, what is settled reaches Redis if it can. Idempotent."""
        if os.getpid() != self._pid:
            return  # a child's copy: its thread is the parent's
        with self._lock:
            if not self._closed:
                self._closed = True
                self._closing.set_result(None)
        self._thread.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _wait(self, turn: _Turn, acquire: Acquire, timeout_s: float | None) -> Slot:
        deadline = None if timeout_s is None else monotonic() + timeout_s
        while True:
            left_s = None if deadline is None else max(0.0, deadline - monotonic())
            turn.future = Future()
            with self._while_open():
                self._loop.call_soon_threadsafe(self._begin, turn.future, acquire, left_s)
            slot, latest = turn.future.result()
            if monotonic() <= latest:
                return slot
            self.settle(slot, 0)  # this thread got its turn so late that the server would see it beside its successors

    def _end(self, turn: _Turn, tokens_used: int | None) -> None:
        """Give back or settle whatever a turn has come to."""
        future = turn.future
        if not future.cancel() and future.exception() is None:
            self.settle(future.result().slot, tokens_used)

    def _begin(self, future: Future[_Granted], acquire: Acquire, timeout_s: float | None) -> None:
        """Wait on the loop for one thread, until it gives up."""
        task = asyncio.get_running_loop().create_task(self._serve(future, acquire, timeout_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        future.add_done_callback(lambda ended: self._report(task.cancel) if ended.cancelled() else None)

    async def _serve(self, future: Future[_Granted], acquire: Acquire, timeout_s: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                slot = await acquire()
        except asyncio.CancelledError:
            _fail(future, self._is_closed())
            raise
        except TimeoutError:
            _fail(future, WaitTimeoutError(f"{self._name}: no slot within {timeout_s:.3g} s"))
        except UsageError as error:
            _fail(future, error)
        else:
            if future.set_running_or_notify_cancel():
                future.set_result(_Granted(slot, self._latest(slot)))
            else:  # the thread gave up in the moment in which it got the slot
                self._limiter.settle(slot, 0)

    def _latest(self, slot: Slot) -> float:
        """When the call has to have started: nothing forgives more than the guard."""
        if slot.group is None or not slot.group.paced:
            return float("inf")
        now = monotonic()
        if now - self._guard_read > GUARD_KNOWN_FOR_S:
            self._guard_s, self._guard_read = self._limiter.status().guard_s, now
        return slot.start + self._guard_s

    async def _status(self) -> LimiterStatus:
        return self._limiter.status()

    def _ask(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with self._while_open():
            future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise self._is_closed() from None

    def _report(self, news: Callable[[], object]) -> None:
        with suppress(UsageError), self._while_open():
            self._loop.call_soon_threadsafe(news)

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        """Keep it open until the block ends: what is given to the loop finishes before closing."""
        if os.getpid() != self._pid:  # before the lock, which a thread of the parent may have held
            raise UsageError(f"{self._name}: the limiter was made before this process was forked; make one in each")
        with self._lock:
            self._check_open()
            yield

    def _check_open(self) -> None:
        if self._closed:
            raise self._is_closed()

    def _is_closed(self) -> UsageError:
        return UsageError(f"{self._name}: the limiter is closed")

    def _run_loop(self, opened: AbstractAsyncContextManager[Limiter], ready: Future[None]) -> None:
        try:
            asyncio.run(self._live(opened, ready))
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    async def _live(self, opened: AbstractAsyncContextManager[Limiter], ready: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        async with opened as self._limiter:
            ready.set_result(None)
            await asyncio.wrap_future(self._closing)


def _fail(future: Future[_Granted], error: Exception) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
