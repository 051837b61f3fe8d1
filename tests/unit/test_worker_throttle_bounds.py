"""Refusals of one job end, by number and by time, also where its chunk is given back between any two of them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from callmill.config.api_profile import ApiProfile
from callmill.jobs.traffic import NORMAL
from callmill.jobs.wire import Chunk, WireJob, WireOutcome
from callmill.ledger import ChunkRef, Claim, Finish, Throttles
from callmill.workers.attempt import Endings
from callmill.workers.call import Call, Postponed
from callmill.workers.chunk_run import ChunkRun
from callmill.workers.request_builder import RequestBuilder
from callmill.workers.throttling import Throttled
from callmill.workers.transports.port import Response
from callmill.workers.verdict import SUCCEEDED

REFUSED = Throttled(1.0, "429 Too Many Requests: remaining 0 of core")
ANSWER = Response(429, {"x-request-id": "r1", "x-other": "x"}, b"slow down")
JOB = WireJob("POST", "/")
NOW_MS = 1_000_000
DAY_MS = 86_400_000


class Play:
    """An API that refuses, with a clock that is set by hand."""

    def __init__(self, *, keys: int = 0, **throttle: Any) -> None:
        auth = [{"bearer": f"env:KEY{number}"} for number in range(keys)]
        profile = ApiProfile.model_validate(
            {"name": "crm", "base_url": "https://x.test", "auth": auth, "throttle": throttle}
        )
        credentials = [SimpleNamespace(headers={}, query={}, secrets=()) for _ in auth]
        requests = RequestBuilder(profile, cast("Any", credentials))
        limiter = SimpleNamespace(
            refused=lambda *_, **__: None,
            tell_refused=lambda _: None,
            accepted=lambda _: None,
            key_names=["default"],
        )
        self.now_s = 0.0
        self.endings = Endings(
            profile, requests, cast("Any", limiter), cast("Any", None), cast("Any", None), now=lambda: self.now_s
        )

    def refuse(self, call: Call, at_s: float | None = None) -> WireOutcome | Postponed:
        """Let an attempt at the call be refused."""
        self.now_s = self.now_s if at_s is None else at_s
        return self.endings.of(call, cast("Any", SimpleNamespace(key=0)), REFUSED, ANSWER, spared=False)


def call_of() -> Call:
    """Return a new call."""
    return Call(JOB, cast("Any", SimpleNamespace(traffic=NORMAL)), 0, 0, "")


def failed(ending: WireOutcome | Postponed) -> WireOutcome:
    """Return the outcome of a call that ended because it was refused."""
    assert isinstance(ending, WireOutcome)
    assert ending.error_code == "throttled"
    return ending


def goes_on(ending: WireOutcome | Postponed) -> bool:
    """Say whether the call goes on, with no attempt spent."""
    return isinstance(ending, Postponed) and ending.throttled and not ending.spends_attempt


def test_the_last_refusal_allowed_fails_the_job_with_its_answer():
    """With as many refusals as are allowed a job fails after one attempt, with status, body and kept headers."""
    play, call = Play(max_refusals=3), call_of()
    assert [goes_on(play.refuse(call, at_s)) for at_s in (0.0, 3600.0)] == [True, True]
    outcome = failed(play.refuse(call, 7200.0))
    assert (outcome.status, outcome.body, outcome.headers) == (429, b"slow down", {"x-request-id": "r1"})
    assert outcome.attempts == 1
    assert outcome.error_message == (
        "refused 3 times within 2 h because of the API's limits: raise throttle.max_refusals in the profile of crm, or "
        "run the job again with callmill retry; the last time: 429 Too Many Requests: remaining 0 of core"
    )


def test_one_refusal_is_enough_where_one_is_allowed():
    """With max_refusals = 1 the first refusal fails the job."""
    message = failed(Play(max_refusals=1).refuse(call_of())).error_message
    assert message is not None
    assert message.startswith("refused once because of the API's limits: raise throttle.max_refusals in")


def test_a_refusal_after_the_longest_wait_fails_the_job():
    """A refusal as late as max_wait after the first one fails the job, however few there were, and none before."""
    play, call = Play(max_wait=60), call_of()
    assert [goes_on(play.refuse(call, at_s)) for at_s in (1000.0, 1059.9)] == [True, True]
    message = failed(play.refuse(call, 1060.0)).error_message
    assert message is not None
    assert message.startswith("refused 3 times within 60 s because of the API's limits: raise throttle.max_wait in the")


def test_a_message_names_each_bound_that_was_reached():
    """Where number and time are both used up, raising one of them would not help, and the message names both."""
    play, call = Play(max_refusals=2, max_wait=60), call_of()
    assert goes_on(play.refuse(call, 0.0))
    assert "raise throttle.max_refusals and throttle.max_wait in" in (
        failed(play.refuse(call, 60.0)).error_message or ""
    )


def test_a_wait_that_ends_well_fails_nothing():
    """A job that is called after max_wait, and is not refused then, succeeds."""
    play, call = Play(max_wait=60), call_of()
    assert goes_on(play.refuse(call, 0.0))
    play.now_s = 1e9
    play.endings._keys = cast("Any", SimpleNamespace(accepted=lambda *_: None))
    done = play.endings.of(call, cast("Any", SimpleNamespace(key=0)), SUCCEEDED, Response(200, {}, b""), spared=False)
    assert isinstance(done, WireOutcome)
    assert (done.error_code, done.attempts) == (None, 1)


def test_each_credential_of_a_pool_may_refuse_as_often():
    """A refusal pauses one credential: a pool may refuse a job so many times for each of its credentials."""
    play, call = Play(keys=3, max_refusals=2), call_of()
    assert [goes_on(play.refuse(call)) for _ in range(5)] == [True] * 5
    failed(play.refuse(call))


def claim_of(jobs: int = 1, now_ms: int = NOW_MS, throttles: dict[int, Throttles] | None = None) -> Claim:
    """Return a claim of a chunk that was claimed before."""
    return Claim(
        ref=ChunkRef("b", 0, "crm"), fence=1, payload=b"", recorded=frozenset(), attempts={}, not_before_ms={},
        claims=1, now_ms=now_ms, count=jobs, throttles=throttles or {},
    )  # fmt: skip


class Held:
    """A chunk in a worker's hands, on a lane that only notes what comes in."""

    def __init__(self, claim: Claim) -> None:
        self.calls: list[Call] = []
        self.first = 0
        self.finished: list[Finish] = []
        lane = SimpleNamespace(
            add=self._add,
            add_first=self.calls.append,
            forget=lambda _: None,
            retry_wait_s=lambda _: 0.0,
            will_retry=lambda *_, **__: None,
        )
        recorder = SimpleNamespace(changed=lambda *_: None, finished=lambda _run, finish: self.finished.append(finish))
        chunk = Chunk("crm", 0, [JOB] * claim.count)
        self.run = ChunkRun(
            claim, chunk, cast("Any", lane), cast("Any", recorder), traffic=NORMAL, lease_ends_s=float("inf")
        )
        self.run.begin()

    def _add(self, _owner: Any, calls: list[Call], *, first: int = 0) -> None:
        self.calls += calls
        self.first = first

    def refused(self, play: Play, times: int) -> WireOutcome | Postponed:
        """Let the only call be refused so often."""
        for _ in range(times):
            call = self.calls.pop()
            self.run.started(call)
            ending = play.refuse(call, asyncio.get_running_loop().time())
            if isinstance(ending, WireOutcome):
                self.run.record(call, ending)
                break
            self.run.postpone(call, ending)
        return ending

    def given_back(self) -> Finish:
        """Let the time of the chunk be over."""
        self.run.close()
        return self.finished[0]


