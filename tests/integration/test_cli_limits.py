"""``callmill limits`` on a real Redis: what it shows, what it changes, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import threading
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from redis.asyncio import Redis

from callmill.cli.program import callmill
from callmill.config.limit_spec import parse_limit
from callmill.config.public_api import PublicApi
from callmill.config.redis_connections import connect, connect_blocking
from callmill.ledger.fleet import Fleet, KeyStatus, LaneStatus, WorkerStatus
from callmill.ledger.session import LedgerSession
from callmill.limits.control import InForce, LimitControl, load_in_force
from callmill.limits.keys import Keys

OPENAI = PublicApi(
    name="openai",
    base_url="https://api.openai.com/v1",
    limits=("100/second", "64 concurrent", "10000/day"),
    enforcer="sliding",
)
CRM = PublicApi(name="crm", base_url="https://crm.example", limits=("50/second",), enforcer="bucket", burst=20)
LANE = LaneStatus(
    api="openai", in_flight=12, waiting=30, next_start_s=0.004, rate=45.0, permits=20, slots_missed=3,
    guard_s=0.022, lateness_s=0.012, way_s=0.005,
)  # fmt: skip
WORKER = WorkerStatus(
    id="w1", host="h", pid=7, started_ms=0, calls=0, cpu_s=2.0, draining=False, apis=["openai"], lanes=[LANE]
)
LIMITER_DB = 1


@pytest.fixture
def limiter_url(redis_url, monkeypatch, tmp_path):
    """Let the command know two APIs, and a limiter's Redis that is not the ledger's; return its URL."""
    url = urlsplit(redis_url)._replace(path=f"/{LIMITER_DB}").geturl()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALLMILL_APIS", raising=False)
    monkeypatch.setenv("CALLMILL_REDIS_URL", redis_url)
    monkeypatch.setenv("CALLMILL_LIMITER_URL", url)
    with_fleet(redis_url, lambda fleet: fleet.announce_apis([OPENAI, CRM]))
    return url


@pytest.fixture
def report(redis_url, limiter_url):
    """Return what reports workers."""
    assert limiter_url

    def report(*workers):
        async def tell(fleet):
            for worker in workers:
                await fleet.report(worker)

        with_fleet(redis_url, tell)

    return report


def with_fleet(redis_url, work):
    """Do some work with what the workers say of themselves."""

    async def session():
        async with connect(redis_url) as redis:
            return await work(Fleet(LedgerSession(redis)))

    return asyncio.run(session())


def with_control(limiter_url, work, api="openai"):
    """Do some work with the control of an API."""

    async def session():
        async with connect(limiter_url) as redis:
            return await work(LimitControl(redis, api))

    return asyncio.run(session())


def call(*arguments):
    """Run the command to its end, which must be a good one."""
    result = CliRunner().invoke(callmill, ["limits", *arguments])
    assert result.exit_code == 0, result.output
    return result


def asked(*arguments):
    """Return the JSON that the command prints."""
    return json.loads(call(*arguments, "--json").stdout)


def joined(text):
    """Return a text without its line breaks: tables fold what is long."""
    return " ".join(text.split())


def test_every_api_is_shown_with_what_can_be_used(report):
    """The table has each API with the share of each limit that can be used, and points to the reasons."""
    report(WORKER, replace(WORKER, id="w2"))
    shown = call()
    row = next(line for line in shown.stdout.splitlines() if line.startswith("openai"))
    for part in ("100/second", "97.8 %", "sliding", "2", "24", "60", "90.0 %"):
        assert part in row
    assert "64 concurrent" in shown.stdout
    assert "no worker serves it" in joined(shown.stdout)
    assert "callmill limits show openai" in shown.stderr
    crm, openai = asked()
    assert (crm["api"], crm["limits"], crm["bounds"][0]["usable"]) == ("crm", ["50/second"], 1.0)
    assert (openai["workers"], openai["in_flight"], openai["permits"], openai["rate"]) == (2, 24, 40, 90.0)


def test_without_workers_no_guard_is_made_up(limiter_url):
    """Where nobody has measured, nothing is claimed of a strict limit; what needs no measure is told all the same."""
    assert limiter_url
    usable = {bound["limit"]: bound["usable"] for bound in asked("show", "openai")["bounds"]}
    assert usable["100/second"] is None
    assert usable["64 concurrent"] == 1
    assert usable["10000/day"] == pytest.approx(96 / 97)
    assert "no worker has measured yet" in joined(call("show", "openai").stdout)


def test_one_api_is_shown_in_full(report):
    """The details have the reason with its parts, calls, permits, the guard, and the keys that are set aside."""
    keys = [KeyStatus(name="main"), KeyStatus(name="spare", paused_s=120, reason="401: refused")]
    report(replace(WORKER, lanes=[replace(LANE, keys=keys)]))
    shown = joined(call("show", "openai").stdout)
    for part in (
        "97.8 % of 100/second at most: its server counts a sliding window",
        "lateness of this host 12 ms, way to Redis 5 ms, slot validity 5 ms",
        "45.0 % used over the last seconds",
        "12 in flight, 30 waiting, 45.0 per second over the last seconds, the next starts in 4.0 ms, 20 permits held",
        "3 slots missed",
        "main: in use",
        "spare: set aside for 2 min 0 s: 401: refused",
    ):
        assert part in shown
    assert "1 of 2 keys set aside" in joined(call().stdout)


def test_limits_are_set_and_reset(limiter_url):
    """Limits set by the command are in the limiter's own Redis, shown everywhere, and gone after the reset."""
    changed = asked("set", "openai", "300/min", "8 concurrent")
    assert (changed["limits"], changed["workers"]) == (["300/minute", "8 concurrent"], 0)
    specs = (parse_limit("300/minute"), parse_limit("8 concurrent"))
    assert asyncio.run(_override(limiter_url)) == InForce(changed["generation"], specs)
    shown = asked("show", "openai")
    assert (shown["limits"], shown["profile_limits"]) == (["300/minute", "8 concurrent"], list(OPENAI.limits))
    assert "instead of the profile's 100/second, 64 concurrent" in joined(call("show", "openai").stdout)
    again = call("reset", "openai")
    assert again.stdout == "openai: 100/second, 64 concurrent, 10000/day\n"
    assert "no worker serves it now" in again.stderr
    assert asked("show", "openai")["profile_limits"] is None


