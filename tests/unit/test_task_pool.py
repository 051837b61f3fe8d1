"""How Celery's pool of threads is ended."""

from __future__ import annotations

import threading

from celery.worker import state

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
