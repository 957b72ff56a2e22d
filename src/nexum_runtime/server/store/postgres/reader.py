"""What is read from PostgreSQL in words of its own."""

from collections.abc import Iterable, Sequence
from typing import Any

from nexum_runtime.server.store.postgres.connection import Connection
from nexum_runtime.server.store.sql.reader import SqlReader


class PostgresReader(SqlReader):
    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._fetched = connection.fetched

    def _rows(self, sql: str, parameters: Sequence[Any]) -> Iterable[Any]:
        return self._fetched(sql, parameters)
