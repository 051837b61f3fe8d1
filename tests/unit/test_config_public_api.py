"""What an API covers."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.config.public_api import ApiAddress, PublicApi, covers, resolve

BASE = "https://api.example.com/v1"


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/v1",
        "https://api.example.com/v1/",
        "https://api.example.com/v1?page=2",
        "https://api.example.com/v1/users/..hidden",
        "https://API.example.com:443/v1/users?redirect=../..",
        "https://api.example.com/v1/a%2Fb",
        "https://api.example.com/v1//double",
        "https://api.example.com/v1/100%",
    ],
)
def test_covered(url):
    """A URL with the same origin, below the path prefix, is covered."""
    assert covers(BASE, url)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1/users",
        "https://api.example.com:8443/v1/users",
        "https://api.example.com.evil.test/v1",
        "https://api.example.com./v1",
        "https://evil.test/v1",
        "https://api.example.com@evil.test/v1",
        "https://user:password@api.example.com/v1",
        "https://api.example.com/v12/users",
        "https://api.example.com/",
        "https://api.example.com/v1/../admin",
        "https://api.example.com/v1/%2e%2E/admin",
        "https://api.example.com/v1/%252e%252e/admin",
        "https://api.example.com/v1/..%2fadmin",
        "https://api.example.com/v1/..%5cadmin",
        "https://api.example.com/v1/./users",
        "https://api.example.com\\@evil.test/v1",
        "https://api.example.com/v1/..\\admin",
        "https://api.example.com/v1/a\\b",
        "https://api.example.com/v1/\nHost: evil.test",
        "https://api.example.com/v1/a b",
        "https://api.example.com:port/v1",
        "https://[/v1",
        "//api.example.com/v1",
        "/v1",
        "",
    ],
)
def test_not_covered(url):
    """Another origin, another path, and whatever two parsers may read differently is not covered."""
    assert not covers(BASE, url)


@given(st.text(max_size=40))
def test_no_tail_leaves_the_base(tail):
    """Whatever is appended to a base URL without a path, the result is refused or goes to the same host."""
    url = "https://api.example.com" + tail
    if covers("https://api.example.com", url):
        assert tail.startswith(("/", "?", "#", ":")) or tail == ""
        assert "@" not in tail.split("/")[0].split("?")[0].split("#")[0]


@given(st.text("/.%2eE?#\\@: ab\n", max_size=12))
def test_resolved_paths_are_covered(tail):
    """Whatever path is resolved, the result is covered by the API, and what is covered is resolved."""
    if covers(BASE, f"{BASE}/{tail}"):
        assert resolve(BASE, f"/{tail}") == f"{BASE}/{tail}"
    else:
        with pytest.raises(ValueError, match=r"not under|contains"):
            resolve(BASE, f"/{tail}")


def test_resolve_joins_paths_and_keeps_absolute_urls():
    """A path goes under the base URL, with its query; a covered absolute URL stays as it is."""
    assert resolve(BASE, "/users?page=2") == f"{BASE}/users?page=2"
    assert resolve(BASE, f"{BASE}/users") == f"{BASE}/users"
    assert resolve(BASE, "//evil.test/x") == f"{BASE}//evil.test/x"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("users", "neither a path"),
        ("", "neither a path"),
        ("https://evil.test/v1", "is not under"),
        ("/../admin", "dot segments"),
        ("/a b", "contains a space: percent-encode it, as %20"),
        ("/a\\b", "contains a backslash: percent-encode it, as %5C"),
        ("https://api.test\t/", r"contains the control character U\+0009"),
        ("/%2e%2e/admin", "dot segments"),
        ("/..?x", "dot segments"),
    ],
)
def test_resolve_says_why_not(url, reason):
    """What cannot be resolved is refused with the reason."""
    with pytest.raises(ValueError, match=reason):
        resolve(BASE, url)


def test_public_api_travels_as_json():
    """The public facts survive JSON, and cover as the profile does."""
    api = PublicApi(name="crm", base_url=BASE, limits=("5/second",), enforcer="bucket", burst=3, usage="/n", timeout=9)
    read = msgspec.json.decode(msgspec.json.encode(api), type=PublicApi)
    assert read == api
    assert read.covers(f"{BASE}/users")
    assert read.resolve("/users") == f"{BASE}/users"


def test_one_address_is_one_identity():
    """However a base URL is spelt and whatever the limits are, an API is the same; another account is another API."""
    spelt = ("https://api.example.com/v1", "https://API.example.com:443/v1/", "HTTPS://api.example.com/v1")
    assert len({PublicApi(name="crm", base_url=url, limits=(str(n),)).identity for n, url in enumerate(spelt)}) == 1
    others = [
        PublicApi(name="crm", base_url=BASE),
        PublicApi(name="crm", base_url=BASE, account="eu"),
        PublicApi(name="crm", base_url=BASE, account="us"),
        *(
            PublicApi(name="crm", base_url=url)
            for url in ("http://api.example.com/v1", "https://api.example.com:8443/v1")
        ),
        *(PublicApi(name="crm", base_url=url) for url in ("https://api.example.com/V1", "https://api.example.com")),
    ]
    assert len({api.identity for api in others}) == len(others)
    assert ApiAddress.parse(str(others[1].at)) == others[1].at == ApiAddress(others[1].identity, f"{BASE} (account eu)")
    assert ApiAddress.parse("1") is None
