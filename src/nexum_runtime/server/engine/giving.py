"""Tasks for the streams of workers: claimed for whoever has a free slot, given once that is committed.

Who waits at a stream is in streams.py.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from nexum_runtime.crash import crash_point
from nexum_runtime.server.engine.commits import Commits, Given
from nexum_runtime.server.engine.jobs import Jobs, for_nobody
from nexum_runtime.server.engine.streams import Pool, Stream, Streams, Work
from nexum_runtime.server.model.contract import StoreUnavailable, Task, Transaction
from nexum_runtime.server.model.shapes import Claimed, Notices
from nexum_runtime.server.rules.attempts import Attempts


class Giver:
    """Gives tasks to these streams until `closing`."""

    def __init__(
        self, streams: Streams, attempts: Attempts, commits: Commits, jobs: Jobs, closing: asyncio.Event
    ) -> None:
        self._streams = streams
        self._attempts = attempts
        self._commits = commits
        self._jobs = jobs
        self._closing = closing
        self.backlog: set[Work] = set()  # tasks of these may be READY that no stream had a slot for

    def fill_slots(self, *, look: bool = False) -> None:
        """Let workers with free slots have the tasks that wait; `look` also where none is known to."""
        if self._closing.is_set() or not (look or self.backlog):
            return
        for pool in self._streams.pools():
            wanted = [(each, work) for each in pool.streams for work in each.works if look or work in self.backlog]
            if wanted and pool.has_room and not pool.filling:
                pool.filling = True
                self._jobs.spawn(self._fill(pool, wanted)).add_done_callback(for_nobody)

    async def _fill(self, pool: Pool, wanted: Sequence[tuple[Stream, Work]]) -> None:
        """Claim tasks that wait for these streams of one worker, for the slots that are free now."""
        given: list[Given] = []
        slots, pool.free = pool.free, 0

        def claim(tx: Transaction, notices: Notices) -> None:
            pool.filling = False  # what becomes ready from here on is for the next one
            for stream, (workflow_id, version_hash) in wanted:
                while len(given) < slots and pool.reads:
                    taker = stream.taker
                    claimed = self._attempts.claim(tx, version_hash, [workflow_id], taker.worker_id, taker.lease_ms)
                    if claimed is None:
                        self.backlog.discard((workflow_id, version_hash))
                        break
                    given.append(self.given(stream, claimed))

        try:
            await self._commits.begin(claim, given=given)
        except StoreUnavailable:  # it is noted, and the next sweep tries again
            return
        finally:
            pool.filling = False
            pool.free += slots - len(given)
        self.fill_slots()  # with what has become ready meanwhile

    def given(self, stream: Stream, claimed: Claimed) -> Given:
        return Given(claimed, partial(self._give, stream), partial(_free_slot, stream))

    def _give(self, stream: Stream, claimed: Claimed) -> None:
        if claimed.is_once:
            crash_point("claim-committed")
        if not self._streams.give(stream, claimed):
            self._jobs.spawn(self.give_back([claimed])).add_done_callback(for_nobody)

    async def give_back(self, unsent: Sequence[Claimed]) -> None:
        """Let others have tasks that were not sent."""
        for claimed in unsent:
            self._streams.release(claimed.task.task_id)
        with suppress(StoreUnavailable):  # their leases will end
            await self.return_to_all([claimed.task for claimed in unsent])

    async def return_to_all(self, tasks: Sequence[Task]) -> None:
        """Undo these claims. Raises StoreUnavailable."""

        def give_back(tx: Transaction, notices: Notices) -> None:
            for task in tasks:
                self._attempts.give_back(tx, notices, task)

        await self._commits.make(give_back, about_tasks=[task.task_key for task in tasks])

    def release(self, task_id: str) -> None:
        """Whoever held this task has a slot again."""
        if self._streams.release(task_id):
            self.fill_slots()


def _free_slot(stream: Stream) -> None:
    stream.pool.free += 1
