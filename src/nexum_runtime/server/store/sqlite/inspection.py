"""What a person asks of a database whose server they wonder about: is it sound, and what ../sql/inspection.py tells.

It has a connection of its own, so that no other reader waits for it.
"""

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from nexum_runtime.server.store.sql.inspection import overview
from nexum_runtime.server.store.sqlite import files

CHECK_MS = 500  # at most, of looking for damage
CHECK_STEPS = 10_000  # of SQLite's machine between two looks at the clock


def inspect(path: Path, now_ms: int, connection: sqlite3.Connection | None = None) -> dict[str, Any]:
    """`{"database": {"path", "size_bytes", "free_bytes", "damage"}, "executions", "held", "waiting", "running",
    "expired", "unknown", "stopped"}`, each as `Store.inspect` has it, as far as a damaged database can tell.

    By the `connection`, if nobody else can have one.
    """
    database: dict[str, Any] = {
        "path": str(path),
        "size_bytes": sum(identity.st_size for _, identity in files.identities(path) if identity),
        "free_bytes": shutil.disk_usage(path.parent).free if path.parent.exists() else None,
        "damage": None,
    }
    told: dict[str, Any] = {"database": database}
    try:
        with _looking(path, connection) as looking:
            looking.execute("BEGIN")  # one snapshot
            told |= overview(looking, now_ms)
            database["damage"] = damage_of(looking)
    except sqlite3.Error as error:
        database["damage"] = str(error)
    return told


@contextmanager
def _looking(path: Path, connection: sqlite3.Connection | None) -> Iterator[sqlite3.Connection]:
    if connection is None:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)) as own:
            yield own
        return
    try:
        yield connection
    finally:
        connection.set_progress_handler(None, 0)
        connection.rollback()


def damage_of(connection: sqlite3.Connection, ms: int = CHECK_MS) -> str | None:
    """What SQLite finds wrong in the time it has, or None."""
    deadline = time.monotonic() + ms / 1000
    connection.set_progress_handler(lambda: time.monotonic() > deadline, CHECK_STEPS)
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return None
    return None if found == "ok" else " ".join(str(found).split())
