"""What all our handlers share: who asks, what a browser may do with the answer, and how errors read."""

from __future__ import annotations

from typing import Any

import msgspec
from flower.views import BaseHandler
from tornado.web import HTTPError, RequestHandler

from callmill.dashboard.access import FORWARDED_HEADERS, Request, is_same_origin, why_no_control
from callmill.dashboard.figures import Figures
from callmill.errors import BatchNotFoundError, CallmillError, OutsideError, RedisUnavailableError, UsageError

# Images as data: are Bootstrap's arrows and ticks.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_ANSWER = {RedisUnavailableError: 503, OutsideError: 502, BatchNotFoundError: 404, UsageError: 409}


class OurHandler(BaseHandler):  # type: ignore[misc] # flower ships no types
    """A handler of ours: of Flower it takes the sign-in, and of its headers none that opens it to other sites."""

    def set_default_headers(self) -> None:
        """Allow nothing but this dashboard's own files."""
        self.set_header("Content-Security-Policy", _CONTENT_SECURITY_POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    @property
    def _flower(self) -> Any:
        return self.application  # a CallmillFlower

    @property
    def figures(self) -> Figures:
        """The figures that this dashboard shows."""
        figures: Figures = self._flower.figures
        return figures

    @property
    def is_authenticated(self) -> bool:
        """Whether visitors must sign in."""
        options = self._flower.options
        return bool(options.basic_auth or options.auth)

    @property
    def origin(self) -> Request:
        """Where the request comes from."""
        headers, context = self.request.headers, getattr(self.request.connection, "context", None)
        return Request(
            # What --xheaders puts in its place is the visitor's word.
            peer=str(getattr(context, "_orig_remote_ip", self.request.remote_ip)),
            host=self.request.host,
            origin=headers.get("Origin"),
            site=headers.get("Sec-Fetch-Site"),
            forwarded=any(name in headers for name in FORWARDED_HEADERS),
        )

    @property
    def why_no_control(self) -> str | None:
        """Why batches cannot be steered by this visitor; None where they can."""
        if not self._flower.batch_control:
            return "the dashboard was started read-only"
        return why_no_control(self.origin, authenticated=self.is_authenticated)


class JsonHandler(OurHandler):
    """A handler that answers with JSON, also when it fails."""

    def prepare(self) -> None:
        """Refuse whoever has not signed in; a redirect would be no answer to a script."""
        if not self.current_user:
            raise HTTPError(401, "sign in first")

    def check_xsrf_cookie(self) -> None:
        """Check where a change comes from, and its token, with and without authentication; Flower skips that."""
        if not is_same_origin(self.origin, authenticated=self.is_authenticated):
            raise HTTPError(403, "another site sent this")
        RequestHandler.check_xsrf_cookie(self)

    def send(self, answer: bytes) -> None:
        """Answer with JSON."""
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(answer)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with what went wrong: errors of ours and Tornado's in their words, others without any."""
        error = kwargs.get("exc_info", (None, None))[1]
        message = "the dashboard failed; its log says why"
        if isinstance(error, CallmillError):
            self.set_status(next((status for kind, status in _ANSWER.items() if isinstance(error, kind)), 500))
            message = str(error)
        elif isinstance(error, HTTPError):
            message = error.log_message or error.reason or self._reason
        if status_code == 401 and self._flower.options.basic_auth:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.send(msgspec.json.encode({"error": {"status": self.get_status(), "message": message}}))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log what is our fault; that Redis is away, or a batch gone, is told to whoever asked."""
        if not isinstance(value, (OutsideError, UsageError)):
            super().log_exception(typ, value, tb)
