"""The store in one SQLite file: one connection that writes, one that reads, nothing acknowledged before it is synced.

The statements of writes run on the event loop, each a matter of microseconds: in a thread of their own they would spend
most of their time on changing threads. So does the commit of few, unless the disk turns out to be slow; else it has a
thread. Writes that come meanwhile share the next one (a group commit).
"""

import asyncio
import json
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from nexum_runtime.crash import crash_point
from nexum_runtime.server.metrics import Metrics
from nexum_runtime.server.states import (
    EXECUTION_SOURCES,
    OPEN_STATUSES,
    TASK_SOURCES,
    ErrorCode,
    Event,
    ExecutionStatus,
    TaskStatus,
)
from nexum_runtime.server.store import files, inspection
from nexum_runtime.server.store.base import (
    Approval,
    EventRow,
    Execution,
    Reader,
    Store,
    StoreUnavailable,
    Task,
    Transaction,
    Workflow,
)
from nexum_runtime.text import MIB

T = TypeVar("T")

SCHEMA_VERSION = 3
APPLICATION_ID = 0x4E58554D  # "NXUM": another program's database is never taken for ours
OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
BUSY_TIMEOUT_MS = 5_000  # a person's sqlite3 shell may hold the write lock for a moment
BUSY_LOOK_MS = 20
QUICK_COMMIT_MS = 2.0
ALONE = 2  # writes of one group, up to which nobody else is thought to be busy
PATIENCE_MS = 4.0  # how long a commit that nobody waits for may wait for one that somebody does
GROUP_LIMIT = 100  # writes that share one commit
KEY_BYTES = 8  # of a task's key: no stale one is that of another task, nor can one be guessed
NUMBER_LENGTH = 19  # a row's number is shorter
VACUUM_PAGES = 1_000  # given back in one transaction, so that other writes need not wait for long
CHECK_MS = 100  # at most, of looking for damage when the database is opened
CHECK_MIB = 100  # of a database that is looked at then

_SCHEMA = (Path(__file__).parent / "schema.sql").read_text(encoding="utf-8")
_TABLES = {  # of version 2, with their columns, but for events; each comes after those that it refers to
    "workflows": "seq, workflow_id, version_hash, ir_json, compatibility, registered_at_ms",
    "executions": "seq, execution_id, workflow_id, version_hash, status, input_json, max_attempts, error, error_code, "
    "created_at_ms, ended_at_ms, effect, timeout_ms",
    "tasks": "seq, task_key, execution_id, workflow_id, version_hash, node_id, node_type, status, attempt, "
    "attempt_limit, available_at_ms, worker_id, lease_ms, lease_expires_at_ms, output_json, error, error_code",
}
_INDEXES = """
    workflows_by_hash executions_by_workflow executions_by_status executions_running
    tasks_ready tasks_leased tasks_of_worker events_of_execution
"""
_renamed = " ".join(
    [f"ALTER TABLE {table} RENAME TO old_{table};" for table in _TABLES]
    + ["ALTER TABLE events RENAME TO old_events;"]
    + [f"DROP INDEX {index};" for index in _INDEXES.split()]
)
_copied = " ".join(
    [f"INSERT INTO {table} ({columns}) SELECT {columns} FROM old_{table};" for table, columns in _TABLES.items()]
    + [
        """
        INSERT INTO events (seq, at_ms, type, node_id, attempt, data_json)
        SELECT (x.seq << 20) + row_number() OVER (PARTITION BY x.seq ORDER BY v.seq), at_ms, type, node_id, attempt,
            data_json
        FROM old_events v JOIN executions x USING (execution_id);
        """
    ]
    + [f"DROP TABLE old_{table};" for table in ("events", *reversed(_TABLES))]
)

MIGRATIONS = {  # schema version → the SQL that makes it the next one
    1: """
        ALTER TABLE executions ADD COLUMN effect TEXT NOT NULL DEFAULT 'idempotent'
            CHECK (effect IN ('read', 'idempotent', 'once'));
        ALTER TABLE executions ADD COLUMN timeout_ms INTEGER;
        CREATE INDEX executions_running ON executions (execution_id) WHERE status = 'RUNNING';
    """,
    2: f"""
        {_renamed}
        {_SCHEMA}
        {_copied}
    """,
}

