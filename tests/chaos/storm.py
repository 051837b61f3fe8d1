"""A storm: many jobs through real workers and a real Redis while everything breaks, and a check of what came of it.

    python tests/chaos/storm.py --seed 7 --jobs 50000            one storm
    python tests/chaos/storm.py --seeds 10                       ten, one after the other
    python tests/chaos/storm.py --faults kill,redis-kill         only these faults
    python tests/chaos/storm.py --short                          minutes: every kind of fault once
    python tests/chaos/storm.py --faults term --times 20         20 rolling restarts
    python tests/chaos/storm.py --faults kill --times 5 --gap 30 --lease 8

The same seed gives the same faults in the same order. Exit code 1: a promise was broken, and the evidence is printed;
2: the storm itself did not come to its end.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from arena import Arena, Size
from checker import Violation, check
from faults import NAMES, STREAMS, Planned, plan
from history import History, read_events
from local_nodes import until
from storm_report import table
from watcher import Watcher, logged_bugs, take_stock

_SHORT_JOBS, _LONG_JOBS = 6_000, 50_000
_SHOWN = 8
_MEAN_GAP_S = {"workers": 1.5, "redis": 4.0, "apis": 8.0, "clients": 12.0}


class Stream(threading.Thread):
    """Plays the faults of one stream, one after the other: each kind once at least, and on until told to stop."""

    def __init__(
        self, arena: Arena, name: str, faults: Iterator[Planned], kinds: int, stopping: threading.Event
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.error: BaseException | None = None
        self.round_over = threading.Event()
        self._arena = arena
        self._faults = faults
        self._kinds = kinds
        self._stopping = stopping

    def run(self) -> None:
        """Play."""
        try:
            for number, planned in enumerate(self._faults, 1):
                if self._stopping.wait(planned.gap_s):
                    break
                fault = STREAMS[self.name][planned.name](self._arena, planned)
                say(f"{planned.name:<18} {fault.about if fault else 'the point was not passed'}")
                if number == self._kinds:
                    self.round_over.set()
        except BaseException as error:  # noqa: BLE001 - the storm reports it
            self.error = error
        finally:
            self.round_over.set()


_began_s = time.monotonic()


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.monotonic() - _began_s:7.1f}  {text}", flush=True)


def storm(
    folder: Path, seed: str, size: Size, names: list[str], *, times: int | None, gap_s: float | None
) -> tuple[History, list[Violation]]:
    """Run one storm and check it; each kind of fault comes so many times, or on and on until the jobs are done."""
    say(
        f"seed {seed}: {size.jobs} jobs, {size.workers} workers; free API {size.latency_s * 1000:.0f} ms, "
        f"paced API {size.paced_per_s}/second"
    )
    with Arena(folder, size, seed) as arena, Watcher(arena) as watcher:
        arena.submit(f"{seed}-free", "free", round(0.6 * size.jobs))
        arena.submit(f"{seed}-paced", "paced", size.jobs - round(0.6 * size.jobs))
        say("submitted")
        with _streams(arena, names, times=times, gap_s=gap_s) as streams:
            _through(arena, watcher, streams, time.monotonic() + 4 * size.lasts_s + 300)
        say("faults are over")
        arena.heal()
        _to_the_end(arena, watcher)
        take_stock(arena)
        arena.stop_workers()
        arena.end_apis()
        bugs = [Violation("bug", "worker log", line) for line in logged_bugs(arena.logs())]
    history = History(read_events(folder / "events"), lease_s=size.lease_s)
    return history, check(history) + bugs


@contextmanager
def _streams(arena: Arena, names: list[str], *, times: int | None, gap_s: float | None) -> Iterator[list[Stream]]:
    stopping = threading.Event()
    streams = []
    for name, plays in STREAMS.items():
        kinds = sum(one in names for one in plays) * (times or 1)
        faults = plan(arena.seed, name, names, gap_s or _MEAN_GAP_S[name])
        streams.append(Stream(arena, name, islice(faults, kinds) if times else faults, kinds, stopping))
    for stream in streams:
        stream.start()
    try:
        yield streams
    finally:
        stopping.set()
        for stream in streams:
            stream.join(180)
    for stream in streams:
        if stream.error is not None:
            raise RuntimeError(f"the stream {stream.name} broke") from stream.error
        if stream.is_alive():
            raise RuntimeError(f"the stream {stream.name} does not end")


def _through(arena: Arena, watcher: Watcher, streams: list[Stream], until_s: float) -> None:
    """Keep the fleet under load until the jobs are done and every stream had its round.

    The batches of producers that are killed come on top, for as long as it lasts.
    """
    main = set(arena.batches)
    said_s = 0.0
    while time.monotonic() < until_s and not any(stream.error for stream in streams):
        over = all(stream.round_over.is_set() for stream in streams)
        with arena.submitting:
            if main <= watcher.ended:
                if over:
                    return
                main.add(more := f"{arena.seed}-more{len(arena.batches)}")
                arena.submit(more, "free", max(200, arena.size.jobs // 20))
        time.sleep(0.2)
        if time.monotonic() > said_s + 15:
            said_s = time.monotonic()
            say(watcher.told())
    say("the jobs were not done in time, or a fault could not be played")


def _to_the_end(arena: Arena, watcher: Watcher) -> None:
    """Wait for what is left, without faults now, and for the consumers."""
    try:
        until(lambda: arena.revive() or len(watcher.ended) == len(arena.batches), 60 + arena.size.lasts_s)
        for batch_id, reader in arena.readers.items():
            if (code := reader.wait(60)) != 0:
                raise RuntimeError(f"the consumer of {batch_id} ended with {code}; see reader.py-*.err")
    except AssertionError:
        say("not everything came to its end")


def main() -> int:
    """Run storms as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="of the first storm; fresh when left out")
    parser.add_argument("--seeds", type=int, default=1, help="so many storms, each with the next seed")
    parser.add_argument("--jobs", type=int, default=None, help=f"{_LONG_JOBS}; {_SHORT_JOBS} with --short")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--lease", type=float, default=2.0, help="seconds")
    parser.add_argument("--short", action="store_true", help="every kind of fault once")
    parser.add_argument("--times", type=int, default=None, help="how often each kind of fault comes")
    parser.add_argument("--gap", type=float, default=None, help="mean seconds between faults of one stream")
    parser.add_argument("--faults", default=",".join(NAMES), help="names, separated by commas; 'none' for none")
    parser.add_argument("--keep", type=Path, default=None, help="folder for history and logs")
    options = parser.parse_args()
    names = [name for name in options.faults.split(",") if name != "none"]
    if unknown := set(names) - set(NAMES):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    jobs = options.jobs or (_SHORT_JOBS if options.short else _LONG_JOBS)
    times = options.times or (1 if options.short else None)
    size = Size(jobs, 75 if options.short else max(75, jobs / 300), options.workers, options.lease)
    first = secrets.randbelow(10**6) if options.seed is None else options.seed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # so that nothing is left running
    worst = 0
    for seed in range(first, first + options.seeds):
        worst = max(worst, _one(f"s{seed}", size, names, times=times, gap_s=options.gap, keep=options.keep))
    return worst


def _one(seed: str, size: Size, names: list[str], *, times: int | None, gap_s: float | None, keep: Path | None) -> int:
    with tempfile.TemporaryDirectory(prefix="callmill-chaos-") as made:
        folder = Path(made) if keep is None else keep / seed
        try:
            history, violations = storm(folder, seed, size, names, times=times, gap_s=gap_s)
        except Exception:  # noqa: BLE001 - whatever it is, it is not Callmill's verdict
            traceback.print_exc()
            return 2
        shown: Counter[str] = Counter()
        for violation in violations:
            shown[violation.rule] += 1
            if shown[violation.rule] <= _SHOWN:
                say(f"VIOLATION {violation}")
        print(f"\n{table(seed, history, violations)}\n", flush=True)
        return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
