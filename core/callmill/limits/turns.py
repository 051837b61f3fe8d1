"""Turns: which class of traffic is next where slots of several are due at once.

Start-time fair queueing: the virtual time of a class moves on by ``1 / weight`` with every call of it that starts, and
the class that is furthest behind is next. A class that was idle begins at the time of the one whose turn it is: it has
saved up nothing.

Source: Goyal, Vin and Cheng, "Start-time Fair Queuing", IEEE/ACM Transactions on Networking 5(5), 1997.
"""

from __future__ import annotations

from collections.abc import Iterable

LEAVES_FREE = 64
"""A class takes no place when it holds so many times as many as are free: the last ones are for those who have none.

Source: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", IEEE/ACM Transactions
on Networking 6(2), 1998.
"""


class Turn:
    """One class's account.

    Attributes:
        weight: The class's part while all want more than there is.
        virtual_time: What it was served so far, by its weight.
        in_flight: Its calls under way, fewer than ``LEAVES_FREE`` times the places that are free in this process.
    """

    __slots__ = ("in_flight", "virtual_time", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.virtual_time = 0.0
        self.in_flight = 0

    def served(self) -> None:
        """Count a call that started."""
        self.virtual_time += 1 / self.weight

    def join(self, others: Iterable[Turn]) -> None:
        """Begin at the time of the one whose turn it is among those that are there."""
        self.virtual_time = max(self.virtual_time, min((turn.virtual_time for turn in others), default=0.0))
