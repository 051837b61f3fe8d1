"""The Celery tasks: a chunk of a batch, and the plain call for people's own canvases."""

from __future__ import annotations

from callmill.config.celery import app
from callmill.ledger import ChunkRef
from callmill.ledger.hints import RUN_CHUNK
from callmill.workers import process


@app.task(name=RUN_CHUNK, ignore_result=True)  # type: ignore[untyped-decorator] # celery ships no types
def run_chunk(batch_id: str, number: int, api: str) -> str:
    """Execute a chunk; return what came of it, for people."""
    return process.engine().run_chunk(ChunkRef(batch_id, number, api))
