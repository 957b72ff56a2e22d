"""The store in a PostgreSQL database: one connection that writes, some that read, each used by a thread of its own.

Writes that come while a commit is under way share the next one (a group commit). Nothing is told to anybody before it
is committed. The connection that writes holds an advisory lock, so that what has lost it can write no more.
"""

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg

from nexum_runtime.crash import crash_point
from nexum_runtime.server.model.contract import Reader, Store, StoreUnavailable, Transaction
from nexum_runtime.server.model.metrics import Metrics
from nexum_runtime.server.store.postgres import database, failures
from nexum_runtime.server.store.postgres.connection import BEGIN_TO_READ, Connection
from nexum_runtime.server.store.postgres.place import Place
from nexum_runtime.server.store.postgres.reader import PostgresReader
from nexum_runtime.server.store.postgres.talk import Talk
from nexum_runtime.server.store.postgres.transaction import PostgresTransaction
from nexum_runtime.server.store.sql.inspection import overview
from nexum_runtime.server.store.sql.transaction import Numbers
from nexum_runtime.server.store.writes import Write

T = TypeVar("T")

GROUP_LIMIT = 100  # writes that share one commit
READERS = 2  # connections, besides one for what people look at
ANSWER_SECONDS = 10.0  # that PostgreSQL is asked what became of a commit
LOOK_SECONDS = 0.1
INSPECT_SECONDS = 5.0  # for what a person asks who wonders what is wrong

NUMBERS_SINCE_MS = 1_700_000_000_000  # of tasks
SERVER_BITS = 31  # of a server's number
NUMBER_BITS = 20  # that two tasks of one millisecond may differ in
AGAIN_LIMIT = 5  # times that a write is made which came upon what another server has just written

# A server that stands still, or is cut off, keeps its locks from others for no longer than this. No statement is
# compiled: PostgreSQL takes the events of a piece of a fork for millions, and compiling takes longer than copying them.
_OF_A_SERVER = """
    SET jit = off;
    SET idle_in_transaction_session_timeout = '5s'; SET tcp_user_timeout = '10s';
    SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2; SET tcp_keepalives_count = 3
"""
_SIZE = """
    SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
    JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = ? AND relkind = 'r'
"""

_CONNECTIONS = """
    SELECT sum(numbackends)::bigint,
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
    FROM pg_stat_database
"""

Done = list[tuple[Write, Any]]
Refused = list[tuple[Write, BaseException]]


class _Spoilt(Exception):
    """A write has failed after it had changed something: none of its transaction can be kept."""


