"""Bodies of successful answers: a chat completion, or an echo; each carries the call's own data."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from callmill.simulator.connection import Request
from callmill.simulator.tokens import Tokens
from callmill.simulator.wire import json_bytes

CHAT_PATH = "/v1/chat/completions"
_ECHOED_HEADERS = ("idempotency-key", "content-type", "user-agent")
_CHARACTERS_PER_TOKEN = 4
_MOST_DIGITS = 15


class Content(Struct, frozen=True):
    """A request's body, parsed if it is JSON.

    Attributes:
        value: The parsed body; the text of a body that is not JSON; None for no body.
        is_json: Whether the body is JSON.
    """

    value: Any
    is_json: bool


def parse_content(body: bytes) -> Content:
    """Parse a body, never failing."""
    if not body:
        return Content(None, is_json=False)
    try:
        return Content(msgspec.json.decode(body), is_json=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Content(body.decode(errors="replace"), is_json=False)


def tokens_asked(request: Request, content: Content) -> Tokens:
    """Return the tokens that a call asks for.

    ``x-simulator-tokens`` of the request, else ``max_tokens`` of a JSON body for the answer, else 1 of the request.
    """
    header = request.headers.get("x-simulator-tokens", "")
    if header.isascii() and header.isdigit() and len(header) <= _MOST_DIGITS:
        return Tokens(int(header))
    if isinstance(content.value, dict):
        for field in ("max_tokens", "max_completion_tokens"):
            tokens = content.value.get(field)
            if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0:
                return Tokens(0, tokens)
    return Tokens(1)


def chat_completion(content: Content, request_id: str, drawn: Tokens | None) -> bytes | None:
    """Return a chat completion that repeats the last message, or None when the body asks for none.

    ``usage`` is what was drawn; else it counts a token per four characters, and never more completion tokens than
    ``max_tokens``.
    """
    body = content.value
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages) or not messages:
        return None
    texts = [text if isinstance(text := message.get("content"), str) else "" for message in messages]
    prompt_tokens = sum(map(_token_count, texts))
    most = body.get("max_tokens")
    completion_tokens = _token_count(texts[-1])
    if isinstance(most, int) and most >= 0:
        completion_tokens = min(completion_tokens, most)
    return json_bytes(
        {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion",
            "model": body.get("model"),
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": texts[-1]}, "finish_reason": "stop"},
            ],
            "usage": _usage(drawn or Tokens(prompt_tokens, completion_tokens)),
        }
    )


def echo(request: Request, content: Content, drawn: Tokens | None) -> bytes:
    """Return the request as JSON: method, path, query, body, a few harmless headers, and its cost if one was drawn."""
    path, _, query_text = request.target.partition("?")
    query: dict[str, str | list[str]] = {}
    if query_text:
        for name, values in parse_qs(query_text, keep_blank_values=True).items():
            query[name] = values[0] if len(values) == 1 else values
    usage = {} if drawn is None else {"usage": _usage(drawn)}
    return json_bytes(
        {
            "method": request.method,
            "path": path,
            "query": query,
            "body": msgspec.Raw(request.body) if content.is_json else content.value,
            "headers": {name: value for name in _ECHOED_HEADERS if (value := request.headers.get(name)) is not None},
            **usage,
        }
    )


def _usage(tokens: Tokens) -> dict[str, int]:
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.total,
    }


def _token_count(text: str) -> int:
    return max(1, len(text) // _CHARACTERS_PER_TOKEN)
