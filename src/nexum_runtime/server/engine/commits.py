"""Transactions of the store: what follows when one is committed, and what when the store fails."""

import asyncio
from collections.abc import Callable, Collection
from typing import NamedTuple, TypeVar

from nexum_runtime.logs import Log
from nexum_runtime.server.engine.waiters import Waiters
from nexum_runtime.server.model.contract import Store, StoreUnavailable, Transaction
from nexum_runtime.server.model.shapes import Claimed, Notices
from nexum_runtime.server.rules import snapshots
from nexum_runtime.server.rules.snapshots import Snapshot

T = TypeVar("T")

OUTAGE_QUIET_MS = 2_000  # without a failure, before the store is called available again

log = Log("nexum.engine")


class Given(NamedTuple):
    """What was claimed for somebody else: `give` it, or `withdraw` what was kept ready for it."""

    claimed: Claimed
    give: Callable[[Claimed], None]
    withdraw: Callable[[], None] = lambda: None


class Commits:
    """`follow` is called with what each commit notes, and how executions ended that somebody has `watched`."""

    def __init__(
        self,
        store: Store,
        clock: Callable[[], int],
        watched: Waiters,
        follow: Callable[[Notices, dict[str, Snapshot]], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._watched = watched
        self._follow = follow
        self.deaf = False  # leases could not be renewed since
        self._outage_ms: int | None = None  # when the store last failed; None once that is over
        self.failure: tuple[int, str] | None = None  # when and why it last failed

    async def make(
        self,
        work: Callable[[Transaction, Notices], T],
        *,
        renews: bool = False,
        long: bool = False,
        about: Collection[str] = (),
        about_tasks: Collection[str] = (),
    ) -> T:
        return await self.begin(work, renews=renews, long=long, about=about, about_tasks=about_tasks)

    def begin(
        self,
        work: Callable[[Transaction, Notices], T],
        *,
        given: list[Given] | None = None,
        patient: bool = False,
        renews: bool = False,
        long: bool = False,
        about: Collection[str] = (),
        about_tasks: Collection[str] = (),
    ) -> asyncio.Future[T]:
        """Run one transaction and have it followed, even if the caller has gone meanwhile.

        `work` adds to `given` what it claims for others. Who is `patient` waits for the end of that, not for this.
        What takes `long` is run in a thread: calls are answered meanwhile, and other writes wait.
        `about` and `about_tasks` are as `Store.begin_write` has them.

        When one that `renews` leases fails, none expires until all could be renewed. Any other is no such reason: a
        result that the disk has no room for is sent again and again, and would keep the tasks of dead workers.
        """
        notices = Notices()
        ended: dict[str, Snapshot] = {}

        is_again = False

        def run(tx: Transaction) -> T:
            nonlocal is_again
            if is_again:  # what it did before was in vain
                notices.clear()
                ended.clear()
                if given is not None:
                    given.clear()
            is_again = True
            result = work(tx, notices)
            for execution_id in [each for each in notices.ended if each in self._watched]:
                ended[execution_id] = snapshots.ended(tx, execution_id, notices.ended[execution_id], self._clock())
            return result

        given_later: list[Given] = []
        begun = False

        def executed() -> bool:
            """What may be done again need not wait for the disk: should this be lost, it is begun anew."""
            nonlocal begun
            begun = True
            for each in given or ():
                if each.claimed.is_once or self._outage_ms is not None:
                    given_later.append(each)
                else:
                    each.give(each.claimed)
            return len(given_later) < len(given or ())

        def settled(error: BaseException | None) -> None:
            if isinstance(error, StoreUnavailable):
                self.note_outage(error)
                self.deaf = self.deaf or renews
            if error is not None:
                for each in given_later if begun else given or ():
                    each.withdraw()
                return
            for each in given_later:
                each.give(each.claimed)
            self._follow(notices, ended)

        executing = None if given is None else executed
        return self._store.begin_write(
            run,
            executed=executing,
            settled=settled,
            is_patient=patient,
            is_long=long,
            about=about,
            about_tasks=about_tasks,
        )

    def note_outage(self, error: StoreUnavailable) -> None:
        """Say it once, however often it is met."""
        if self._outage_ms is None:
            log.warning("%s", error)
        self._outage_ms = self._clock()
        self.failure = (self._outage_ms, str(error))

    def note_end_of_outage(self) -> None:
        if self._outage_ms is not None and abs(self._clock() - self._outage_ms) > OUTAGE_QUIET_MS:
            self._outage_ms = None
            log.warning("The database can be used again.")