def _number_of_now() -> int:
    """By the time, so that tasks of several servers are in about the order in which they were scheduled; and of one
    server at random, so that two servers hardly ever take the same."""
    return (time.time_ns() // 1_000_000 - NUMBERS_SINCE_MS << NUMBER_BITS) + random.getrandbits(NUMBER_BITS - 1)


class PostgresStore(Store):
    """Opens the database, and makes its schema where there is none. Raises StoreUnavailable."""

    is_shared = True

    def __init__(self, place: Place) -> None:
        self.place = place
        self.where = str(place)
        self.server = str(random.getrandbits(SERVER_BITS))
        self.metrics = Metrics()
        self._waiting: deque[Write] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="nexum-store-write")
        self._reader = ThreadPoolExecutor(READERS, thread_name_prefix="nexum-store-read")
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="nexum-store-look")
        self._of_thread = threading.local()
        self._read_connections: list[Connection] = []
        self._numbers = Numbers(0, _number_of_now)
        self._talk: Talk | None = None
        self._busy: set[int] = set()  # threads that have something asked of PostgreSQL now
        try:
            self._writes_by = self._connected_to_write()
        except psycopg.Error as error:
            raise failures.unavailable(place, error) from error

    def begin_write(
        self,
        work: Callable[[Transaction], T],
        *,
        executed: Callable[[], bool] | None = None,
        settled: Callable[[BaseException | None], None] | None = None,
        is_patient: bool = False,
        is_long: bool = False,
        about: Collection[str] = (),
        about_tasks: Collection[str] = (),
    ) -> asyncio.Future[T]:
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        write = Write(work, executed, settled, outcome, is_long=is_long, about=about, about_tasks=about_tasks)
        self._waiting.append(write)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_groups())
        return outcome

    async def read(self, work: Callable[[Reader], T], *, is_look: bool = False) -> T:
        threads = self._looker if is_look else self._reader
        return await asyncio.get_running_loop().run_in_executor(threads, self._read, work)

    async def inspect(self, now_ms: int) -> dict[str, Any]:
        told: dict[str, Any] = {
            "path": self.where,
            "size_bytes": 0,
            "free_bytes": None,
            "damage": None,
            "log_problem": None,
            "clock_ahead_ms": self._ahead_ms,
            "notification_lag_ms": round(self.notification_lag_seconds() * 1000),
        }

        def look(connection: Connection) -> dict[str, Any]:
            told["size_bytes"] = connection.execute(_SIZE, (self.place.schema,)).fetchone()[0]
            told["connections"], told["connections_limit"] = connection.execute(_CONNECTIONS).fetchone()
            return overview(connection, now_ms)

        try:
            async with asyncio.timeout(INSPECT_SECONDS):
                found = await asyncio.get_running_loop().run_in_executor(self._looker, self._look, look)
        except StoreUnavailable as error:
            return {"database": told | {"problem": str(error)}}
        except TimeoutError:  # as a write has found out already
            return {"database": told}
        return {"database": told} | found

    def listen(self, hear: Callable[[Sequence[list[Any]]], None]) -> None:
        self._talk = Talk(self.place, self.server, hear, self._note_clock)

    def tell(self, words: Sequence[list[Any]]) -> None:
        if self._talk is not None:
            self._talk.tell(words)

    async def servers(self) -> set[str]:
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._look, database.servers)

    def time_of_day_ms(self) -> int:
        """PostgreSQL's: servers' own clocks differ."""
        return super().time_of_day_ms() + self._ahead_ms

    def connections(self) -> dict[str, int]:
        own = [self._writes_by, *self._read_connections]
        is_told = self._talk is not None and self._talk.listens
        return {"open": sum(not each.is_broken for each in own) + 2 * is_told, "busy": len(self._busy)}

    def notification_lag_seconds(self) -> float:
        return 0.0 if self._talk is None else self._talk.lag_seconds()

    def _note_clock(self, ahead_ms: int) -> None:
        self._ahead_ms = ahead_ms

    async def compact(self) -> int:
        """PostgreSQL uses the space of deleted rows for new ones by itself."""
        return 0

    async def close(self) -> None:
        if self._writing is not None:
            await self._writing
        if self._talk is not None:
            await asyncio.to_thread(self._talk.close)
        self._reader.shutdown()
        self._looker.shutdown()
        self._writer.shutdown()
        with suppress(psycopg.Error):
            database.leave(self._writes_by)
        for connection in (self._writes_by, *self._read_connections):
            connection.close()

    async def _write_groups(self) -> None:
        while self._waiting:
            await self._write_group()
            await asyncio.sleep(0)  # whoever only asks has a turn between two groups

    async def _write_group(self) -> None:
        loop = asyncio.get_running_loop()
        group = [write for write in self._next_of_group() if not write.outcome.cancelled()]
        if not group:
            return
        try:
            done, refused, seconds = await loop.run_in_executor(self._writer, self._commit, group)
        except BaseException as error:
            self.metrics.failed_commits += 1
            for write in group:
                write.settle(None, failures.told(self.place, error))
            return
        for write, refusal in refused:
            write.settle(None, failures.told(self.place, refusal))
        for write, result in done:
            if write.executed is not None:
                write.executed()
            write.settle(result)
        committed = [write.events for write, _ in done]
        loop.call_soon(self.metrics.committed, seconds, committed)
        if self.watch is not None:
            loop.call_soon(self.watch, [event for events in committed for event in events])

    def _next_of_group(self) -> list[Write]:
        """Those that wait, in their order; a long one is a group of its own."""
        group: list[Write] = []
        while self._waiting and len(group) < GROUP_LIMIT:
            if self._waiting[0].is_long and group:
                break
            group.append(self._waiting.popleft())
            if group[-1].is_long:
                break
        return group

    # In the thread that writes

    def _connected_to_write(self) -> Connection:
        connection = Connection(self.place)
        try:
            database.prepare(connection, self.place)
            database.enter(connection, self.place)
            database.be_there(connection, self.server)
            if not hasattr(self, "_writes_by"):
                self._ahead_ms = connection.clock_ahead_ms() or 0
            connection.raw_execute(_OF_A_SERVER)
        except BaseException:
            connection.close()
            raise
        return connection

    def _commit(self, group: list[Write]) -> tuple[Done, Refused, float]:
        """Run these writes, each whole or not at all, and commit them together where that can be.

        Raises when nothing is kept.
        """
        with self._being_busy():
            return self._commit_all(group)

    def _commit_all(self, group: list[Write]) -> tuple[Done, Refused, float]:
        for count in range(1, AGAIN_LIMIT + 1):
            self._be_connected()
            try:
                return self._commit_together(group)
            except _Spoilt:
                break
            except psycopg.Error as error:
                if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):  # a primary no more: find the new one
                    self._writes_by.close()
                if len(group) > 1 and not self._writes_by.is_broken:
                    break
                if not database.may_succeed_again(error) or count == AGAIN_LIMIT:
                    raise
        return self._commit_each(group)

    def _commit_each(self, group: list[Write]) -> tuple[Done, Refused, float]:
        done: Done = []
        refused: Refused = []
        seconds = 0.0
        for write in group:
            try:
                its_done, its_refused, its_seconds = self._commit_all([write])
            except BaseException as error:
                refused.append((write, error))
            else:
                done, refused, seconds = done + its_done, refused + its_refused, seconds + its_seconds
        return done, refused, seconds

    def _be_connected(self) -> None:
        if self._writes_by.is_broken:
            self._writes_by = self._connected_to_write()

    def _commit_together(self, writes: list[Write]) -> tuple[Done, Refused, float]:
        connection = self._writes_by
        done: Done = []
        refused: Refused = []
        try:
            if connection.is_in_transaction:  # an earlier failure has left it open
                connection.raw_execute("ROLLBACK")
            connection.raw_execute("BEGIN")
            transaction = PostgresTransaction(connection, self._numbers)
            transaction.lock(
                [name for write in writes for name in write.about],
                [key for write in writes for key in write.about_tasks],
            )
            for write in writes:
                transaction.begin_work()
                before = connection.writes
                try:
                    result = write.work(transaction)
                except psycopg.Error:
                    raise
                except BaseException as error:
                    if connection.writes > before and len(writes) > 1:
                        raise _Spoilt from error
                    transaction.forget()
                    refused.append((write, error))
                    if connection.writes > before:  # it was alone
                        connection.raw_execute("ROLLBACK")
                        return done, refused, 0.0
                else:
                    write.events = transaction.added_events
                    done.append((write, result))
                crash_point("in-commit")
                if len(writes) > 1:
                    crash_point("in-group-commit")
            transaction.flush()
            began = time.perf_counter()
            self._make_commit(connection, is_empty=not done)
            return done, refused, time.perf_counter() - began
        except BaseException:
            with suppress(psycopg.Error):
                if not connection.is_broken:
                    connection.raw_execute("ROLLBACK")
            raise

    def _make_commit(self, connection: Connection, *, is_empty: bool) -> None:
        """When the connection breaks over it, PostgreSQL is asked what came of it."""
        if is_empty:
            connection.raw_execute("ROLLBACK")
            return
        (number,) = connection.execute("SELECT pg_current_xact_id_if_assigned()::text").fetchone()
        try:
            connection.raw_execute("COMMIT")
        except psycopg.Error:
            if not (connection.is_broken and number and self._was_committed(number)):
                raise

    def _was_committed(self, number: str) -> bool:
        """Raises StoreUnavailable when PostgreSQL does not tell for so long: it is not made again then."""
        until = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                self._be_connected()
                (state,) = self._writes_by.execute("SELECT pg_xact_status(?::xid8)", (number,)).fetchone()
            except psycopg.Error as error:
                if time.monotonic() > until:
                    raise failures.unavailable(self.place, error) from error
            else:
                if state != "in progress":
                    return bool(state == "committed")
                if time.monotonic() > until:
                    raise failures.unusable(self.place, "what became of a commit is not known", failures.UNKNOWN)
            time.sleep(LOOK_SECONDS)

    # In the threads that read

    def _read(self, work: Callable[[Reader], T]) -> T:
        return self._look(lambda connection: work(PostgresReader(connection)))

    @contextmanager
    def _being_busy(self) -> Iterator[None]:
        self._busy.add(threading.get_ident())
        try:
            yield
        finally:
            self._busy.discard(threading.get_ident())

    def _look(self, work: Callable[[Connection], T]) -> T:
        with self._being_busy():
            return self._look_twice(work)

    def _look_twice(self, work: Callable[[Connection], T]) -> T:
        for is_last in (False, True):
            connection = None
            try:
                connection = self._connected_to_read()
                try:
                    connection.raw_execute(BEGIN_TO_READ)  # one snapshot for all that `work` asks
                    return work(connection)
                finally:
                    if connection.is_in_transaction:
                        with suppress(psycopg.Error):
                            connection.raw_execute("ROLLBACK")
            except psycopg.Error as error:
                if is_last or connection is None or not connection.is_broken:
                    raise failures.unavailable(self.place, error) from error
        raise AssertionError("it was read, or raised")

    def _connected_to_read(self) -> Connection:
        connection: Connection | None = getattr(self._of_thread, "connection", None)
        if connection is None or connection.is_broken:
            connection = self._of_thread.connection = Connection(self.place)
            self._read_connections.append(connection)
        return connection
