"""RequestBuilder: what a call looks like on the wire of its API."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from callmill.config.profiles import ApiProfile
from callmill.errors import UsageError
from callmill.workers.call import Call

_NOT_IDEMPOTENT = frozenset({"POST", "PATCH"})

_KNOWN_URLS = 1024
"""Many APIs have few URLs: so many are remembered with their absolute form."""

Request = tuple[str, str, Mapping[str, str], bytes | None, float]
"""Method, URL, headers, body, seconds for the whole call: the arguments of ``Transport.send``."""


class ForbiddenUrlError(UsageError):
    """A job names a URL that its API's profile does not cover."""


class RequestBuilder:
    """Builds requests from calls and one API's profile.

    Args:
        profile: The API.
        credentials: One set of headers per credential.
    """

    def __init__(self, profile: ApiProfile, credentials: list[dict[str, str]]) -> None:
        self._profile = profile
        self._credentials = credentials or [{}]
        self._idempotency_header = profile.idempotency_header
        self._timeout_s = profile.timeout
        self._known_urls: dict[str, str] = {}

    def build(self, call: Call, key: int) -> Request:
        """Return the request of the call's next attempt with one of the credentials, from 0.

        Raises:
            ForbiddenUrlError: The URL is not the API's; nothing may be sent.
        """
        job = call.job
        url = self.absolute(call.url)
        headers = dict(self._credentials[key])
        if job.content_type is not None:
            headers["content-type"] = job.content_type
        if self._idempotency_header is not None and (job.idempotency_key or job.method in _NOT_IDEMPOTENT):
            headers[self._idempotency_header] = job.idempotency_key or call.key
        if call.trace is not None:
            call.trace.add_to(headers, job.headers)
        if job.headers is not None:
            _override(headers, job.headers)
        return job.method, url, headers, job.body, job.timeout_s or self._timeout_s

    def absolute(self, url: str) -> str:
        """Return the absolute form of a job's URL.

        Raises:
            ForbiddenUrlError: The URL is not the API's.
        """
        known = self._known_urls.get(url)
        if known is not None:
            return known
        try:
            absolute = self._profile.resolve(url)
        except ValueError as error:
            raise ForbiddenUrlError(str(error)) from error
        if len(self._known_urls) < _KNOWN_URLS:
            self._known_urls[url] = absolute
        return absolute

    def relative(self, url: str) -> str:
        """Return a job's URL as the path under the base URL; one that is not the API's as it is."""
        if url.startswith("/") or not self.covers(url):
            return url
        base, target = urlsplit(self._profile.base_url), urlsplit(url)
        path = target.path.removeprefix(base.path) or "/"
        return f"{path}?{target.query}" if target.query else path

    def covers(self, url: str) -> bool:
        """Say whether calls of this API may go to the URL."""
        return self._profile.covers(url)


def _override(headers: dict[str, str], own: Mapping[str, str]) -> None:
    names = {name.lower(): name for name in headers}
    for name, value in own.items():
        headers.pop(names.get(name.lower(), ""), None)
        names[name.lower()] = name
        headers[name] = value