async def _override(url):
    async with Redis.from_url(url) as redis:
        return await load_in_force(redis, "openai")


def test_the_command_waits_for_the_workers(report, redis_url, limiter_url):
    """After a change the command waits until every worker keeps it, and says how many do."""
    report(WORKER, replace(WORKER, id="w2"))

    def adopt():
        with connect_blocking(limiter_url) as redis, redis.pubsub() as pubsub:
            pubsub.subscribe(Keys("openai").channel)
            pubsub.get_message(timeout=5)
            listening.set()
            generation = int(pubsub.get_message(timeout=5)["data"].split()[1])
        kept = replace(WORKER, lanes=[replace(LANE, limits_generation=generation)])
        report(kept, replace(kept, id="w2"))

    listening = threading.Event()
    worker = threading.Thread(target=adopt)
    worker.start()
    assert listening.wait(5)
    changed = call("set", "openai", "300/minute")
    worker.join()
    assert (changed.stdout, changed.stderr) == ("openai: 300/minute\n", "kept by all 2 workers\n")
    assert redis_url


def test_a_worker_that_does_not_follow_is_told_of(report):
    """Where a worker keeps the former limits, the command says so within some seconds and does not fail."""
    report(WORKER)
    assert "kept by 0 of 1 workers so far" in call("set", "openai", "300/minute").stderr
    assert "1, of which 0 keep the latest change so far" in joined(call("show", "openai").stdout)


def test_pause_and_resume(limiter_url):
    """A pause by the command is in force with its reason and author, shown in every view, and ended by the resume."""
    assert limiter_url
    paused = asked("pause", "openai", "--for", "10m", "--reason", "maintenance")
    assert 590 < paused["paused_s"] <= 600
    assert (paused["reason"], "@" in paused["by"]) == ("maintenance", True)
    endless = call("pause", "openai", "--reason", "still broken").stdout
    assert endless.startswith("openai: paused until resumed: still broken (")
    assert "paused until resumed: still" in joined(call().stdout)  # the column folds the rest
    assert asked("show", "openai")["paused_s"] is None
    assert call("resume", "openai").stdout == "openai: running\n"
    assert asked("show", "openai")["paused_s"] == 0


