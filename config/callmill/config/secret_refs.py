"""References to secrets: ``env:NAME`` and ``file:PATH``. Only workers read the secrets, just before their first use."""

from __future__ import annotations

import os
import re
from pathlib import Path

from callmill.config.redaction import hide

_REFERENCE = re.compile(
    r"(?:(?P<scheme>[A-Za-z0-9_-]+) )?(?:env:(?P<env>[A-Za-z_][A-Za-z0-9_]*)|file:(?P<file>\S(?:.*\S)?))"
)
_REMEDY = 'write "env:NAME" (an environment variable of the workers) or "file:/path", never the secret itself'


def is_reference(text: str) -> bool:
    """Say whether the text refers to a secret, with or without an authentication scheme before it."""
    return _REFERENCE.fullmatch(text) is not None


def checked_reference(text: str) -> str:
    """Return the text if it is a bare reference.

    Raises:
        ValueError: It is a literal, or has a scheme before it; the message does not show it.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or match["scheme"]:
        raise ValueError(f"must refer to the secret; {_REMEDY}")
    return text


def checked_schemed_reference(text: str) -> str:
    """Return the text if it is a reference, or a scheme and a reference, such as ``Token env:CRM_KEY``.

    Raises:
        ValueError: It is a literal; the message does not show it.
    """
    if not is_reference(text):
        raise ValueError(f"must refer to the secret; {_REMEDY}")
    return text


def split_reference(text: str) -> tuple[str, str, str]:
    """Return the scheme before the reference (with its space), the kind (``env`` or ``file``) and the name or path.

    Raises:
        ValueError: The text is no reference.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise ValueError(f"must refer to the secret; {_REMEDY}")
    scheme = f"{match['scheme']} " if match["scheme"] else ""
    return (scheme, "env", match["env"]) if match["env"] else (scheme, "file", match["file"])


def read_reference(text: str, source: Path | None) -> str:
    """Return the secret, without the scheme that may stand before its reference; from now on logs hide it.

    Args:
        text: The reference.
        source: The file that has it: relative paths begin beside it.

    Raises:
        ValueError: The variable or file is missing or empty.
    """
    _, kind, name = split_reference(text)
    secret = _from_environment(name) if kind == "env" else _from_file(name, source)
    hide(secret)
    return secret


def _from_environment(name: str) -> str:
    secret = os.environ.get(name, "").strip()
    if not secret:
        raise ValueError(f"the environment variable {name} is not set; set it for the workers")
    return secret


def _from_file(name: str, source: Path | None) -> str:
    path = Path(name).expanduser()
    if source is not None:
        path = source.parent / path
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the file {path} cannot be read: {error}") from error
    if not secret:
        raise ValueError(f"the file {path} is empty")
    return secret
