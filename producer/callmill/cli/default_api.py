"""Which API a line of the input gets that names none."""

from __future__ import annotations

from callmill.config.profiles import find_profiles
from callmill.config.settings import load_settings
from callmill.errors import UnknownApiError, UsageError
from callmill.producer import AsyncClient
from callmill.producer.known_apis import KnownApis


async def default_api(client: AsyncClient, given: str | None) -> str | None:
    """Return the API that was given, else the only one that is known, else None.

    Raises:
        UsageError: The one that was given is not known.
    """
    fleet, settings = client.connection().fleet, load_settings()
    if given is not None:
        try:
            (await KnownApis.load(fleet, settings)).find(given, 0)
        except UnknownApiError as error:
            raise UsageError(f"--api: {reason(error)}") from error
        return given
    served = {api for worker in await fleet.workers() for api in worker.apis}
    known = served or set(await fleet.apis()) or set(find_profiles(settings) or ())
    return known.pop() if len(known) == 1 else None


def reason(error: Exception) -> str:
    """Return what is wrong with a job, without its position: a line has a number of its own."""
    message = str(error)
    position = getattr(error, "position", None)
    return message.removeprefix(f"job {position}: ").removeprefix("api: " if isinstance(error, UnknownApiError) else "")