_NEXT = {  # SQLite's error → what to do about it
    sqlite3.SQLITE_FULL: files.ROOM,
    sqlite3.SQLITE_IOERR: f"Its disk is failing, or full. {files.ROOM}",
    sqlite3.SQLITE_READONLY: files.PERMISSION,
    sqlite3.SQLITE_CANTOPEN: files.PERMISSION,
    sqlite3.SQLITE_NOTADB: files.OTHER_FILE,
    sqlite3.SQLITE_BUSY: "Another program is writing to it: let that one finish.",
}


def _listed(states: Collection[str]) -> str:
    return ", ".join(f"'{state}'" for state in sorted(states))


def _marks(values: Collection[Any]) -> str:
    return ", ".join("?" * len(values))


def _number_of(task_key: str) -> int | None:
    number, dash, _ = task_key.partition("-")
    is_number = dash and number.isascii() and number.isdecimal() and len(number) < NUMBER_LENGTH
    return int(number) if is_number else None


def _by_key(task_key: str) -> tuple[str, tuple[Any, ...]]:
    """The condition that finds the task of this key, and its parameters."""
    number = _number_of(task_key)
    return (_NAMED, (task_key,)) if number is None else (_NUMBERED, (number, task_key))


_encode = json.JSONEncoder(ensure_ascii=False).encode

_EXECUTION = ", ".join(Execution._fields)
_EXECUTION_STATUS, _EXECUTION_ERROR_CODE = map(Execution._fields.index, ("status", "error_code"))
_TASK = ", ".join(Task._fields)
_TASK_STATUS, _TASK_ERROR_CODE = map(Task._fields.index, ("status", "error_code"))
_OPEN = f"status IN ({_listed(OPEN_STATUSES)})"  # a RUNNING execution has such a task, and few others have one
_WORKFLOW = "workflow_id, version_hash, ir_json, compatibility, registered_at_ms"

# The statements of every call: the same text each time, so that SQLite's module finds them prepared.
_ADD_EXECUTION = f"INSERT INTO executions ({_EXECUTION}) VALUES ({_marks(Execution._fields)})"
_ADD_TASK = f"INSERT INTO tasks (seq, {_TASK}) VALUES (?, {_marks(Task._fields)})"
_ADD_EVENT = """
    INSERT INTO events (seq, at_ms, type, node_id, attempt, data_json)
    SELECT coalesce((SELECT max(seq) FROM events WHERE seq BETWEEN x.seq << 20 AND (x.seq << 20) + 1048575),
        x.seq << 20) + 1, ?2, ?3, ?4, ?5, ?6 FROM executions x WHERE execution_id = ?1
"""
# A key begins with the number of its row. Those of version 2 do not, and have an index.
_NUMBERED, _NAMED = "seq = ? AND task_key = ?", "task_key = ? AND task_key NOT GLOB '[0-9]*-*'"
_FINISH = {
    key: "UPDATE tasks SET status = 'DONE', output_json = ?, lease_expires_at_ms = NULL, available_at_ms = 0, "
    f"error = NULL, error_code = NULL WHERE {key} AND attempt = ? AND status = 'RUNNING' RETURNING {_TASK}"
    for key in (_NUMBERED, _NAMED)
}
_MOVE_EXECUTION = {
    to: f"UPDATE executions SET status = '{to}', error = ?, error_code = ?, ended_at_ms = ? "
    f"WHERE execution_id = ? AND status IN ({_listed(sources)}) RETURNING {_EXECUTION}"
    for to, sources in EXECUTION_SOURCES.items()
}
_MOVE_TASK = {
    to: f"UPDATE tasks SET status = '{to}', output_json = ?, lease_expires_at_ms = NULL, available_at_ms = ?, "
    f"attempt_limit = coalesce(?, attempt_limit), error = ?, error_code = ? "
    f"WHERE status IN ({_listed(sources)}) AND "
    for to, sources in TASK_SOURCES.items()
}


@dataclass(slots=True)
class _Write:
    work: Callable[[Transaction], Any]
    executed: Callable[[], bool] | None
    settled: Callable[[BaseException | None], None] | None
    outcome: asyncio.Future[Any]
    is_patient: bool = False
    events: Sequence[tuple[Any, ...]] = ()  # that it has added

    def settle(self, result: Any, error: BaseException | None = None) -> None:
        if self.settled is not None:
            self.settled(error)
        if self.outcome.cancelled():  # whoever waited has left
            return
        if error is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(result)


