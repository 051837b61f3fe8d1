"""The figures as JSON, for the pages' scripts."""

from __future__ import annotations

from tornado.web import HTTPError

from callmill.dashboard.handlers import JsonHandler
from callmill.ledger.records import BatchState

_MOST_ROWS = 100
_LONGEST_NAME = 200


class BatchesData(JsonHandler):
    """A page of the list of batches: ``offset``, ``limit``, ``state`` and ``name`` (a part of it) choose which."""

    async def get(self) -> None:
        """Answer."""
        state = self.get_query_argument("state", "")
        if state and state not in set(BatchState):
            raise HTTPError(400, f"state: one of {', '.join(BatchState)}")
        name = self.get_query_argument("name", "")
        if len(name) > _LONGEST_NAME:
            raise HTTPError(400, f"name: at most {_LONGEST_NAME} characters")
        self.send(
            await self.figures.batches(
                offset=self._number("offset", default=0, most=10**9),
                limit=self._number("limit", default=25, most=_MOST_ROWS),
                state=BatchState(state) if state else None,
                name=name,
            )
        )

    def _number(self, name: str, *, default: int, most: int) -> int:
        text = self.get_query_argument(name, str(default))
        if not (text.isascii() and text.isdigit()) or int(text) > most:
            raise HTTPError(400, f"{name}: a whole number up to {most}")
        return int(text)


class BatchData(JsonHandler):
    """One batch."""

    async def get(self, batch_id: str) -> None:
        """Answer."""
        self.send(await self.figures.batch(batch_id))


class FailedJobsData(JsonHandler):
    """Some failed jobs of a batch, of the cause that ``cause`` names."""

    async def get(self, batch_id: str) -> None:
        """Answer."""
        self.send(await self.figures.failed_jobs(batch_id, self.get_query_argument("cause", "")))


class ApisData(JsonHandler):
    """All APIs."""

    async def get(self) -> None:
        """Answer."""
        self.send(await self.figures.apis())


class ProcessesData(JsonHandler):
    """All worker processes."""

    async def get(self) -> None:
        """Answer."""
        self.send(await self.figures.processes())
