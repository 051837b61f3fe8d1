"""TaskPool: Celery's thread pool with an engine behind it, which drains when the worker is asked to stop."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.worker import state

from callmill.workers import process
from callmill.workers.lane_switch import MOST_THREADS_FOR_LINES


class _CancellableResult(ApplyResult):  # type: ignore[misc] # celery ships no types
    def terminate(self, signal: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Do what ``terminate_job`` does: Celery asks for both, for this only while it still hands the task over."""
        process.drain()


class TaskPool(ThreadPool):  # type: ignore[misc] # celery ships no types
    """One thread per chunk; all calls of all chunks on the engine's one event loop."""

    _job_ids = itertools.count(1)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Celery's own could not grow with the lines; an executor starts a thread only when there is a task for it.
        self.executor = ThreadPoolExecutor(max_workers=self.limit + MOST_THREADS_FOR_LINES)

    def on_start(self) -> None:
        """Start the engine: at the pool's start and not at import, because of forks."""
        process.engine()
        # What exists now is never freed. Each full collection would scan it, and stop every call for 60 ms.
        gc.collect()
        gc.freeze()
        super().on_start()

    def on_close(self) -> None:
        """Begin to drain: the first thing that happens when a worker stops."""
        process.drain()
        super().on_close()

    def on_stop(self) -> None:
        """Wait for the chunks, then end the engine; on a cold shutdown only begin to."""
        process.drain()
        if state.should_terminate:
            # Celery asks in its signal handler, which may have interrupted this very thread while it handed a task to
            # the executor: to wait for the executor's lock here would be for ever. ``on_terminate`` follows.
            return
        self._end()

    def on_terminate(self) -> None:
        """Wait for the chunks on a cold shutdown as well: their leases would otherwise have to run out."""
        process.drain()
        self._end()

    def _end(self) -> None:
        super().on_stop()
        process.stop()

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        **_: Any,
    ) -> ApplyResult:
        """Run a task in a thread, under an id of its own, so that ``terminate_job`` means one task."""
        future = self.executor.submit(
            apply_target, target, args, kwargs, callback, accept_callback, pid=next(self._job_ids)
        )
        return _CancellableResult(future)

    def terminate_job(self, pid: int, signal: Any = None) -> None:  # noqa: ARG002 - Celery's signature
        """Drain: a thread cannot be killed, and without this method a cold shutdown crashes."""
        process.drain()
