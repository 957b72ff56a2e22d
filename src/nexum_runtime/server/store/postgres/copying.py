"""A PostgreSQL database as an end of a copy. Its lock is held meanwhile, as by a server."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager

import psycopg

from nexum_runtime.server.model.contract import StoreInUse
from nexum_runtime.server.store.postgres import database, failures
from nexum_runtime.server.store.postgres.connection import BEGIN_TO_READ, Connection, without_nul
from nexum_runtime.server.store.postgres.place import Place, place_of
from nexum_runtime.server.store.sql.copying import TABLES, Row, RowRefused

_TAKES_LONG = "SET idle_in_transaction_session_timeout = 0; SET statement_timeout = 0"
_COUNTS_ON = """
    SELECT setval(pg_get_serial_sequence('executions', 'seq'), max(seq)) FROM executions HAVING count(*) > 0
"""


class PostgresEnd:
    def __init__(self, place: Place, connection: Connection) -> None:
        self.where = str(place)
        self._place = place
        self._connection = connection

    def count(self, table: str) -> int:
        with _told(self._place):
            return int(self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def rows(self, table: str) -> Generator[Row, None, None]:
        key = TABLES[table].partition(",")[0]
        with _told(self._place):
            yield from self._connection.copied_out(f"SELECT {TABLES[table]} FROM {table} ORDER BY {key}")

    def held(self, row: Row) -> Row:
        kept = tuple([without_nul(value) if isinstance(value, str) else value for value in row])
        return row if kept == row else kept

    def add(self, table: str, rows: Iterable[Row]) -> None:
        with _told(self._place):
            try:
                self._connection.copy_in(f"{table} ({TABLES[table]})", rows)
            except (psycopg.IntegrityError, psycopg.DataError) as error:
                raise RowRefused(failures.reason(error)) from None

    def commit(self) -> None:
        with _told(self._place):
            self._connection.execute(_COUNTS_ON)
            self._connection.raw_execute(f"ANALYZE {', '.join(TABLES)}")
            self._connection.raw_execute("COMMIT")


@contextmanager
def source(url: str) -> Iterator[PostgresEnd]:
    """What is there, as it is. Raises StoreUnavailable, or InvalidRequest for a URL that is none."""
    place = place_of(url)
    with _connected(place) as connection:
        with _told(place):
            database.check(connection, place)
            _take(connection, place)
            connection.raw_execute(BEGIN_TO_READ)
        yield PostgresEnd(place, connection)


@contextmanager
def target(url: str) -> Iterator[PostgresEnd]:
    """What is there, or a new schema. Raises StoreUnavailable, or InvalidRequest for a URL that is none."""
    place = place_of(url)
    with _connected(place) as connection:
        with _told(place):
            database.prepare(connection, place)
            _take(connection, place)
            connection.raw_execute("BEGIN")
        yield PostgresEnd(place, connection)


@contextmanager
def _connected(place: Place) -> Iterator[Connection]:
    with _told(place):
        connection = Connection(place)
    with closing(connection):
        with _told(place):
            connection.raw_execute(_TAKES_LONG)
        yield connection


def _take(connection: Connection, place: Place) -> None:
    try:
        database.take(connection, place)
    except StoreInUse as error:
        raise StoreInUse(f"{error} Stop all servers on it before you copy.") from None


@contextmanager
def _told(place: Place) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise failures.unavailable(place, error) from error
