"""What ``doctor`` says of proxies that the environment names."""

from __future__ import annotations

from callmill.cli.doctor_checks import check_proxies
from callmill.config.api_profile import ApiProfile

PLAIN = ApiProfile(name="plain", base_url="https://x.test")
OWN = ApiProfile(name="own", base_url="https://x.test", transport="requests", session_factory="mine:session")


def test_ignored_proxies_are_named():
    """Proxies are named in either spelling, without their URLs, which may hold a password."""
    environment = {"https_proxy": "http://u:secret@p", "HTTP_PROXY": "http://p", "ALL_PROXY": "", "NO_PROXY": "x"}
    (finding,) = check_proxies({"plain": PLAIN}, environment)
    assert finding.found == "HTTP_PROXY, https_proxy: ignored; calls go directly to the APIs"
    (finding,) = check_proxies({"plain": PLAIN, "own": OWN}, environment)
    assert finding.found.endswith("directly to the APIs, except for own, whose session_factory decides")


def test_no_proxies_no_words():
    """Without a proxy nothing is said."""
    assert list(check_proxies({"plain": PLAIN}, {"NO_PROXY": "x", "HTTP_PROXY": ""})) == []
