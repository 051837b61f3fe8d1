"""How failures of Redis reach the ledger's callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, ResponseError

from callmill.config.lua_script import Call
from callmill.config.redis_connections import connect
from callmill.errors import OutsideError, RedisFullError, RedisUnavailableError, UnknownFormatError
from callmill.ledger import LedgerSession
from callmill.ledger.scripts import DUE
from callmill.ledger.session import refused


def test_cancellation_that_a_client_turns_into_an_error_stays_one():
    """A task cancelled in the midst of a command ends as cancelled, whatever the client makes of it."""

    async def cut_off() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RedisConnectionError("connection lost") from None

    async def scenario() -> None:
        session = LedgerSession(connect("redis://127.0.0.1:1"))
        command = asyncio.create_task(session.answer(cut_off()))
        await asyncio.sleep(0)
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), True),
        (ResponseError("Error running script: -OOM command not allowed when used memory > 'maxmemory'."), True),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), False),
    ],
)
def test_full_memory_is_told_from_other_refusals(error, full):
    """A refusal for lack of memory is known, however old the server that words it."""
    assert isinstance(refused(error), RedisFullError) == full


def answered(pending: Callable[[LedgerSession], Coroutine[Any, Any, Any]], client: Any = None, **options: Any) -> Any:
    """Return what a session's caller gets."""
    return asyncio.run(pending(LedgerSession(cast("Any", client), **options)))


@pytest.mark.parametrize("error", [RedisConnectionError("gone"), TimeoutError("late"), OSError("no route")])
def test_a_redis_that_is_away_is_one_error(error):
    """Whatever the client says of a Redis that does not answer, callers get one kind of error that names the cause."""

    async def fail() -> None:
        raise error

    with pytest.raises(RedisUnavailableError, match=f"Redis cannot be reached: {error}$"):
        answered(lambda session: session.answer(fail()))


def test_a_refusal_of_a_newer_batch_names_it():
    """What a script says of a batch in a newer format becomes an error that names batch and format."""
    with pytest.raises(UnknownFormatError, match=r"batch b1 .* format 7"):
        raise refused(ResponseError("NEWERFORMAT 7 b1 script: 0a1b"))


def test_a_cancellation_that_a_client_swallows_stays_one():
    """A task cancelled in the midst of a command ends as cancelled, also where the client answers all the same."""

    async def swallow() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done"

    async def scenario(session: LedgerSession) -> None:
        command = asyncio.create_task(session.answer(swallow()))
        await asyncio.sleep(0)
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command

    answered(scenario)


class Client:
    """A Redis of which each round trip answers as the test says, and which keeps what was sent."""

    def __init__(self, *answers: list[Any]) -> None:
        self.answers = list(answers)
        self.sent: list[list[Any]] = []
        self.loaded = 0

    def register_script(self, _text: str) -> Any:
        """Return a script."""
        script: Any = lambda *, keys, args: self._run([keys, args])  # noqa: E731 - what redis-py returns is called
        script.sha, script.script = "sha", "text"
        return script

    async def _run(self, call: Any) -> Any:
        self.sent.append([("run", *call)])
        return self.answers.pop(0)[0]

    async def script_load(self, _text: str) -> None:
        """Take note."""
        self.loaded += 1

    def pipeline(self, *, transaction: bool) -> Client:
        """Begin a round trip."""
        assert not transaction
        self.sent.append([])
        return self

    def execute_command(self, *command: Any) -> None:
        """Add to the round trip."""
        self.sent[-1].append(command)

    def publish(self, *_: Any) -> None:
        """Write something in any case."""
        self.sent[-1].append("publish")

    def wait(self, replicas: int, _within_ms: int) -> None:
        """Wait for replicas."""
        self.sent[-1].append(("wait", replicas))

    async def execute(self, *, raise_on_error: bool) -> list[Any]:
        """Make the round trip."""
        assert not raise_on_error
        return self.answers.pop(0)


CALLS = [Call(DUE, ["k"], [b"a"]), Call(DUE, ["k", "l"], [])]
SENT = [("EVALSHA", "sha", 1, "k", b"a"), ("EVALSHA", "sha", 2, "k", "l")]


def test_a_server_that_forgot_a_script_is_told_it_again():
    """Where a script is unknown to the server, as after a restart, all its runs of that round trip are repeated."""
    client = Client([NoScriptError("no"), "x"], ["one", "two"])
    assert answered(lambda session: session.run_many(CALLS), client) == ["one", "two"]
    assert (client.sent, client.loaded) == ([SENT, SENT], 1)
    known = Client(["one", "two"])
    assert answered(lambda session: session.run_many(CALLS), known) == ["one", "two"]
    assert (known.sent, known.loaded) == ([SENT], 0)


def test_a_refused_run_is_an_error_in_its_place():
    """One run that Redis refuses takes none of the others along."""
    results = answered(lambda session: session.run_many(CALLS), Client([OutOfMemoryError("full"), "two"]))
    assert isinstance(results[0], RedisFullError)
    assert results[1] == "two"


@pytest.mark.parametrize("ways", ["run_many", "run_lasting", "read_lasting"])
def test_what_must_last_waits_for_replicas(ways):
    """Where replicas are asked for, their wait goes with the round trip, behind something written in any case."""
    client = Client(["answer", 0, 2])
    questions: dict[str, Callable[[LedgerSession], Coroutine[Any, Any, Any]]] = {
        "run_many": lambda session: session.run_many(CALLS[:1], lasting=True),
        "run_lasting": lambda session: session.run_lasting(CALLS[0]),
        "read_lasting": lambda session: session.read_lasting(*SENT[0]),
    }
    answer = answered(questions[ways], client, wait_replicas=2)
    assert answer == (["answer"] if ways == "run_many" else "answer")
    assert client.sent == [[SENT[0], "publish", ("wait", 2)]]


@pytest.mark.parametrize("lasting", [True, False])
def test_nobody_waits_for_replicas_that_nobody_asked_for(lasting):
    """Without replicas to wait for, or for what need not last, a round trip has nothing added."""
    client = Client(["answer"])
    replicas = 0 if lasting else 2
    made = answered(lambda session: session.run_many(CALLS[:1], lasting=lasting), client, wait_replicas=replicas)
    assert made == ["answer"]
    assert client.sent == [SENT[:1]]
    direct = Client(["answer"])
    assert answered(lambda session: session.run_lasting(CALLS[0]), direct) == "answer"
    assert direct.sent == [[("run", ["k"], [b"a"])]]


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        (["answer", 0, 1], "1 of 2 replicas have it after 2 s"),
        (["answer", 0, ResponseError("not now")], "Redis refused: not now"),
        ([ResponseError("no"), 0, 2], "Redis refused: no"),
    ],
)
def test_what_may_not_last_is_an_error(answers, error):
    """Too few replicas, a wait that is refused, or a run that is: the caller hears that it may not last."""
    for question in (
        lambda session: session.run_lasting(CALLS[0]),
        lambda session: session.read_lasting(*SENT[0]),
    ):
        with pytest.raises(OutsideError, match=error):
            answered(question, Client(list(answers)), wait_replicas=2)
