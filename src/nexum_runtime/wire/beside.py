"""Where the engine is found that has a database: by a socket beside the file, or by what stands in its lock."""

import socket
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

SOCKET_PATH_BYTES = 103  # the longest that every system takes: macOS has 104 with the end, Linux 108


class Owner(NamedTuple):
    """The process that has a database, as its lock file tells."""

    pid: str
    address: str = ""  # where it listens if there can be no socket
    token: str = ""

    def text(self) -> str:
        return "\n".join(part for part in self if part)


def lock_of(database: Path) -> Path:
    return Path(f"{database}.lock")


def socket_of(database: Path) -> Path:
    return Path(f"{database}.sock")


def can_have_socket(database: Path) -> bool:
    return hasattr(socket, "AF_UNIX") and len(bytes(socket_of(database))) <= SOCKET_PATH_BYTES


def address_of(path: Path) -> str:
    """A socket as gRPC names it."""
    return f"unix:{quote(str(path))}"


def owner_of(database: Path) -> Owner | None:
    """Who has it, or had it last. Raises OSError where its lock cannot be read."""
    try:
        parts = lock_of(database).read_text(encoding="ascii", errors="replace").split("\n")
    except FileNotFoundError:
        return None
    return Owner(*parts[:3]) if parts[0] else None
