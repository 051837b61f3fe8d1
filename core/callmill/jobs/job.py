"""Job: one API call to make."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeAlias

from msgspec import UNSET, Struct, UnsetType

JSONValue: TypeAlias = Any
"""What ``json.dumps`` takes, and on top of it: dataclasses, attrs, structs, models of pydantic; enums by value; sets;
dates and times (ISO 8601), UUIDs and Decimals as text; bytes as Base64 text; numbers and arrays of numpy."""


class _Target(Struct, frozen=True):
    method: str
    url: str


class Job(_Target, frozen=True, kw_only=True):
    """One API call to make.

    Attributes:
        method: HTTP method.
        url: Path under the API's base URL, or an absolute URL that the API's profile covers.
        api: Name of the API profile that the call runs under.
        id: The caller's own id, unique in the batch; assigned by Callmill when left out.
        headers: Extra request headers; they win over the profile's.
        params: Query parameters, appended to the URL: text, numbers, dates, UUIDs, enums by value. True is sent as
            ``true``, None is left out, a list repeats its name.
        json: Body, sent as JSON. ``None`` is sent as ``null``; leave it out for no body.
        data: Body, sent as it is (bytes, str) or as a form (mapping, its values as in ``params``). Not together with
            ``json``.
        files: Files to send as multipart/form-data, with ``data`` (a mapping) as its other fields: for each field its
            content (bytes), or (filename, content), or (filename, content, content type).
        timeout: Seconds for the whole call; the profile's when left out.
        tokens: Estimated cost of the call in tokens, request and answer together, for limits counted in tokens.
        output_tokens: The part of ``tokens`` that is expected in the answer.
        weight: How many requests the call counts as.
        model: The model that the call uses, for limits of one model; read from the body where the API's profile says
            how, when left out.
        idempotency_key: Sent as ``Idempotency-Key`` with every attempt; made up when left out.
        deadline: Aware datetime after which the call is no longer started.
    """

    api: str
    id: str | None = None
    headers: Mapping[str, str] | None = None
    params: Mapping[str, Any] | None = None
    json: JSONValue | UnsetType = UNSET
    data: bytes | str | Mapping[str, Any] | None = None
    files: Mapping[str, bytes | tuple[str, bytes] | tuple[str, bytes, str]] | None = None
    timeout: float | None = None
    tokens: int | None = None
    output_tokens: int | None = None
    weight: int = 1
    model: str | None = None
    idempotency_key: str | None = None
    deadline: datetime | None = None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Job:
        """Return the job that a mapping of its fields describes; ``deadline`` may be ISO 8601 text.

        Raises:
            ValueError: A field is unknown or missing, or the deadline is no date.
        """
        deadline = fields.get("deadline")
        if isinstance(deadline, str):
            fields = {**fields, "deadline": datetime.fromisoformat(deadline)}
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(f"a job takes method, url, api, ...: {error}") from error
