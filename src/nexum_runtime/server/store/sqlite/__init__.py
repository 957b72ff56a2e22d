from nexum_runtime.server.store.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
