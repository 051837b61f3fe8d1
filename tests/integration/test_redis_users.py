"""The users of Redis that docs/operate/secure.md shows are enough for what they are for, and for nothing more."""

from __future__ import annotations

import asyncio
import re
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner
from dashboard_process import DashboardProcess
from dashboard_site import dashboard_site
from hostile_messages import HARMFUL_COMMANDS, command
from local_nodes import RedisProcess, WorkerProcess, until, write_profiles
from scripted_api import scripted_api

from callmill.cli.program import callmill
from callmill.errors import RedisUnavailableError
from callmill.ledger.keys import BARRIER
from callmill.producer import Client, Job

PAGE = (Path(__file__).parents[2] / "docs/operate/secure.md").read_text()
RULES = PAGE.partition("```acl\n")[2].partition("```")[0]
USERS = re.findall(r"^user (\w+) on >(\S+)", RULES, re.MULTILINE)
FORBIDDEN_AND_HANDLED = {"config|get"}

Url = Callable[[str], str]


class GuardedRedis(RedisProcess):
    """A server with the rules of the page; ``program``: another than the embedded one."""

    program: str | None = None

    def command(self) -> list[str]:
        """Return the server's command line."""
        file = self.folder / "users.acl"
        file.write_text(RULES)
        program, *options = super().command()
        return [self.program or program, *options, "--aclfile", str(file)]


@pytest.fixture(
    scope="module",
    params=["embedded", pytest.param("redis-server", marks=pytest.mark.programs)],
    ids=["valkey", "redis"],
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedRedis]:
    """Run one for the module: the embedded Valkey, and Redis where it is installed."""
    process = GuardedRedis(tmp_path_factory.mktemp("guarded"), durable=True)
    if request.param != "embedded":
        process.program = shutil.which(request.param)
        if process.program is None:
            pytest.skip("no redis-server on PATH (Debian: apt install redis-server)")
    process.start()
    process.ready()
    yield process
    process.teardown()


