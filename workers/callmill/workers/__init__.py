"""The workers: Celery's app with our tasks, pool and queues, as ``celery -A callmill.workers worker`` finds it."""

from callmill.config.celery import app
from callmill.workers import startup, tasks

__all__ = ["app", "startup", "tasks"]
