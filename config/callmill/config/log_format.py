"""The log: one line for each thing worth a note, for people or as JSON, and no secret in it.

Every line of ours has an ``action``, a name that stays, and the ids of what it is about; ``docs/logs.md`` lists them.
Lines of libraries pass through the same formatter; what they add to a record is left out, for it may be anything.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any, Literal, TextIO

from callmill.config.redaction import short_without_secrets

of_this_process: dict[str, str] = {}
"""Fields of every line of this process: the id of its worker, where it is one."""

LIBRARY = "library"
"""Action of the lines that others than Callmill write."""

Style = Literal["text", "json"]

_OURS = "callmill"
_IDS = ("batch", "batch_name", "chunk", "api", "line")
"""Fields that the readable form shows; its message says the rest."""

_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "action", "taskName"}
_NOISY = ("celery", "kombu", "amqp", "asyncio")
_LINES_OF_EACH_TASK = ("celery.app.trace", "celery.worker.strategy")
_MOST_OF_MESSAGE, _MOST_OF_FIELD, _MOST_OF_TRACE = 8_000, 2_000, 64_000
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127) if chr(code) not in "\n\t"}
_CONTROL_AND_NEWLINE = {**_CONTROL, 10: "\\n"}

log = logging.getLogger("callmill.log")


class LogFormatter(logging.Formatter):
    """Writes a record as one line; in the readable form a traceback follows on lines of its own.

    Args:
        style: ``text`` or ``json``.
        node: Who writes, for people; part of every line.
    """

    def __init__(self, style: Style, node: str) -> None:
        super().__init__()
        self._as_json = style == "json"
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        ours = record.name.partition(".")[0] == _OURS
        action = str(getattr(record, "action", LIBRARY))
        message = short_without_secrets(_message(record), _MOST_OF_MESSAGE).translate(
            _CONTROL_AND_NEWLINE if ours else _CONTROL
        )
        fields = _fields(record) if ours else {}
        trace = short_without_secrets(self.formatException(record.exc_info), _MOST_OF_TRACE) if record.exc_info else ""
        if self._as_json:
            return self._json(record, action, message, fields, trace)
        text = " ".join([action, *(f"{name}={fields[name]}" for name in _IDS if fields.get(name) not in (None, ""))])
        line = f"{_time(record)}Z {record.levelname:<7} {self._node}: {message}{f' [{text}]' if ours else ''}"
        return f"{line}\n{trace}" if trace else line

    def _json(self, record: logging.LogRecord, action: str, message: str, fields: dict[str, Any], trace: str) -> str:
        line = {
            "time": f"{_time(record)}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "action": action,
            "message": message,
            "node": self._node,
            "pid": record.process,
            "logger": record.name,
            **of_this_process,
            **fields,
        }
        if trace:
            line["traceback"] = trace
        return json.dumps(line, ensure_ascii=False, default=str)


def set_up_log(node: str, *, level: str, style: Style, stream: TextIO | None = None) -> None:
    """Let everything that this process logs go to one stream, standard error unless another is given.

    What libraries say below a warning is left out unless the level is debug. Python's warnings, and an error that
    nobody caught, become lines, too.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(LogFormatter(style, node))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    _quieten(level)
    logging.captureWarnings(capture=True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def adopt_log(root: logging.Logger, node: str, *, level: str, style: Style) -> None:
    """Let a log that somebody else has set up write lines as ours, wherever it writes to."""
    for handler in root.handlers:
        handler.setFormatter(LogFormatter(style, node))
    _quieten(level)


def _quieten(level: str) -> None:
    if level != "debug":
        # A line for each task, with its result, which for the plain task is the answer of an API.
        for name in _LINES_OF_EACH_TASK:
            logging.getLogger(name).setLevel(logging.WARNING)
    # A lane that is switched off leaves its messages to others, which kombu reports one by one.
    logging.getLogger("kombu.transport.virtual.base").setLevel(logging.ERROR)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - arguments of anybody's; logging would print them as they are, secrets and all
        return str(record.msg)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {
        name: short_without_secrets(value, _MOST_OF_FIELD).translate(_CONTROL_AND_NEWLINE)
        if isinstance(value, str)
        else value
        for name, value in vars(record).items()
        if name not in _OF_EVERY_RECORD
    }


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    log.critical("the process ends: %s", error, exc_info=(kind, error, trace), extra={"action": "uncaught"})


def _uncaught_in_thread(hook: threading.ExceptHookArgs) -> None:
    if hook.exc_value is None or issubclass(hook.exc_type, SystemExit):
        return
    info = (hook.exc_type, hook.exc_value, hook.exc_traceback)
    log.critical("a thread ended: %s", hook.exc_value, exc_info=info, extra={"action": "uncaught"})
