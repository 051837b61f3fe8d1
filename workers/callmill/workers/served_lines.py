"""ServedLines: which lines a worker takes hints from: those of its APIs, not of others of the same names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from callmill.config.profiles import ApiProfile
from callmill.config.public_api import ApiAddress
from callmill.jobs.line import Line

log = logging.getLogger(__name__)


class ServedLines:
    """The lines of one worker.

    Args:
        profiles: The APIs that it serves.
        only_batch: The only batch that it executes; empty: every batch.

    Attributes:
        at: The API that each name means.
        own: The lines that it serves whether or not they are in use, by text.
    """

    def __init__(self, profiles: Mapping[str, ApiProfile], *, only_batch: str = "") -> None:
        self.at: dict[str, ApiAddress] = {name: profile.public_facts().at for name, profile in profiles.items()}
        self.only_batch = only_batch
        lines = [Line(name, identity=at.identity, batch=only_batch) for name, at in self.at.items()]
        if not only_batch:
            lines += map(Line, self.at)  # for batches not bound to a particular API
        self.own = {str(line): line for line in lines}
        self._told: set[tuple[str, str]] = set()

    def serves(self, line: Line) -> bool:
        """Say whether chunks of a line may be executed here."""
        if self.only_batch not in {"", line.batch}:
            return False
        at = self.at.get(line.api)
        return at is not None and line.identity in {"", at.identity}

    def of(self, used: Iterable[Line]) -> dict[str, Line]:
        """Return the lines to serve of those in use, by text; log once what is left to others."""
        lines = dict(self.own)
        for line in used:
            if self.serves(line):
                lines[str(line)] = line
            elif not self.only_batch and line.api in self.at and (line.api, line.identity) not in self._told:
                self._told.add((line.api, line.identity))
                log.warning(
                    "chunks for another API named %s are left to other workers; this one serves %s. "
                    "`callmill apis` shows what waits for which address",
                    *(line.api, self.at[line.api].address),
                    extra={"action": "other_api", "api": line.api},
                )
        return lines
