"""One worker process, real APIs on real sockets: what comes of each kind of call."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
import redis
from celery import Celery
from local_nodes import LocalWorker, WorkerProcess, until, write_profiles
from opentelemetry.sdk.trace import TracerProvider
from scripted_api import ScriptedApi, scripted_api

from callmill.config.celery import CALLS_QUEUE, KEY_PREFIX, app
from callmill.errors import BatchStateError, UsageError, WaitTimeoutError
from callmill.ledger.keys import PREFIX, BatchKeys
from callmill.producer import Batch, Client, Job, Outcome
from callmill.simulator import SimulatorOptions, SimulatorProcess
from callmill.workers import tasks

WAIT_S = 20
RETRY = "retry = { attempts = 4, base = 0.01, cap = 0.05 }"


@dataclass
class Fleet:
    """A worker, its APIs, and a client."""

    client: Client
    worker: LocalWorker
    script: ScriptedApi
    echo: SimulatorProcess
    redis: redis.Redis

    def run(self, *jobs: Job) -> dict[str, Outcome]:
        """Submit jobs, wait, and return their outcomes by id."""
        batch = self.client.submit(jobs)
        outcomes = {outcome.id: outcome for outcome in batch.outcomes()}
        assert batch.progress().ended
        return outcomes

    def leases(self, batch: Batch) -> int:
        """Return how many chunks of the batch workers hold."""
        return int(self.redis.hget(BatchKeys(batch.id).meta, "leased"))

    def one(self, url: str, method: str = "GET", **fields: object) -> Outcome:
        """Run one job of the scripted API."""
        (outcome,) = self.run(Job(method, url, api="script", **fields)).values()
        return outcome


@pytest.fixture(scope="module")
def fleet(redis_server, tmp_path_factory) -> Iterator[Fleet]:
    """Start everything once for the module."""
    folder = tmp_path_factory.mktemp("worker")
    with (
        redis.Redis.from_url(redis_server.url) as connection,
        socket.socket() as closed,
        scripted_api() as script,
        SimulatorProcess(SimulatorOptions(seed=1)) as echo,
    ):
        connection.flushall()
        closed.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        profiles = {
            "script": [f'base_url = "{script.url}"', RETRY],
            "patient": [f'base_url = "{script.url}"', "retry = { attempts = 100, base = 60, cap = 60 }"],
            "echo": [f'base_url = "{echo.url}"', RETRY],
            "unbroken": [
                f'base_url = "http://127.0.0.1:{closed.getsockname()[1]}"',
                RETRY.replace("4", "1000"),
                "breaker = false",
            ],
            "down": [f'base_url = "http://127.0.0.1:{closed.getsockname()[1]}"', RETRY.replace("4", "1000")],
        }
        apis = write_profiles(folder / "apis.toml", profiles)
        worker = LocalWorker(WorkerProcess(folder, redis_server.url, apis, {"chunks_per_process": 8}).start(), app)
        try:
            with Client(redis_server.url) as client:
                worker.ready()
                yield Fleet(client, worker, script, echo, connection)
        finally:
            worker.teardown()


def test_every_job_gets_its_own_answer(fleet):
    """Every job of a batch has one outcome, with the answer to its own request."""
    jobs = [Job("POST", f"/items/{n}", api="echo", id=f"row-{n}", json={"n": n}) for n in range(1500)]
    outcomes = fleet.run(*jobs)
    assert len(outcomes) == 1500
    assert all(outcomes[f"row-{n}"].json()["body"] == {"n": n} for n in range(1500))
    assert {outcome.attempts for outcome in outcomes.values()} == {1}
    assert [outcomes[f"row-{n}"].index for n in range(1500)] == list(range(1500))


def test_job_without_id_gets_one(fleet):
    """A job without an id is given one that names batch and position."""
    batch = fleet.client.submit([Job("GET", "/a", api="echo"), Job("GET", "/b", api="script")])
    assert {outcome.id for outcome in batch.outcomes()} == {f"{batch.id}-0", f"{batch.id}-1"}


def test_failures_are_retried_until_success(fleet):
    """A call answered with 500 is repeated until it succeeds, and its attempts are counted."""
    jobs = [Job("GET", f"/flaky/{n}/a{n}", api="script", id=str(n)) for n in range(4)]
    batch = fleet.client.submit(jobs)
    assert {outcome.id: (outcome.ok, outcome.attempts) for outcome in batch.outcomes()} == {
        str(n): (True, n + 1) for n in range(4)
    }
    progress = batch.progress()
    assert (progress.retries, progress.calls, progress.succeeded) == (6, 10, 4)


def test_attempts_run_out(fleet):
    """A call that fails to the last attempt fails with its status and body."""
    outcome = fleet.one("/status/503")
    assert (outcome.ok, outcome.status, outcome.attempts, outcome.body) == (False, 503, 4, b"as told")
    assert outcome.error is not None
    assert outcome.error.code == "http_503"


def test_error_of_the_job_fails_at_once(fleet):
    """A 404 is no passing trouble: one attempt, its code, its body and the headers that the profile keeps."""
    outcome = fleet.one("/status/404")
    assert (outcome.ok, outcome.status, outcome.attempts, outcome.body) == (False, 404, 1, b"as told")
    assert outcome.headers == {"content-type": "text/plain", "x-request-id": "r1"}
    assert outcome.request_id == "r1"
    assert str(outcome.error) == "http_404: 404 Not Found"


def test_429_pauses_and_spends_no_attempt(fleet):
    """After a 429 no call starts for as long as the API asked, and the call succeeds with one attempt."""
    throttled = fleet.client.submit([Job("GET", "/throttle/a", api="script")])
    until(lambda: throttled.progress().throttled, WAIT_S)
    outcomes = fleet.run(*[Job("GET", f"/after/{n}", api="script") for n in range(3)])
    assert all(outcome.ok for outcome in outcomes.values())
    (outcome,) = throttled.outcomes()
    assert (outcome.ok, outcome.attempts) == (True, 1)
    first, *later = [at_s for at_s, target in fleet.script.arrivals if target.startswith(("/throttle", "/after"))]
    assert len(later) == 4
    assert min(later) - first >= 0.95
    assert max(later) - first < 3


def test_timeout_of_the_job(fleet):
    """A call that gets no answer in its own time fails as a time-out."""
    began_s = time.monotonic()
    outcome = fleet.one("/hang", timeout=0.2)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.status, outcome.attempts) == ("timeout", None, 4)
    assert time.monotonic() - began_s < 5


def test_redirect_within_the_api_is_followed(fleet):
    """A redirect to the same API is followed, and costs no attempt."""
    outcome = fleet.one("/redirect/|status|204")
    assert (outcome.ok, outcome.status, outcome.attempts) == (True, 204, 1)


def test_redirect_elsewhere_is_refused(fleet):
    """A redirect to another host fails, and nothing is sent there."""
    with scripted_api() as other:
        outcome = fleet.one(f"/redirect/{other.url.replace('/', '|')}|secret")
        assert outcome.error is not None
        assert (outcome.ok, outcome.error.code) == (False, "redirect")
        assert other.requests == []


def test_redirects_end(fleet):
    """A redirect loop fails after a few steps."""
    outcome = fleet.one("/redirect/")
    assert outcome.error is not None
    assert str(outcome.error) == f"redirect: more than 5 redirects, the last one to {fleet.script.url}/redirect/"


def test_idempotency_key_stays_the_same(fleet):
    """Every attempt of a job carries the same key, every job another one, a job's own key wins."""
    fleet.run(
        Job("POST", "/flaky/2/k1", api="script"),
        Job("POST", "/flaky/2/k2", api="script"),
        Job("POST", "/flaky/1/k3", api="script", idempotency_key="mine"),
    )
    keys = [
        {exchange.headers["idempotency-key"] for exchange in fleet.script.seen(f"/flaky/{n}/{key}")}
        for n, key in ((2, "k1"), (2, "k2"), (1, "k3"))
    ]
    assert [len(key) for key in keys] == [1, 1, 1]
    assert len(set.union(*keys)) == 3
    assert keys[2] == {"mine"}


