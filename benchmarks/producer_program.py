"""A producer as a program of its own, which watches its own memory and time.

``python -m producer_program JOBS PATH [--own-ids] [--max-pending N]`` submits one batch to $CALLMILL_REDIS_URL and
prints ``{"jobs_per_s", "cpu_us", "growth_mb"}``. A small batch comes first, so that what every producer needs is not
counted.
"""

from __future__ import annotations

import argparse
import json
import os
import time

from proc import peak_rss_mb, rss_mb
from workload import jobs

from callmill.producer import Client

_FIRST_JOBS = 10_000


def main(count: int, path: str, *, own_ids: bool, max_pending: int | None) -> dict[str, float]:
    """Submit and return what it took."""
    with Client() as client:
        if max_pending is None:
            client.submit(jobs(_FIRST_JOBS, path, own_ids=own_ids), name="first").delete()
        settled_mb = rss_mb(os.getpid())
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        client.submit(jobs(count, path, own_ids=own_ids), name="measured", max_pending=max_pending)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    growth_mb = peak_rss_mb(os.getpid()) - settled_mb
    return {"jobs_per_s": count / wall_s, "cpu_us": cpu_s / count * 1e6, "growth_mb": growth_mb}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("jobs", type=int)
    parser.add_argument("path")
    parser.add_argument("--own-ids", action="store_true")
    parser.add_argument("--max-pending", type=int)
    given = parser.parse_args()
    print(json.dumps(main(given.jobs, given.path, own_ids=given.own_ids, max_pending=given.max_pending)))
