"""The table [alerts]: what it takes, what it refuses, and that no URL is ever shown."""

from __future__ import annotations

import pytest

from callmill.config.alert_policy import AlertEvent, resolve_webhooks
from callmill.config.profiles import find_alerts, load_profiles
from callmill.config.redaction import without_secrets
from callmill.config.settings import Settings
from callmill.errors import ConfigurationError

URL = "https://hooks.example.com/services/T0/B0/abcdefgh"
API = '[apis.a]\nbase_url = "https://a.example"\n'


@pytest.fixture
def policy(tmp_path):
    """Load a table."""

    def load(table: str):
        path = tmp_path / "apis.toml"
        path.write_text(API + table)
        assert set(load_profiles(path)) == {"a"}
        return find_alerts(Settings(apis=path))

    return load


def test_no_table_means_no_alerts(policy):
    """Without the table nobody is told."""
    assert policy("") is None


@pytest.mark.parametrize(
    "webhook", [f'"{URL}"', '"env:HOOK"', '"file:hook"', '["env:HOOK"]', f'["{URL}"]', '"http://127.0.0.1:9/abcdefgh"']
)
def test_webhook_is_a_url_or_a_reference(policy, monkeypatch, tmp_path, webhook):
    """One or several, as they are or by reference; logs hide them from then on, also piece by piece."""
    monkeypatch.setenv("HOOK", URL)
    (tmp_path / "hook").write_text(f"{URL}\n")
    (url,) = resolve_webhooks(policy(f"[alerts]\nwebhook = {webhook}"))
    assert url in {URL, "http://127.0.0.1:9/abcdefgh"}
    assert "abcdefgh" not in without_secrets(f"cannot post to {url}: /services/T0/B0/abcdefgh is gone")


def test_events_are_all_unless_some_are_named(policy):
    """All are told by default, or those of the list."""
    assert policy('[alerts]\nwebhook = "env:X"').events == list(AlertEvent)
    assert policy('[alerts]\nwebhook = "env:X"\nevents = ["batch_failed"]').events == [AlertEvent.BATCH_FAILED]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[alerts]", "[alerts] webhook: is required"),
        (
            '[alerts]\nwebhook = "secret-9"',
            "[alerts] webhook: is no URL to post to; write an absolute http or https",
        ),
        ('[alerts]\nwebhook = "ftp://secret-9/x"', "is no URL to post to"),
        ('[alerts]\nwebhook = "https://secret-9/\\n"', "white space"),
        ("[alerts]\nwebhook = []", "[alerts] webhook: "),
        ('[alerts]\nwebhook = "env:X"\nevents = ["batch_dead"]', "[alerts] events[0]: "),
        ('[alerts]\nwebhook = "env:X"\nwebhoks = "secret-9"', "unknown key; did you mean 'webhook'?"),
        ('[alerts]\nwebhook = "env:X"\nstuck_after = 0', "[alerts] stuck_after: "),
        ('[[alerts]]\nwebhook = "env:X"', "alerts: must be a table"),
    ],
)
def test_what_is_wrong_is_named(policy, table, message):
    """Every mistake names table and key, and shows no value."""
    with pytest.raises(ConfigurationError) as error:
        policy(table)
    assert message in str(error.value)
    assert "secret-9" not in str(error.value)


def test_missing_references_are_named_together(policy, monkeypatch):
    """Variables and files that are missing, or hold no URL, are named, one a line, and not shown."""
    monkeypatch.setenv("NO_URL", "secret-9")
    table = policy('[alerts]\nwebhook = ["env:NOT_SET", "file:/nowhere/hook", "env:NO_URL"]')
    with pytest.raises(ConfigurationError) as error:
        resolve_webhooks(table)
    first, second, third = str(error.value).splitlines()
    assert "[alerts] webhook[0]: the environment variable NOT_SET is not set" in first
    assert "webhook[1]: the file /nowhere/hook cannot be read" in second
    assert "webhook[2]: is no URL to post to" in third
    assert "secret-9" not in str(error.value)