def test_deadline_that_passed(fleet):
    """A job whose deadline is over is not called at all."""
    outcome = fleet.one("/late", deadline=datetime.now(UTC) - timedelta(seconds=1))
    assert outcome.error is not None
    assert (outcome.error.code, outcome.attempts, outcome.started_at) == ("deadline", 0, 0.0)
    assert fleet.script.seen("/late") == []


def test_deadline_stops_retries(fleet):
    """No attempt starts after the deadline; the outcome says how many there were before it."""
    deadline = datetime.now(UTC) + timedelta(seconds=2.5)
    outcomes = fleet.run(Job("GET", "/refused", api="unbroken", id="a", deadline=deadline))
    assert outcomes["a"].error is not None
    assert outcomes["a"].error.code == "deadline"
    assert outcomes["a"].attempts > 1
    assert datetime.now(UTC) >= deadline


def test_call_returns_the_outcome(fleet):
    """One call is submitted, made and forgotten: nothing of it stays in Redis."""
    before = set(fleet.redis.keys(f"{PREFIX}b:*"))
    outcome = fleet.client.call(Job("GET", "/one", api="echo"))
    assert (outcome.ok, outcome.json()["path"]) == (True, "/one")
    assert set(fleet.redis.keys(f"{PREFIX}b:*")) == before


