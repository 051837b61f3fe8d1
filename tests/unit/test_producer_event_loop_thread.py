"""The loop thread of the synchronous client: what was begun on it ends, wherever Python ends it."""

from __future__ import annotations

import subprocess
import sys

BEGUN = """
import gc
from callmill.producer.event_loop_thread import EventLoopThread

closed = []

async def numbers():
    try:
        for number in range(3):
            yield number
    finally:
        closed.append(True)

shared = EventLoopThread.shared()
iteration = shared.iterate(numbers())
assert next(iteration) == 0
"""


def run(program: str) -> str:
    """Run a program and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", BEGUN + program], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_program_ends_in_the_middle_of_an_iteration():
    """A program that ends while one of its globals is an iteration under way ends."""
    assert run("print('over')") == "over"


def test_iteration_that_the_loop_thread_collects():
    """An iteration in a cycle that is collected on the loop's own thread is closed there, and calls go on."""
    assert (
        run("""
async def collect():
    gc.collect()

async def look():
    return closed

gc.disable()
cycle = [iteration]
cycle.append(cycle)
del iteration, cycle
shared.run(collect())
print(shared.run(look()))
""")
        == "[True]"
    )
