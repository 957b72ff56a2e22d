"""The store in one SQLite file: one connection that writes, one that reads, and one for what people look at, so that no
call waits for them. Nothing is acknowledged before it is synced.

The statements of writes run on the event loop, each a matter of microseconds: in a thread of their own they would spend
most of their time on changing threads. So does the commit of few, unless the disk turns out to be slow; else it has a
thread. Writes that come meanwhile share the next one (a group commit).
"""

import asyncio
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from nexum_runtime.crash import crash_point
from nexum_runtime.logs import Log
from nexum_runtime.server.model.contract import Reader, Store, StoreUnavailable, Transaction
from nexum_runtime.server.model.metrics import Metrics
from nexum_runtime.server.store.sql.reader import SqlReader
from nexum_runtime.server.store.sql.transaction import Numbers
from nexum_runtime.server.store.sqlite import database, failures, files, inspection
from nexum_runtime.server.store.sqlite.last import LastEvent
from nexum_runtime.server.store.sqlite.transaction import SqliteTransaction
from nexum_runtime.server.store.writes import Write
from nexum_runtime.text import MIB
from nexum_runtime.wire.beside import Owner

T = TypeVar("T")

log = Log("nexum.engine")

OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
BUSY_LOOK_MS = 20
QUICK_COMMIT_MS = 2.0
LONG_MS = 5.0  # of all statements before a commit
ALONE = 2  # writes of one group, up to which nobody else is thought to be busy
PATIENCE_MS = 4.0  # how long a commit that nobody waits for may wait for one that somebody does
GROUP_SECONDS = 0.02  # of statements in one commit: after one that took longer, fewer share the next
LOG_MIB = 16  # by which the log grows before it is seen whether SQLite can empty it
ROOM_LOOK_SECONDS = 1.0  # between two looks whether a disk that was full at the start has room
LOG_LOOK_SECONDS = 10.0  # between two looks when it cannot
GROUP_LIMIT = 100  # writes that share one commit


