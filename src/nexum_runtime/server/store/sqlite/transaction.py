"""What is written to SQLite in words of its own."""

from nexum_runtime.server.store.sql.transaction import SqlTransaction
from nexum_runtime.server.store.sqlite.schema import SCHEMA_VERSION


class SqliteTransaction(SqlTransaction):
    def touch(self) -> None:
        self._sql(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _defer_references(self) -> None:
        self._sql("PRAGMA defer_foreign_keys = ON")

    def _last_before(self, count: int) -> int:
        (last,) = self._sql("SELECT coalesce(max(seq), 0) FROM executions").fetchone()
        return int(last)
