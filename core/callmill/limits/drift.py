"""Drift: where what a server says of its limits differs from what we count; pure.

We pace by our own count, so that in the ordinary case a server's headers tell nothing new. They do where others use the
same limit (less is left than our pace explains), where a quota is spent sooner than we counted, where the server's
windows begin, and where the limit was not known at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from callmill.config.limit_spec import AUTO, Enforcer
from callmill.limits.feedback import Observation
from callmill.limits.layout import LONGEST_UNCONFIRMED_S, OF_API, Layout, Node
from callmill.limits.rules import FIRST_GUESS_PER_S, SHORTEST_QUOTA_S
from callmill.limits.store import Fact

TOLERANCE, TOLERANCE_LEFT = 0.05, 0.5
"""What is left may be less than our pace explains by this part of the limit: servers count calls at other moments. But
by no more than this part of what is left: else others would use up the last of a limit unseen."""

NEARLY_EMPTY = 0.1
"""Of a bucket. A log of the latest window looks the same, but our own pace leaves nothing of it where it is small."""

TELLING = 0.25
"""A reset tells how a server counts where its rounding is less than this part of it."""

WHOLE = 0.98
"""A reset this part of a window away is that of a window that has just begun, or of a log, and tells nothing."""

BUCKET_CAUTION, BUCKET_CAUTION_S = 1.25, 2.0
"""A bucket that is nearly empty though calls are paced: for so long, so much slower, until it has refilled."""

ALIGNED_WITHIN = 0.25
"""The beginning of a window is of use where it is known to this part of the window."""


def facts(
    layout: Layout, key: int, observations: Iterable[Observation], *, enforcer: Enforcer, took_s: float, in_flight: int
) -> list[Fact]:
    """What the headers of one answer teach about the limits of the call.

    Args:
        layout: The limits that held for the call.
        key: The credential that it used, from 1.
        observations: What the headers say.
        enforcer: How the server counts.
        took_s: Seconds from the call's start to the answer.
        in_flight: Calls under way in this process, which the server may have counted or not.
    """
    observations = list(observations)
    return [
        *_found(layout, key, observations),
        *(
            fact
            for seen in observations
            for node in _meant(layout, key, seen)
            for fact in _facts(node, seen, enforcer, took_s, in_flight)
        ),
    ]


def _found(layout: Layout, key: int, observations: Iterable[Observation]) -> Iterator[Fact]:
    """The pace of an unknown limit, where the server tells it: the slowest of its policies that is no quota."""
    rates = [
        seen.limit / seen.window_s
        for seen in observations
        if seen.unit is AUTO.unit and seen.limit and seen.window_s and seen.window_s < SHORTEST_QUOTA_S
    ]
    for node in layout.nodes if rates else ():
        if not node.clock.spec.amount and node.owner in {OF_API, key}:
            yield Fact(node, "most", min(rates) / FIRST_GUESS_PER_S)


def _meant(layout: Layout, key: int, seen: Observation) -> Iterator[Node]:
    """The limit that an observation is about, where that is certain."""
    own = [node for node in layout.nodes if node.owner <= OF_API or node.owner == key]
    alike = [node for node in own if node.clock.spec.unit is seen.unit and node.clock.spec.amount]
    if seen.limit is not None:
        alike = [node for node in alike if node.clock.spec.amount == seen.limit] or alike
    if seen.window_s is not None:
        alike = [node for node in alike if node.clock.spec.window_s == seen.window_s]
    if len(alike) == 1:
        yield alike[0]


def _facts(node: Node, seen: Observation, enforcer: Enforcer, took_s: float, in_flight: int) -> Iterator[Fact]:
    if seen.reset_s is None or seen.reset_s <= 0 or not _is_plausible(node, seen, seen.reset_s - took_s):
        return
    blur_s = seen.reset_step_s + took_s / 2
    if enforcer is Enforcer.FIXED and blur_s < ALIGNED_WITHIN * node.clock.spec.window_s:
        yield Fact(node, "aligned", (seen.reset_s - took_s / 2) * 1e6, blur_s * 1e6)
    if node.clock.quota:
        if seen.remaining == 0:
            yield Fact(node, "block", (seen.reset_s + seen.reset_step_s) * 1e6)
    else:
        yield from _used_by_others(node, seen, enforcer, in_flight)


def _is_plausible(node: Node, seen: Observation, reset_s: float) -> bool:
    """Whether a limit may reset then: within its window, or within an hour where the server may mean another limit."""
    is_this = seen.limit == node.clock.spec.amount or seen.window_s is not None
    longest_s = node.clock.spec.window_s if is_this else max(node.clock.spec.window_s, LONGEST_UNCONFIRMED_S)
    return reset_s <= longest_s * (1 + TOLERANCE) + seen.reset_step_s


def _used_by_others(node: Node, seen: Observation, enforcer: Enforcer, in_flight: int) -> Iterator[Fact]:
    if seen.remaining is None or seen.limit is None:
        return
    emission_s = node.clock.window_us / 1e6 / node.clock.amount
    reset_s, remaining = seen.reset_s or 0.0, seen.remaining
    if enforcer is not Enforcer.FIXED and _refills(reset_s, seen.limit - remaining, emission_s, seen.reset_step_s):
        told = enforcer is Enforcer.BUCKET and seen.reset_step_s <= TELLING * reset_s
        if told and remaining < NEARLY_EMPTY * seen.limit - in_flight - 1:
            yield Fact(node, "slow", BUCKET_CAUTION * emission_s * 1e6, BUCKET_CAUTION_S * 1e6)
        return
    if enforcer is not Enforcer.FIXED and reset_s + seen.reset_step_s >= WHOLE * node.clock.spec.window_s:
        return
    # In windows that we know, we are ahead of the even pace, by the guard.
    aligned = ALIGNED_WITHIN * seen.limit if enforcer is Enforcer.FIXED else None
    ahead = min(TOLERANCE * seen.limit, TOLERANCE_LEFT * remaining) if aligned is None else aligned
    if (reset_s - seen.reset_step_s) / emission_s > remaining + 1 + in_flight + ahead:
        yield Fact(node, "slow", reset_s / max(remaining, 0.5) * 1e6, reset_s * 1e6)


def _refills(reset_s: float, used: int, emission_s: float, step_s: float) -> bool:
    """Whether the server refills a bucket: then it is whole again after one emission for each unit used."""
    return abs(reset_s - used * emission_s) <= step_s + 0.1 * reset_s
