"""Redirects end, also where a chunk is given back between two of them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from callmill.config.api_profile import ApiProfile
from callmill.config.redaction import hide
from callmill.jobs.traffic import NORMAL
from callmill.jobs.wire import Chunk, WireJob, WireOutcome
from callmill.ledger import ChunkRef, Claim, Finish
from callmill.workers.attempt import Endings
from callmill.workers.call import Call, Postponed
from callmill.workers.chunk_run import ChunkRun
from callmill.workers.request_builder import RequestBuilder
from callmill.workers.transports.port import Response
from callmill.workers.verdict import Redirected

ATTEMPTS = 3


def endings(attempts: int) -> Endings:
    """Return the endings of an API whose calls may have so many attempts."""
    profile = ApiProfile(name="x", base_url="https://x.test", retry={"attempts": attempts})
    nothing = cast("Any", None)
    return Endings(profile, RequestBuilder(profile), nothing, nothing, nothing, now=lambda: 0.0)


ENDINGS = endings(ATTEMPTS)
AGAIN = Redirected("http_307", "307 Temporary Redirect", "/again?key=secret")


SLOT = cast("Any", SimpleNamespace(key=0))


def redirected(call: Call, redirect: Redirected = AGAIN) -> WireOutcome | Postponed:
    """Let an attempt at the call be answered with a redirect."""
    return ENDINGS.of(call, SLOT, redirect, Response(307, {}, b""), spared=False)


async def one_redirect_a_claim(attempts: dict[int, int]) -> tuple[WireOutcome | Postponed, dict[int, int]]:
    """Claim a chunk of one job, let it be redirected once, and give it back; return its end and what is remembered."""
    claim = Claim(
        ref=ChunkRef("b", 0, "x"), fence=1, payload=b"", recorded=frozenset(), attempts=attempts, not_before_ms={},
        claims=1, now_ms=1_000_000, count=1, deadline_ms=None,
    )  # fmt: skip
    calls: list[Call] = []
    lane = SimpleNamespace(
        add=lambda _, new, **__: calls.extend(new),
        add_first=calls.append,
        forget=lambda _: None,
        retry_wait_s=lambda _: 0.0,
        will_retry=lambda *_, **__: None,
    )
    finished: list[Finish] = []
    recorder = SimpleNamespace(changed=lambda *_: None, finished=lambda _run, finish: finished.append(finish))
    run = ChunkRun(
        claim,
        Chunk("x", 0, [WireJob("POST", "/")]),
        cast("Any", lane),
        cast("Any", recorder),
        traffic=NORMAL,
        lease_ends_s=float("inf"),
    )
    run.begin()
    call = calls.pop()
    run.started(call)
    ending = redirected(call)
    if isinstance(ending, Postponed):
        run.postpone(call, ending)
    else:
        run.record(call, ending)
    run.close()
    return ending, finished[0].attempts


def test_redirects_of_a_chunk_that_is_given_back_end():
    """A job that is given back after each redirect does not start from its own URL for ever."""
    attempts: dict[int, int] = {}
    ends = []
    for _ in range(10):
        ending, attempts = asyncio.run(one_redirect_a_claim(attempts))
        ends.append(ending)
        if not isinstance(ending, Postponed):
            break
    assert len(ends) == ATTEMPTS + 1
    last = ends[-1]
    assert isinstance(last, WireOutcome)
    assert last.error_code == "redirect"
    assert last.error_message == "redirected again after its last attempt, to https://x.test/again?..."


def test_redirect_of_the_only_attempt():
    """A job that has one attempt follows a redirect, also after its chunk was given back once on the way."""
    call = Call(WireJob("POST", "/"), cast("Any", None), 0, 0, "")
    call.attempts = 1  # what the redirects before count for
    followed = endings(1).of(call, SLOT, AGAIN, Response(307, {}, b""), spared=False)
    assert isinstance(followed, Postponed)
    assert call.url == "https://x.test/again?key=secret"


def test_secret_at_the_cut():
    """No part of a credential is shown where the text of a redirect's target is cut."""
    secret = "sk-live-0123456789abcdefghijklmnopq"
    hide(secret)
    target = f"/{'p' * 260}/{secret}"
    failed = redirected(
        Call(WireJob("POST", "/"), cast("Any", None), 0, 0, ""), Redirected("http_307", "307", target, "no")
    )
    assert isinstance(failed, WireOutcome)
    assert "sk-live" not in (failed.error_message or "")
