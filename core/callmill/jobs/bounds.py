"""Bounds: how large a job, a chunk and a bundle of outcomes may be. Writers keep them, readers check them."""

from __future__ import annotations

MAX_METHOD_LENGTH = 32
MAX_URL_LENGTH = 64 * 1024
MAX_ID_LENGTH = 512
MAX_MODEL_LENGTH = 200
MAX_KEY_LENGTH = 512
MAX_CONTENT_TYPE_LENGTH = 1024
MAX_HEADERS = 100
MAX_HEADERS_LENGTH = 64 * 1024
"""Characters of all header names and values of a job; servers commonly take 8 to 64 KiB."""
MAX_BODY_BYTES = 16 * 1024 * 1024

MAX_TIMEOUT_S = 24 * 3600.0
MAX_AMOUNT = 10**12
"""Tokens or requests of one job. Sums of very many jobs stay below 2^53, up to which Lua counts."""
EARLIEST_MS, LATEST_MS = -62_135_596_800_000, 253_402_300_799_999
"""The years 1 to 9999, which is what a datetime can say."""
MAX_INDEX = 2**53 - 1

CHUNK_BYTES = 256 * 1024
"""A chunk is full at this many bytes, before compression, however few its jobs."""
MAX_CHUNK_JOBS = 4096
"""Chunks are full at 500 jobs; more than that are only read."""
MAX_CHUNK_BYTES = 20 * 1024 * 1024
"""A chunk that was nearly full, and then took the largest job; with and without compression."""
SMALL_CHUNK_BYTES = 2 * CHUNK_BYTES
"""Of more compressed bytes are chunks with very large jobs only: workers first look whether they have room for them."""

MAX_BUNDLE_BYTES = 512 * 1024 * 1024
"""What Redis takes in one piece; no bundle of outcomes unpacks to more."""
