"""The files of a database, before SQLite may touch them: whose they are, who may read them, and which server has them.

SQLite would take an empty file beside a log for a new database, and a damaged log for none, and delete what it takes
for useless. What was acknowledged may be in there, or it is another program's; so each is refused by name.
"""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from nexum_runtime.server.model.contract import ANOTHER, StoreInUse
from nexum_runtime.server.store.sqlite.failures import LOST_LOG, OTHER_FILE, unusable, unusable_because
from nexum_runtime.wire.beside import Owner, lock_of

try:
    import fcntl
except ModuleNotFoundError:
    raise ImportError(
        "Nexum's engine needs file locks, which Windows does not have. Run it inside of WSL, with the folder in WSL's "
        "own file system."
    ) from None

FILE_MODE, FOLDER_MODE = 0o600, 0o700
MOUNTS = Path("/proc/self/mountinfo")
NETWORK = re.compile(r"nfs\d?|cifs|smb\w*|9p|afs|ceph|glusterfs|lustre|fuse\.(sshfs|s3fs|rclone|gcsfuse|glusterfs)")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROOM_BYTES = 64 * 1024  # to begin with: of SQLite's index of a log, and some pages of that
PID_BYTES = 20  # of the process in a lock file
WAL_MAGICS = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")  # how logs of SQLite begin, by their byte order


def wal_of(path: Path) -> Path:
    """The log beside a database: what is committed and not yet in the file itself."""
    return Path(f"{path}-wal")


class Lock:
    """Holds `{path}.lock` for as long as this process lives, however it ends. Raises StoreUnavailable."""

    def __init__(self, path: Path) -> None:
        self._lock_path = lock_of(path)
        try:
            self._file = self._held(path)
        except OSError as error:
            raise unusable_because(path, error) from error
        try:
            self.write(Owner(str(os.getpid())))
        except OSError as error:
            if error.errno not in NO_ROOM:  # without its name it is held all the same
                self.release()
                raise unusable_because(path, error) from error

    def write(self, owner: Owner) -> None:
        """Tell who has it. Raises OSError."""
        self._file.seek(0)
        self._file.truncate()
        self._file.write(owner.text().encode())
        self._file.flush()

    def forget(self) -> None:
        """In a process that was forked: leave it to the parent."""
        os.close(self._file.fileno())

    def release(self) -> None:
        if self._is_in_place(self._file):  # whoever removed it may have let another server in
            self._lock_path.unlink(missing_ok=True)
        with suppress(OSError):  # what a full disk did not take when it was written
            self._file.close()

    def _held(self, path: Path) -> IO[bytes]:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.fdopen(os.open(self._lock_path, flags, FILE_MODE), "r+b")
            try:
                holder = file.readline(PID_BYTES).strip()
                if holder and not holder.isdigit():
                    raise unusable(path, f"{self._lock_path} is no lock of a Nexum server", OTHER_FILE)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise StoreInUse(
                        f"The database {path} is in use by process {holder.decode() or '(unknown)'}, which runs the "
                        f"engine for it. Stop that one, or name another file: {ANOTHER}."
                    ) from error
                file.seek(0)
                if self._is_in_place(file):
                    os.fchmod(file.fileno(), FILE_MODE)
                    return file
            except BaseException:
                file.close()
                raise
            file.close()  # a server that just ended has removed it: what we hold is no longer its name's

    def _is_in_place(self, file: IO[bytes]) -> bool:
        with suppress(OSError):
            return os.path.samestat(os.fstat(file.fileno()), os.lstat(self._lock_path))
        return False