class SqliteStore(Store):
    """Opens, or makes, the database at `path`, readable by its owner alone; a folder it makes has mode 0700.

    Raises StoreUnavailable when the file cannot be used or another server holds it. What is not ours, or damaged, is
    left as it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = files.real_path(path)
        self.metrics = Metrics()
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            oldest = ".".join(map(str, OLDEST_SQLITE))
            raise StoreUnavailable(f"Python's SQLite is {sqlite3.sqlite_version}; Nexum needs {oldest} or newer.")
        files.make_folder(self.path)
        self._lock = files.Lock(self.path)
        self._waiting: deque[_Write] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()  # one that waits
        self._closing = False
        self._disk_is_quick = False  # as of the last commit
        self._turn = asyncio.Lock()  # of the connection that writes
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="nexum-store-disk")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="nexum-store-read")
        try:
            with ExitStack() as on_failure:
                on_failure.callback(self._lock.release)
                files.check(self.path)
                self._check()
                files.make_private(self.path)
                self._write_connection = self._connect()
                on_failure.callback(self._write_connection.close)
                self._create_schema()
                self._migrate()
                self._write_connection.execute("PRAGMA busy_timeout = 0")  # see _begin
                (last,) = self._write_connection.execute("SELECT ifnull(max(seq), 0) FROM tasks").fetchone()
                self._task_numbers = count(last + 1)
                self._read_connection = self._connect()
                self._read_connection.execute("PRAGMA query_only = ON")
                self._opened = {str(path): found for path, found in files.identities(self.path)}
                on_failure.pop_all()
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def begin_write(
        self,
        work: Callable[[Transaction], T],
        *,
        executed: Callable[[], bool] | None = None,
        settled: Callable[[BaseException | None], None] | None = None,
    ) -> asyncio.Future[T]:
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Write(work, executed, settled, outcome))
        self._arrived.set()
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_groups())
        return outcome

    async def read(self, work: Callable[[Reader], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._read, work)

    async def inspect(self, now_ms: int) -> dict[str, Any]:
        return await asyncio.to_thread(inspection.inspect, self.path, now_ms)

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
        await self._on_disk(self._write_connection.close)
        await asyncio.get_running_loop().run_in_executor(self._reader, self._read_connection.close)
        self._disk.shutdown()
        self._reader.shutdown()
        self._lock.release()

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

    async def _write_group(self) -> None:
        """Run the writes that wait, each whole or not at all, and commit them together."""
        group, begun = self._next_of_group(0), 0
        results: list[tuple[_Write, Any]] = []
        patient_until = time.monotonic() + PATIENCE_MS / 1000
        try:
            self._check_in_place()  # before a worker is given what can only be lost
            _roll_back(self._write_connection)  # what an earlier failure may have left open
            await self._begin()
            transaction = _SqliteTransaction(self._write_connection, self._task_numbers)
            while begun < len(group):
                writes = [write for write in group[begun:] if not write.outcome.cancelled()]
                begun = len(group)
                self._run_each(writes, transaction, results)
                if any(write.executed is not None for write in writes):
                    await asyncio.sleep(0)  # what they have begun is on its way to a worker while the rest is done
                transaction.flush()
                if results and all(write.is_patient for write, _ in results):
                    await self._next_write(patient_until)
                    group += self._next_of_group(len(group))
            if not results:
                _roll_back(self._write_connection)
                return
            if any(write.is_patient for write, _ in results):
                crash_point("begun-uncommitted")
            commit_seconds = await self._commit(in_thread=len(group) > ALONE)
            self._check_in_place()  # what went into a file that is gone is not acknowledged
        except BaseException as error:
            self.metrics.failed_commits += 1
            with suppress(sqlite3.Error):  # the next group tries it again
                _roll_back(self._write_connection)
            for write in group:
                if not write.outcome.done() or write.outcome.cancelled():
                    write.settle(None, self._told(error))
            return
        for write, result in results:
            write.settle(result)
        committed = [write.events for write, _ in results]  # counted when those who wait have been woken
        asyncio.get_running_loop().call_soon(self.metrics.committed, commit_seconds, committed)

    def _next_of_group(self, size: int) -> "list[_Write]":
        return [self._waiting.popleft() for _ in range(min(len(self._waiting), GROUP_LIMIT - size))]

    async def _next_write(self, until: float) -> None:
        """Wait for another write, but not for long."""
        self._arrived.clear()
        if not self._waiting and not self._closing:
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
        deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
        while True:
            try:
                self._write_connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(BUSY_LOOK_MS / 1000)

    def _run_each(
        self, writes: "list[_Write]", transaction: "_SqliteTransaction", results: "list[tuple[_Write, Any]]"
    ) -> None:
        """Add what the works return to the results. One that raises is told so, and leaves nothing."""
        connection = self._write_connection
        is_alone = not results and len(writes) == 1  # whatever becomes of it is all of the transaction
        done = []
        for write in writes:
            if not is_alone:
                connection.execute("SAVEPOINT work")
            transaction.added_events = []
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
                write.settle(None, self._told(error))
            else:
                write.events = transaction.added_events
                done.append((write, result))
            if not is_alone:
                connection.execute("RELEASE work")
            crash_point("in-commit")
            if len(results) + len(done) > 1:
                crash_point("in-group-commit")
        for write, _ in done:
            write.is_patient = write.executed is not None and write.executed()
        results += done

    def _vacuum(self) -> int:
        """Give back some of the pages that are free. Returns how many bytes they are."""
        connection = self._write_connection
        try:
            self._check_in_place()
            _roll_back(connection)
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            before = self._size_bytes()
            if _pragma(connection, "auto_vacuum") == 0:  # a file of schema version 1
                connection.execute("VACUUM")
            # A script runs to its end; `execute` would stop after the first page.
            connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
            return max(before - self._size_bytes(), 0)
        except sqlite3.Error as error:
            raise self._unavailable(error) from error
        finally:
            connection.execute("PRAGMA busy_timeout = 0")

    def _empty_log(self) -> None:
        try:
            self._write_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def _size_bytes(self) -> int:
        return _pragma(self._write_connection, "page_count") * _pragma(self._write_connection, "page_size")

    def _check_in_place(self) -> None:
        """Raise StoreUnavailable when another file, or none, has the name of one that is open: a restart would not
        find what is written now."""
        for path, opened in self._opened.items():
            now = files.identity(path)
            if now is None or opened is None or not os.path.samestat(now, opened):
                raise files.unusable(
                    self.path,
                    f"{path} was {'deleted' if now is None else 'replaced'} while this server had it open",
                    "Put it back, or stop this server and start it again with what is there.",
                )

    def _read(self, work: Callable[[Reader], T]) -> T:
        connection = self._read_connection
        try:
            self._check_in_place()
            _roll_back(connection)  # what an earlier failure may have left open
            connection.execute("BEGIN")  # one snapshot for all that `work` asks
            try:
                return work(_SqliteReader(connection))
            finally:
                with suppress(sqlite3.Error):
                    _roll_back(connection)
        except sqlite3.Error as error:
            raise self._unavailable(error) from error

    def _connect(self) -> sqlite3.Connection:
        # isolation_level=None: transactions begin and end where this file says so, not where the module guesses.
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heeded while the file is empty, and by VACUUM
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # a commit returns when it is on the disk
            connection.execute("PRAGMA fullfsync = ON")  # macOS: or it may only be in the disk's cache
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self) -> None:
        """Refuse a file that is neither ours nor empty, or is damaged, without changing any of its files."""
        log = files.wal_of(self.path)
        if not (log.exists() and log.stat().st_size):
            self._is_ours("immutable=1")
            return
        try:
            self._is_ours("mode=ro")
        except (StoreUnavailable, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.OperationalError):  # not what the files hold: they could not be read
                raise
            with suppress(StoreUnavailable, sqlite3.DatabaseError):
                if self._is_ours("immutable=1"):
                    error = files.unusable(self.path, f"{log} does not fit it", files.LOST_LOG)
            raise error from None

    def _is_ours(self, how: str) -> bool:
        """False for an empty one. Raises StoreUnavailable, or what SQLite raises."""
        with closing(sqlite3.connect(f"{self.path.as_uri()}?{how}", uri=True, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            application_id, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
            if application_id != APPLICATION_ID:
                if _is_empty(connection):
                    return False
                raise StoreUnavailable(
                    f"{self.path} is a database of another program. Give Nexum a file of its own with --db."
                )
            if version != SCHEMA_VERSION and version not in MIGRATIONS:
                raise StoreUnavailable(
                    f"{self.path} has schema version {version}, and this Nexum knows versions up to {SCHEMA_VERSION}. "
                    "Use the Nexum that wrote it, or another file with --db."
                )
            self._look_for_damage(connection)
            return True

    def _look_for_damage(self, connection: sqlite3.Connection) -> None:
        """As far as time allows. What is found later is told by the call that comes upon it."""
        if self.path.stat().st_size > CHECK_MIB * MIB:  # each table is looked at in one step, however large it is
            return
        if found := inspection.damage_of(connection, CHECK_MS):
            raise self._damaged(found)

    def _create_schema(self) -> None:
        if _is_empty(self._write_connection):
            self._write_connection.executescript(
                f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {SCHEMA_VERSION};\n{_SCHEMA}\nCOMMIT;"
            )

    def _migrate(self) -> None:
        """Bring an older file forward, one version a transaction."""
        connection = self._write_connection
        while (version := _pragma(connection, "user_version")) < SCHEMA_VERSION:
            migration = MIGRATIONS[version]
            connection.executescript(f"BEGIN IMMEDIATE; {migration} PRAGMA user_version = {version + 1}; COMMIT;")

    def _told(self, error: BaseException) -> BaseException:
        return self._unavailable(error) if isinstance(error, sqlite3.Error) else error

    def _unavailable(self, error: sqlite3.Error) -> StoreUnavailable:
        code = _code(error)
        if code not in _NEXT:
            return self._damaged(str(error))
        return files.unusable(self.path, str(error), _NEXT[code])

    def _damaged(self, found: str) -> StoreUnavailable:
        return files.unusable(
            self.path,
            found,
            f"Put a backup in its place, or save what can be read: sqlite3 {self.path} .recover | sqlite3 saved.db",
        )


class _SqliteReader:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sql = connection.execute

    def workflow(self, workflow_id: str, version_hash: str) -> Workflow | None:
        row = self._sql(
            f"SELECT {_WORKFLOW} FROM workflows WHERE workflow_id = ? AND (version_hash = ? OR ? = '') "
            "ORDER BY seq DESC LIMIT 1",
            (workflow_id, version_hash, version_hash),
        ).fetchone()
        return Workflow(*row) if row else None

    def workflows(self, workflow_id: str) -> list[Workflow]:
        rows = self._sql(
            f"SELECT {_WORKFLOW}, (SELECT count(DISTINCT execution_id) FROM tasks t WHERE {_OPEN} "
            "AND t.workflow_id = w.workflow_id AND t.version_hash = w.version_hash) "
            "FROM workflows w WHERE workflow_id = ?1 OR ?1 = '' ORDER BY seq DESC",
            (workflow_id,),
        )
        return [Workflow(*row) for row in rows]

    def workflow_ids(self, version_hash: str) -> list[str]:
        rows = self._sql("SELECT workflow_id FROM workflows WHERE version_hash = ? ORDER BY seq", (version_hash,))
        return [workflow_id for (workflow_id,) in rows]

    def count_workflows(self) -> int:
        return int(self._sql("SELECT count(*) FROM workflows").fetchone()[0])

    def execution(self, execution_id: str) -> Execution | None:
        row = self._sql(f"SELECT {_EXECUTION} FROM executions WHERE execution_id = ?", (execution_id,)).fetchone()
        return _execution(row) if row else None

    def executions(self, workflow_id: str, status: str, prefix: str, limit: int) -> list[Execution]:
        conditions, parameters = [], []
        if workflow_id:
            conditions.append("workflow_id = ?")
            parameters.append(workflow_id)
        if status:
            conditions.append(f"status = '{ExecutionStatus(status)}'")  # spelled out: an index is of some of them
        if status == ExecutionStatus.RUNNING:
            conditions.append(f"execution_id IN (SELECT execution_id FROM tasks WHERE {_OPEN})")
        if prefix:
            conditions.append("execution_id >= ? AND execution_id < ?")
            parameters += [prefix, _after_prefix(prefix)]
        where = "WHERE " + " AND ".join(conditions) if conditions else ""
        rows = self._sql(f"SELECT {_EXECUTION} FROM executions {where} ORDER BY seq DESC LIMIT ?", (*parameters, limit))
        return [_execution(row) for row in rows]

    def count_running(self, prefix: str, limit: int) -> int:
        row = self._sql(
            f"SELECT count(*) FROM (SELECT DISTINCT execution_id FROM tasks WHERE {_OPEN} "
            "AND execution_id >= ? AND execution_id < ? LIMIT ?)",
            (prefix, _after_prefix(prefix), limit),
        ).fetchone()
        return int(row[0])

    def ended_before(self, at_ms: int, prefix: str, after_seq: int, limit: int) -> list[tuple[int, str]]:
        rows = self._sql(
            "SELECT seq, execution_id FROM executions e WHERE seq > ? AND ended_at_ms <= ? AND status <> 'RUNNING' "
            "AND substr(execution_id, 1, ?) = ? AND error_code IS NOT 'OUTCOME_UNKNOWN' AND NOT EXISTS "
            "(SELECT 1 FROM tasks t WHERE t.execution_id = e.execution_id AND t.status = 'RUNNING') "
            "ORDER BY seq LIMIT ?",
            (after_seq, at_ms, len(prefix), prefix, limit),
        )
        return rows.fetchall()

    def outputs(self, execution_id: str) -> dict[str, str]:
        rows = self._sql(
            "SELECT node_id, output_json FROM tasks WHERE execution_id = ? AND status = 'DONE' ORDER BY seq",
            (execution_id,),
        )
        return dict(rows.fetchall())

    def journal(self, prefix: str, after: str, limit_chars: int) -> tuple[dict[str, dict[str, str]], str]:
        rows = self._sql(
            "SELECT execution_id, node_id, output_json FROM executions CROSS JOIN tasks USING (execution_id) "
            f"WHERE execution_id {'>' if after else '>='} ? AND execution_id < ? AND executions.status = 'COMPLETED' "
            "AND tasks.status = 'DONE' ORDER BY execution_id, tasks.seq",
            (after or prefix, _after_prefix(prefix)),
        )
        found: dict[str, dict[str, str]] = {}
        chars = 0
        for execution_id, node_id, output_json in rows:
            if execution_id not in found and chars >= limit_chars:
                break
            found.setdefault(execution_id, {})[node_id] = output_json
            chars += len(output_json) + len(execution_id)
        return found, next(reversed(found), after)

    def tasks(self, execution_id: str) -> list[Task]:
        rows = self._sql(f"SELECT {_TASK} FROM tasks WHERE execution_id = ? ORDER BY seq", (execution_id,))
        return [_task(row) for row in rows]

    def count_tasks(self) -> dict[tuple[str, str], int]:
        counts = " UNION ALL ".join(
            f"SELECT status, node_type, count(*) FROM tasks WHERE status = '{status}' GROUP BY node_type"
            for status in OPEN_STATUSES
        )
        return {(status, node_type): count for status, node_type, count in self._sql(counts)}

    def task(self, task_key: str) -> Task | None:
        condition, parameters = _by_key(task_key)
        row = self._sql(f"SELECT {_TASK} FROM tasks WHERE {condition}", parameters).fetchone()
        return _task(row) if row else None

    def events(self, execution_id: str) -> list[EventRow]:
        rows = self._sql(
            "SELECT at_ms, type, node_id, attempt, data_json FROM story WHERE execution_id = ? ORDER BY seq",
            (execution_id,),
        )
        return [
            EventRow(at_ms, Event(type), node_id, attempt, json.loads(data))
            for at_ms, type, node_id, attempt, data in rows
        ]

    def count_events(self, execution_id: str) -> int:
        row = self._sql("SELECT count(*) FROM story WHERE execution_id = ?", (execution_id,)).fetchone()
        return int(row[0])

    def expired(self, now_ms: int) -> list[Task]:
        rows = self._sql(
            f"SELECT {_TASK} FROM tasks WHERE status = 'RUNNING' AND lease_expires_at_ms <= ? ORDER BY seq",
            (now_ms,),
        )
        return [_task(row) for row in rows]

    def approvals(self, limit: int) -> list[Approval]:
        rows = self._sql(
            "SELECT execution_id, node_id, workflow_id, (SELECT max(at_ms) FROM story v WHERE v.execution_id = "
            "t.execution_id AND v.node_id = t.node_id AND v.type = 'ApprovalRequested') AS since_ms "
            "FROM tasks t WHERE status = 'WAITING' AND node_type = 'HUMAN_APPROVAL' ORDER BY since_ms, seq LIMIT ?",
            (limit,),
        )
        return [Approval(*row) for row in rows]

    def next_timer(self) -> int | None:
        row = self._sql("SELECT min(available_at_ms) FROM tasks WHERE status = 'WAITING' AND node_type = 'TIMER'")
        due_ms: int | None = row.fetchone()[0]
        return due_ms

    def due(self, now_ms: int, limit: int) -> list[Task]:
        rows = self._sql(
            f"SELECT {_TASK} FROM tasks WHERE status = 'WAITING' AND node_type = 'TIMER' AND available_at_ms <= ? "
            "ORDER BY available_at_ms, seq LIMIT ?",
            (now_ms, limit),
        )
        return [_task(row) for row in rows]

    def held(self, worker_id: str) -> list[Task]:
        rows = self._sql(
            f"SELECT {_TASK} FROM tasks WHERE status = 'RUNNING' AND worker_id = ? ORDER BY seq", (worker_id,)
        )
        return [_task(row) for row in rows]


class _SqliteTransaction(_SqliteReader):
    """What is added is inserted together, when something else is asked or done, or by `flush`."""

    def __init__(self, connection: sqlite3.Connection, numbers: Iterator[int]) -> None:
        super().__init__(connection)
        self._execute, self._execute_many = connection.execute, connection.executemany
        self._sql = self._flush_and_execute  # type: ignore[assignment]  # how a reader asks
        self._numbers = numbers  # of tasks
        self._executions: list[Execution] = []
        self._tasks: list[tuple[Any, ...]] = []
        self._events: list[tuple[Any, ...]] = []
        self.added_events: list[tuple[Any, ...]] = []  # by the work that runs

    def flush(self) -> None:
        for sql, rows in ((_ADD_EXECUTION, self._executions), (_ADD_TASK, self._tasks), (_ADD_EVENT, self._events)):
            if rows:
                self._execute_many(sql, rows)
                rows.clear()

    def forget(self) -> None:
        """What the work that runs has added and is not inserted yet."""
        for rows in (self._executions, self._tasks, self._events):
            rows.clear()

    def _flush_and_execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        self.flush()
        return self._execute(sql, parameters)

    def new_task_key(self) -> str:
        return f"{next(self._numbers)}-{os.urandom(KEY_BYTES).hex()}"

    def add_workflow(self, workflow: Workflow) -> None:
        self._sql(
            f"INSERT INTO workflows ({_WORKFLOW}) VALUES (?, ?, ?, ?, ?)",
            (
                workflow.workflow_id,
                workflow.version_hash,
                workflow.ir_json,
                workflow.compatibility,
                workflow.registered_at_ms,
            ),
        )

    def make_latest(self, workflow_id: str, version_hash: str) -> None:
        self._sql(
            "UPDATE workflows SET seq = (SELECT max(seq) + 1 FROM workflows) "
            "WHERE workflow_id = ? AND version_hash = ?",
            (workflow_id, version_hash),
        )

    def add_execution(self, execution: Execution) -> None:
        self._executions.append(execution)

    def move_execution(
        self,
        execution_id: str,
        to: ExecutionStatus,
        *,
        error: str | None = None,
        error_code: ErrorCode | None = None,
        ended_at_ms: int | None = None,
    ) -> Execution | None:
        rows = self._sql(_MOVE_EXECUTION[to], (error, error_code, ended_at_ms, execution_id)).fetchall()
        return _execution(rows[0]) if rows else None

    def set_execution_error(self, execution_id: str, error: str, error_code: ErrorCode) -> None:
        self._sql(
            "UPDATE executions SET error = ?, error_code = ? WHERE execution_id = ? AND status = 'FAILED'",
            (error, error_code, execution_id),
        )

    def declare(self, execution_id: str, max_attempts: int, effect: str, timeout_ms: int | None) -> None:
        self._sql(
            "UPDATE tasks SET attempt_limit = max(attempt + (status = 'READY'), attempt_limit + ?1 - "
            "(SELECT max_attempts FROM executions WHERE execution_id = ?2)) WHERE execution_id = ?2",
            (max_attempts, execution_id),
        )
        self._sql(
            "UPDATE executions SET max_attempts = ?, effect = ?, timeout_ms = ? WHERE execution_id = ?",
            (max_attempts, effect, timeout_ms, execution_id),
        )

    def delete_execution(self, execution_id: str) -> None:
        self._sql("DELETE FROM events WHERE seq IN (SELECT seq FROM story WHERE execution_id = ?)", (execution_id,))
        for table in ("tasks", "executions"):
            self._sql(f"DELETE FROM {table} WHERE execution_id = ?", (execution_id,))

    def add_task(self, task: Task) -> None:
        self._tasks.append((_number_of(task.task_key), *task))

    def move_task(
        self,
        task_key: str,
        to: TaskStatus,
        *,
        output_json: str | None = None,
        available_at_ms: int = 0,
        attempt_limit: int | None = None,
        error: str | None = None,
        error_code: ErrorCode | None = None,
    ) -> bool:
        condition, parameters = _by_key(task_key)
        moved = (output_json, available_at_ms, attempt_limit, error, error_code)
        cursor = self._sql(_MOVE_TASK[to] + condition, (*moved, *parameters))
        return cursor.rowcount == 1

    def finish(self, task_key: str, attempt: int, output_json: str) -> Task | None:
        condition, parameters = _by_key(task_key)
        rows = self._sql(_FINISH[condition], (output_json, *parameters, attempt)).fetchall()
        return _task(rows[0]) if rows else None

    def settle_failure(self, task_key: str, error: str) -> None:
        condition, parameters = _by_key(task_key)
        self._sql(
            "UPDATE tasks SET error = ?, error_code = 'TOOL_ERROR' "
            f"WHERE error_code = 'OUTCOME_UNKNOWN' AND {condition}",
            (error, *parameters),
        )

    def claim(
        self,
        version_hash: str,
        workflow_ids: Collection[str],
        worker_id: str,
        lease_ms: int,
        now_ms: int,
        execution_id: str | None = None,
    ) -> Task | None:
        one = "" if execution_id is None else " AND execution_id = ?"
        rows = self._sql(
            "UPDATE tasks SET status = 'RUNNING', attempt = attempt + 1, worker_id = ?, lease_ms = ?, "
            "lease_expires_at_ms = ? WHERE status = 'READY' AND seq = ("
            "SELECT min(seq) FROM tasks WHERE status = 'READY' AND version_hash = ? "
            f"AND workflow_id IN ({_marks(workflow_ids)}) AND available_at_ms <= ?{one}) RETURNING {_TASK}",
            (worker_id, lease_ms, now_ms + lease_ms, version_hash, *workflow_ids, now_ms)
            + (() if execution_id is None else (execution_id,)),
        ).fetchall()
        return _task(rows[0]) if rows else None

    def renew_leases(self, worker_id: str, now_ms: int, task_keys: Collection[str] | None = None) -> None:
        these = "" if task_keys is None else f" AND task_key IN ({_marks(task_keys)})"
        self._sql(
            f"UPDATE tasks SET lease_expires_at_ms = ? + lease_ms WHERE status = 'RUNNING' AND worker_id = ?{these}",
            (now_ms, worker_id, *(task_keys or ())),
        )

    def touch(self) -> None:
        self._sql(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def restart_clock(self, now_ms: int, delay_limit_ms: int) -> None:
        self._sql("UPDATE tasks SET lease_expires_at_ms = ? + lease_ms WHERE status = 'RUNNING'", (now_ms,))
        self._sql(
            "UPDATE tasks SET available_at_ms = ?1 WHERE status = 'READY' AND available_at_ms > ?1",
            (now_ms + delay_limit_ms,),
        )

    def add_event(
        self,
        execution_id: str,
        at_ms: int,
        type: Event,
        node_id: str | None = None,
        attempt: int | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        data_json = _encode(data) if data else "{}"
        event = (execution_id, at_ms, type.value, node_id, attempt, data_json)
        self._events.append(event)
        self.added_events.append(event)


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of it are details


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _execution(row: tuple[Any, ...]) -> Execution:
    values = list(row)
    values[_EXECUTION_STATUS] = ExecutionStatus(values[_EXECUTION_STATUS])
    if (code := values[_EXECUTION_ERROR_CODE]) is not None:
        values[_EXECUTION_ERROR_CODE] = ErrorCode(code)
    return Execution(*values)


def _task(row: tuple[Any, ...]) -> Task:
    values = list(row)
    values[_TASK_STATUS] = TaskStatus(values[_TASK_STATUS])
    if (code := values[_TASK_ERROR_CODE]) is not None:
        values[_TASK_ERROR_CODE] = ErrorCode(code)
    return Task(*values)


def _after_prefix(prefix: str) -> str:
    """The first text that no longer begins with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
