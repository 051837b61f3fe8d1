"""Table: what every table of an API profile has in common."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)*")


def _pointer(pointer: str) -> str:
    if not _POINTER.fullmatch(pointer) or not pointer:
        raise ValueError("must be a JSON pointer, such as /usage/total_tokens")
    return pointer


Status = Annotated[int, Field(ge=300, le=599)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Pointer = Annotated[str, AfterValidator(_pointer)]


class Table(BaseModel):
    """A table of a profile: it takes no key but its own, and its errors show no value, for it may be a secret."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)
