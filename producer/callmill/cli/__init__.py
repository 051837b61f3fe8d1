"""The ``callmill`` command."""

from callmill.cli.program import main

__all__ = ["main"]
