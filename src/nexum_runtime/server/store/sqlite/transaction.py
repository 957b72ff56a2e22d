"""What is written to SQLite in words of its own."""

from nexum_runtime.server.store.sql.transaction import SqlTransaction
from nexum_runtime.server.store.sqlite.schema import SCHEMA_VERSION


class SqliteTransaction(SqlTransaction):
    _new_number = "(SELECT max(seq) FROM executions) + row_number() OVER (ORDER BY seq)"

    def touch(self) -> None:
        self._sql(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _defer_references(self) -> None:
        self._sql("PRAGMA defer_foreign_keys = ON")
