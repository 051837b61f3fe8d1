"""The log's lines: one each, readable or JSON, with fields of ours only and no secret of anybody's."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from callmill.config.api_profile import ApiProfile
from callmill.config.credentials import resolve_credentials
from callmill.config.log_format import LogFormatter, adopt_log, set_up_log
from callmill.config.redaction import hide, without_secrets

SECRET = 'sk-"live"/äö-77'


def line(
    style: str = "json", name: str = "callmill.test", message: str = "text", *args: object, **extra: object
) -> str:
    """Format one record."""
    record = logging.getLogger(name).makeRecord(name, logging.WARNING, "f", 1, message, args, None, extra=extra)
    return LogFormatter(style, "w1@host").format(record)


def test_readable_line_names_action_and_ids():
    """The readable form has time, level, who, action, message and ids."""
    text = line("text", "callmill.x", "%d ok", 7, action="chunk_over", batch="b1", batch_name="night", chunk=0, ok=7)
    assert text.split("Z ", 1)[1] == "WARNING w1@host: 7 ok [chunk_over batch=b1 batch_name=night chunk=0]"


def test_json_line_has_every_field():
    """The JSON form is one object with all fields."""
    fields = json.loads(line("json", "callmill.x", "%d ok", 7, action="chunk_over", batch="b1", chunk=0))
    assert fields["time"].endswith("Z")
    assert {name: fields[name] for name in ("level", "action", "message", "node", "logger", "batch", "chunk")} == {
        "level": "warning",
        "action": "chunk_over",
        "message": "7 ok",
        "node": "w1@host",
        "logger": "callmill.x",
        "batch": "b1",
        "chunk": 0,
    }


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_libraries_attach_is_left_out(style):
    """Celery attaches the arguments of tasks to its records; those may hold bodies and headers."""
    text = line(style, "celery.worker", "Task received", data={"args": "a body"})
    assert "a body" not in text
    assert ("library" in text) == (style == "json")


@pytest.mark.parametrize("style", ["text", "json"])
def test_line_is_one_line(style):
    """A batch's name cannot end the line and begin one of its own, nor colour the terminal."""
    text = line(style, "callmill.x", "batch %s", "a\n2026 CRITICAL\x1b[31m", action="a", batch_name="x\ny")
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text


def test_wrong_arguments_end_nothing():
    """A message whose arguments do not fit is written as it is, without them."""
    assert json.loads(line("json", "callmill.x", "%d and %d", "secret thing", action="a"))["message"] == "%d and %d"


@pytest.fixture
def hidden() -> str:
    """Return a secret that was read."""
    hide(SECRET)
    return SECRET


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_was_read_as_a_secret_is_never_written(hidden, style):
    """A secret is replaced in messages, fields and tracebacks, of ours and of libraries, in whatever spelling."""
    error = ValueError(f"cannot send {hidden!r} as {json.dumps(hidden)}")
    info = (ValueError, error, None)
    for name in ("callmill.x", "some.library"):
        record = logging.LogRecord(name, logging.ERROR, "f", 1, "with %s", (hidden,), info)
        record.reason = f"said {hidden}"
        text = LogFormatter(style, "w").format(record)
        assert "live" not in text
        assert "ValueError" in text