def real_path(path: Path) -> Path:
    """Where a link to a database leads, for that is the same database. Raises StoreUnavailable if nowhere."""
    try:
        real = path.resolve()
        for each in (path, *path.parents):
            if each.is_symlink() and not each.exists():  # a disk that is not there must not become a new database
                raise unusable(
                    real, f"{each} is a link to {each.readlink()}, which is not there", "Bring that back, or make it."
                )
        if real.exists() and not real.is_dir() and not real.is_file():
            raise unusable(real, "it is no regular file", OTHER_FILE)
    except RuntimeError:  # what pathlib makes of ELOOP
        raise unusable(path, os.strerror(errno.ELOOP), f"Name another file: {ANOTHER}.") from None
    except OSError as error:
        raise unusable_because(path, error) from error
    return real


def make_folder(path: Path) -> None:
    """Make the folder of the database and those above it, each for its owner alone. Raises StoreUnavailable."""
    missing = []
    try:
        for folder in path.parents:
            if folder.is_dir():
                break
            if folder.exists():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
            missing.append(folder)
        for folder in reversed(missing):
            folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
    except OSError as error:
        raise unusable_because(path, error) from error


def network_of(path: Path) -> str:
    """The type of the network file system that this is on, by Linux's list of mounts; "" if it is on none."""
    found, length = "", -1
    with suppress(OSError, IndexError):
        for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            mounted = Path(before.split()[4].encode().decode("unicode_escape"))  # spaces are \040 there
            if len(mounted.parts) > length and path.is_relative_to(mounted):
                found, length = after.split()[0], len(mounted.parts)
    return found if NETWORK.fullmatch(found) else ""


def check(path: Path) -> None:
    """Make the database's file if there is none. Raises StoreUnavailable when what is there must not be opened.

    Only while nothing in this process has it open: closing a file drops every lock that the process has on it.
    """
    wal = wal_of(path)
    try:
        log_bytes = wal.stat().st_size if wal.exists() else 0
        if log_bytes and not (path.exists() and path.stat().st_size):
            raise unusable(
                path,
                f"it is {'empty' if path.exists() else 'gone'}, and its log {wal} is not",
                f"Put the database back, or move {wal} away to begin anew.",
            )
        if log_bytes and not _is_log(wal):
            raise unusable(
                path,
                f"{wal} is damaged, or no log of SQLite",
                LOST_LOG,
            )
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))
    except OSError as error:
        raise unusable_because(path, error) from error


def check_room(path: Path) -> None:
    """Raise StoreUnavailable when a full disk takes no more."""
    probe = Path(f"{path}.room")
    try:
        try:
            probe.write_bytes(bytes(ROOM_BYTES))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise unusable_because(path, error) from error


def is_there(path: Path) -> bool:
    """Whether there is a database, if an empty one."""
    found = identity(path)
    return found is not None and found.st_size > 0


def make_private(path: Path) -> None:
    """Take from everyone else what they may do with the database. Its other files get their mode from it."""
    for each in (path, wal_of(path), Path(f"{path}-shm")):
        with suppress(FileNotFoundError, PermissionError):  # another user's, who lets us write to it
            mode = stat.S_IMODE(each.stat().st_mode)
            if mode & ~FILE_MODE:
                each.chmod(mode & FILE_MODE)


def open_folder(path: Path) -> Path | None:
    """The folder of the database, if every user may put another file in its place."""
    mode = path.parent.stat().st_mode
    return path.parent if mode & stat.S_IWOTH and not mode & stat.S_ISVTX else None


def identities(path: Path) -> Iterator[tuple[Path, os.stat_result | None]]:
    """The files that hold what is committed, and which ones they are now."""
    for each in (path, wal_of(path)):
        yield each, identity(each)


def identity(path: Path | str) -> os.stat_result | None:
    """Which file has this name now, if any."""
    try:
        return os.stat(path)
    except OSError:
        return None


def _is_log(wal: Path) -> bool:
    """Whether it begins as SQLite's logs do, or with nothing: a plug pulled before the first commit leaves zeros."""
    with wal.open("rb") as file:
        magic = file.read(len(WAL_MAGICS[0]))
    return magic in WAL_MAGICS or not magic.strip(b"\0")