def test_one_key_is_paused(report):
    """One credential is set aside and taken back by its name; an unknown name is refused with those known."""
    report(replace(WORKER, lanes=[replace(LANE, keys=[KeyStatus(name="main"), KeyStatus(name="spare")])]))
    assert call("pause", "openai", "--key", "spare").stdout.startswith("openai, key spare: paused until resumed (")
    keys = {key["name"]: key["paused_s"] for key in asked("show", "openai")["keys"]}
    assert keys == {"main": 0, "spare": None}
    assert call("resume", "openai", "--key", "spare").stdout == "openai, key spare: running\n"
    refused = CliRunner().invoke(callmill, ["limits", "pause", "openai", "--key", "sparse"])
    assert (refused.exit_code, "known: main, spare" in refused.stderr) == (2, True)
    report(WORKER)
    refused = CliRunner().invoke(callmill, ["limits", "pause", "openai", "--key", "main"])
    assert (refused.exit_code, "one credential only" in refused.stderr) == (2, True)


def test_history(limiter_url):
    """The history tells who did what, from what to what, the latest first."""
    assert "nobody ever" in call("history", "openai").stderr
    with_control(limiter_url, lambda control: control.set(["300/minute"], by="anna@desk"))
    call("pause", "openai", "--for", "90s", "--reason", "rest")
    shown = call("history", "openai").stdout.splitlines()
    assert "running" in shown[1]
    assert "paused for 90 s: rest" in shown[1]
    assert "anna@desk" in shown[2]
    newest, oldest = asked("history", "openai")
    assert (newest["what"], oldest["by"], oldest["after"]) == ("pause", "anna@desk", "300/minute")
    assert len(asked("history", "openai", "--limit", "1")) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["show", "opnai"], "did you mean 'openai'? known: crm, openai"),
        (["set", "opnai", "1/second"], "known: crm, openai"),
        (["pause", "opnai"], "known: crm, openai"),
        (["history", "opnai"], "known: crm, openai"),
        (["set", "openai", "3/fortnight"], "'3/fortnight' is no limit; write '500/minute'"),
        (["set", "openai", "3/minute", "4/minute"], "count the same"),
        (["set", "openai"], "LIMIT"),
        (["pause", "openai", "--for", "10"], "write '90s', '10m'"),
        (["pause", "openai", "--for", "0s"], "until resumed"),
        (["pause", "openai", "--for", "9999d"], "at most 366 days"),
        (["--json", "show", "openai"], "write --json after 'show'"),
    ],
)
def test_mistakes_are_named_with_their_remedy(limiter_url, arguments, complaint):
    """A wrong API, limit or time changes nothing, ends with exit code 2 and says what would be right."""
    refused = CliRunner().invoke(callmill, ["limits", *arguments])
    assert refused.exit_code == 2, refused.output
    assert complaint in joined(refused.stderr)
    assert with_control(limiter_url, lambda control: control.history(10)) == []


def test_a_limiter_that_is_away_is_said(limiter_url, monkeypatch):
    """A limiter's Redis that cannot be reached is an error of the outside, not a table without what it would tell."""
    monkeypatch.setenv("CALLMILL_LIMITER_URL", "redis://127.0.0.1:1")
    assert limiter_url
    result = CliRunner().invoke(callmill, ["limits"])
    assert (result.exit_code, "Redis" in result.stderr) == (1, True)


def test_nothing_known_is_said(redis_url, monkeypatch, tmp_path):
    """Without workers and profiles the command says what to write and where."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALLMILL_APIS", raising=False)
    monkeypatch.setenv("CALLMILL_REDIS_URL", redis_url)
    monkeypatch.delenv("CALLMILL_LIMITER_URL", raising=False)
    assert "apis.toml" in call().stderr
    refused = CliRunner().invoke(callmill, ["limits", "set", "openai", "1/second"])
    assert (refused.exit_code, "no API is known" in refused.stderr) == (2, True)
