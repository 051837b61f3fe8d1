"""What it costs to read, clean and show a text that users or APIs choose grows with its length, not with its square."""

from __future__ import annotations

import contextlib
import importlib
import logging
import pkgutil
import re
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

import callmill.config
import callmill.jobs
import callmill.ledger
import callmill.limits
import callmill.workers
from callmill.config import redaction
from callmill.config.log_format import LogFormatter
from callmill.config.public_api import resolve
from callmill.config.redaction import redacted, short_without_secrets, without_secrets
from callmill.config.secret_mask import SecretMask
from callmill.config.short_texts import read_short, shortened
from callmill.config.tenant import checked_tenant
from callmill.errors import CallmillError
from callmill.jobs.line import Line, identity_of, shown_line
from callmill.jobs.trace_context import TraceContext
from callmill.ledger import ChunkRef
from callmill.ledger.hint_labels import HintLabels
from callmill.limits.headers import read_feedback
from callmill.workers import kinship

SHORT, LONG = 8_000, 32_000
TOO_SHORT_TO_TELL_S = 0.02
UNITS = [
    *("a", "a.", "1", " ", "\t", "\n", "\\", "'", '"', "/", "//", "://", "a://", "@", "a@", "%", "%25", "&", "&amp;"),
    *("?", "?a=", "&token=", ";", ",", "=", ":", "-", "token-", "secret.", "api-key", "password", "password: "),
    *("bearer ", "Bearer a", "authorization", "authorization: ", "cookie=", "s3cr3t-", "s3cr3t", "[", "{"),
    *("é", "a b", "1m", "/1", "@f1", "@b=", " · ", "(", "1,", '"a";q=1,'),
]
BEGINNINGS = ["", "x://", "?"]
MASK = SecretMask(["s3cr3t-'%20 key", "0123456789abcdef"])
LABELS = HintLabels()
RECORD = logging.makeLogRecord({"name": "callmill.x", "levelno": 20, "levelname": "INFO", "action": "said"})


def logged(text: str) -> str:
    """Format a line of the log with the text as message and as field."""
    RECORD.msg, RECORD.args = text, ()
    vars(RECORD)["batch_name"] = text
    return LogFormatter("json", "node").format(RECORD)


READERS: dict[str, Callable[[str], object]] = {
    "without_secrets": without_secrets,
    "short_without_secrets": lambda text: short_without_secrets(text, 1_000),
    "redacted": redacted,
    "mask.text": MASK.text,
    "mask.body": lambda text: MASK.body(text.encode()),
    "log": logged,
    "shortened": lambda text: shortened(text, 200),
    "read_short": lambda text: read_short(text.encode(), 200),
    "tenant": checked_tenant,
    "resolve": lambda text: resolve("https://api.example.com/v1", f"/{text}"),
    "line": Line.parse,
    "shown_line": shown_line,
    "identity_of": identity_of,
    "chunk": ChunkRef.parse,
    "label": lambda text: LABELS.text(ChunkRef("b", 0, "near"), text),
    "learn": lambda text: LABELS.learn(ChunkRef("b", 0, "near"), text),
    "trace": lambda text: TraceContext.read({"traceparent": text, "tracestate": text}),
    "path": lambda text: kinship._WITH_DIGIT.sub("*", text),
    "headers": lambda text: read_feedback({"retry-after": text, "ratelimit": text, "x-ratelimit-reset": text}),
}


def cost_s(read: Callable[[str], object], text: str) -> float:
    """Return the CPU time that reading takes, whatever comes of it."""
    best_s = float("inf")
    for _ in range(3):
        began_s = time.process_time()
        with contextlib.suppress(ValueError, CallmillError):
            read(text)
        best_s = min(best_s, time.process_time() - began_s)
        if best_s < TOO_SHORT_TO_TELL_S:
            break
    return best_s


def costs_its_square(read: Callable[[str], object], units: Sequence[str] = UNITS) -> list[str]:
    """Return the texts for which four times the length take more than nine times as long."""
    found = []
    for unit in units:
        for beginning in BEGINNINGS:
            for end in ("!\0",):
                make = lambda length, unit=unit: beginning + unit * (length // len(unit)) + end  # noqa: B023, E731
                long_s = cost_s(read, make(LONG))
                if long_s > TOO_SHORT_TO_TELL_S and long_s > 9 * max(cost_s(read, make(SHORT)), 0.001):
                    found.append(repr(make(40)))
    return found


@pytest.mark.parametrize("name", READERS)
def test_reading_costs_the_length(name):
    """A text four times as long takes about four times as long to read, whatever it consists of."""
    assert not costs_its_square(READERS[name])


def test_the_measure_tells():
    """What goes over the text again at each of its places is found out."""
    assert costs_its_square(lambda text: [text.count("b") for _ in text[::8]], ["a"])


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Every pattern for texts that a module of the product keeps."""
    for package in (callmill.config, callmill.jobs, callmill.ledger, callmill.limits, callmill.workers):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for name, value in vars(importlib.import_module(found.name)).items():
                if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
                    yield f"{found.name}.{name}", value


@pytest.mark.parametrize("name", sorted({name for name, _ in patterns()}))
def test_matching_a_pattern_costs_the_length(name):
    """No pattern of ours goes back over a text again and again before it says that it does not match."""
    assert not costs_its_square(dict(patterns())[name].fullmatch)


def test_a_long_name_costs_no_more_than_a_short_one():
    """What is shown of names is cut off before it is searched for secrets."""
    assert len(logged("a. " * 1_000_000)) < 20_000


@pytest.mark.parametrize("before", [0, 10, 990, 1_000, 1_009])
def test_no_part_of_a_secret_remains_at_the_cut(before, monkeypatch):
    """A secret that stands where a text is cut off is not found there in part."""
    monkeypatch.setattr(redaction, "_known", SecretMask(["correct-horse-battery-staple"]))
    for padding in (0, 5, 1_000, redaction._LONGEST - 20, redaction._LONGEST + 500):
        text = "x" * before + "correct-horse-battery-staple" + "y" * padding
        text += "correct-horse-battery-staple" * 1_000
        assert "correct" not in short_without_secrets(text, 1_000)
