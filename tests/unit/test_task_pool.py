"""How Celery's pool of threads is ended."""

from __future__ import annotations

import gc
import signal
import threading

from celery.worker import state

from callmill.workers import process
from callmill.workers.pool import TaskPool


def test_a_cold_shutdown_may_come_while_a_task_is_handed_over(monkeypatch):
    """What Celery asks in its signal handler needs no lock that the interrupted thread may hold."""
    monkeypatch.setattr(state, "should_terminate", True)
    pool = TaskPool(2)
    with pool.executor._shutdown_lock:  # as ``submit`` holds it
        asked = threading.Thread(target=pool.stop, daemon=True)
        asked.start()
        asked.join(10)
        assert not asked.is_alive()
    pool.terminate()
    assert pool.executor._shutdown


def test_a_task_that_is_being_handed_over_can_be_cancelled(monkeypatch):
    """Celery's cold shutdown finds its result alive then and ends it: the engine drains, nothing is raised."""
    drained = threading.Event()
    monkeypatch.setattr(process, "drain", drained.set)
    pool = TaskPool(1)
    result = pool.apply_async(lambda: None, accept_callback=lambda *_: None, callback=lambda *_: None)
    result.terminate(signal.SIGTERM)
    assert drained.is_set()
    pool.terminate()


def test_what_a_worker_starts_with_is_never_looked_through_for_garbage(monkeypatch):
    """When the pool has started, a full collection concerns only what came later: it stops no call for long."""
    monkeypatch.setattr(process, "engine", lambda: None)
    pool = TaskPool(1)
    before = gc.get_freeze_count()
    try:
        pool.start()
        assert gc.get_freeze_count() > before
        assert len(gc.get_objects()) < gc.get_freeze_count() / 100
    finally:
        gc.unfreeze()
        pool.terminate()
