"""The figures of a storm, from its history, in one table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from checker import Violation, in_hand_at, kills, repeated_by, repeats
from history import Call, Commit, Exit, Fault, Final, History

_RATE_OVER_S = 1.0
_SETTLED_S = 4.0
"""For a rate to be compared with, no other fault that long before and after."""
_LOAD_S = 10.0
"""Nor the end of the load so soon after."""


def table(seed: str, history: History, violations: Sequence[Violation]) -> str:
    """Return the figures as lines of two columns."""
    rules = Counter(violation.rule for violation in violations)
    ended = [(kill, *_recovery(history, kill)) for kill in kills(history)]
    back = list(_redis_back(history))
    rows = [
        ("seed", seed),
        ("jobs", sum(final.submitted for final in history.all(Final))),
        ("jobs lost", rules["lost"]),
        ("outcomes recorded twice", rules["twice"] + rules["read twice"]),
        ("calls as the API saw them", len(history.all(Call))),
        ("faults", _counts(fault.name for fault in history.all(Fault))),
        ("calls repeated after a good answer", len(repeats(history))),
        ("kill -9 of workers", len(ended)),
        ("  repeated / in hand / in flight at the API", ", ".join(f"{r}/{h}/{f}" for _, r, h, f, _ in ended) or "-"),
        ("  seconds until the last of them was recorded elsewhere", _spread(s for *_, s in ended)),
        ("seconds from Redis back to 90 % of the rate", _spread(back)),
        ("limit violations", rules["limit"]),
        ("  more, of calls that arrived late, or with Redis slow", _broken(history) - rules["limit"]),
        ("calls outside a lease", rules["outside its lease"]),
        ("workers that ended by themselves", sum(not one.meant for one in history.all(Exit))),
        ("keys left over", rules["left over"]),
        ("violations", _counts(rules.elements()) or "none"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _recovery(history: History, kill: Fault) -> tuple[int, int, int, float]:
    """Return calls repeated, calls in hand, calls in flight, and seconds until the last job in hand was recorded."""
    in_hand = in_hand_at(history, kill)
    jobs = {call.job for call in in_hand}
    recorded: dict[str, float] = {}
    for commit in history.all(Commit):
        if commit.worker != kill.worker and commit.result == "recorded" and commit.sent_s > kill.began_s:
            for job in jobs.intersection(commit.jobs):
                recorded.setdefault(job, commit.answered_s)
    last_s = max(recorded.values(), default=kill.ended_s)
    in_flight = sum(call.ended_s >= kill.began_s for call in in_hand)
    repeated = len({call.job for call in repeated_by(history, kill)})
    return repeated, len(jobs), in_flight, last_s - kill.ended_s


def _redis_back(history: History) -> Iterable[float]:
    """Yield how long after a fault of Redis that came alone the fleet was back at 90 % of its rate before."""
    calls: dict[int, int] = defaultdict(int)
    for call in history.all(Call):
        calls[int(call.began_s * 10)] += 1

    def rate(from_s: float, over_s: float) -> float:
        start = int(from_s * 10)
        return sum(calls[start + n] for n in range(round(over_s * 10))) / over_s

    for fault in _alone(history):
        wanted = 0.9 * rate(fault.began_s - 3, 3)
        yield next((n / 10 for n in range(300) if rate(fault.ended_s + n / 10, _RATE_OVER_S) >= wanted), float("inf"))


def _alone(history: History) -> Iterable[Fault]:
    """Yield the faults of Redis that no other one was near, and not the end of the load."""
    faults = [fault for fault in history.all(Fault) if fault.stream != "clients"]
    load_ends_s = max((call.began_s for call in history.all(Call)), default=0.0)
    for fault in faults:
        near = [
            other
            for other in faults
            if other.began_s < fault.ended_s + _SETTLED_S and other.ended_s > fault.began_s - _SETTLED_S
        ]
        if fault.stream == "redis" and near == [fault] and fault.ended_s + _LOAD_S < load_ends_s:
            yield fault


def _broken(history: History) -> int:
    return sum(call.broken for call in history.all(Call))


def _counts(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(Counter(names).items()))


def _spread(values: Iterable[float]) -> str:
    found = sorted(values)
    return f"median {found[len(found) // 2]:.1f}, most {found[-1]:.1f} (of {len(found)})" if found else "-"
