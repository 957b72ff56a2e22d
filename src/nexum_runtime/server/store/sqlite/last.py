"""Which event was recorded last, in a small file beside the database: so that a start sees when it is gone.

SQLite ends its log where the log is damaged, and takes a log that is not there for an empty one; both without a word,
for so does a crash leave it before a commit is synced. What was committed last tells them apart. The file is written
after each commit, and not synced: a process that is killed leaves it as it was, and after a power cut it may name an
older event, which is there as well.
"""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from nexum_runtime.server.store.sqlite.failures import unusable, unusable_because

LINE_BYTES = 1_024  # of the file that are read; ids are shorter
NOTHING = b"\n"

_IS_THERE = "SELECT 1 FROM story WHERE execution_id = ? AND type = ? AND at_ms = ?"


def last_of(database: Path) -> Path:
    return Path(f"{database}-last")


def check(database: Path, connection: sqlite3.Connection) -> None:
    """Raise StoreUnavailable when the event that was recorded last is not there any more."""
    path = last_of(database)
    try:
        with path.open("rb") as file:
            line = file.read(LINE_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise unusable_because(database, error) from error
    match line.partition(b"\n")[0].decode(errors="replace").split():
        case [execution_id, type, at_ms] if at_ms.isdigit():
            event = (execution_id, type, int(at_ms))
        case _:  # of a power cut
            return
    if connection.execute(_IS_THERE, event).fetchone() is None:
        raise unusable(
            database,
            f"what was recorded last, {type} of {execution_id}, is not in it: its log was damaged or deleted since, "
            "or it is an older copy",
            f"Put back what was there, or delete {path} to go on with what there is.",
        )


def remove(database: Path) -> None:
    """Raises StoreUnavailable."""
    try:
        last_of(database).unlink(missing_ok=True)
    except OSError as error:
        raise unusable_because(database, error) from error


class LastEvent:
    """Of an open database. Raises StoreUnavailable."""

    def __init__(self, database: Path, mode: int) -> None:
        self._database = database
        self._path = last_of(database)
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            os.fchmod(self._file, mode)
        except OSError as error:
            raise unusable_because(database, error) from error

    def remember(self, event: tuple[Any, ...]) -> None:
        execution_id, at_ms, type, *_ = event
        with suppress(OSError):  # a full disk: the event before is there as well
            os.pwrite(self._file, f"{execution_id} {type} {at_ms}\n".encode(), 0)

    def forget(self) -> None:
        """Before events are deleted or renamed. Raises StoreUnavailable."""
        try:
            os.pwrite(self._file, NOTHING, 0)
        except OSError as error:
            raise unusable_because(self._database, error) from error

    def close(self, *, remove: bool) -> None:
        """`remove` it when everything is in the database itself, where SQLite's checks find damage."""
        with suppress(OSError):
            if remove and os.path.samestat(os.fstat(self._file), os.lstat(self._path)):
                self._path.unlink()
        os.close(self._file)
