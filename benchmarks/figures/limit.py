"""A fleet at a limit: three worker processes at 100 calls a second, as nginx counts them."""

from __future__ import annotations

from contextlib import ExitStack

from api_server import BURST, Answer
from figure import Figure
from scale import Scale
from stage import Stage
from workload import jobs

_RATE = 100
_WORKERS = 3


def measure(scale: Scale) -> list[Figure]:
    """Let a batch run at the limit, then read nginx's log."""
    limits = [f"{_RATE}/second"]
    with Stage(limits, burst=BURST, server_rate=_RATE) as stage, ExitStack() as running:
        workers = [running.enter_context(stage.start_worker()) for _ in range(_WORKERS)]
        stage.await_workers(*workers)
        batch = stage.client.submit(jobs(_RATE * scale.limited_s, f"/limited/{_RATE}"), name="limited")
        batch.wait(3 * scale.limited_s + 60)
        answers = stage.api.answers()
    accepted = [answer for answer in answers if answer.status == 200]
    refused = len(answers) - len(accepted)
    return [
        Figure(name="refusals (429) at the limit", unit="calls", runs=(refused,), must=0),
        Figure(
            name="share of the limit used",
            unit="%",
            runs=(used_share(accepted, _RATE) * 100,),
            better="higher",
            must=98,
            aim=99.5,
            note=f"{len(accepted):,} calls, {_WORKERS} worker processes",
        ),
    ]


def used_share(accepted: list[Answer], rate: float) -> float:
    """Return what share of the calls that the limit allows between the first and the last were made."""
    return (len(accepted) - 1) / (rate * (accepted[-1].time_s - accepted[0].time_s))
