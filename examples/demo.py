#!/usr/bin/env python3
"""The demo behind `make demo`: a file of 3 000 calls through a strict, faulty API, by two worker processes.

    python examples/demo.py             # KEEP=1: leave everything up until Ctrl-C

It starts the simulator as the API (200 requests/s, 1 answer in 20 fails), then `callmill up` with the embedded server,
two workers and the dashboard, then `callmill run` on data/subdivisions.jsonl, and ends with a report: what the workers
did, and what the API saw. Everything it writes is in .demo/.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from callmill.cli import parent_watch
from callmill.cli.fleet_cpu import FleetCpu
from callmill.config.limit_spec import parse_limit
from callmill.producer import AsyncClient
from callmill.simulator import EnforcerKind, SimulatorOptions, SimulatorProcess
from callmill.simulator.latency import parse_latency

ROOT = Path(__file__).resolve().parent.parent
INPUT = ROOT / "examples" / "data" / "subdivisions.jsonl"
HOME = ROOT / ".demo"
LIMIT = 200
BURST = 20
WORKERS = 2
READY_WITHIN_S = 60

PROFILE = f"""\
[apis.geocoder]
base_url = "{{url}}"
allow_private_addresses = true   # the simulator is on this machine
limits = ["{LIMIT}/second"]
enforcer = "bucket"
burst = {BURST}
timeout = 10
retry = {{{{ attempts = 8, base = 0.2, cap = 5 }}}}
"""

API = SimulatorOptions(
    limits=(parse_limit(f"{LIMIT}/second"),),
    enforcer=EnforcerKind.BUCKET,
    burst=BURST,
    error_rate=0.05,
    latency=parse_latency("lognormal:40ms,p99=250ms"),
    seed=7,
)


def main() -> int:
    """Run the demo; return the exit code of `callmill run`."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal ends the demo as Ctrl-C does
        signal.signal(number, lambda which, _frame: sys.exit(128 + which))
    begin_anew()
    with SimulatorProcess(API) as simulator:
        (HOME / "apis.toml").write_text(PROFILE.format(url=simulator.url))
        for name in [name for name in os.environ if name.startswith("CALLMILL_")]:
            del os.environ[name]  # set for the user's own work, above all a Redis
        os.environ.update(CALLMILL_APIS=str(HOME / "apis.toml"), CALLMILL_STATE_DIR=str(HOME / "state"))
        port = free_port()
        print(f"API        {simulator.url}   {LIMIT} requests/s, burst {BURST}, 1 answer in 20 fails")
        up = subprocess.Popen(
            [sys.executable, "-m", "callmill.cli", "up", "--workers", str(WORKERS), "--dashboard-port", str(port)],
            stdout=(HOME / "up.log").open("w"),
            stderr=subprocess.STDOUT,
            env=parent_watch.environment(),  # it ends with the demo, even one that is killed
            start_new_session=True,
        )
        try:
            cpu = FleetCpu()
            asyncio.run(workers_ready(cpu, up))
            print(f"Dashboard  http://127.0.0.1:{port}   Flower, as long as this runs")
            print(f"Workers    {WORKERS} processes, log in {(HOME / 'up.log').relative_to(ROOT)}\n", flush=True)
            code, report = run(cpu)
            show(report, simulator.stats(), cpu)
            if os.environ.get("KEEP"):
                print(f"\nStill up: http://127.0.0.1:{port}   Ctrl-C ends it", flush=True)
                wait_for_interrupt()
            return code
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait()


def begin_anew() -> None:
    """Remove what an earlier demo left.

    Raises:
        SystemExit: The directory is not writable, for example because it belongs to another user.
    """
    try:
        if HOME.exists():
            shutil.rmtree(HOME)
        HOME.mkdir()
    except OSError as error:
        sys.exit(f"The demo cannot write to {HOME}: {error.strerror}")


def run(cpu: FleetCpu) -> tuple[int, dict[str, Any]]:
    """Run the file; its live progress goes to the terminal, its report comes back."""
    following = threading.Event()
    follower = threading.Thread(target=lambda: asyncio.run(follow(cpu, following)))
    follower.start()
    command = [
        *(sys.executable, "-m", "callmill.cli", "run", str(INPUT)),
        *("-o", str(HOME / "outcomes.jsonl"), "--api", "geocoder", "--name", "subdivisions"),
    ]
    code = subprocess.run(command, stdout=subprocess.DEVNULL, env=parent_watch.environment(), check=False).returncode
    following.set()
    follower.join()
    # The same command again finds its run finished and only reports it.
    again = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return code, json.loads(again.stdout or "{}")


def show(report: dict[str, Any], api: dict[str, Any], cpu: FleetCpu) -> None:
    """Print what came of it, as the workers and as the API saw it."""
    failures = sum(api["errors"].values())
    seconds = api["last_arrival"] - api["first_arrival"]
    rate = (api["accepted"] - BURST) / seconds
    rows = [
        ("calls", f"{api['accepted']:,} seen by the API, {report['retries']:,} of them retries"),
        ("outcomes", f"{report['jobs']:,} jobs: {report['succeeded']:,} ok, {report['failed']:,} failed"),
        ("API's errors", f"{failures:,} answers failed on purpose"),
        ("429s", f"{api['rejected']:,} seen by the API"),
        ("rate", f"{rate:.1f}/s held of {LIMIT}/s allowed = {rate / LIMIT:.1%} of the limit"),
        ("latency", " · ".join(f"{name} {report[f'{name}_s'] * 1000:.0f} ms" for name in ("p50", "p95", "p99"))),
        ("CPU", f"{cpu.us_per_call or 0:,.0f} us per call, in {WORKERS} worker processes, everything included"),
        ("outcomes in", str((HOME / "outcomes.jsonl").relative_to(ROOT))),
    ]
    print()
    for name, value in rows:
        print(f"{name:<13}{value}")


async def workers_ready(cpu: FleetCpu, up: subprocess.Popen[bytes]) -> None:
    """Wait until every worker reports.

    Raises:
        SystemExit: `callmill up` ended, or it takes too long; its log says why.
    """
    for _ in range(READY_WITHIN_S * 10):
        if up.poll() is not None:
            break
        try:
            async with AsyncClient() as client:
                workers = await client.connection().fleet.workers()
        except Exception:  # noqa: BLE001 - the server is about to start
            workers = []
        if len(workers) == WORKERS:
            cpu.note(workers)
            return
        await asyncio.sleep(0.1)
    sys.exit(f"callmill up did not get ready:\n{(HOME / 'up.log').read_text()}")


async def follow(cpu: FleetCpu, until: threading.Event) -> None:
    """Note what the workers report, until told to stop."""
    async with AsyncClient() as client:
        while not until.is_set():
            cpu.note(await client.connection().fleet.workers())
            await asyncio.sleep(0.5)
        await asyncio.sleep(1.2)  # the last report covers the last calls
        cpu.note(await client.connection().fleet.workers())


def free_port() -> int:
    """Return Flower's usual port if it is free, else any."""
    for port in (5555, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AssertionError("unreachable: port 0 is always free")


def wait_for_interrupt() -> None:
    """Wait for Ctrl-C."""
    try:
        signal.pause()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    sys.exit(main())