async def claim_and_give_back(play: Play, known: dict[int, Throttles], now_ms: int, times: int) -> Any:
    """Claim a chunk of one job at some time, let it be refused so often, and give it back."""
    held = Held(claim_of(now_ms=now_ms, throttles=known))
    ending = held.refused(play, times)
    return ending, held.given_back().throttles


def test_refusals_add_up_over_claims():
    """A job that is given back after each few refusals fails with the same one as if it had stayed in one hand."""
    play, known = Play(max_refusals=7), {}
    for claim in range(3):
        ending, known = asyncio.run(claim_and_give_back(play, known, NOW_MS + claim * 30_000, 2))
        assert goes_on(ending)
        assert known[0].count == 2 * (claim + 1)
    ending, known = asyncio.run(claim_and_give_back(play, known, NOW_MS + 90_000, 2))
    message = failed(ending).error_message
    assert message is not None
    assert message.startswith("refused 7 times within ")
    assert known == {}


def test_the_first_refusal_is_remembered_on_the_clock_of_redis():
    """However long a chunk lay between two claims, the time since its job's first refusal is told by Redis's clock."""
    play, known, since_ms = Play(max_wait=31 * 86_400), {}, set()
    for day in (0, 15, 30):
        ending, known = asyncio.run(claim_and_give_back(play, known, NOW_MS + day * DAY_MS, 1))
        assert goes_on(ending)
        since_ms.add(known[0].since_ms)
    assert len(since_ms) == 1
    ending, known = asyncio.run(claim_and_give_back(play, known, since_ms.pop() + 31 * DAY_MS + 1000, 1))
    assert "refused 4 times within 31 d " in (failed(ending).error_message or "")


def test_a_chunk_that_was_not_tried_keeps_its_refusals():
    """What a job was refused before is given back as it was claimed."""
    known = {0: Throttles(5, NOW_MS - 10_001)}

    async def scene() -> Finish:
        return Held(claim_of(throttles=known)).given_back()

    assert asyncio.run(scene()).throttles == known


def test_the_refusal_that_fails_a_job_counts_among_the_refused_calls():
    """The counters of the batch have every refusal, the last one too, and every call."""

    async def scene() -> tuple[int, int, int]:
        held = Held(claim_of())
        failed(held.refused(Play(max_refusals=3), 3))
        return held.run.bundle.throttled, held.run.bundle.calls, held.run.bundle.retries

    assert asyncio.run(scene()) == (3, 3, 0)


@pytest.mark.parametrize(("refused_again", "first"), [(range(10), 64), (range(80), 20), (range(0), 64)])
def test_what_was_refused_again_comes_last_of_a_chunk(refused_again, first):
    """When a chunk is claimed again, jobs refused more than once come behind all others, in their order."""

    async def scene() -> tuple[list[int], int]:
        known = {at: Throttles(2, NOW_MS) for at in refused_again} | {99: Throttles(1, NOW_MS)}
        held = Held(claim_of(jobs=100, throttles=known))
        return [call.offset for call in held.calls], held.first

    offsets, overtaking = asyncio.run(scene())
    assert offsets == [at for at in range(100) if at not in refused_again] + list(refused_again)
    assert overtaking == first
