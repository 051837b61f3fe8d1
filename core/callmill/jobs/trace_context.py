"""TraceContext: which OpenTelemetry trace calls belong to, as W3C Trace Context writes it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

from msgspec import Struct

_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_STATE = re.compile(r"[\x20-\x7e]{1,8192}")
_PARENT_HEADER, _STATE_HEADER = "traceparent", "tracestate"


class TraceContext(Struct, array_like=True, frozen=True, gc=False):
    """The trace and the span that calls are made for; the values of the headers that say so."""

    traceparent: str
    tracestate: str = ""

    @classmethod
    def current(cls) -> TraceContext | None:
        """Return the context that is current here; None where there is none, or no OpenTelemetry."""
        # Where nobody imported it nobody can have begun a span, and we need not import it either.
        if "opentelemetry.trace" not in sys.modules:
            return None
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - an optional extra
            TraceContextTextMapPropagator,
        )

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        return cls.read(carrier)

    @classmethod
    def read(cls, headers: Mapping[str, Any]) -> TraceContext | None:
        """Return the context that headers carry; None where they carry none, or what cannot be one."""
        parent, state = headers.get(_PARENT_HEADER), headers.get(_STATE_HEADER)
        if not isinstance(parent, str) or not _PARENT.fullmatch(parent):
            return None
        return cls(parent, state if isinstance(state, str) and _STATE.fullmatch(state) else "")

    def headers(self) -> dict[str, str]:
        """Return the headers that carry it."""
        parent = {_PARENT_HEADER: self.traceparent}
        return {**parent, _STATE_HEADER: self.tracestate} if self.tracestate else parent

    def add_to(self, headers: MutableMapping[str, str], own: Mapping[str, str] | None) -> None:
        """Add it to a call's headers, unless the job's own name a trace."""
        if own is None or not any(name.lower() == _PARENT_HEADER for name in own):
            headers.update(self.headers())
