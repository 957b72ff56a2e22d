"""Large sessions, taken back and forked in pieces, so that other writes have their turn in between.

What was begun by a server that has gone, or could not be written to its end, is ended by the next one that looks: what
is taken back is taken back to the end, and of a fork that is not whole nothing is left.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from nexum_runtime.crash import crash_point
from nexum_runtime.errors import InvalidRequest
from nexum_runtime.server.engine.commits import Commits
from nexum_runtime.server.engine.jobs import Jobs, for_nobody
from nexum_runtime.server.model.contract import Rebuild, Span, Store, StoreUnavailable, Transaction
from nexum_runtime.server.model.shapes import Forget, Fork
from nexum_runtime.server.rules.records import Records, is_large, pieces

T = TypeVar("T")

LEFT_MS = 10_000  # without a piece, what another server has begun is left to whoever looks
UNDONE_AT_ONCE = 200  # executions that are deleted in one transaction


class Rebuilding:
    """`clock` tells epoch milliseconds."""

    def __init__(self, store: Store, commits: Commits, records: Records, clock: Callable[[], int], jobs: Jobs) -> None:
        self._store = store
        self._commits = commits
        self._records = records
        self._clock = clock
        self._jobs = jobs
        self._at_work: dict[str, asyncio.Task[Any]] = {}  # by the session that is not whole

    async def forget(self, session_id: str, order: Forget) -> dict[str, Any]:
        """See `Records.forget`."""
        await self._end_what_was_left(session_id)
        if await self._store.read(lambda reader: is_large(reader, session_id)):
            return await self._work(session_id, partial(self._forget, session_id, order))
        return await self._make(lambda tx: self._records.forget(tx, session_id, order), session_id)

    async def fork(self, session_id: str, order: Fork) -> dict[str, Any]:
        """See `Records.fork`."""
        for each in (session_id, order.session_id):
            await self._end_what_was_left(each)
        if await self._store.read(lambda reader: is_large(reader, session_id)):
            return await self._work(order.session_id, partial(self._fork, session_id, order))
        return await self._make(lambda tx: self._records.fork(tx, session_id, order), session_id, order.session_id)

    def take_up(self, rebuilds: list[tuple[Rebuild, int]]) -> None:
        """End those of these, of which each came on last then, that nobody is at any more."""
        for rebuild, heard_at_ms in rebuilds:
            if rebuild.session_id in self._at_work:
                continue
            if not self._store.is_shared or abs(self._clock() - heard_at_ms) > LEFT_MS:
                self._begin(rebuild.session_id, self._end(rebuild)).add_done_callback(for_nobody)

    async def _end_what_was_left(self, session_id: str) -> None:
        rebuilds = await self._store.read(lambda reader: reader.rebuilds())
        self.take_up([each for each in rebuilds if each[0].session_id == session_id])
        await self._when_nobody_is_at(session_id)

    async def _when_nobody_is_at(self, session_id: str) -> None:
        while (task := self._at_work.get(session_id)) is not None:
            await asyncio.wait([task])

    async def _make(self, work: Callable[[Transaction], T], *session_ids: str) -> T:
        return await self._commits.make(lambda tx, _: work(tx), long=True, about=[f"{each}/" for each in session_ids])

    async def _work(self, session_id: str, job: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """It is finished even if whoever has asked for it has gone."""
        await self._when_nobody_is_at(session_id)
        return await asyncio.shield(self._begin(session_id, job()))

    def _begin(self, session_id: str, job: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._at_work[session_id] = self._jobs.spawn(job)
        task.add_done_callback(lambda _: self._at_work.pop(session_id))
        return task

    async def _forget(self, session_id: str, order: Forget) -> dict[str, Any]:
        choose = partial(self._records.choose, session_id=session_id, order=order)
        choice = await self._store.read(choose, is_look=True)
        rebuild = await self._make(partial(self._records.begin_forget, choice=choice), session_id)
        executions = await self._take_back(rebuild)
        return {"session_id": rebuild.other, "executions": executions, "turns": choice.turns}

    async def _take_back(self, rebuild: Rebuild) -> int:
        """The latest first: what is left meanwhile is what the session had at some time."""
        span = Span(rebuild.session_id, rebuild.first, rebuild.end)
        orders = await self._store.read(lambda reader: reader.orders(span), is_look=True)
        for piece in reversed(list(pieces(orders))):
            await self._make(partial(self._records.take_back, rebuild=rebuild, orders=piece), rebuild.session_id)
            crash_point("between-forget")
        await self._make(partial(self._records.end_forget, rebuild=rebuild), rebuild.session_id)
        return len(orders)

    async def _fork(self, session_id: str, order: Fork) -> dict[str, Any]:
        choose = partial(self._records.choose_copies, session_id=session_id, order=order)
        choices = await self._store.read(choose, is_look=True)
        both = session_id, order.session_id
        rebuild = await self._make(partial(self._records.begin_fork, choices=choices), *both)
        try:
            for piece in pieces(choices.ended):
                await self._make(partial(self._records.copy, rebuild=rebuild, choices=choices, piece=piece), *both)
                crash_point("between-fork")
            await self._make(partial(self._records.end_fork, rebuild=rebuild), *both)
        except InvalidRequest:
            await self._undo(rebuild)
            raise
        return choices.told

    async def _end(self, rebuild: Rebuild) -> None:
        with suppress(StoreUnavailable):  # it is tried again
            await (self._undo(rebuild) if rebuild.is_fork else self._take_back(rebuild))

    async def _undo(self, rebuild: Rebuild) -> None:
        undo = partial(self._records.undo_fork, rebuild=rebuild, limit=UNDONE_AT_ONCE)
        while await self._make(undo, rebuild.session_id):
            crash_point("between-undo")
