"""Settings from the environment."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from callmill.config.redaction import redacted
from callmill.config.settings import Settings, load_settings
from callmill.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for field in Settings.model_fields:
        monkeypatch.delenv(f"CALLMILL_{field.upper()}", raising=False)


def test_defaults():
    """An empty environment gives the documented defaults."""
    settings = load_settings()
    assert (settings.redis_url, settings.broker_url, settings.limiter_url, settings.apis) == (None, None, None, None)
    assert (settings.outcome_retention_hours, settings.chunks_per_process, settings.calls_in_flight) == (24, 32, 1000)
    assert (settings.shutdown_grace_s, settings.log_level) == (25, "info")


def test_servers_default_to_the_ledger(monkeypatch):
    """Broker and limiter use the ledger's server unless they are given their own."""
    monkeypatch.setenv("CALLMILL_REDIS_URL", "redis://a/1")
    monkeypatch.setenv("CALLMILL_LIMITER_URL", "rediss://b:7000")
    settings = load_settings()
    assert (settings.redis_url, settings.broker_url, settings.limiter_url) == (
        "redis://a/1",
        "redis://a/1",
        "rediss://b:7000",
    )


def test_environment_is_read_at_every_call(monkeypatch):
    """A variable set after the import, or after an earlier call, counts."""
    monkeypatch.setenv("CALLMILL_CALLS_IN_FLIGHT", "7")
    assert load_settings().calls_in_flight == 7
    monkeypatch.setenv("CALLMILL_CALLS_IN_FLIGHT", "8")
    assert load_settings().calls_in_flight == 8


def test_empty_variable_is_unset(monkeypatch):
    """An empty variable, as compose files pass for an unset one, gives the default."""
    monkeypatch.setenv("CALLMILL_REDIS_URL", "")
    monkeypatch.setenv("CALLMILL_CALLS_IN_FLIGHT", "")
    assert (load_settings().redis_url, load_settings().calls_in_flight) == (None, 1000)


def test_given_url_wins_and_is_named_as_what_it_is(monkeypatch):
    """A URL given in code wins over the variable, and a wrong one is not blamed on the variable."""
    monkeypatch.setenv("CALLMILL_REDIS_URL", "redis://environment")
    assert load_settings(redis_url="redis://given").broker_url == "redis://given"
    with pytest.raises(ConfigurationError, match=r"^redis_url: "):
        load_settings(redis_url="http://given")


def test_state_dir_follows_xdg(monkeypatch, tmp_path):
    """The state directory lies in $XDG_STATE_HOME, which counts only when absolute, else in ~/.local/state."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert load_settings().state_dir == tmp_path / "callmill"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert load_settings().state_dir == Path.home() / ".local/state/callmill"
    monkeypatch.setenv("CALLMILL_STATE_DIR", "~/mine")
    assert load_settings().state_dir == Path.home() / "mine"


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("CALLMILL_REDIS_URL", "localhost:6379", "write redis://"),
        ("CALLMILL_BROKER_URL", "amqp://host", "write redis://"),
        ("CALLMILL_LIMITER_URL", "redis://host:port", "write redis://"),
        ("CALLMILL_REDIS_URL", "redis://host/name", "database by its number"),
        ("CALLMILL_REDIS_URL", "redis://host?retry_on_timeout=1", "only ssl_"),
        ("CALLMILL_CALLS_IN_FLIGHT", "many", "valid integer"),
        ("CALLMILL_CHUNKS_PER_PROCESS", "0", "greater than or equal to 1"),
        ("CALLMILL_SHUTDOWN_GRACE_S", "nan", "finite number"),
        ("CALLMILL_OUTCOME_RETENTION_HOURS", "0", "greater than 0"),
        ("CALLMILL_LOG_LEVEL", "loud", "'info'"),
    ],
)
def test_wrong_variable_is_named_with_its_remedy(monkeypatch, variable, value, remedy):
    """A wrong variable is one line that names it and says what would be right."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as refusal:
        load_settings()
    message = str(refusal.value)
    assert message.startswith(f"{variable}: ")
    assert remedy in message
    assert "\n" not in message


def test_all_wrong_variables_at_once(monkeypatch):
    """Several wrong variables are several lines of one error."""
    monkeypatch.setenv("CALLMILL_CALLS_IN_FLIGHT", "x")
    monkeypatch.setenv("CALLMILL_LOG_LEVEL", "x")
    with pytest.raises(ConfigurationError) as refusal:
        load_settings()
    assert [line.split(":")[0] for line in str(refusal.value).splitlines()] == [
        "CALLMILL_CALLS_IN_FLIGHT",
        "CALLMILL_LOG_LEVEL",
    ]


def test_password_is_not_in_the_text_of_settings(monkeypatch):
    """Printed settings show where the servers are, and no password."""
    monkeypatch.setenv("CALLMILL_REDIS_URL", "redis://u:hunter2@host/0")
    for text in (repr(load_settings()), str(load_settings())):
        assert "hunter2" not in text
        assert text.count("redis://u:***@host/0") == 3


@pytest.mark.parametrize(
    "url", ["redis://:hunter2@host/name", "amqp://u:hunter2@h", "redis:hunter2", "redis://[hunter2"]
)
def test_password_is_not_in_an_error(monkeypatch, url):
    """An error about a URL shows no password, and drags along no other exception that might."""
    monkeypatch.setenv("CALLMILL_REDIS_URL", url)
    with pytest.raises(ConfigurationError) as refusal:
        load_settings()
    assert "hunter2" not in "".join(traceback.format_exception(refusal.value))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:1/2", "redis://user:***@host:1/2"),
        ("redis://:se@cret@host", "redis://:***@host"),
        ("redis://host:1/2", "redis://host:1/2"),
        ("rediss://host?password=secret", "rediss://host?***"),
        ("secret", "***"),
        ("redis://[secret", "***"),
    ],
)
def test_redacted(url, shown):
    """A redacted URL shows where, never the secret."""
    assert redacted(url) == shown
