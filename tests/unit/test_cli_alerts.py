"""``callmill alerts test``, and what doctor says of alerts."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from faulty_server import Exchange, faulty_server

from callmill.cli.doctor_checks import check_alerts
from callmill.cli.program import callmill
from callmill.config.redis_safety import Level
from callmill.config.settings import Settings


@pytest.fixture
def invoke(tmp_path):
    """Run ``callmill alerts test`` with these webhooks."""

    def run(*webhooks: str, arguments: tuple[str, ...] = ()):
        (tmp_path / "apis.toml").write_text(f"[alerts]\nwebhook = {json.dumps(webhooks)}\n" if webhooks else "")
        environment = {"CALLMILL_APIS": str(tmp_path / "apis.toml")}
        return CliRunner().invoke(callmill, ["alerts", "test", *arguments], env=environment)

    return run


def test_test_message_reaches_every_webhook(invoke):
    """Each webhook gets a message, and who does not take it is told by number; the URLs are not shown."""

    async def answer(exchange: Exchange) -> None:
        await exchange.answer("200 OK" if exchange.target == "/good-hook" else "404 Not Found")

    with faulty_server(answer) as server:
        good = invoke(server.url("/good-hook"))
        mixed = invoke(server.url("/good-hook"), server.url("/gone-hook"), "http://127.0.0.1:1/dead-hook")
        as_json = invoke(server.url("/good-hook"), arguments=("--json",))
        bodies = [json.loads(exchange.body) for exchange in server.requests]
    assert (good.exit_code, good.stdout) == (0, "webhook 1: delivered\n")
    assert mixed.exit_code == 1
    assert mixed.stdout == (
        "webhook 1: delivered\nwebhook 2: not delivered: 404 Not Found\nwebhook 3: not delivered: connect\n"
    )
    assert json.loads(as_json.stdout) == [{"webhook": 1, "delivered": True, "problem": None}]
    assert {(body["event"], "alerts arrive here" in body["text"]) for body in bodies} == {("test", True)}


def test_without_alerts_the_remedy_is_said(invoke):
    """Where none are configured, the error says what to write and where."""
    result = invoke()
    assert result.exit_code == 2
    assert "write [alerts] and webhook = ... into" in result.output


@pytest.mark.parametrize(
    ("text", "level", "words"),
    [
        ("", Level.OK, "nobody is told"),
        ('[alerts]\nwebhook = "http://127.0.0.1/hook-9"', Level.OK, "1 webhook is told of every event"),
        ('[alerts]\nwebhook = "http://127.0.0.1/hook-9"\nevents = ["api_down"]', Level.OK, "told of api_down"),
        ('[alerts]\nwebhook = "env:NOT_SET_AT_ALL"', Level.FAIL, "NOT_SET_AT_ALL is not set"),
    ],
)
def test_doctor_says_who_is_told(tmp_path, text, level, words):
    """Doctor tells whether anybody is told, of what, and what is wrong; never the URL."""
    (tmp_path / "apis.toml").write_text(text)
    finding = check_alerts(Settings(apis=tmp_path / "apis.toml"))
    assert (finding.check, finding.level) == ("alerts", level)
    assert words in finding.found
    assert "hook-9" not in finding.found
