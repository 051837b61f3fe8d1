"""What the machine did beside us while something was measured: what else ran, and what time was taken from all.

Time that was not used is what Linux counts best, so the time in use is what is left of all cores' time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Self

from msgspec import Struct
from proc import cpu_with_ended_s

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Load(Struct, frozen=True):
    """What a machine did for a while.

    Attributes:
        busy: Share of all cores' time that was in use.
        stolen: Share of the time that programs wanted and did not get: the host or a control group's quota took it.
        others_cores: Cores that programs used which are not of this benchmark.
    """

    busy: float
    stolen: float
    others_cores: float


class Moment(Struct, frozen=True):
    """Seconds since some start: of the clock, all cores' unused, stolen and throttled time, and our processes' CPU."""

    at_s: float
    cores: int
    unused_s: float
    stolen_s: float
    throttled_s: float
    ours_s: float

    @classmethod
    def now(cls) -> Self:
        """Return this moment."""
        whole, *rest = Path("/proc/stat").read_text().splitlines()
        # user nice system idle iowait irq softirq steal; guests are in user already
        idle, iowait, steal = (int(whole.split()[column]) * _TICK_S for column in (4, 5, 8))
        cores = sum(line.startswith("cpu") for line in rest)
        return cls(time.monotonic(), cores, idle + iowait, steal, _throttled_s(), cpu_with_ended_s(os.getpid()))

    def since(self, before: Self) -> Load:
        """Return what the machine did between another moment and this one."""
        passed_s, stolen_s = self.at_s - before.at_s, self.stolen_s - before.stolen_s
        used_s = max(0.0, passed_s * self.cores - (self.unused_s - before.unused_s) - stolen_s)
        kept_s = stolen_s + self.throttled_s - before.throttled_s
        return Load(
            busy=used_s / (passed_s * self.cores),
            stolen=kept_s / (used_s + kept_s) if kept_s else 0.0,
            others_cores=max(0.0, used_s - (self.ours_s - before.ours_s)) / passed_s,
        )


class Watch:
    """Watches the machine while the context lasts; ``load`` is there at its end."""

    load: Load

    def __enter__(self) -> Self:
        self._began = Moment.now()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.load = Moment.now().since(self._began)


def _throttled_s() -> float:
    """Return how long this process's control group, and those around it, were kept off the cores by their quotas."""
    throttled_s = 0.0
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = Path("/sys/fs/cgroup", controllers)
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top) and (counts := folder / "cpu.stat").is_file():
                words = dict(line.split() for line in counts.read_text().splitlines())
                throttled_s += int(words.get("throttled_usec", 0)) / 1e6 + int(words.get("throttled_time", 0)) / 1e9
    return throttled_s
