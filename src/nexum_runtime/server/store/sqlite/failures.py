"""What keeps a database from being used, told with what to do next."""

import errno
import sqlite3
from pathlib import Path

from nexum_runtime.server.model.contract import ANOTHER, StoreUnavailable

OTHER_FILE = f"Give Nexum a file of its own: {ANOTHER}."
ROOM = "Make room on its disk (or raise the quota, or the limit on the size of files)."
LOST_LOG = "Results may be missing that are nowhere else: put the right log there, or move this away to do without."
PERMISSION = "The user that Nexum runs as must be able to read and to write the file and its folder."
_NEXT = {
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM,
    errno.EACCES: PERMISSION,
    errno.EPERM: PERMISSION,
    errno.EROFS: f"Make its file system writable, or name another file: {ANOTHER}.",
    errno.EISDIR: f"Name a file in it: {ANOTHER}.",
}
_NEXT_OF_SQLITE = {  # SQLite's error → what to do about it
    sqlite3.SQLITE_FULL: ROOM,
    sqlite3.SQLITE_IOERR: f"Its disk is failing, or full. {ROOM}",
    sqlite3.SQLITE_READONLY: PERMISSION,
    sqlite3.SQLITE_CANTOPEN: PERMISSION,
    sqlite3.SQLITE_NOTADB: OTHER_FILE,
    sqlite3.SQLITE_BUSY: "Another program is writing to it: let that one finish.",
}


def unusable(path: Path, why: str, what_next: str) -> StoreUnavailable:
    return StoreUnavailable(f"Cannot use the database {path}: {why}. {what_next}", for_room=what_next.endswith(ROOM))


def unusable_because(path: Path, error: OSError) -> StoreUnavailable:
    where = f" ({error.filename})" if error.filename and Path(error.filename) != path else ""
    what_next = _NEXT.get(error.errno or 0, f"Name another file: {ANOTHER}.")
    return unusable(path, f"{error.strerror or error}{where}", what_next)


def told(path: Path, error: BaseException) -> BaseException:
    return unavailable(path, error) if isinstance(error, sqlite3.Error) else error


def unavailable(path: Path, error: sqlite3.Error) -> StoreUnavailable:
    code = code_of(error)
    if code not in _NEXT_OF_SQLITE:
        return damaged(path, str(error))
    return unusable_now(path, str(error), error)


def unusable_now(path: Path, why: str, error: sqlite3.Error) -> StoreUnavailable:
    return unusable(path, why, _NEXT_OF_SQLITE.get(code_of(error), ROOM))


def damaged(path: Path, found: str) -> StoreUnavailable:
    return unusable(
        path,
        found,
        f"Put a backup in its place, or save what can be read: sqlite3 {path} .recover | sqlite3 saved.db",
    )


def code_of(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of it are details
