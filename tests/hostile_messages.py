"""Messages as no sender of ours writes them, for queues and channels of the broker."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

DEEP = "[" * 25_000 + "]" * 25_000
HUGE = "9" * 4_000


def task_message(
    payload: object, *, body: str | None = None, raw: dict[str, Any] | None = None, **headers: Any
) -> bytes:
    """Return a message as Celery writes it, with another body or envelope where they are given."""
    text = json.dumps(payload) if body is None else body
    named = {"lang": "py", "task": "callmill.run_chunk", "id": "an-id", "retries": 0, "eta": None, "expires": None}
    message = {
        "body": base64.b64encode(text.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {name: value for name, value in (named | headers).items() if value is not ...},
        "properties": {
            "delivery_tag": "a-tag",
            "delivery_info": {"exchange": "", "routing_key": "calls"},
            "body_encoding": "base64",
            "priority": 0,
        },
    }
    return json.dumps(message | (raw or {})).encode()


CHUNK = [["nobatch", 0, "near"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
_OWN = {"task": "callmill.call"}
_JOB = {"method": "GET", "url": "/hostile", "api": "near"}
_CALL = [[_JOB], {}, {}]


def _properties(**fields: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": "calls"}}
    return {"properties": {name: value for name, value in (known | fields).items() if value is not ...}}


def _following(signature: object, *, field: str = "callbacks") -> bytes:
    return task_message([[_JOB], {}, {field: [signature] if field != "chord" else signature}], **_OWN)


def _nested(levels: int) -> dict[str, Any]:
    signature: dict[str, Any] = {"task": "callmill.call"}
    for _ in range(levels):
        signature = {"task": "callmill.call", "options": {"link": [signature]}}
    return signature


QUEUE_MESSAGES: list[bytes] = [
    b"",
    b"\x80\x04\x95\x0b\x00pickle.",
    b"\xff\xfe\x00",
    b"not JSON",
    b"null",
    b"17",
    b'"text"',
    b"[]",
    b"{}",
    b"NaN",
    DEEP.encode(),
    HUGE.encode() * 2,
    b'{"__type__": "decimal", "__value__": "x"}',
    b'{"__type__": "uuid", "__value__": 1}',
    b'{"__type__": "none", "__value__": {}}',
    b'{"properties": null}',
    b'{"properties": {}}',
    b'{"properties": {"delivery_tag": {}}, "body": []}',
    b" " * 100_000,
    task_message(CHUNK, raw={"headers": None}),
    task_message(CHUNK, raw={"headers": []}),
    task_message(CHUNK, raw={"headers": {}}),
    task_message(CHUNK, raw={"headers": {"task": ["a"]}}),
    task_message(CHUNK, raw={"body": None}),
    task_message(CHUNK, raw={"body": 5}),
    task_message(CHUNK, raw={"body": {"a": 1}}),
    task_message(CHUNK, raw={"body": "%%%"}),
    task_message(CHUNK, raw={"body": "é"}),
    task_message(CHUNK, raw={"content-type": "application/x-python-serialize"}),
    task_message(CHUNK, raw={"content-type": "application/x-yaml"}),
    task_message(CHUNK, raw={"content-type": None}),
    task_message(CHUNK, raw={"content-type": 1}),
    task_message(CHUNK, raw={"content-encoding": "nothing"}),
    task_message(CHUNK, raw={"content-encoding": None}),
    task_message(CHUNK, raw=_properties(delivery_tag=...)),
    task_message(CHUNK, raw=_properties(delivery_tag="")),
    task_message(CHUNK, raw=_properties(delivery_tag="x" * 10_000)),
    task_message(CHUNK, raw=_properties(delivery_info=...)),
    task_message(CHUNK, raw=_properties(delivery_info="x")),
    task_message(CHUNK, raw=_properties(delivery_info={"exchange": 5, "routing_key": [1]})),
    task_message(CHUNK, raw=_properties(body_encoding="rot13")),
    task_message(CHUNK, raw=_properties(body_encoding=7)),
    task_message(CHUNK, raw=_properties(priority="high")),
    task_message(CHUNK, raw=_properties(priority=1e308)),
    task_message(CHUNK, raw=_properties(reply_to={"exchange": "x"})),
    task_message(CHUNK, compression="application/x-bz2"),
    task_message(CHUNK, compression="application/x-gzip"),
    task_message(
        CHUNK,
        compression="application/x-gzip",
        raw={"body": base64.b64encode(zlib.compress(b" " * 70_000_000)).decode()},
    ),
    task_message(None, body="not JSON"),
    task_message(None, body=""),
    task_message(None, body=DEEP[:20_000] + DEEP[-20_000:]),
    task_message(None, body=HUGE * 2),
    task_message(None, body='{"args": [], "kwargs": {}}'),
    task_message(None, body='[[], {}, {"__type__": "uuid", "__value__": 3}]'),
    task_message(None),
    task_message([]),
    task_message([[], {}]),
    task_message([[], {}, {}, {}]),
    task_message({"task": "callmill.run_chunk", "id": "x", "args": 5}),
    task_message([None, None, None]),
    task_message([["nobatch"], {}, {}]),
    task_message([["nobatch", "zero", "near"], {}, {}]),
    task_message([["nobatch", -1, "near"], {}, {}]),
    task_message([["nobatch", 10**30, "near"], {}, {}]),
    task_message([["nobatch", True, "near"], {}, {}]),
    task_message([["a/b*", 0, "near"], {}, {}]),
    task_message([["nobatch", 0, "x" * 5000], {}, {}]),
    task_message([["nobatch", 0, None], {}, {}]),
    task_message([["nobatch", 0, "near"], {"more": 1}, {}]),
    task_message([["nobatch", 0, "near"], {}, "x"]),
    task_message([["nobatch", 0, "near"], {}, {"callbacks": [{"task": "callmill.call"}]}]),
    task_message([["nobatch", 0, "near"], {}, {"chord": {"task": "callmill.call"}}]),
    *(
        task_message(CHUNK, **{name: value})
        for name, value in (
            ("task", "nobody.knows"),
            ("task", "celery.backend_cleanup"),
            ("task", "celery.chord_unlock"),
            ("task", 5),
            ("task", ...),
            ("id", ...),
            ("id", 5),
            ("id", {}),
            ("id", ""),
            ("id", "x" * 100_000),
            ("retries", "many"),
            ("retries", -(10**20)),
            ("timelimit", "x"),
            ("timelimit", [1]),
            ("timelimit", ["a", "b"]),
            ("timelimit", [1e300, 1e300]),
            ("eta", 5),
            ("eta", "soon"),
            ("eta", "9999-12-31T23:59:59+00:00"),
            ("eta", "0001-01-01T00:00:00"),
            ("expires", "soon"),
            ("expires", {}),
            ("expires", "0001-01-01T00:00:00+14:00"),
            ("shadow", ["x"]),
            ("argsrepr", {"a": 1}),
            ("argsrepr", "x" * 20_000),
            ("root_id", 5),
            ("group", {"a": 1}),
            ("group_index", "x"),
            ("replaced_task_nesting", "x"),
            ("stamped_headers", 5),
            ("stamps", [5]),
            ("ignore_result", "maybe"),
        )
    ),
    task_message([["nobatch", 0, "near"], {}, {}], callbacks=[{"task": "callmill.call"}]),
    task_message([["nobatch", 0, "near"], {}, {}], chord={"task": "x", "options": {"queue": "due"}}),
    task_message(_CALL, task="callmill.call", chain=[{"task": "x", "options": {"queue": "apis"}}]),
    task_message(_CALL, task="callmill.call", eta="9999-12-31T23:59:59"),
    task_message(_CALL, task="callmill.call", eta="2099-01-01T00:00:00+00:00"),
    task_message(_CALL, task="callmill.call", expires="0001-01-01T00:00:00"),
    task_message([_JOB, {}, {}], **_OWN),
    task_message([[_JOB], [], {}], **_OWN),
    _following("x"),
    _following({}),
    _following({"task": 5}),
    _following({"task": "celery.chord_unlock"}),
    _following({"task": "celery.group", "kwargs": {"tasks": []}}),
    _following({"task": "callmill.call", "options": {"queue": "due"}}),
    _following({"task": "callmill.call", "options": {"queue": "b:x:meta"}}),
    _following({"task": "callmill.call", "options": {"routing_key": "unacked"}}),
    _following({"task": "callmill.call", "options": {"queue": "lane.near"}}),
    _following({"task": "callmill.call", "options": {"exchange": "celeryev"}}),
    _following({"task": "callmill.call", "options": {"link": [{"task": "x", "options": {"queue": "workers"}}]}}),
    _following({"task": "x", "options": {"queue": {}}}, field="chord"),
    _following({"task": "x", "options": {"queue": "apis"}}, field="errbacks"),
    _following({"task": "x", "options": {"queue": "active"}}, field="chain"),
    _following({"task": "callmill.call", "options": {"connection": "redis://elsewhere"}}),
    _following(_nested(200)),
]


def control_message(body: object, /, **raw: Any) -> bytes:
    """Return a message for Celery's control channel."""
    text = body if isinstance(body, str) else json.dumps(body)
    properties = {"delivery_tag": "t", "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""}}
    message = {
        "body": base64.b64encode(text.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 1, "expires": 0},
        "properties": properties | {"body_encoding": "base64", "priority": 0},
    }
    return json.dumps(message | raw).encode()


def command(method: object, arguments: object = None, **fields: Any) -> bytes:
    """Return a command of Celery's remote control."""
    return control_message({"method": method, "arguments": arguments, "destination": None, **fields})


ASKED_BY = "0f0e0d0c-0000-4000-8000-000000000000"
_REPLY_TO = {"exchange": "reply.celery.pidbox", "routing_key": ASKED_BY}
HARMFUL_COMMANDS: list[tuple[str, dict[str, Any]]] = [
    ("shutdown", {"msg": "bye"}),
    ("revoke", {"task_id": "x", "terminate": True, "signal": "SIGKILL"}),
    ("terminate", {"signal": "KILL", "task_id": "x"}),
    ("revoke_by_stamped_headers", {"headers": {"a": "b"}, "terminate": True}),
    ("rate_limit", {"task_name": "callmill.run_chunk", "rate_limit": "1/h"}),
    ("time_limit", {"task_name": "callmill.run_chunk", "hard": 1}),
    ("pool_grow", {"n": 100_000}),
    ("pool_shrink", {"n": 100}),
    ("pool_restart", {"modules": ["os"], "reload": True}),
    ("autoscale", {"max": 0, "min": 0}),
    ("add_consumer", {"queue": "b:x:meta"}),
    ("cancel_consumer", {"queue": "calls"}),
    ("disable_events", {}),
    ("election", {"id": "1", "topic": "task", "action": {"task": "callmill.call"}}),
    ("memdump", {}),
    ("memsample", {}),
    ("objgraph", {}),
    ("report", {}),
    ("query_task", {"ids": ["x"]}),
]
CONTROL_MESSAGES: list[bytes] = [
    b"",
    b"\xff",
    b"not JSON",
    b"[]",
    b"5",
    DEEP.encode(),
    b"{}",
    b'{"properties": {"delivery_tag": "t"}}',
    control_message("not JSON"),
    control_message(DEEP),
    control_message(None),
    control_message([]),
    control_message("x"),
    control_message({}),
    control_message({"method": 5}),
    control_message({"method": "ping"}, headers={"clock": "late"}),
    control_message({"method": "ping"}, headers={"clock": 10**4000}),
    control_message({"method": "ping"}, headers=5),
    control_message({"method": "ping"}, **{"content-type": "application/x-python-serialize"}),
    control_message({"method": "ping"}, **{"content-encoding": "nothing"}),
    control_message({"method": "ping"}, body="%%"),
    command("nobody_knows"),
    command("x" * 1000),
    command("ping", destination=5),
    command("ping", destination={"a": 1}),
    command("ping", pattern="(a+)+$", matcher="pcre"),
    command("ping", reply_to="x", ticket=5),
    command("ping", reply_to={"exchange": "x"}),
    command("ping", reply_to={"exchange": "", "routing_key": "due"}, ticket="t"),
    command("ping", reply_to={"exchange": "reply.celery.pidbox", "routing_key": "due"}, ticket="t"),
    command("ping", reply_to={"exchange": "celeryev", "routing_key": ASKED_BY}, ticket="t"),
    command("ping", reply_to=_REPLY_TO, more=1),
    command("registered", {"taskinfoitems": 5}),
    *(command(name, arguments) for name, arguments in HARMFUL_COMMANDS),
    *(command(name, arguments, reply_to=_REPLY_TO, ticket="t") for name, arguments in HARMFUL_COMMANDS),
]

LIMITER_MESSAGES: list[bytes] = [
    b"",
    b"\xff\xfe",
    b"row",
    b"row x",
    b"row " + HUGE.encode() * 2,
    b"row -5",
    b"pause",
    b"pause x",
    b"pause 5",
    b"pause x - reason",
    b"pause " + HUGE.encode() + b" - reason",
    b"pause nan - x",
    b"resume key:",
    b"resume \x00",
    b"unknown thing",
    b"x" * 1_000_000,
]
