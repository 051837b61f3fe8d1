"""Who may open the dashboard."""

from __future__ import annotations

import pytest

from callmill.dashboard.access import check_address, check_credentials
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
