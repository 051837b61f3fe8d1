"""The lines in use beyond the APIs' own: how workers learn which queues there are."""

from __future__ import annotations

import logging
import random

from callmill.errors import UnknownFormatError
from callmill.jobs.formats import FORMAT, newer_batch
from callmill.jobs.line import Line, format_of
from callmill.ledger import keys, scripts
from callmill.ledger.session import LedgerSession

log = logging.getLogger(__name__)

FORGOTTEN_AFTER_S = 300.0
"""How long a line that nothing waits in is remembered."""

_AT_ONCE = 100
MOST_LINES = 128
"""Lines that a worker consumes at once, beyond its APIs' own: where there are more, they take turns."""

_SCANNED = 1000


class Lines:
    """What the ledger knows of lines."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session
        self._begin = random.randrange(_SCANNED)  # noqa: S311 - workers begin at different places
        self._some_begin = 0

    async def used(self) -> list[Line]:
        """Return the lines that had a chunk queued lately, those used last first; none of an API's own."""
        return _parsed(await self._texts())

    async def in_turn(self) -> list[Line]:
        """Return the lines to consume for now: all that are used, or where they are many, some of those with chunks.

        Of many the newest half is always among them, and the others take turns, so each is served in bounded time.
        """
        wanted = scripts.TurnArguments(
            queued=keys.queued(""),
            most=MOST_LINES,
            newest=MOST_LINES // 2,
            begin=self._begin,
            scan=_SCANNED,
        )
        told = await self._session.run(scripts.LINES_TURN.call(scripts.LinesKeys(keys.LINES), wanted))
        turn = scripts.LinesTurn(*told)
        self._begin = turn.next
        return _parsed([text.decode() for text in turn.lines])

    async def some(self) -> list[Line]:
        """Return the lines that were used lately, where they are many, some of them, and others the next time."""
        begin = self._some_begin
        texts = await self._session.answer(self._session.redis.zrevrange(keys.LINES, begin, begin + _SCANNED - 1))
        self._some_begin = begin + _SCANNED if len(texts) == _SCANNED else 0
        return _parsed([text.decode() for text in texts])

    async def newer(self) -> dict[str, UnknownFormatError]:
        """Return the batches, some of each line, that wait for a worker of a newer format than this one's."""
        newer = {}
        for text in await self._texts():
            if (written := format_of(text)) > FORMAT:
                members = await self._session.answer(self._session.redis.zrange(keys.queued(text), 0, _AT_ONCE - 1))
                for batch_id in {member.decode(errors="replace").partition("/")[0] for member in members}:
                    newer[batch_id] = newer_batch(batch_id, written)
        return newer

    async def _texts(self) -> list[str]:
        texts = await self._session.answer(self._session.redis.zrevrange(keys.LINES, 0, -1))
        return [text.decode(errors="replace") for text in texts]

    async def prune(self, unused_for_s: float = FORGOTTEN_AFTER_S) -> int:
        """Forget lines that were not used for that long and that nothing waits in; return how many."""
        wanted = scripts.PruneArguments(unused_for_ms=int(unused_for_s * 1000), limit=_AT_ONCE, queued=keys.queued(""))
        forgotten: int = await self._session.run(scripts.PRUNE_LINES.call(scripts.LinesKeys(keys.LINES), wanted))
        return forgotten


def _parsed(texts: list[str]) -> list[Line]:
    lines = []
    for text in texts:
        try:
            lines.append(Line.parse(text))
        except ValueError:  # written by a newer version, for workers of its kind
            log.debug("line not understood: %r", text, extra={"action": "line_unknown"})
    return lines
