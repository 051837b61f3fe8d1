"""What people write without Callmill: one Celery task per call, requests.Session, autoretry, late acknowledgement.

``celery -A baselines.plain_celery worker`` makes the calls; ``python -m baselines.plain_celery CALLS`` sends the tasks
and prints ``{"jobs_per_s", "cpu_us"}``. Environment: $PLAIN_BROKER_URL and $PLAIN_RESULTS_URL are databases of Redis,
$PLAIN_API_URL is what is called.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import requests
from celery import Celery
from requests.adapters import HTTPAdapter
from workload import request_body

app = Celery("baselines.plain_celery", broker=os.environ["PLAIN_BROKER_URL"], backend=os.environ["PLAIN_RESULTS_URL"])
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=4, broker_connection_retry_on_startup=True)

session = requests.Session()
session.mount("http://", HTTPAdapter(pool_maxsize=200))


@app.task(  # type: ignore[untyped-decorator] # celery ships no types
    name="plain_celery.call", autoretry_for=(requests.RequestException,), retry_backoff=True, max_retries=5
)
def call(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Make one call and return its answer."""
    response = session.post(url, json=body, headers={"Authorization": "Bearer secret"}, timeout=30)
    response.raise_for_status()
    return {"status": response.status_code, "body": response.json()}


def send(calls: int) -> dict[str, float]:
    """Send the tasks over one producer, the fastest way that Celery offers."""
    url = os.environ["PLAIN_API_URL"]
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    with app.producer_pool.acquire(block=True) as producer:
        for number in range(calls):
            call.apply_async((url, request_body(number)), producer=producer)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    return {"jobs_per_s": calls / wall_s, "cpu_us": cpu_s / calls * 1e6}


if __name__ == "__main__":
    print(json.dumps(send(int(sys.argv[1]))))
