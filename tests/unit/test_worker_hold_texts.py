"""What people are told when an API is held."""

from __future__ import annotations

import pytest

from callmill.config.profiles import ApiProfile
from callmill.workers.hold_texts import fault_texts, refusal_texts
from callmill.workers.transports.port import FaultKind


def profile(**fields):
    """Return an API's profile."""
    return ApiProfile.model_validate({"name": "crm", "base_url": "https://crm.example.com", **fields})


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"auth": {"bearer": "env:CRM_TOKEN"}}, "check CRM_TOKEN"),
        ({"auth": {"header": {"X-Key": "file:/run/secrets/crm"}}}, "check /run/secrets/crm"),
        ({"auth": {"basic": ["env:CRM_USER", "env:CRM_PASSWORD"]}}, "check CRM_USER and CRM_PASSWORD"),
        ({"headers": {"X-Api-Key": "env:CRM_KEY", "Accept": "text/plain"}}, "check CRM_KEY"),
        (
            {"transport": "requests", "session_factory": "mine.auth:session"},
            "check the credentials of mine.auth:session",
        ),
        ({}, "crm has no auth in its profile"),
    ],
)
def test_remedy_of_a_refusal_names_where_the_credential_comes_from(fields, remedy):
    """Whatever the profile takes its credential from is what to check."""
    assert refusal_texts(profile(**fields), 0, 401) == ("401 Unauthorized", remedy)
    assert refusal_texts(profile(**fields), 0, 402)[1] == "check the account's plan and billing"
    assert refusal_texts(profile(**fields), 0, 407)[1] == "check the user and password in the proxy's URL"


def test_credential_of_a_pool_is_named():
    """Of several credentials, the one that was refused is named."""
    pool = profile(auth=[{"bearer": "env:EU"}, {"bearer": "env:US"}])
    assert refusal_texts(pool, 1, 403) == ("403 Forbidden", "check US")


@pytest.mark.parametrize(
    ("kind", "message", "texts"),
    [
        (FaultKind.DNS, "", ("crm.example.com does not resolve", "check base_url")),
        (
            FaultKind.TLS,
            "invalid peer certificate: UnknownIssuer",
            ("the certificate of crm.example.com is not trusted", "check base_url, or set ca_file"),
        ),
        (
            FaultKind.TLS,
            "invalid peer certificate: certificate expired: verification time 1796000000",
            ("the certificate of crm.example.com has expired", "have it renewed, or check this machine's clock"),
        ),
        (
            FaultKind.TLS,
            "certificate verify failed: certificate is not yet valid",
            ("the certificate of crm.example.com is not valid yet", "check this machine's clock"),
        ),
        (FaultKind.TLS, "wrong version number", ("crm.example.com:443 does not answer with TLS", "check base_url")),
        (
            FaultKind.CONNECT,
            "connection refused",
            ("crm.example.com:443 accepts no connections", "check base_url, and that the server is running"),
        ),
        (FaultKind.TIMEOUT, "", ("crm.example.com:443 does not answer", "check base_url and the network")),
        (
            FaultKind.FORBIDDEN_ADDRESS,
            "",
            ("crm.example.com has a private address", "check base_url, or set allow_private_addresses = true"),
        ),
    ],
)
def test_fault_is_told_with_host_and_remedy(kind, message, texts):
    """What keeps a host from being reached is told in one line."""
    assert fault_texts(profile(), kind, message) == texts


def test_ipv6_address_is_told_in_brackets():
    """An address and its port can be told apart."""
    at_v6 = profile(base_url="http://[2001:db8::1]:8080", allow_private_addresses=True)
    assert fault_texts(at_v6, FaultKind.CONNECT, "")[0] == "[2001:db8::1]:8080 accepts no connections"
    assert fault_texts(at_v6, FaultKind.FORBIDDEN_ADDRESS, "")[0] == "[2001:db8::1] has a private address"
