"""A disk that takes its time."""

import threading

from nexum_runtime.server.store.sqlite import SqliteStore


def hold_commits(store: SqliteStore, until: threading.Event, seconds: float = 20.0) -> None:
    """Let no commit be made before `until` is set."""
    store._disk_is_quick = False
    store._disk.submit(until.wait, seconds)