def test_api_that_is_down_does_not_slow_another(fleet):
    """While calls to one API fail and wait for their retries, another API's calls go on at full speed."""
    down = fleet.client.submit([Job("GET", f"/{n}", api="down") for n in range(3000)], start="at once")
    until(lambda: down.progress().calls > 0, WAIT_S)
    began_s = time.monotonic()
    fleet.run(*[Job("GET", f"/{n}", api="echo") for n in range(300)])
    assert time.monotonic() - began_s < 5
    assert not down.progress().ended
    down.cancel()
    assert down.wait(WAIT_S).state == "cancelled"


def test_pause_and_resume(fleet):
    """A paused batch starts no call, and does all the rest after it is resumed."""
    batch = fleet.client.submit([Job("GET", "/wait/0.01", api="script", id=str(n)) for n in range(3000)])
    until(lambda: batch.progress().done, WAIT_S)
    batch.pause()
    assert batch.progress().state == "paused"
    until(lambda: fleet.leases(batch) == 0, WAIT_S)
    done = batch.progress().done
    assert done < 3000
    with pytest.raises(WaitTimeoutError):
        batch.wait(0.5)
    assert batch.progress().done == done
    batch.resume()
    assert batch.wait(WAIT_S).succeeded == 3000
    assert sorted(int(outcome.id) for outcome in batch.outcomes()) == list(range(3000))


def test_pause_while_it_is_submitted(fleet):
    """A batch paused and resumed before its seal is done to the end."""
    resumed = []

    def jobs() -> Iterator[Job]:
        for n in range(12_000):
            if n == 6_000:
                (progress,) = fleet.client.batches(1)
                batch = fleet.client.batch(progress.id)
                batch.pause()
            if n == 11_000:
                batch.resume()
                resumed.append(batch.id)
            yield Job("GET", "/x", api="echo")

    batch = fleet.client.submit(jobs(), start="at once")
    assert resumed == [batch.id]
    assert batch.wait(WAIT_S).succeeded == 12_000


def test_cancel(fleet):
    """A cancelled batch ends at once with the outcomes of what was in flight, and cannot be steered any more."""
    batch = fleet.client.submit([Job("GET", "/wait/0.01", api="script") for _ in range(3000)])
    until(lambda: batch.progress().done, WAIT_S)
    batch.cancel()
    progress = batch.wait(WAIT_S)
    assert (progress.state, progress.ended) == ("cancelled", True)
    assert 0 < progress.done < 3000
    assert len(list(batch.outcomes())) == progress.done
    batch.cancel()
    for steer in (batch.pause, batch.resume, batch.retry_failed):
        with pytest.raises(BatchStateError):
            steer()


def test_retry_failed(fleet):
    """Failed jobs run again on request, and only they."""
    jobs = [Job("GET", f"/flaky/4/r{n}" if n < 3 else "/x", api="script", id=str(n)) for n in range(10)]
    batch = fleet.client.submit(jobs)
    assert batch.wait(WAIT_S).failed == 3
    assert batch.retry_failed() == 3
    progress = batch.wait(WAIT_S)
    assert (progress.succeeded, progress.failed) == (10, 0)
    assert sorted((outcome.id, outcome.ok) for outcome in batch.outcomes()) == [(str(n), True) for n in range(10)]


def test_failures_and_the_retry_of_one_cause(fleet):
    """Failed jobs are grouped by cause with the API's own words; a retry of one cause leaves the other as it is."""
    urls = ["/status/404", "/status/404", "/flaky/4/cause", "/x"]
    batch = fleet.client.submit([Job("GET", url, api="script", id=str(n)) for n, url in enumerate(urls)])
    assert batch.wait(WAIT_S).failed == 3
    causes = {cause.cause: cause for cause in batch.failures()}
    assert {name: cause.count for name, cause in causes.items()} == {"http_404": 2, "http_500": 1}
    assert causes["http_404"].example.last.answer == "as told"
    assert causes["http_404"].example.last.request_id == "r1"
    assert causes["http_500"].example.last.attempts == 4
    assert batch.retry_failed(where="status=500") == 1
    progress = batch.wait(WAIT_S)
    assert (progress.succeeded, progress.failed) == (2, 2)
    assert {job.id for job in batch.failed_jobs()} == {"0", "1"}
    assert {job.id: job.failed for job in batch.failed_jobs(include_retried=True)} == {"0": True, "1": True, "2": False}
    assert [outcome.attempts for outcome in batch.outcomes() if outcome.id == "2"] == [1]
    with pytest.raises(UsageError, match="'state'"):
        batch.retry_failed(where="state=500")


