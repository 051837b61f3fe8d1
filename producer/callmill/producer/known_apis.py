"""KnownApis: which API names a producer may use, and what is known of them."""

from __future__ import annotations

import difflib

from callmill.config.public_api import PublicApi
from callmill.config.settings import Settings
from callmill.errors import UnknownApiError
from callmill.ledger.fleet import Fleet


class KnownApis:
    """The APIs that workers announced; before any worker ever did, those of a local profiles file.

    With neither, every name is accepted: the job waits until a worker serves its API.
    """

    def __init__(self, apis: dict[str, PublicApi] | None, source: str) -> None:
        self._apis = apis
        self._source = source

    @classmethod
    async def load(cls, fleet: Fleet, settings: Settings) -> KnownApis:
        """Ask the ledger, then the local profiles."""
        announced = await fleet.apis()
        if announced:
            return cls(announced, "served by the workers")
        # Only here, because a producer next to workers needs neither the profiles nor what parses them.
        from callmill.config.profiles import find_profiles  # noqa: PLC0415

        profiles = find_profiles(settings)
        if profiles is None:
            return cls(None, "")
        return cls({name: profile.public_facts() for name, profile in profiles.items()}, "in the API profiles")

    def find(self, name: str, position: int) -> PublicApi | None:
        """Return what is known of an API; None when nothing is known of any.

        Raises:
            UnknownApiError: Others are known, but not this one.
        """
        if self._apis is None:
            return None
        facts = self._apis.get(name)
        if facts is None:
            near = difflib.get_close_matches(name, self._apis, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UnknownApiError(
                f"{name!r} is not {self._source}; {hint}known: {', '.join(sorted(self._apis)) or 'none'}. "
                "Add it to the profiles file (CALLMILL_APIS) and restart the workers",
                position=position,
                field="api",
            )
        return facts
