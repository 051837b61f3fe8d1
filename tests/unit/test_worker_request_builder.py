"""RequestBuilder: what a call looks like on the wire of its API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from callmill.config.api_profile import ApiProfile
from callmill.config.credentials import ResolvedCredential
from callmill.jobs.wire import WireJob
from callmill.workers.call import Call
from callmill.workers.request_builder import ForbiddenUrlError, RequestBuilder

BASE = "https://api.example.com/root"


def build(job: WireJob, credentials: Sequence[ResolvedCredential] = (), **profile: Any):
    """Build one request; returns method, URL, headers in lower case, body, timeout."""
    builder = RequestBuilder(ApiProfile(name="api", base_url=BASE, **profile), credentials)
    method, url, headers, body, timeout_s = builder.build(Call(job, None, 0, 0, "batch-0"), 0)
    assert len({name.lower() for name in headers}) == len(headers), "a header twice"
    return method, url, {name.lower(): value for name, value in headers.items()}, body, timeout_s


def test_plain_call():
    """A path goes under the base URL, with the profile's time-out and no header of its own."""
    assert build(WireJob("GET", "/users?a=b")) == ("GET", f"{BASE}/users?a=b", {}, None, 60.0)


def test_body_and_timeout_of_the_job():
    """Body, content type and time-out of the job are used."""
    job = WireJob("PUT", f"{BASE}/x", body=b"{}", content_type="application/json", timeout_s=3.0)
    assert build(job) == ("PUT", f"{BASE}/x", {"content-type": "application/json"}, b"{}", 3.0)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/root/x",
        "https://api.example.com/other",
        "https://api.example.com@evil.example/root/",
        "/../secret",
        "/a/%2e%2e/%2e%2e/x",
        "/a\\..\\x",
        "//evil.example/x/../..",
        "x",
    ],
)
def test_foreign_url_is_refused(url):
    """A URL outside the profile is refused before a request exists."""
    with pytest.raises(ForbiddenUrlError):
        build(WireJob("GET", url))


def test_job_headers_win_whatever_their_case():
    """A job's header replaces the credential's and the made up one, compared without regard to case."""
    job = WireJob("POST", "/x", headers={"X-Team": "mine", "CONTENT-TYPE": "text/csv", "idempotency-KEY": "k"})
    _, _, headers, _, _ = build(job, [ResolvedCredential({"x-team": "theirs", "Authorization": "Bearer t"})])
    assert headers == {
        "x-team": "mine",
        "content-type": "text/csv",
        "idempotency-key": "k",
        "authorization": "Bearer t",
    }


@pytest.mark.parametrize(
    ("method", "own_key", "sent"),
    [
        ("POST", None, "batch-0"),
        ("PATCH", None, "batch-0"),
        ("GET", None, None),
        ("PUT", None, None),
        ("DELETE", None, None),
        ("GET", "mine", "mine"),
        ("POST", "mine", "mine"),
    ],
)
def test_idempotency_key(method, own_key, sent):
    """Methods that are not idempotent carry a key, the job's own if it has one; others only when asked."""
    _, _, headers, _, _ = build(WireJob(method, "/x", idempotency_key=own_key))
    assert headers.get("idempotency-key") == sent


def test_idempotency_header_can_be_renamed_or_left_out():
    """The profile names the header, or switches it off."""
    job = WireJob("POST", "/x")
    assert build(job, idempotency_header="X-Once")[2] == {"x-once": "batch-0"}
    assert build(job, idempotency_header=False)[2] == {}


def test_each_call_has_the_credential_of_its_slot():
    """Several credentials are a pool: a call carries the one that the limiter chose for it."""
    pool = [ResolvedCredential({"k": "1"}), ResolvedCredential({"k": "2"}), ResolvedCredential(query={"k": "3"})]
    builder = RequestBuilder(ApiProfile(name="api", base_url=BASE), pool)
    call = Call(WireJob("GET", "/x"), None, 0, 0, "batch-0")
    assert [builder.build(call, key)[1:3] for key in (0, 1, 2, 1)] == [
        (f"{BASE}/x", {"k": "1"}),
        (f"{BASE}/x", {"k": "2"}),
        (f"{BASE}/x?k=3", {}),
        (f"{BASE}/x", {"k": "2"}),
    ]


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("/x", "/x?key=a%2Bb%20%26%3D%27"),
        ("/x?", "/x?key=a%2Bb%20%26%3D%27"),
        ("/x?q=1%202&Q=+", "/x?q=1%202&Q=+&key=a%2Bb%20%26%3D%27"),
        ("/x?q=1&", "/x?q=1&key=a%2Bb%20%26%3D%27"),
        ("/x#part", "/x?key=a%2Bb%20%26%3D%27"),
        ("/x?key=***&q=1", "/x?q=1&key=a%2Bb%20%26%3D%27"),
        (f"{BASE}/x?k%65y=old", "/x?key=a%2Bb%20%26%3D%27"),
        ("/x?monkey=1&key", "/x?monkey=1&key=a%2Bb%20%26%3D%27"),
    ],
)
def test_credential_in_the_query(url, sent):
    """The credential's parameter is added, percent-encoded, and replaces one of its name; the rest stays as written."""
    assert build(WireJob("GET", url), [ResolvedCredential(query={"key": "a+b &='"})])[1] == f"{BASE}{sent}"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/root/y?key=secret&page=2", f"{BASE}/y?page=2"),
        ("y?page=2&key=***#top", f"{BASE}/y?page=2"),
        ("https://evil.example/?key=secret", "https://evil.example/"),
        ("https://[evil", "https://[evil"),
    ],
)
def test_redirects_carry_no_credential_along(location, target):
    """Where an answer points to is told without the credential that the API put there, so that it goes nowhere else."""
    builder = RequestBuilder(ApiProfile(name="api", base_url=BASE), [ResolvedCredential(query={"key": "secret"})])
    assert builder.redirected("/x", location) == target


def test_another_api_does_not_get_the_credential():
    """A URL that a call takes along to the fallback has lost the credential of the API that it was for."""
    builder = RequestBuilder(ApiProfile(name="api", base_url=BASE), [ResolvedCredential(query={"key": "secret"})])
    assert [builder.relative(url) for url in ("/x?key=secret&a=1", f"{BASE}/x?key=secret&a=1")] == ["/x?a=1"] * 2


def test_a_header_given_in_two_cases_is_sent_once():
    """Of a header that the job gives in two spellings, the last one is sent."""
    assert build(WireJob("GET", "/x", headers={"X-A": "1", "x-a": "2"}))[2] == {"x-a": "2"}


@pytest.mark.parametrize(
    ("url", "relative"),
    [
        ("/users?a=b", "/users?a=b"),
        (f"{BASE}/users?a=b", "/users?a=b"),
        (BASE, "/"),
        ("https://API.example.com:443/root/x", "/x"),
        ("https://evil.example/root/x", "https://evil.example/root/x"),
    ],
)
def test_urls_for_another_base(url, relative):
    """A URL of the API as a path under its base, for another API that serves it; what is not the API's stays."""
    assert RequestBuilder(ApiProfile(name="api", base_url=BASE)).relative(url) == relative
