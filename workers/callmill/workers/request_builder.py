"""RequestBuilder: what a call looks like on the wire of its API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urldefrag, urljoin, urlsplit

from callmill.config.credentials import ResolvedCredential
from callmill.config.idempotency import IDEMPOTENT_METHODS
from callmill.config.profiles import ApiProfile
from callmill.errors import UsageError
from callmill.workers.answer_mask import AnswerMask
from callmill.workers.call import Call
from callmill.workers.query_credential import QueryCredential

_KNOWN_URLS, _KNOWN_URL_LENGTH = 1024, 1024
"""Many APIs have few URLs: so many are remembered with their absolute form."""

Request = tuple[str, str, Mapping[str, str], bytes | None, float]
"""Method, URL, headers, body, seconds for the whole call: the arguments of ``Transport.send``."""


class ForbiddenUrlError(UsageError):
    """A job names a URL that its API's profile does not cover."""


class RequestBuilder:
    """Builds requests from calls and one API's profile.

    Args:
        profile: The API.
        credentials: The API's credentials, in order; none: calls carry none.

    Attributes:
        masks: For each credential, what masks it in stored answers.
    """

    def __init__(self, profile: ApiProfile, credentials: Sequence[ResolvedCredential] = ()) -> None:
        credentials = credentials or [ResolvedCredential()]
        self.masks = [AnswerMask(credential.secrets) for credential in credentials]
        self._profile = profile
        self._headers = [credential.headers for credential in credentials]
        self._queries = [QueryCredential(credential.query) if credential.query else None for credential in credentials]
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
        if (query := self._queries[key]) is not None:
            url = query.add_to(url)
        headers = dict(self._headers[key])
        if job.content_type is not None:
            headers["content-type"] = job.content_type
        if self._idempotency_header is not None and (job.idempotency_key or job.method not in IDEMPOTENT_METHODS):
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
        if len(self._known_urls) < _KNOWN_URLS and len(url) <= _KNOWN_URL_LENGTH:
            self._known_urls[url] = absolute
        return absolute

    def redirected(self, url: str, location: str) -> str:
        """Return the target of a redirect of this URL, without the API's credentials in its query."""
        try:
            target = urldefrag(urljoin(self.absolute(url), location)).url
        except ValueError:
            return location  # not a URL, so not under the base URL
        return self._without_credentials(target)

    def relative(self, url: str) -> str:
        """Return a job's URL as a path under the base URL, without credentials; a URL elsewhere unchanged."""
        if url.startswith("/"):
            return self._without_credentials(url)
        if not self.covers(url):
            return url
        url = self._without_credentials(url)
        base, target = urlsplit(self._profile.base_url), urlsplit(url)
        path = target.path.removeprefix(base.path) or "/"
        return f"{path}?{target.query}" if target.query else path

    def covers(self, url: str) -> bool:
        """Say whether calls of this API may go to the URL."""
        return self._profile.covers(url)

    def _without_credentials(self, url: str) -> str:
        for query in self._queries:
            url = url if query is None else query.remove_from(url)
        return url


def _override(headers: dict[str, str], own: Mapping[str, str]) -> None:
    names = {name.lower(): name for name in headers}
    for name, value in own.items():
        headers.pop(names.get(name.lower(), ""), None)
        names[name.lower()] = name
        headers[name] = value
