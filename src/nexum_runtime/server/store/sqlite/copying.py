"""A SQLite file as an end of a copy. Its lock is held meanwhile, as by the process that runs an engine on it."""

import sqlite3
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from nexum_runtime.server.model.contract import StoreUnavailable
from nexum_runtime.server.store.sql.copying import TABLES, Row, RowRefused
from nexum_runtime.server.store.sql.rows import marks
from nexum_runtime.server.store.sqlite import database, failures, files, last

CACHE_KIB = 64 * 1024  # of pages that are written, some of them often


class SqliteEnd:
    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.where = str(path)
        self._path = path
        self._connection = connection

    def count(self, table: str) -> int:
        with _told(self._path):
            return int(self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def rows(self, table: str) -> Generator[Row, None, None]:
        key = TABLES[table].partition(",")[0]
        with _told(self._path):
            yield from self._connection.execute(f"SELECT {TABLES[table]} FROM {table} ORDER BY {key}")

    def held(self, row: Row) -> Row:
        return row

    def add(self, table: str, rows: Iterable[Row]) -> None:
        columns = TABLES[table]
        with _told(self._path):
            try:
                self._connection.executemany(
                    f"INSERT INTO {table} ({columns}) VALUES ({marks(columns.split(','))})", rows
                )
            except sqlite3.IntegrityError as error:
                raise RowRefused(str(error)) from None

    def commit(self) -> None:
        with _told(self._path):
            last.remove(self._path)  # of a file that was here before
            self._connection.execute("COMMIT")


@contextmanager
def source(path: Path) -> Iterator[SqliteEnd]:
    """What is there, as it is. Raises StoreUnavailable."""
    path = files.real_path(path)
    if not files.is_there(path) and not files.is_there(files.wal_of(path)):
        raise StoreUnavailable(f"There is no database {path}. Name the one that is to be copied with --from.")
    with _locked(path):
        with _told(path):
            files.check(path)
            database.check(path)
            database.check_version(path)
            connection = database.connect_to_read(path)
        with closing(connection):
            with _told(path):
                connection.execute("BEGIN")  # one snapshot
            yield SqliteEnd(path, connection)


@contextmanager
def target(path: Path) -> Iterator[SqliteEnd]:
    """What is there, or a new file. Raises StoreUnavailable."""
    path = files.real_path(path)
    files.make_folder(path)
    with _locked(path):
        with _told(path):
            connection = database.connect_to_write(path)
        with closing(connection):
            with _told(path):
                if not database.create_schema(connection):
                    database.check_version(path)
                connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
                connection.execute("BEGIN IMMEDIATE")
            yield SqliteEnd(path, connection)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = files.Lock(path)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise failures.unavailable(path, error) from error
