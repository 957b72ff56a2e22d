"""Connections to PostgreSQL that understand the SQL of ../sql."""

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from itertools import count
from typing import Any

import psycopg
import psycopg.conninfo
from psycopg import pq, sql
from psycopg.adapt import Loader
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumperUnknown

from nexum_runtime.server.store.postgres.place import Place
from nexum_runtime.server.store.sql.connection import Rows

CLOCK_SECONDS = 0.1  # of an answer that tells what PostgreSQL's clock says
FETCHED_ROWS = 20  # at a time, of those that are fetched row by row: each may be large
PREPARED_AFTER = 2  # executions of a statement
BEGIN_TO_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"  # one snapshot for all that is asked
DEFAULTS = {  # of libpq's parameters: a connection that is dead is noticed within seconds
    "application_name": "nexum",
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}

_IN_OTHER_WORDS = {  # SQLite's → PostgreSQL's
    "NOT GLOB '[0-9]*-*'": "!~ '^[0-9].*-'",
    "lower(hex(randomblob(8)))": "substr(replace(gen_random_uuid()::text, '-', ''), 1, 16)",
}


@lru_cache(maxsize=2_000)
def translated(text: str) -> str:
    for ours, theirs in _IN_OTHER_WORDS.items():
        text = text.replace(ours, theirs)
    numbers = count(1)
    return re.sub(r"\?", lambda _: f"${next(numbers)}", text)


class _NumberLoader(Loader):
    """A sum is a whole number where it is one."""

    def load(self, data: Any) -> int | float:
        text = bytes(data).decode()
        return float(text) if "." in text else int(text)


def without_nul(text: str) -> str:
    """A NUL, which no text here can have, is written as its picture."""
    return text.replace("\0", "␀") if "\0" in text else text


class _TextDumper(StrDumperUnknown):
    def dump(self, text: str) -> Any:
        return super().dump(without_nul(text))


class Connection:
    """One connection, outside of a transaction at first. Raises psycopg.Error."""

    def __init__(self, place: Place) -> None:
        # Transactions begin and end where the store says so, not where psycopg guesses.
        self._raw = psycopg.connect(psycopg.conninfo.make_conninfo(**(DEFAULTS | _said(place))), autocommit=True)
        self._raw.cursor_factory = psycopg.RawCursor
        self._raw.prepare_threshold = PREPARED_AFTER
        self._raw.adapters.register_dumper(int, Int8Dumper)
        self._raw.adapters.register_dumper(str, _TextDumper)
        self._raw.adapters.register_loader("numeric", _NumberLoader)
        self.writes = 0  # statements that may have changed something
        try:
            self.raw_execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(place.schema)))
        except BaseException:
            self._raw.close()
            raise

    @property
    def is_broken(self) -> bool:
        return self._raw.closed

    @property
    def is_in_transaction(self) -> bool:
        return self._raw.info.transaction_status != pq.TransactionStatus.IDLE

    @property
    def server_version(self) -> int:
        return self._raw.info.server_version

    @property
    def process_id(self) -> int:
        return self._raw.info.backend_pid

    def execute(self, text: str, parameters: Sequence[Any] = (), /) -> Rows:
        if not text.lstrip().startswith(("SELECT", "WITH")):
            self.writes += 1
        return self._raw.execute(translated(text), parameters)

    def executemany(self, text: str, rows: Iterable[Sequence[Any]], /) -> None:
        self.writes += 1
        with self._raw.cursor() as cursor:
            cursor.executemany(translated(text), rows)

    def together(self) -> AbstractContextManager[Any]:
        """What is executed inside, and not asked for, is sent in one go."""
        return self._raw.pipeline()

    def fetched(self, text: str, parameters: Sequence[Any]) -> Iterator[Any]:
        """Row by row, a few at a time."""
        with psycopg.RawServerCursor(self._raw, "fetched") as cursor:
            cursor.itersize = FETCHED_ROWS
            yield from cursor.execute(translated(text), parameters)

    def clock_ahead_ms(self) -> int | None:
        """By how much PostgreSQL's clock is ahead of this machine's; None if it took too long to answer."""
        asked = time.time()
        (there,) = self.execute("SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)").fetchone()
        answered = time.time()
        if answered - asked > CLOCK_SECONDS:
            return None
        return int((there - (asked + answered) / 2) * 1000)

    def notifications(self, seconds: float) -> Iterator[tuple[int, str]]:
        """For so long: the process that told it, and what."""
        for each in self._raw.notifies(timeout=seconds):
            yield each.pid, each.payload

    def copied_out(self, query: str) -> Iterator[Any]:
        """The rows of a query, read one by one however many there are."""
        types = [column.type_code for column in self._raw.execute(f"{query} LIMIT 0".encode()).description or ()]
        with self._raw.cursor().copy(f"COPY ({query}) TO STDOUT".encode()) as rows:
            rows.set_types(types)
            yield from rows.rows()

    def copy_in(self, table_and_columns: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._raw.cursor().copy(f"COPY {table_and_columns} FROM STDIN".encode()) as written:
            for row in rows:
                written.write_row(row)

    def raw_execute(self, text: Any) -> Any:
        return self._raw.execute(text)

    def close(self) -> None:
        self._raw.close()


def _said(place: Place) -> dict[str, str]:
    """Libpq's parameters that the URL gives: they stay as they are."""
    return {name: str(value) for name, value in psycopg.conninfo.conninfo_to_dict(place.conninfo).items() if value}
