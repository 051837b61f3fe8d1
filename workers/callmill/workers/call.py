"""Call: a job on its way through a worker, and who is told what became of it."""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import Struct

from callmill.jobs.trace_context import TraceContext
from callmill.jobs.traffic import TrafficClass
from callmill.jobs.wire import WireJob, WireOutcome
from callmill.limits.costs import Origin


class CallOwner(Protocol):
    """Who a call belongs to: a chunk, or the plain task.

    Attributes:
        traffic: The class of its calls.
    """

    traffic: TrafficClass

    def may_start(self, call: Call, now_s: float) -> bool:
        """Say whether the call may still start; ``now_s`` is the event loop's time."""
        ...

    def started(self, call: Call) -> None:
        """Note that an attempt begins."""
        ...

    def record(self, call: Call, outcome: WireOutcome) -> None:
        """Take the call's outcome. The attempt is over."""
        ...

    def refuse(self, call: Call, outcome: WireOutcome) -> None:
        """Take the outcome of a call that is over without an attempt."""
        ...

    def postpone(self, call: Call, postponed: Postponed) -> None:
        """Take the call back for another attempt. This one is over."""
        ...

    def interrupted(self, call: Call) -> None:
        """Note that the attempt was cancelled; what the API made of it is unknown."""
        ...


class Postponed(Struct, frozen=True):
    """A call is not over after an attempt: it wants another one.

    Attributes:
        delay_s: Seconds before the next attempt; 0: at once.
        spends_attempt: Whether this attempt counts towards those that the API's profile allows.
        throttled: Whether the API refused because of its limits.
        made: Whether the call was made; one that came too late for its slot was not.
    """

    code: str
    message: str
    delay_s: float = 0.0
    spends_attempt: bool = True
    throttled: bool = False
    made: bool = True


class CallCost(Struct, frozen=True):
    """What a call takes from its API's limits.

    Attributes:
        tokens: All its tokens, those of the answer included.
        output_tokens: Those of the answer.
        weight: How many requests it counts as.
        model: The model whose limits hold for it; empty when none of a model do.
    """

    tokens: int = 0
    output_tokens: int = 0
    weight: int = 1
    model: str = ""


class Call(Struct, eq=False):
    """A job with what its attempts have come to so far.

    Attributes:
        offset: Its place in its owner.
        index: Its position in the batch.
        key: What its idempotency key is made from.
        url: Where the next attempt goes: its own URL, or where a redirect pointed to.
        own_url: The job's URL; relative to the API's base URL once the call has gone to a fallback.
        deadline_s: Time on the event loop's clock after which it is not started any more; None: none.
        attempts: Attempts spent.
        spared: Failed attempts that were not counted, because the API seemed to be down.
        repeated: Whether an earlier call for the same job failed.
        counted_in: The breaker epoch in which a failure of it counted; -1: none.
        doubted_in: The row of doubts about the API that a failure of it belongs to; -1: none.
        redirects: Redirects followed since the job's own URL.
        busy: Answers 503 that counted as a limiter's.
        refusals: Attempts refused because of their credential.
        refused_keys: The credentials that these were made with.
        unknown_keys: Those of them that the API did not know (401) though they have worked.
        throttles: Attempts refused because of the API's limits, by whichever worker they were made.
        throttled_since_s: Time on the event loop's clock of the first of them.
        started_ms: Unix time in milliseconds at which the last attempt began.
        latency_us: How long it took.
        said: What its body says of its model and its longest answer; None: nobody looked.
        model: The model that the last estimate found.
        stated: Who stated what it will cost in tokens, and how many; None: nobody.
        trace: The trace that it belongs to.
    """

    job: WireJob
    owner: CallOwner
    offset: int
    index: int
    key: str
    url: str = ""
    own_url: str = ""
    deadline_s: float | None = None
    attempts: int = 0
    spared: int = 0
    busy: int = 0
    repeated: bool = False
    counted_in: int = -1
    doubted_in: int = -1
    redirects: int = 0
    refusals: int = 0
    refused_keys: frozenset[int] = frozenset()
    unknown_keys: frozenset[int] = frozenset()
    throttles: int = 0
    throttled_since_s: float = 0.0
    started_ms: int = 0
    latency_us: int = 0
    said: dict[str, Any] | None = None
    model: str = ""
    stated: tuple[Origin, int] | None = None
    trace: TraceContext | None = None

    def __post_init__(self) -> None:
        self.url = self.own_url = self.job.url

    @property
    def lets_others_go_first(self) -> bool:
        """Whether it was refused more than once because of limits: the next refusal should be another call's."""
        return self.throttles > 1
