"""Which API a line of the input gets that names none."""

from __future__ import annotations

from callmill.errors import UnknownApiError, UsageError
from callmill.producer import AsyncClient


async def default_api(client: AsyncClient, given: str | None) -> str | None:
    """Return the API that was given, else the only one that is known, else None.

    Raises:
        UsageError: The one that was given is not known, or the workers serve another one of that name.
    """
    known = await client.known_apis()
    if given is not None:
        try:
            known.find(given, 0)
        except UnknownApiError as error:
            raise UsageError(f"--api: {reason(error)}") from error
        return given
    return known.only


def reason(error: Exception) -> str:
    """Return what is wrong with a job, without its position: a line has a number of its own."""
    message = str(error)
    position = getattr(error, "position", None)
    return message.removeprefix(f"job {position}: ").removeprefix("api: " if isinstance(error, UnknownApiError) else "")