@pytest.fixture
def url(server: GuardedRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Url:
    """Return the server's URL for a user."""
    monkeypatch.chdir(tmp_path)
    passwords = dict(USERS)
    return lambda user: f"redis://{user}:{passwords[user]}@127.0.0.1:{server.port}/0"


@pytest.fixture
def refused(url: Url) -> Iterator[Callable[[], set[str]]]:
    """Return what was refused since the test began: commands, keys and channels."""
    with redis.Redis.from_url(url("admin"), decode_responses=True) as admin:
        admin.execute_command("ACL", "LOG", "RESET")
        yield lambda: {entry["object"] for entry in admin.acl_log()} - FORBIDDEN_AND_HANDLED


def run(*arguments: str, redis_url: str) -> tuple[int, str]:
    """Run the command line as a user and return exit code and output."""
    done = CliRunner().invoke(callmill, list(arguments), env={"CALLMILL_REDIS_URL": redis_url, "COLUMNS": "400"})
    return done.exit_code, done.output


def test_users_can_do_what_they_are_for(url, refused, tmp_path):
    """Submit, work, read, retry, pause, look and steer, each with its user: nothing of it is refused."""
    with scripted_api() as api:
        profile = [f'base_url = "{api.url}"', 'limits = ["500/second", "20 concurrent"]']
        worker = WorkerProcess(tmp_path, url("worker"), write_profiles(tmp_path / "apis.toml", {"near": profile}), {})
        try:
            worker.start().ready()
            with Client(url("producer")) as client:
                jobs = [Job("GET", "/status/404" if n == 3 else f"/{n}", api="near") for n in range(30)]
                batch = client.submit(jobs, priority="bulk", tenant="acme")
                assert batch.wait(20).failed == 1
                assert len(list(batch.outcomes(release=True))) == 30
                assert batch.retry_failed() == 1
                batch.wait(20)
                waiting = client.submit([Job("GET", f"/wait/0.0{n}", api="near") for n in range(10)])
                waiting.pause()
                waiting.resume()
                waiting.wait(20)
                waiting.delete()
                assert client.call(Job("GET", "/one", api="near")).ok
            for command in (["status"], ["limits"], ["doctor"]):
                code, output = run(*command, redis_url=url("producer"))
                assert code == 0, output
            assert "CONFIG is forbidden" in output
            assert run("limits", "pause", "near", "--for", "1s", "--reason", "test", redis_url=url("worker"))[0] == 0
            look(url("dashboard"), tmp_path, batch.id)
            asyncio.run(steer(url("steering"), batch.id))
            assert refused() == set(), worker.logs()
        finally:
            worker.teardown()
    assert "NoPermission" not in worker.logs()


def look(redis_url: str, folder: Path, batch_id: str) -> None:
    """Open every kind of page of the dashboard; it hears events and asks workers meanwhile."""
    dashboard = DashboardProcess(folder, {"redis_url": redis_url})
    try:
        dashboard.start().ready()
        for page in ("batches", "apis", "workers", "tasks", "metrics", f"batch/{batch_id}"):
            with urllib.request.urlopen(f"{dashboard.url.rstrip('/')}/{page}", timeout=20) as answer:  # noqa: S310 - our own URL
                assert answer.status == 200, page
        assert "ermission" not in dashboard.logs()
    finally:
        dashboard.teardown()


async def steer(redis_url: str, batch_id: str) -> None:
    """Press a button of the dashboard."""
    async with dashboard_site(redis_url) as site:
        answer = await site.post(f"/callmill/batch/{batch_id}/retry-failed", await site.token())
        assert answer.code < 400, answer.body


EVERYBODY = ("worker", "producer", "dashboard", "steering")
ADMINISTRATION = """
FLUSHALL | FLUSHDB | KEYS * | SCAN 0 | RANDOMKEY | DBSIZE | CONFIG GET * | CONFIG SET dir /tmp | SHUTDOWN NOSAVE
DEBUG SLEEP 1 | REPLICAOF 127.0.0.1 1 | SLAVEOF 127.0.0.1 1 | MIGRATE 127.0.0.1 1 callmill:due 0 1 | SCRIPT FLUSH
SCRIPT KILL | FUNCTION LOAD x | FUNCTION FLUSH | FCALL f 0 | ACL LIST | ACL SETUSER x on | CLIENT LIST | CLIENT PAUSE 1
CLIENT KILL 127.0.0.1:1 | MONITOR | SAVE | BGSAVE | BGREWRITEAOF | SWAPDB 0 1 | MODULE LOAD x | SLOWLOG GET
SORT callmill:due | RESTORE callmill:x 0 x | FAILOVER | PSYNC ? 0 | SYNC | LATENCY RESET | CLUSTER RESET
GET other:key | SET other:key 1 | COPY callmill:due other:key | RENAME callmill:due other:key | BLPOP other:key 0
PSUBSCRIBE * | SUBSCRIBE other | PUBLISH other x | SPUBLISH other x | PUBLISH __keyspace@0__:x x
"""
HARM = {
    "producer": """
        PUBLISH callmill:/0.celery.pidbox x | PUBLISH callmill:/0.celeryev/worker.heartbeat x | LPUSH callmill:calls x
        PUBLISH callmill:limit:{near}:events x | SUBSCRIBE callmill:limit:{near}:events | HDEL callmill:unacked t
        HSET callmill:limit:{near}:meta now 1 | DEL callmill:limit:{near}:control | HSET callmill:apis near x
        HSET callmill:apis:at near@1 x | SET callmill:worker:w x | ZADD callmill:workers 1 w | SET callmill:reconciler w
        SADD callmill:_kombu.binding.calls x | XADD callmill:alerts * e x | HSET callmill:alerts:sent w 9
        HSET callmill:reconciled x 1 | HSET callmill:api:near:total x 1
    """,
    "dashboard": """
        HSET callmill:b:x:meta control cancelled | DEL callmill:b:x:out | HSET callmill:b:x:chunks 0 x
        HDEL callmill:b:x:state 0 | ZREM callmill:batches x | ZADD callmill:due 1 x | INCR callmill:controls
        ZREM callmill:active x | DEL callmill:lines | LPUSH callmill:lane.near x | DEL callmill:lane.near
        LPUSH callmill:calls x | HDEL callmill:unacked t | HSET callmill:limit:{near}:meta now 1
        PUBLISH callmill:limit:{near}:events x | SUBSCRIBE callmill:limit:{near}:events | HSET callmill:apis near x
        SET callmill:worker:w x | ZREM callmill:workers w | SET callmill:reconciler w | XTRIM callmill:alerts MAXLEN 0
        SADD callmill:_kombu.binding.calls x | PUBLISH callmill:barrier x
    """,
    "steering": """
        HSET callmill:limit:{near}:meta now 1 | DEL callmill:limit:{near}:control | HSET callmill:apis near x
        PUBLISH callmill:limit:{near}:events x | SUBSCRIBE callmill:limit:{near}:events | LPUSH callmill:calls x
        SET callmill:worker:w x | ZADD callmill:workers 1 w | SET callmill:reconciler w | HDEL callmill:unacked t
        SADD callmill:_kombu.binding.calls x | XADD callmill:alerts * e x
    """,
}
_REFUSED = "(?i)permission|The user executing the script can't"


def commands(table: str) -> list[list[str]]:
    """Return the commands of a table."""
    return [words for line in table.splitlines() for command in line.split("|") if (words := command.split())]


@pytest.mark.parametrize("user", EVERYBODY)
def test_users_administrate_nothing(url, user):
    """No user may administrate the server, list it, or touch a key or channel that is not Callmill's."""
    with redis.Redis.from_url(url("admin"), decode_responses=True) as admin:
        allowed = [words for words in commands(ADMINISTRATION) if is_allowed(admin, user, words)]
    assert not allowed


@pytest.mark.parametrize("user", HARM)
def test_users_do_no_harm(url, user):
    """No user may do what is another's: steer workers, pose as one, write limits, or batches where it only looks."""
    with redis.Redis.from_url(url("admin"), decode_responses=True) as admin:
        allowed = [words for words in commands(HARM[user]) if is_allowed(admin, user, words)]
    assert not allowed


def is_allowed(admin: redis.Redis, user: str, words: list[str]) -> bool:
    """Ask the server whether a user may give a command; one that it does not know harms nobody."""
    with suppress(redis.exceptions.ResponseError):
        return admin.execute_command("ACL", "DRYRUN", user, *words) == "OK"
    return False


@pytest.mark.parametrize(
    ("user", "script", "key"),
    [
        ("dashboard", "return redis.call('HSET', KEYS[1], 'control', 'cancelled')", "callmill:b:x:meta"),
        ("dashboard", "return redis.call('HSET', 'callmill:b:x:meta', 'control', 'cancelled')", "callmill:celeryev.x"),
        ("producer", "return redis.call('PUBLISH', 'callmill:/0.celery.pidbox', 'x')", "callmill:b:x:meta"),
        ("producer", "return redis.call('SET', 'other:key', 'x')", "callmill:b:x:meta"),
        ("worker", "return redis.call('FLUSHALL')", "callmill:b:x:meta"),
        ("worker", "return redis.call('GET', 'other:key')", "callmill:b:x:meta"),
        ("steering", "return redis.call('HSET', 'callmill:limit:{near}:meta', 'now', 1)", "callmill:b:x:meta"),
    ],
)
def test_a_script_may_do_no_more(url, user, script, key):
    """What a user may not do, a script that it runs may not do either, on keys that it names or hides."""
    with redis.Redis.from_url(url(user)) as client, pytest.raises(redis.exceptions.RedisError, match=_REFUSED):
        client.eval(script, 1, key)


def test_nobody_stops_a_worker(url, tmp_path):
    """Whatever a user sends on Celery's control channel, if it may, the worker goes on."""
    apis = write_profiles(tmp_path / "apis.toml", {"other": ['base_url = "http://127.0.0.1:1"']})
    worker = WorkerProcess(tmp_path, url("worker"), apis, {}).start()
    try:
        worker.ready()
        for user in EVERYBODY:
            with redis.Redis.from_url(url(user)) as client:
                for name, arguments in HARMFUL_COMMANDS:
                    with suppress(redis.exceptions.NoPermissionError):
                        client.publish("callmill:/0.celery.pidbox", command(name, arguments))
        with Client(url("producer")) as producer:
            batch = producer.submit([Job("GET", "/", api="other")])
            until(lambda: batch.progress().calls > 0, what="the worker works")
        assert worker.status == "running"
    finally:
        worker.teardown()


def test_what_is_refused_is_explained(url, server):
    """A wrong password, nobody at all, and a missing right: each is told with what to do about it."""
    wrong = url("worker").replace("CHANGE-worker", "wrong")
    nobody = f"redis://127.0.0.1:{server.port}/0"
    for address in (wrong, nobody):
        code, output = run("doctor", redis_url=address)
        assert code == 1
        assert "see user and password in the URL of Redis" in output
    with redis.Redis.from_url(url("admin")) as admin:
        admin.acl_setuser("poor", enabled=True, passwords=["+p"], keys=["callmill:*"], categories=["+@read"])
    poor = f"redis://poor:p@127.0.0.1:{server.port}/0"
    code, output = run("doctor", redis_url=poor)
    assert code == 1
    assert "docs/operate/secure.md" in output
    with Client(poor) as client, pytest.raises(RedisUnavailableError, match=r"docs/operate/secure\.md"):
        client.submit([Job("GET", "/", api="near")])


def test_a_worker_ends_where_redis_does_not_let_it_in(url, tmp_path):
    """A worker with a wrong password does not wait for what will not come: it says so and ends."""
    apis = write_profiles(tmp_path / "apis.toml", {"near": ['base_url = "http://127.0.0.1:1"']})
    worker = WorkerProcess(tmp_path, url("worker").replace("CHANGE-worker", "wrong"), apis, {}).start()
    try:
        until(lambda: worker.status == "exited", what="the worker ends")
        assert worker.process.returncode != 0
        assert "see user and password in the URL of Redis" in worker.logs()
    finally:
        worker.teardown()


@pytest.mark.parametrize("user", ["worker", "producer", "steering"])
def test_users_may_wait_for_replicas(url, user):
    """Whoever writes what counts may do what CALLMILL_WAIT_REPLICAS takes."""
    with redis.Redis.from_url(url("admin"), decode_responses=True) as admin:
        assert admin.execute_command("ACL", "DRYRUN", user, "PUBLISH", BARRIER, "") == "OK"
        assert admin.execute_command("ACL", "DRYRUN", user, "WAIT", "1", "100") == "OK"
