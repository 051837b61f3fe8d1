"""ApiBindings: which API each batch is bound to, where several share a name, and how to rebind a batch."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from msgspec import Struct

from callmill.config.public_api import ApiAddress
from callmill.errors import ApiMismatchError, UnknownFormatError
from callmill.jobs.formats import FORMAT
from callmill.ledger import batch_scripts as scripts
from callmill.ledger import keys
from callmill.ledger.keys import BatchKeys, ChunkRef
from callmill.ledger.records import BatchRecord
from callmill.ledger.session import LedgerSession

_BATCHES_AT_ONCE = 200
_MEMBERS_AT_ONCE = 500
_GLOB = re.compile(r"[*?\[\]\\^-]")


class Bound(Struct, frozen=True, kw_only=True):
    """The unfinished batches that are bound to one API.

    Attributes:
        api: Its name.
        to: Which of that name; None: any.
        batches: Their ids.
        jobs: Their jobs without an outcome, those for other APIs included.
        leased: Chunks of them that workers hold now.
    """

    api: str
    to: ApiAddress | None
    batches: list[str]
    jobs: int
    leased: int


class ApiBindings:
    """What unfinished batches are bound to."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session
        self._redis = session.redis

    async def unfinished(self) -> list[Bound]:
        """Return what the unfinished batches are bound to, by name and address.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        records: dict[tuple[str, str], list[BatchRecord]] = {}
        async for record in self._active():
            for api in record.apis:
                identity = record.bound_to[api].identity if api in record.bound_to else ""
                records.setdefault((api, identity), []).append(record)
        return [
            Bound(
                api=api,
                to=some[0].bound_to.get(api),
                batches=[record.id for record in some],
                jobs=sum(record.total - record.recorded for record in some),
                leased=sum(record.leased for record in some),
            )
            for (api, _), some in sorted(records.items())
        ]

    async def move(self, api: str, to: ApiAddress) -> list[ChunkRef]:
        """Rebind every unfinished batch that is bound to another API of a name; return the chunks that need a hint.

        Safe to repeat. Where it is cut off, the next one goes on, and so does any worker. Who holds a chunk starts no
        further calls of it; what is left then goes to its new line.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        for bound in await self.unfinished():
            if bound.api == api and bound.to is not None and bound.to.identity != to.identity:
                for batch_id in bound.batches:
                    await self.bind(batch_id, api, to)
        refs: list[ChunkRef] = []
        for batch_id in await self.moving():
            with suppress(UnknownFormatError):  # a newer Callmill moves its own
                refs += await self.follow(batch_id)
        return refs

    async def bind(self, batch_id: str, api: str, to: ApiAddress, *, own_lines: bool = False) -> None:
        """Bind a batch to another API of a name it uses; ``follow`` moves its chunks. Safe to repeat.

        Args:
            batch_id: The batch.
            api: The name.
            to: The API of that name.
            own_lines: Give the batch lines of its own, too.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        binding = scripts.BindArguments(api=api, binding=str(to), own_lines=own_lines)
        moving = scripts.OfMoving(keys.MOVING)
        await self._session.run_lasting(scripts.BIND.call(moving, binding, keys.shared(batch_id)))

    async def moving(self) -> list[str]:
        """Return batches that were bound to another API, and whose chunks may not all have followed."""
        ids = await self._session.answer(self._redis.zrange(keys.MOVING, 0, -1))
        return [batch_id.decode() for batch_id in ids]

    async def follow(self, batch_id: str) -> list[ChunkRef]:
        """Move what is queued or due of a batch to where it is bound now; return the chunks that need a hint.

        Several may do so at a time, and any of them may be cut off.

        Raises:
            UnknownFormatError: A newer Callmill wrote the batch; it is as it was.
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        since = await self._session.answer(self._redis.zscore(keys.MOVING, batch_id))
        if since is None:
            return []
        refs: list[ChunkRef] = []
        async for members in self._in_former_lines(batch_id):
            refs += await self._follow(batch_id, None, members)
        return refs + await self._follow(batch_id, int(since), ())

    async def _follow(self, batch_id: str, since_us: int | None, members: Sequence[str]) -> list[ChunkRef]:
        wanted = scripts.FollowArguments(queued=keys.queued(""), since_us=since_us, members=members)
        moving = scripts.OfMoving(keys.MOVING)
        moved = await self._session.run_lasting(scripts.FOLLOW.call(moving, wanted, keys.shared(batch_id)))
        return [ChunkRef.parse(member.decode()) for member in moved]

    async def _in_former_lines(self, batch_id: str) -> AsyncIterator[list[str]]:
        """Yield chunks of a batch that are queued in lines of former bindings, or due, page by page."""
        fields = await self._session.answer(self._redis.hgetall(BatchKeys(batch_id).meta))
        if not fields or int(fields.get(b"format", 1)) > FORMAT:
            return
        former = set(map(str, BatchRecord.read(batch_id, fields).former_lines))
        its_own = _GLOB.sub(r"\\\g<0>", batch_id) + "/*"
        for name in [*map(keys.queued, former), keys.DUE]:
            cursor = None
            while cursor != 0:
                scan = self._redis.zscan(name, cursor=cursor or 0, match=its_own, count=_MEMBERS_AT_ONCE)
                cursor, found = await self._session.answer(scan)
                members = [member.decode() for member, _ in found]
                if there := [member for member in members if ChunkRef.parse(member).line in former]:
                    yield there

    async def _active(self) -> AsyncIterator[BatchRecord]:
        ids = await self._session.answer(self._redis.zrange(keys.ACTIVE, 0, -1))
        for at in range(0, len(ids), _BATCHES_AT_ONCE):
            some = [batch_id.decode() for batch_id in ids[at : at + _BATCHES_AT_ONCE]]
            pipeline = self._redis.pipeline(transaction=False)
            for batch_id in some:
                pipeline.hgetall(BatchKeys(batch_id).meta)
            for batch_id, fields in zip(some, await self._session.answer(pipeline.execute()), strict=True):
                if fields and int(fields.get(b"format", 1)) <= FORMAT:
                    yield BatchRecord.read(batch_id, fields)


def other_api(what: str, api: str, there: ApiAddress | None, here: ApiAddress) -> ApiMismatchError:
    """Return the error for sending the calls of ``what`` to another API than it was made for."""
    return ApiMismatchError(
        f"{what} was made for {api} at {there.address if there else 'any address'}, but {api} is {here.address} here. "
        f"If the API has moved, `callmill apis move {api}` rebinds waiting batches to the new address; if these are "
        f"two APIs, rename one of them in its profiles file"
    )
