"""A producer that may be killed at any moment: ``python writer.py URL BATCH API JOBS START PAUSE_S``.

Started again, it goes on with the batch that it finds. It prints a line for each part that is written.
"""

from __future__ import annotations

import asyncio
import sys

from callmill.errors import BatchNotFoundError, BatchStateError, RedisUnavailableError
from callmill.jobs import packing
from callmill.producer import AsyncClient, Job, submission
from callmill.producer.submission import Submission

submission.WINDOW_JOBS = 500  # so that a kill meets a batch half written
packing.FIRST_CHUNK_JOBS = packing.LARGEST_CHUNK_JOBS = 50  # and workers claim and finish often


async def main(url: str, batch_id: str, api: str, jobs: int, *, start: str, pause_s: float) -> None:
    """Submit what of the batch is not submitted yet."""
    async with AsyncClient(url) as client:
        batch = await _opened(client, batch_id, start)
        if batch is None:
            return
        for index in range(batch._position, jobs):
            if batch.add(Job("POST", f"/{index}", api=api, json={"index": index})):
                await _persist(batch.flush)
                print(index, flush=True)  # noqa: T201 - who kills it waits for this
                await asyncio.sleep(pause_s)
        await _persist(batch.seal)


async def _opened(client: AsyncClient, batch_id: str, start: str) -> Submission | None:
    while True:
        try:
            return await client.resume_submission(batch_id, start=start)  # type: ignore[arg-type]
        except BatchNotFoundError:
            try:
                return await client.open_submission(batch_id=batch_id, start=start)  # type: ignore[arg-type]
            except RedisUnavailableError:
                await asyncio.sleep(0.1)
        except BatchStateError:  # an earlier life sealed it
            return None
        except RedisUnavailableError:
            await asyncio.sleep(0.1)


async def _persist(step):
    while True:
        try:
            return await step()
        except RedisUnavailableError:
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    _, url_, batch_, api_, jobs_, start_, pause_ = sys.argv
    asyncio.run(main(url_, batch_, api_, int(jobs_), start=start_, pause_s=float(pause_)))
