"""What is written to PostgreSQL in words of its own."""

from nexum_runtime.server.store.postgres.connection import Connection
from nexum_runtime.server.store.sql.transaction import Numbers, SqlTransaction


class PostgresTransaction(SqlTransaction):
    def __init__(self, connection: Connection, numbers: Numbers) -> None:
        super().__init__(connection, numbers)
        self._together = connection.together

    def _insert(self) -> None:
        with self._together():
            super()._insert()

    def touch(self) -> None:
        self._sql("UPDATE about SET touched = touched + 1")

    def _defer_references(self) -> None:
        self._sql("SET CONSTRAINTS ALL DEFERRED")

    def _last_before(self, count: int) -> int:
        """Whatever else is started meanwhile has higher numbers."""
        (last,) = self._sql(
            "SELECT setval(its, nextval(its) + ?) - ? FROM pg_get_serial_sequence('executions', 'seq') AS its",
            (count, count),
        ).fetchone()
        return int(last)
