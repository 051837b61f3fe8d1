"""Who may open the dashboard."""

from __future__ import annotations

import pytest

from callmill.dashboard.access import Request, check_address, check_credentials, is_same_origin, why_no_control
from callmill.errors import ConfigurationError


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_authentication(address):
    """An address that only this machine reaches is served without authentication."""
    check_address(address, authenticated=False)


@pytest.mark.parametrize(
    "address", ["", "0.0.0.0", "::", "10.0.0.7", "localhost.example.com", "::ffff:10.0.0.7", "127.0.0.1.example.com"]
)
def test_others_need_authentication(address):
    """An address that others may reach, or may come to reach, is served with authentication only."""
    with pytest.raises(ConfigurationError, match="FLOWER_BASIC_AUTH"):
        check_address(address, authenticated=False)
    check_address(address, authenticated=True)


@pytest.mark.parametrize("credential", ["", ":", "someone", "someone:", ":secret", "sömeone:secret"])
def test_credentials_that_open_the_door_are_refused(credential):
    """A credential without user or password, which an empty sign-in would match, is refused, and is not shown."""
    with pytest.raises(ConfigurationError, match="credential 2: write USER:PASSWORD") as refused:
        check_credentials(["someone:good", credential])
    assert "secret" not in str(refused.value)


def test_good_credentials_pass():
    """A password may hold colons and commas."""
    check_credentials(["someone:a:b,c", "other:x"])


HERE = Request(peer="127.0.0.1", host="127.0.0.1:5555")


@pytest.mark.parametrize("host", ["127.0.0.1:5555", "localhost:5555", "[::1]:5555", "localhost"])
def test_this_machine_steers_batches(host):
    """Without authentication a browser on this machine, which believes to be here, may steer batches."""
    assert why_no_control(Request(peer="127.0.0.1", host=host), authenticated=False) is None


@pytest.mark.parametrize(
    "request_",
    [
        Request(peer="10.0.0.7", host="127.0.0.1:5555"),
        Request(peer="0.0.0.0", host="localhost"),
        Request(peer="127.0.0.1", host="evil.example"),
        Request(peer="127.0.0.1", host="127.0.0.1.evil.example:5555"),
        Request(peer="127.0.0.1", host=""),
        Request(peer="127.0.0.1", host="localhost", forwarded=True),
    ],
    ids=str,
)
def test_elsewhere_nothing_is_steered_unasked(request_):
    """From another machine, by another name or through a proxy, batches are steered with authentication only."""
    assert "FLOWER_BASIC_AUTH" in (why_no_control(request_, authenticated=False) or "")
    assert why_no_control(request_, authenticated=True) is None


@pytest.mark.parametrize(
    ("site", "origin", "authenticated", "same"),
    [
        (None, None, False, True),
        ("same-origin", "http://127.0.0.1:5555", False, True),
        (None, "http://127.0.0.1:5555", False, True),
        (None, "http://127.0.0.1:6666", False, False),
        ("same-origin", "http://evil.example", False, False),
        ("cross-site", None, True, False),
        ("same-site", "http://127.0.0.1:5555", True, False),
        ("none", None, True, False),
        ("same-origin", "https://ops.example", True, True),
        (None, "https://ops.example", True, False),
        (None, "null", True, False),
    ],
)
def test_only_our_pages_send_changes(site, origin, authenticated, same):
    """A change comes from a page of this dashboard; behind a sign-in the browser's word on the site is enough."""
    request = Request(peer=HERE.peer, host=HERE.host, origin=origin, site=site)
    assert is_same_origin(request, authenticated=authenticated) is same
