"""The pages: frames that a script of ours fills with figures."""

from __future__ import annotations

from tornado import web

from callmill.dashboard.handlers import OurHandler


class FrontPage(OurHandler):
    """The way in leads to the batches; Flower's own front page is its Workers page."""

    @web.authenticated
    def get(self) -> None:
        """Redirect."""
        self.redirect(self.reverse_url("batches"))


class BatchesPage(OurHandler):
    """All batches."""

    @web.authenticated
    def get(self) -> None:
        """Show the page."""
        self.render("batches.html", styles=("lists.css",))


class BatchPage(OurHandler):
    """One batch."""

    @web.authenticated
    def get(self, batch_id: str) -> None:
        """Show the page."""
        self.render("batch.html", styles=("batch.css",), batch_id=batch_id, why_no_control=self.why_no_control)


class ApisPage(OurHandler):
    """All APIs."""

    @web.authenticated
    def get(self) -> None:
        """Show the page."""
        self.render("apis.html", styles=("apis.css",))


class StaticFiles(web.StaticFileHandler):
    """Our scripts and styles; modules name each other without a version, so browsers ask whether they changed."""

    def set_extra_headers(self, path: str) -> None:  # noqa: ARG002 - Tornado's signature
        """Have the file looked for anew each time; mostly it has not changed."""
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")