def test_credentials_are_hidden_once_read(monkeypatch):
    """Whatever a profile refers to is hidden from the moment that it is read, the encoded form of a password too."""
    monkeypatch.setenv("LOG_KEY", "value-of-the-key")
    monkeypatch.setenv("LOG_PASSWORD", "value-of-the-password")
    auth = [{"bearer": "env:LOG_KEY"}, {"basic": ["user", "env:LOG_PASSWORD"]}]
    profile = ApiProfile.model_validate({"name": "a", "base_url": "https://a.example", "auth": auth})
    for credential in resolve_credentials(profile):
        headers = credential.headers
        assert "***" in without_secrets(str(headers))
        assert headers["Authorization"].split()[1] not in without_secrets(f"it was {headers['Authorization']}")
    assert without_secrets("value-of-the-key value-of-the-password") == "*** ***"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("connects to redis://:hunter2@host:6379/0", "hunter2"),
        ("connects to redis://user:p@ss@host/0", "p@ss"),
        ("https://token9@host/x", "token9"),
        ("GET /v1/x?api_key=abc123&page=2", "abc123"),
        ("/x?page=1&access_token=abc123", "abc123"),
        ("{'Authorization': 'Token abc123'}", "abc123"),
        ('{"x-api-key": "abc123"}', "abc123"),
        ("Cookie: session=abc123; b=c", "abc123"),
        ("sent Bearer eyJhbGciOi.J9abc123", "abc123"),
        ("<Connection(host=h, password=abc123)>", "abc123"),
    ],
)
def test_what_looks_like_a_secret_is_replaced(text, secret):
    """Secrets that nobody told us of are recognised by their place."""
    assert secret not in without_secrets(text)
    assert "***" in without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "translate is done: 98 ok, 2 failed, p50 120 ms in 1.2 s",
        "Bearer authentication required",
        "https://api.example.com/v1/users/a@b.example?page=2",
        "callmill@host ready.",
        "the key: openai, tokens: 300",
    ],
)
def test_what_is_no_secret_stays(text):
    """Ordinary messages are left as they are."""
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "://" + "a." * 50_000,
        "a://" * 30_000,
        "http://" + "a:" * 50_000,
        "?" + "token" * 20_000,
        "&token" * 20_000,
        "authorization " * 8_000,
        "cookie" + " " * 100_000,
        "Bearer " * 15_000,
        "Bearer " + "a" * 100_000,
        "password=" * 12_000,
    ],
)
def test_no_text_takes_long(text):
    """Who chooses a text, such as a batch's name or an API's answer, cannot keep a worker busy with it."""
    began_s = time.process_time()
    without_secrets(text)
    assert time.process_time() - began_s < 1


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """Lend the root logger, and put it back."""
    logger = logging.getLogger()
    kept = logger.handlers[:], logger.level, sys.excepthook
    yield logger
    logger.handlers[:], sys.excepthook = kept[0], kept[2]
    logger.setLevel(kept[1])
    logging.captureWarnings(capture=False)


def test_adopted_log_writes_where_it_wrote(root):
    """A log that Celery has set up keeps its handlers, and writes our lines."""
    stream = io.StringIO()
    root.handlers[:] = [logging.StreamHandler(stream)]
    adopt_log(root, "w", level="info", style="json")
    logging.getLogger("celery.x").warning("connected to redis://:hunter2@h/0")
    written = json.loads(stream.getvalue())
    assert (written["action"], written["message"]) == ("library", "connected to redis://:***@h/0")


@pytest.mark.usefixtures("root")
def test_what_libraries_say_below_a_warning_is_left_out():
    """Celery's and kombu's lines about each message are for debugging."""
    stream = io.StringIO()
    set_up_log("w", level="info", style="text", stream=stream)
    for name in ("celery.worker", "kombu.connection", "callmill.x"):
        logging.getLogger(name).info("said by %s", name, extra={"action": "a"})
    assert "said by callmill.x" in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 1


def test_error_that_nobody_caught_is_a_line_without_secrets():
    """What ends a process, or a thread of it, is a JSON line; the secret in its message is not."""
    program = (
        "import threading\n"
        "from callmill.config.log_format import set_up_log\n"
        "from callmill.config.redaction import hide\n"
        "hide('hunter2hunter2'); set_up_log('w', level='info', style='json')\n"
        "def fail(): raise ValueError('no hunter2hunter2')\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        "import warnings; warnings.warn('beware of hunter2hunter2')\n"
        "fail()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["action"] for line in lines] == ["uncaught", "library", "uncaught"]
    assert "ValueError" in lines[0]["traceback"]
    assert "hunter2" not in done.stderr
