"""Which lines of the result files count: the newest one of each job."""

from __future__ import annotations

from collections.abc import Iterator

from callmill.cli.number_set import NumberSet
from callmill.cli.result_file import ResultFile
from callmill.cli.result_lines import read_id
from callmill.jobs.outcome import UNKNOWN_INDEX


class _Counts:
    """How often each of many numbers was added, with one bit per number and count."""

    def __init__(self) -> None:
        self._at_least: list[NumberSet] = []

    def add(self, number: int) -> None:
        for numbers in self._at_least:
            if numbers.add(number):
                return
        self._at_least.append(NumberSet())
        self._at_least[-1].add(number)

    def __getitem__(self, number: int) -> int:
        return sum(number in numbers for numbers in self._at_least)


def newest_lines(file: ResultFile, successes: ResultFile | None) -> Iterator[bytes]:
    """Yield the lines of a file that are not replaced by a later one of the same job.

    Args:
        file: Has the failed jobs.
        successes: Has those that succeeded, if they have their own file: nothing replaces them.
    """
    all_of_them, so_far = _Counts(), _Counts()
    for source in (file, successes):
        for line in source.lines() if source else ():
            if (number := _job(line)) is not None:
                all_of_them.add(number)
    for line in file.lines():
        number = _job(line)
        if number is None:
            yield line
            continue
        so_far.add(number)
        if so_far[number] == all_of_them[number]:
            yield line


def _job(line: bytes) -> int | None:
    """Return the index of the job whose line this is; None for bad lines and for unknown jobs."""
    found = read_id(line)
    return None if found is None or found[0] or found[1] == UNKNOWN_INDEX else found[1]
