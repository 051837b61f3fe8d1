"""AlertPolicy: whom state changes are told, and which; and where the addresses of that come from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr

from callmill.config.redaction import hide
from callmill.config.secret_refs import checked_reference, is_reference, read_reference
from callmill.config.table import Seconds, Table
from callmill.errors import ConfigurationError


class AlertEvent(StrEnum):
    """What alerts tell of."""

    LANE_PAUSED = "lane_paused"
    LANE_RESUMED = "lane_resumed"
    API_DOWN = "api_down"
    API_UP = "api_up"
    BATCH_DONE = "batch_done"
    BATCH_FAILED = "batch_failed"
    BATCH_CANCELLED = "batch_cancelled"
    BATCH_STUCK = "batch_stuck"
    BATCH_HELD = "batch_held"
    BATCH_GOES_ON = "batch_goes_on"
    MEMORY_FULL = "memory_full"
    MEMORY_FREE = "memory_free"


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _webhook(text: str) -> str:
    if is_reference(text):
        return checked_reference(text)
    return _checked_url(text)


def _checked_url(url: str) -> str:
    """Return the URL if messages can be posted to it; an error does not show it, for it is a secret."""
    remedy = "write an absolute http or https URL, or env:NAME or file:/path of one"
    if any(character <= " " or character == "\x7f" for character in url) or not url.isascii():
        raise ValueError(f"holds white space or what is not ASCII; {remedy}")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"is no URL; {remedy}") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError(f"is no URL to post to; {remedy}")
    return url


class AlertPolicy(Table):
    """Whom state changes are told, and which: the table ``[alerts]``.

    Attributes:
        webhook: Where they are posted; one URL or several, each as it is or as a reference.
        events: Those that are told.
        stuck_after: Seconds without an outcome after which a batch that should run counts as stuck.
    """

    webhook: Annotated[
        list[Annotated[str, AfterValidator(_webhook)]], BeforeValidator(_listed), Field(min_length=1, max_length=10)
    ]
    events: Annotated[list[Annotated[AlertEvent, Field(strict=False)]], Field(min_length=1)] = Field(
        default_factory=lambda: list(AlertEvent)
    )
    stuck_after: Seconds = 600

    _source: Path | None = PrivateAttr(default=None)

    @property
    def source(self) -> Path | None:
        """The file that the table was read from."""
        return self._source


def resolve_webhooks(policy: AlertPolicy) -> list[str]:
    """Return the URLs; from now on logs hide them.

    Raises:
        ConfigurationError: A variable or file is missing or empty, or holds no URL; all of them, one a line.
    """
    problems, urls = [], []
    for position, text in enumerate(policy.webhook):
        key = f"webhook[{position}]" if len(policy.webhook) > 1 else "webhook"
        try:
            urls.append(_checked_url(read_reference(text, policy.source) if is_reference(text) else text))
        except ValueError as error:
            problems.append(f"{policy.source or 'profiles'}: [alerts] {key}: {error}")
    if problems:
        raise ConfigurationError("\n".join(problems))
    for url in urls:
        hide(url)
        hide(url.split("://", 1)[1])
        path = urlsplit(url).path
        hide(path.rstrip("/").rpartition("/")[2])  # the part that makes it a secret, wherever it turns up alone
    return urls
