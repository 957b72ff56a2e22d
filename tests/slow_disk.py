"""A disk that takes its time."""

import threading

from nexum_runtime.server.model.contract import Store
from nexum_runtime.server.store.postgres.store import PostgresStore
from nexum_runtime.server.store.sqlite import SqliteStore


def hold_commits(store: Store, until: threading.Event, seconds: float = 20.0) -> None:
    """Let no commit be made before `until` is set."""
    if isinstance(store, PostgresStore):
        store._writer.submit(until.wait, seconds)
        return
    assert isinstance(store, SqliteStore)
    store._disk_is_quick = False
    store._disk.submit(until.wait, seconds)
