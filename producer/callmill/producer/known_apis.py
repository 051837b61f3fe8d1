"""KnownApis: which API names a producer may use, and which API of each name its jobs are for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from msgspec import Struct

from callmill.config.public_api import ApiAddress, PublicApi
from callmill.config.settings import Settings
from callmill.errors import ApiMismatchError, UnknownApiError
from callmill.ledger.api_bindings import ApiBindings
from callmill.ledger.fleet import Fleet
from callmill.ledger.session import LedgerSession


class Elsewhere(Struct, frozen=True):
    """Why jobs for an API are refused: its name means another API to the fleet; and the remedy."""

    fact: str
    remedy: str


class KnownApis:
    """The APIs that workers announced; before any worker ever did, those of a local profiles file.

    With neither, every name is accepted: the job waits until a worker serves its API. Where an API has a
    local profile, jobs are for the API that it describes, never for another one that workers serve under that name.
    """

    def __init__(
        self,
        apis: Mapping[str, PublicApi] | None,
        source: str,
        *,
        unbound: Iterable[str] = (),
        elsewhere: Mapping[str, Elsewhere] | None = None,
        served: Iterable[str] = (),
    ) -> None:
        self._apis = apis
        self._source = source
        self._unbound = frozenset(unbound)
        self._elsewhere = elsewhere or {}
        self._served = frozenset(served)

    @classmethod
    async def load(cls, session: LedgerSession, settings: Settings, *, own_workers: bool = False) -> KnownApis:
        """Ask the ledger and the local profiles; ``own_workers``: the caller starts workers for the local profiles."""
        fleet, here = Fleet(session), _local(settings)
        workers = [worker for worker in await fleet.workers() if not (worker.only_batch or worker.draining)]
        announced = await fleet.apis_of(workers)
        served = {api for worker in workers for api in worker.apis}
        # An older Callmill takes no bound chunks.
        unbound = served - {api for worker in workers for api in worker.serves_at}
        if own_workers:
            others = {name: api for name, api in announced.items() if name in served}
            apis = others | (here or {})
            return cls(apis, "in the API profiles", unbound=unbound - (here or {}).keys(), served=here or ())
        if not announced:
            return cls(here, "in the API profiles" if here else "")
        waiting = await _waiting(session) if _any_differs(announced, here or {}) else set()
        apis, elsewhere = dict[str, PublicApi](), dict[str, Elsewhere]()
        for name, known in announced.items():
            own = (here or {}).get(name)
            apis[name] = own or known
            live = {at.identity: at for worker in workers if (at := worker.serves_at.get(name)) is not None}
            there = live if name in served or (name, known.identity) not in waiting else {known.identity: known.at}
            if problem := _ambiguous(name, live) if own is None else _other_here(own, there, live=bool(live)):
                elsewhere[name] = problem
        return cls(apis, "served by the workers", unbound=unbound, elsewhere=elsewhere, served=served)

    def find(self, name: str, position: int) -> PublicApi | None:
        """Return what is known of an API; None when nothing is known of any.

        Raises:
            UnknownApiError: Others are known, but not this one.
            ApiMismatchError: The workers serve another API of this name.
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
        if name in self._elsewhere:
            problem = self._elsewhere[name]
            raise ApiMismatchError(f"{problem.fact}: nothing was submitted. {problem.remedy}")
        return facts

    def bound_to(self, name: str) -> ApiAddress | None:
        """Return which API of a name jobs are for; None: any, as nothing is known."""
        facts = (self._apis or {}).get(name)
        return None if facts is None or name in self._unbound else facts.at

    @property
    def elsewhere(self) -> list[Elsewhere]:
        """Why jobs for some APIs are refused, by the APIs' names."""
        return [self._elsewhere[name] for name in sorted(self._elsewhere)]

    @property
    def only(self) -> str | None:
        """The API used where none is named: the only one that workers serve, or else the only known one."""
        names = self._served or (self._apis or {}).keys()
        return next(iter(names)) if len(names) == 1 else None


def _local(settings: Settings) -> dict[str, PublicApi] | None:
    # Imported here, because a producer without a profiles file needs no parser for one.
    from callmill.config.profiles import find_profiles  # noqa: PLC0415

    profiles = find_profiles(settings)
    return None if profiles is None else {name: profile.public_facts() for name, profile in profiles.items()}


def _any_differs(announced: Mapping[str, PublicApi], here: Mapping[str, PublicApi]) -> bool:
    return any(name in announced and announced[name].identity != own.identity for name, own in here.items())


async def _waiting(session: LedgerSession) -> set[tuple[str, str]]:
    return {(bound.api, bound.to.identity) for bound in await ApiBindings(session).unfinished() if bound.to}


def _other_here(own: PublicApi, there: Mapping[str, ApiAddress], *, live: bool) -> Elsewhere | None:
    """Say that the local API differs from the one there; None: it is the same, or there is none."""
    if not there or own.identity in there:
        return None
    who = "the workers serve" if live else "unfinished batches wait for"
    return Elsewhere(
        f"{own.name} is {own.address} in the local profiles, but {who} {own.name} at {_places(there)}",
        f"If these are two APIs, rename one of them in its profiles file. If {own.name} has moved, restart the workers "
        f"with the new profile; `callmill apis move {own.name}` then rebinds waiting batches",
    )


def _ambiguous(name: str, live: Mapping[str, ApiAddress]) -> Elsewhere | None:
    if len(live) < 2:
        return None
    return Elsewhere(
        f"workers serve {name} at {_places(live)}",
        "Choose one with a local profiles file (CALLMILL_APIS), or rename one of them in its workers' profiles file",
    )


def _places(apis: Mapping[str, ApiAddress]) -> str:
    return " and ".join(sorted(at.address for at in apis.values()))