def test_delete_while_it_runs(fleet):
    """A batch deleted under the workers' hands leaves nothing behind, and the worker goes on."""
    batch = fleet.client.submit([Job("GET", "/wait/0.01", api="script") for _ in range(2000)])
    until(lambda: batch.progress().done, WAIT_S)
    batch.delete()
    fleet.run(Job("GET", "/x", api="script"))
    until(lambda: not fleet.redis.zcard(f"{PREFIX}queued:script"), WAIT_S)
    assert fleet.redis.keys(f"{PREFIX}b:{batch.id}:*") == []


def test_long_waits_give_the_chunk_back(fleet):
    """A chunk whose remaining jobs wait long for their retry is given back, so that it holds nothing up."""
    batch = fleet.client.submit([Job("GET", "/status/500", api="patient"), Job("GET", "/x", api="patient")])
    until(lambda: batch.progress().retries and fleet.leases(batch) == 0, WAIT_S)
    assert batch.progress().done == 1
    batch.cancel()
    assert batch.wait(WAIT_S).done == 1


@pytest.mark.parametrize(
    ("job", "left_s", "code"),
    [
        ({"url": "/too-late", "api": "script"}, -1, "deadline"),
        ({"url": "/too-late", "api": "unbroken"}, 0.7, "deadline"),
        ({"url": "/wait/0.5", "api": "script"}, 0.3, None),
    ],
    ids=["passed", "passes while it waits", "passes while it is made"],
)
def test_plain_task_keeps_its_deadline(fleet, redis_server, job, left_s, code):
    """The plain task starts no call after the job's deadline; one under way ends as it would."""
    with Celery("theirs", broker=redis_server.url, backend=redis_server.url, set_as_current=False) as theirs:
        theirs.conf.update(
            broker_transport_options={"global_keyprefix": KEY_PREFIX},
            result_backend_transport_options={"global_keyprefix": KEY_PREFIX},
        )
        deadline = (datetime.now(UTC) + timedelta(seconds=left_s)).isoformat()
        arguments = ({"method": "GET", "deadline": deadline, **job},)
        outcome = theirs.send_task(tasks.CALL, arguments, queue=CALLS_QUEUE).get(timeout=WAIT_S)
    assert (outcome["error"] or {}).get("code") == code
    assert fleet.script.seen("/too-late") == []


def test_worker_stays_healthy(fleet):
    """After all of this nothing in the worker has died, and no call met a bug."""
    log = fleet.worker.logs()
    for words in ("Traceback", "a part of the worker died", "a runner died", "met a bug"):
        assert words not in log


def test_calls_carry_the_trace_that_they_were_submitted_in(fleet, redis_server):
    """Each call of a batch, a single call and the plain task name the submitter's span; a job's own trace is kept."""
    own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with TracerProvider().get_tracer("test").start_as_current_span("submitting") as span:
        fleet.run(*(Job("GET", f"/traced/{n}", api="script") for n in range(3)))
        fleet.run(Job("GET", "/traced/own", api="script", headers={"Traceparent": own}))
        fleet.client.call(Job("GET", "/traced/call", api="script"))
        with Celery("theirs", broker=redis_server.url, set_as_current=False) as theirs:
            theirs.conf.broker_transport_options = {"global_keyprefix": KEY_PREFIX}
            job = {"method": "GET", "url": "/traced/task", "api": "script"}
            theirs.send_task(tasks.CALL, (job,), queue=CALLS_QUEUE, ignore_result=True)
    fleet.run(Job("GET", "/traced/not", api="script"))
    until(lambda: fleet.script.seen("/traced/task"), WAIT_S, "the task ran")
    ids = span.get_span_context()
    expected = f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}"
    sent = {
        exchange.target.rpartition("/")[2]: exchange.headers.get("traceparent")
        for exchange in fleet.script.requests
        if exchange.target.startswith("/traced/")
    }
    assert sent == {
        **dict.fromkeys(("0", "1", "2", "call", "task"), expected),
        "own": own,
        "not": None,
    }