class SqliteStore(Store):
    """Opens, or makes, the database at `path`, readable by its owner alone; a folder it makes has mode 0700.

    Raises StoreUnavailable when the file cannot be used or another server holds it. What is not ours, or damaged, is
    left as it is.
    """

    def __init__(self, path: Path, *, reads_only: bool = False) -> None:
        """With `reads_only` what is there is read beside whoever has it, and nothing is made or changed."""
        self.path = files.real_path(path)
        self.where = str(self.path)
        self.metrics = Metrics()
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            oldest = ".".join(map(str, OLDEST_SQLITE))
            raise StoreUnavailable(f"Python's SQLite is {sqlite3.sqlite_version}; Nexum needs {oldest} or newer.")
        self.is_shared = reads_only
        self._lock: files.Lock | None = None
        if not reads_only:
            files.make_folder(self.path)
            self._lock = files.Lock(self.path)
            if network := files.network_of(self.path):
                log.warning(
                    "%s is on a network file system (%s), where the locks of several machines may not hold: use it "
                    "from one machine alone, or put it on a local disk.",
                    self.path,
                    network,
                )
        self._waiting: deque[Write] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()  # a write that waits, or who reads
        self._closing = False
        self._group_limit = GROUP_LIMIT  # of the next one
        self._has_begun = False  # something may have, by a write that is not committed yet
        self._disk_is_quick = False  # as of the last commit
        self._log_bytes = 0  # at the last look at the files
        self._log_looked_bytes = 0  # at the last look whether it can be emptied …
        self._log_looked = 0.0  # … and when that was, by the monotonic clock
        self._log_problem: str | None = None  # why it cannot
        self._turn = asyncio.Lock()  # of the connection that writes
        self._disk = _thread("nexum-store-disk")
        self._reader = _thread("nexum-store-read")
        self._looker = _thread("nexum-store-look")
        self._look_connection: sqlite3.Connection | None = None  # without one, people look by the one that reads
        self._room_looked = 0.0  # by the monotonic clock, when there was none
        self._owner = Owner(str(os.getpid()))
        try:
            if self._lock is None:
                database.check_version(self.path)
                self._read_connection = database.connect_to_look(self.path)
                self._begin_to_read()
            else:
                self._open()
        except sqlite3.Error as error:
            raise failures.unavailable(self.path, error) from error

    def _open(self) -> None:
        """To write, or on a full disk to read alone."""
        assert self._lock is not None
        with ExitStack() as on_failure:
            on_failure.callback(self._lock.release)
            is_new = not files.is_there(self.path)
            try:
                self._open_to_write()
            except (StoreUnavailable, sqlite3.Error) as refused:
                error = failures.told(self.path, refused)
                if is_new or not (isinstance(error, StoreUnavailable) and error.for_room):
                    raise
                self._open_to_read(error)
            on_failure.pop_all()

    def _open_to_write(self) -> None:
        with ExitStack() as on_failure:
            self._write_connection = database.connect_to_write(self.path)
            on_failure.callback(self._write_connection.close)
            self._last = LastEvent(self.path, files.FILE_MODE)
            on_failure.callback(self._last.close, remove=False)
            if database.create_schema(self._write_connection):
                self._last.forget()
            database.migrate(self._write_connection)
            self._write_connection.execute("PRAGMA busy_timeout = 0")  # see _begin
            (last,) = self._write_connection.execute("SELECT ifnull(max(seq), 0) FROM tasks").fetchone()
            self._task_numbers = Numbers(last)
            self._read_connection = database.connect(self.path)
            on_failure.callback(self._read_connection.close)
            look_connection = database.connect_to_read(self.path)
            on_failure.callback(look_connection.close)
            look_connection.execute("SELECT 1 FROM executions LIMIT 1").fetchone()  # it opens its files now
            self._begin_to_read()
            self._look_connection = look_connection
            on_failure.pop_all()

    def _open_to_read(self, why: StoreUnavailable) -> None:
        self._read_connection = database.connect_alone(self.path, why)
        self._begin_to_read()
        self.lacks_room, self._room_looked = why, time.monotonic()

    def _begin_to_read(self) -> None:
        self._read_connection.execute("PRAGMA query_only = ON")
        self._opened = {str(path): found for path, found in files.identities(self.path)}

    async def _open_again(self) -> None:
        """To write, if there is room by now. Raises StoreUnavailable."""
        assert self.lacks_room is not None
        if time.monotonic() - self._room_looked < ROOM_LOOK_SECONDS:
            raise self.lacks_room
        self._room_looked = time.monotonic()
        await asyncio.get_running_loop().run_in_executor(self._reader, self._change_connections)

    def _change_connections(self) -> None:
        """In the thread that reads."""
        files.check_room(self.path)
        self._check_in_place()
        self._read_connection.close()
        try:
            self._open_to_write()
        except (StoreUnavailable, sqlite3.Error) as error:
            self._open_to_read(StoreUnavailable(str(failures.told(self.path, error)), for_room=True))
            raise
        self.lacks_room = None
        with suppress(OSError):  # it is only told to who wonders
            self._write_owner()

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
        if self._lock is None:
            outcome.set_exception(StoreUnavailable(f"{self.path} was opened to be read only."))
            return outcome
        self._waiting.append(Write(work, executed, settled, outcome, is_patient, is_long))
        self._arrived.set()
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_groups())
        return outcome

    async def read(self, work: Callable[[Reader], T], *, is_look: bool = False) -> T:
        if self._has_begun:  # who was told of it looks for it
            self._arrived.set()
            async with self._turn:
                pass
        has_own = is_look and self._look_connection is not None
        thread = self._looker if has_own else self._reader
        return await asyncio.get_running_loop().run_in_executor(thread, self._read, work, has_own)

    def tell_where(self, address: str, token: str) -> None:
        """Have it in the lock file where the engine of this database listens. Raises OSError."""
        self._owner = Owner(str(os.getpid()), address, token)
        self._write_owner()

    def _write_owner(self) -> None:
        assert self._lock is not None, "it has the database"
        self._lock.write(self._owner)

    def forget(self) -> None:
        """In a process that was forked: all of it is the parent's."""
        if self._lock is not None:
            self._lock.forget()
        if self._writes:
            self._last.close(remove=False)

    async def inspect(self, now_ms: int) -> dict[str, Any]:
        if self.lacks_room is None:
            told = await asyncio.to_thread(inspection.inspect, self.path, now_ms)
        else:  # nobody else can look
            inspect = partial(inspection.inspect, self.path, now_ms, self._read_connection)
            told = await asyncio.get_running_loop().run_in_executor(self._reader, inspect)
        told["database"]["log_problem"] = self._log_problem
        return told

    async def compact(self) -> int:
        given_back = 0
        while size_bytes := await self._on_disk(self._vacuum):
            given_back += size_bytes  # and other writes have their turn
        await self._on_disk(self._empty_log)
        return given_back

    async def close(self) -> None:
        self._closing = True
        self._arrived.set()
        if self._writing is not None:
            await self._writing
        if self._look_connection is not None:  # first: the last one that is closed empties the log
            await asyncio.get_running_loop().run_in_executor(self._looker, self._look_connection.close)
        if self._writes:
            await self._on_disk(self._write_connection.close)
        await asyncio.get_running_loop().run_in_executor(self._reader, self._read_connection.close)
        for thread in (self._disk, self._reader, self._looker):
            thread.shutdown()
        if self._writes:
            self._last.close(remove=not files.wal_of(self.path).exists())
        if self._lock is not None:
            self._lock.release()

    @property
    def _writes(self) -> bool:
        return self._lock is not None and self.lacks_room is None

    async def _on_disk(self, job: Callable[[], T]) -> T:
        """It keeps its turn of the connection to its end, also when who has asked for it leaves before."""

        async def in_turn() -> T:
            async with self._turn:
                return await asyncio.get_running_loop().run_in_executor(self._disk, job)

        return await asyncio.shield(asyncio.create_task(in_turn()))

    async def _write_groups(self) -> None:
        while self._waiting:
            async with self._turn:
                await self._write_group()
            await asyncio.sleep(0)  # whoever only asks has a turn between two groups

    async def _write_group(self) -> None:
        """Run the writes that wait, each whole or not at all, and commit them together."""
        group, begun = self._next_of_group(0), 0
        results: list[tuple[Write, Any]] = []
        patient_until = time.monotonic() + PATIENCE_MS / 1000
        try:
            if self.lacks_room is not None:
                await self._open_again()
            self._check_in_place()  # before a worker is given what can only be lost
            _roll_back(self._write_connection)  # what an earlier failure may have left open
            await self._begin()
            transaction = SqliteTransaction(self._write_connection, self._task_numbers)
            took = 0.0
            while begun < len(group):
                writes = [write for write in group[begun:] if not write.outcome.cancelled()]
                begun = len(group)
                self._arrived.clear()
                began = time.monotonic()
                run = partial(self._run_each, writes, transaction, is_alone=not results and len(writes) == 1)
                if any(write.is_long for write in writes):  # it is alone
                    done, refused = await asyncio.get_running_loop().run_in_executor(self._disk, run)
                else:
                    done, refused = run()
                results += done
                for write, _ in done:
                    write.has_begun = write.executed is not None and write.executed()
                for write, error in refused:
                    write.settle(None, failures.told(self.path, error))
                took += time.monotonic() - began
                if any(write.has_begun for write in writes):
                    self._has_begun = True
                    await asyncio.sleep(0)  # what they have begun is on its way to a worker while the rest is done
                transaction.flush()
                if results and all(write.is_patient and write.has_begun for write, _ in results):
                    await self._next_write(patient_until)
                    group += self._next_of_group(len(group))
            if not results:
                _roll_back(self._write_connection)
                return
            if any(write.is_patient and write.has_begun for write, _ in results):
                crash_point("begun-uncommitted")
            if transaction.takes_away:
                self._last.forget()
            is_long = took > LONG_MS / 1000  # and so is its commit
            self._group_limit = GROUP_LIMIT if took < GROUP_SECONDS else max(1, int(len(group) * GROUP_SECONDS / took))
            commit_seconds = await self._commit(in_thread=is_long or len(group) > ALONE)
            self._check_in_place()  # what went into a file that is gone is not acknowledged
            committed = [write.events for write, _ in results]
            if not transaction.takes_away:
                self._remember_last(committed)
        except BaseException as error:
            self.metrics.failed_commits += 1
            if self._writes:
                with suppress(sqlite3.Error):  # the next group tries it again
                    _roll_back(self._write_connection)
            for write in group:
                if not write.outcome.done() or write.outcome.cancelled():
                    write.settle(None, failures.told(self.path, error))
            return
        finally:
            self._has_begun = False
        for write, result in results:
            write.settle(result)
        loop = asyncio.get_running_loop()  # they are counted when those who wait have been woken
        loop.call_soon(self.metrics.committed, commit_seconds, committed)
        if self.watch is not None:
            loop.call_soon(self.watch, [event for events in committed for event in events])
        if self._is_to_look_at_log():
            await loop.run_in_executor(self._disk, self._look_at_log)

    def _remember_last(self, committed: "list[Sequence[tuple[Any, ...]]]") -> None:
        for events in reversed(committed):
            if events:
                self._last.remember(events[-1])
                return

    def _next_of_group(self, size: int) -> list[Write]:
        """Those that wait, in their order; a long one is a group of its own."""
        group: list[Write] = []
        while self._waiting and size + len(group) < self._group_limit:
            if self._waiting[0].is_long and (size or group):
                break
            group.append(self._waiting.popleft())
            if group[-1].is_long:
                break
        return group

    async def _next_write(self, until: float) -> None:
        """Wait for another write, or somebody who reads, but not for long."""
        if not self._arrived.is_set() and not self._waiting and not self._closing:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(until - time.monotonic(), self._arrived.set)
            await self._arrived.wait()
            timer.cancel()

    async def _commit(self, *, in_thread: bool) -> float:
        """Where few are busy and the disk is quick, waiting for it takes less than changing threads would.

        Returns how many seconds it took.
        """
        began = time.perf_counter()
        if in_thread or not self._disk_is_quick:
            await asyncio.get_running_loop().run_in_executor(self._disk, self._write_connection.execute, "COMMIT")
        else:
            self._write_connection.execute("COMMIT")
        seconds = time.perf_counter() - began
        self._disk_is_quick = seconds < QUICK_COMMIT_MS / 1000
        return seconds

    async def _begin(self) -> None:
        """Take the write lock now, not in the middle of the work, and hold up nobody while another program has it."""
        deadline = time.monotonic() + database.BUSY_TIMEOUT_MS / 1000
        while True:
            try:
                self._write_connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if failures.code_of(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(BUSY_LOOK_MS / 1000)

    def _run_each(
        self, writes: list[Write], transaction: SqliteTransaction, *, is_alone: bool
    ) -> "tuple[list[tuple[Write, Any]], list[tuple[Write, BaseException]]]":
        """What the works return, and those that raise, which leave nothing. Whatever becomes of one that `is_alone` is
        all of the transaction."""
        connection = self._write_connection
        done: list[tuple[Write, Any]] = []
        refused: list[tuple[Write, BaseException]] = []
        for write in writes:
            if not is_alone:
                connection.execute("SAVEPOINT work")
            transaction.begin_work()
            try:
                result = write.work(transaction)
                if not is_alone:
                    transaction.flush()
            except BaseException as error:
                if not is_alone and not connection.in_transaction:  # SQLite itself rolled all of it back
                    raise
                transaction.forget()
                if not is_alone:
                    connection.execute("ROLLBACK TO work")
                refused.append((write, error))
            else:
                write.events = transaction.added_events
                done.append((write, result))
            if not is_alone:
                connection.execute("RELEASE work")
            crash_point("in-commit")
            if not is_alone and len(writes) > 1:
                crash_point("in-group-commit")
        return done, refused

    def _vacuum(self) -> int:
        connection = self._write_connection
        try:
            self._check_in_place()
            _roll_back(connection)
            connection.execute(f"PRAGMA busy_timeout = {database.BUSY_TIMEOUT_MS}")
            return database.vacuum(connection)
        except sqlite3.Error as error:
            raise failures.unavailable(self.path, error) from error
        finally:
            connection.execute("PRAGMA busy_timeout = 0")

    def _empty_log(self) -> None:
        try:
            self._write_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise failures.unavailable(self.path, error) from error

    def _is_to_look_at_log(self) -> bool:
        if self._log_problem is None:
            return self._log_bytes > self._log_looked_bytes + LOG_MIB * MIB
        return time.monotonic() > self._log_looked + LOG_LOOK_SECONDS

    def _look_at_log(self) -> None:
        """Empty the log into the database, as SQLite does by itself after a commit, without a word when it cannot."""
        self._log_looked_bytes, self._log_looked = self._log_bytes, time.monotonic()
        try:
            self._write_connection.execute("PRAGMA wal_checkpoint").fetchall()
        except sqlite3.Error as error:
            if self._log_problem is None:
                problem = f"its log cannot be written into it, and grows ({error})"
                self._log_problem = str(failures.unusable_now(self.path, problem, error))
                log.warning("%s", self._log_problem)
        else:
            if self._log_problem is not None:
                log.warning("The log of the database can be written into it again.")
            self._log_problem = None

    def _check_in_place(self) -> None:
        """Raise StoreUnavailable when another file, or none, has the name of one that is open: a restart would not
        find what is written now."""
        for path, opened in self._opened.items():
            now = files.identity(path)
            if now is None or opened is None or not os.path.samestat(now, opened):
                raise failures.unusable(
                    self.path,
                    f"{path} was {'deleted' if now is None else 'replaced'} while this server had it open",
                    "Put it back, or stop this server and start it again with what is there.",
                )
            self._log_bytes = now.st_size  # the last of them is the log

    def _read(self, work: Callable[[Reader], T], is_look: bool) -> T:
        connection = self._look_connection if is_look and self._look_connection else self._read_connection
        try:
            self._check_in_place()
            _roll_back(connection)  # what an earlier failure may have left open
            connection.execute("BEGIN")  # one snapshot for all that `work` asks
            try:
                return work(SqlReader(connection))
            finally:
                with suppress(sqlite3.Error):
                    _roll_back(connection)
        except sqlite3.Error as error:
            raise failures.unavailable(self.path, error) from error


def _thread(name: str) -> ThreadPoolExecutor:
    """One that is there at once: at the end of the interpreter Python begins none, and what is open is to be closed."""
    thread = ThreadPoolExecutor(1, thread_name_prefix=name)
    thread.submit(int)
    return thread


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")
