"""Secrets from the environment and from files."""

from __future__ import annotations

from base64 import b64encode

import pytest

from callmill.config.credentials import ResolvedCredential, resolve_credentials
from callmill.config.profiles import load_profiles
from callmill.errors import ConfigurationError


@pytest.fixture
def profile(tmp_path):
    """Make a profile with the keys given."""

    def _profile(keys: str):
        (tmp_path / "apis.toml").write_text(f'[apis.crm]\nbase_url = "https://crm.test"\n{keys}')
        return load_profiles(tmp_path / "apis.toml")["crm"]

    return _profile


def test_each_kind_of_credential(profile, monkeypatch, tmp_path):
    """Credentials become the headers and parameters that servers expect, with the secrets in them, in their order."""
    monkeypatch.setenv("KEY", "hunter2")
    (tmp_path / "key.txt").write_text("from-file\n")
    auth = """auth = [
        { bearer = "env:KEY" },
        { header = { X-Key = "file:key.txt", X-Other = "Token env:KEY" } },
        { basic = ["env:KEY", ""] },
        { basic = ["me", "env:KEY"] },
        { basic = ["file:key.txt", "env:KEY"] },
        { query = { key = "env:KEY", "app id" = "file:key.txt" } },
    ]"""
    encoded = [b64encode(login).decode() for login in (b"hunter2:", b"me:hunter2", b"from-file:hunter2")]
    assert resolve_credentials(profile(auth)) == [
        ResolvedCredential({"Authorization": "Bearer hunter2"}, {}, ("hunter2",)),
        ResolvedCredential({"X-Key": "from-file", "X-Other": "Token hunter2"}, {}, ("from-file", "hunter2")),
        ResolvedCredential({"Authorization": f"Basic {encoded[0]}"}, {}, ("hunter2", encoded[0])),
        ResolvedCredential({"Authorization": f"Basic {encoded[1]}"}, {}, ("hunter2", encoded[1])),
        ResolvedCredential({"Authorization": f"Basic {encoded[2]}"}, {}, ("hunter2", encoded[2])),
        ResolvedCredential({}, {"key": "hunter2", "app id": "from-file"}, ("hunter2", "from-file")),
    ]


def test_static_headers_go_with_every_credential(profile, monkeypatch):
    """Static headers go with each credential, whose own header wins; where there is no credential, they go alone."""
    monkeypatch.setenv("A", "a")
    monkeypatch.setenv("B", "b")
    headers = 'headers = { Accept = "text/plain", authorization = "Basic env:A" }\n'
    assert resolve_credentials(profile(headers)) == [
        ResolvedCredential({"Accept": "text/plain", "authorization": "Basic a"}, {}, ("a",))
    ]
    assert resolve_credentials(profile(headers + 'auth = [{ bearer = "env:B" }, { header = { X = "env:B" } }]')) == [
        ResolvedCredential({"Accept": "text/plain", "Authorization": "Bearer b"}, {}, ("a", "b")),
        ResolvedCredential({"Accept": "text/plain", "authorization": "Basic a", "X": "b"}, {}, ("a", "b")),
    ]


def test_missing_secrets_are_named_all_at_once(profile, monkeypatch, tmp_path):
    """Each missing variable or file is a line with file, table, key and what is missing."""
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.setenv("EMPTY", " ")
    (tmp_path / "empty").write_text("\n")
    auth = """auth = [{ bearer = "env:NOWHERE" }, { basic = ["me", "env:EMPTY"] }, { header = { X = "file:none" } }]
    headers = { Y = "file:empty" }"""
    with pytest.raises(ConfigurationError) as refusal:
        resolve_credentials(profile(auth))
    place = f"{tmp_path}/apis.toml: [apis.crm]"
    lines = str(refusal.value).splitlines()
    assert lines[0] == f"{place} headers.Y: the file {tmp_path}/empty is empty"
    assert lines[1] == f"{place} auth[0].bearer: the environment variable NOWHERE is not set; set it for the workers"
    assert lines[2].startswith(f"{place} auth[1].basic[1]: the environment variable EMPTY")
    assert lines[3].startswith(f"{place} auth[2].header.X: the file {tmp_path}/none cannot be read")


@pytest.mark.parametrize("secret", ["line\r\nX-Evil: 1", "tab\there", "schlüssel"])
def test_secret_that_no_header_can_carry(profile, monkeypatch, secret):
    """A secret with characters that would break or forge a header is refused, without showing it."""
    monkeypatch.setenv("KEY", secret)
    with pytest.raises(ConfigurationError, match=r"auth\.bearer: env:KEY contains characters") as refusal:
        resolve_credentials(profile('auth = { bearer = "env:KEY" }'))
    assert secret not in str(refusal.value)


def test_secret_that_no_url_can_carry(profile, monkeypatch):
    """A parameter of the query may hold any character that can be written, and nothing else."""
    monkeypatch.setenv("GOOD", "schlüssel")
    monkeypatch.setenv("BAD", "line\nfeed")
    assert resolve_credentials(profile('auth = { query = { key = "env:GOOD" } }'))[0].query == {"key": "schlüssel"}
    with pytest.raises(ConfigurationError, match=r"auth\.query\.key: env:BAD contains characters") as refusal:
        resolve_credentials(profile('auth = { query = { key = "env:BAD" } }'))
    assert "feed" not in str(refusal.value)


def test_secrets_are_in_no_text_of_a_profile(profile, monkeypatch):
    """After resolving, neither the profile's text nor its dump holds the secret."""
    monkeypatch.setenv("KEY", "hunter2")
    resolved = profile('auth = { bearer = "env:KEY" }')
    resolve_credentials(resolved)
    assert "hunter2" not in f"{resolved!r} {resolved} {resolved.model_dump_json()} {resolved.public_facts()}"
