"""Programs that use Callmill and fork."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PRELUDE = """
import asyncio, atexit, multiprocessing, os, signal, sys, threading, time, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from callmill.errors import CallmillError, UsageError
from callmill.limits import BlockingLimiter, open_limiter
from callmill.producer import AsyncClient, Client, Job

URL = sys.argv[1]

def jobs(count):
    return [Job("GET", f"/{n}", api="a") for n in range(count)]

def forked(child, end):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # a child that hangs is seen to
        child()
        end(0)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def run(url: str, program: str) -> str:
    """Run a program that forks; return what it printed. It may write nothing on standard error."""
    text = PRELUDE + textwrap.dedent(program)
    command = [sys.executable, "-c", text, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
