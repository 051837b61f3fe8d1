"""How figures and names stand on a screen that has little room, and what a terminal may be sent of them."""

from __future__ import annotations

import math

from rich.text import Text

_UNITS = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
_EXACT_BELOW = 10_000
_MIB, _GIB = 2**20, 2**30
_DONE, _FAILED, _LEFT = "█", "▒", "░"
_ASCII = str.maketrans({_DONE: "#", _FAILED: "x", _LEFT: ".", "…": "~"})


def counted(count: int, what: str, several: str = "") -> str:
    """Write a count with its noun: 1 job, 2 jobs; ``several`` where the plural has more than an s."""
    return f"{count:,} {what if count == 1 else several or f'{what}s'}"


def short_count(count: int) -> str:
    """Write a count in at most six characters, cut to three digits where it is long: 9,999, 12.3k, 9.00M."""
    if count < _EXACT_BELOW:
        return f"{count:,}"
    size, unit = next(unit for unit in _UNITS if count >= unit[0])
    whole = count // size
    digits = max(0, 3 - len(str(whole)))
    return f"{math.floor(count * 10**digits / size) / 10**digits:,.{digits}f}{unit}"


def short_time(seconds: float) -> str:
    """Write a time in its largest unit: 4 s, 3 min, 2 h, 5 d."""
    for size_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size_s:
            return f"{seconds / size_s:,.0f} {unit}"
    return f"{seconds:.0f} s"


def per_second(rate: float) -> str:
    """Write a rate, with a digit after the point where it is small."""
    return f"{rate:,.1f}/s" if rate < 100 else f"{rate:,.0f}/s"


def short_rate(rate: float) -> str:
    """Write a rate in few characters."""
    return per_second(rate) if rate < _EXACT_BELOW else f"{short_count(round(rate))}/s"


def byte_size(size_bytes: int) -> str:
    """Write an amount of memory: 12 MiB, 1.5 GiB."""
    return f"{size_bytes / _GIB:,.1f} GiB" if size_bytes >= _GIB else f"{size_bytes / _MIB:,.0f} MiB"


def bar(width: int, *, succeeded: int, failed: int, total: int) -> Text:
    """Draw how much is done, and how much of that failed; to be told apart without colour, too."""
    done = 0 if not total else min(width, (succeeded + failed) * width // total)
    bad = 0 if not failed or not done else min(done, max(1, failed * width // total))
    return Text.assemble((_DONE * (done - bad), "green"), (_FAILED * bad, "red"), (_LEFT * (width - done), "dim"))


def printable(text: str) -> str:
    """Return a text without what would steer a terminal: names and reasons come from whoever wrote them."""
    return text if text.isprintable() else "".join(mark if mark.isprintable() else "?" for mark in text)


def in_ascii(line: Text) -> Text:
    """Return a line for a terminal that shows nothing but ASCII."""
    shown = line.copy()
    shown.plain = line.plain.translate(_ASCII).encode("ascii", "replace").decode("ascii")
    return shown
