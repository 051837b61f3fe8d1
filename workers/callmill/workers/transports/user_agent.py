"""How Callmill names itself to the APIs it calls."""

from __future__ import annotations

from importlib.metadata import version

USER_AGENT = f"callmill/{version('callmill')}"
