"""The way to the engine that is nearest, found anew when the process that had it has gone.

NEXUM_ADDRESS         that server, or one of those, and no other
this folder's file    whoever has it: another process, by the socket beside it, or this one
localhost:50051       a server there, or at NEXUM_PORT, which may have another file: this process stays with it
nobody                this process opens the file itself, and serves it to whoever finds it
"""

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from time import monotonic

from nexum_runtime import wire
from nexum_runtime.client import Client
from nexum_runtime.client.changing import Changing, listens
from nexum_runtime.client.way import Way
from nexum_runtime.errors import DatabaseUnavailable, InvalidRequest, NexumError, ServerUnavailable
from nexum_runtime.logs import Log
from nexum_runtime.text import redact
from nexum_runtime.wire import beside

DATABASE_DEFAULT = ".nexum/local.db"
LOOK_SECONDS = 0.02  # between two looks for whoever has just taken the database
OWNER_SECONDS = 10.0  # that the process which has the database gets to answer
RING_SECONDS = 2.0  # … at one try

log = Log("nexum.engine")


class Use(Enum):
    """What an engine is looked for to do, when nobody has the database."""

    WORK = "it is opened, and made if there is none"
    CHANGE = "it is opened, if there is one"
    LOOK = "it is read, if there is one"


def near(
    address: str | None = None,
    *,
    use: Use = Use.WORK,
    span_attributes: Callable[[], Mapping[str, str]] | None = None,
) -> Client:
    """A client of the nearest engine; of the server at `address`, or at NEXUM_ADDRESS, when one is given.

    Raises InvalidRequest for what is not an address, no port, or no database.
    """
    address = address or os.environ.get("NEXUM_ADDRESS")
    if address:
        return Client(address, span_attributes=span_attributes)
    database, port = database_from_environment(), port_from_environment()
    if isinstance(database, str):  # which only a server opens
        if not port:
            raise InvalidRequest(
                "NEXUM_DATABASE_URL is a PostgreSQL database, which only a server opens, and NEXUM_PORT=0 looks for "
                "none. Start `nexum dev`, and set NEXUM_ADDRESS to where it runs."
            )
        return Client(f"localhost:{port}", span_attributes=span_attributes)
    way = Nearest(database, use, port)
    return Client(way=way, span_attributes=span_attributes)


def database_from_environment() -> Path | str:
    """Where NEXUM_DATABASE_URL says that it is, or in the current folder, as `database_named` tells it."""
    url = os.environ.get("NEXUM_DATABASE_URL", f"sqlite:///{DATABASE_DEFAULT}")
    return _database_of(url, "NEXUM_DATABASE_URL")


def database_named(name: str, what: str) -> Path | str:
    """A SQLite file by its path or URL, or the URL of a PostgreSQL database. Raises InvalidRequest, naming `what`."""
    return _database_of(name, what) if "://" in name else Path(name)


def _database_of(url: str, what: str) -> Path | str:
    scheme, _, path = url.partition("://")
    if scheme in ("postgresql", "postgres"):
        return url
    path = path.removeprefix("/")
    shown = redact(url)
    if scheme != "sqlite" or not url.startswith("sqlite:///") or not path or path == ":memory:" or "?" in path:
        raise InvalidRequest(
            f"{what} is {shown!r}; it must be sqlite:///path, sqlite:////path from the root, or postgresql://…"
        )
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~somebody whom this machine does not know
        raise InvalidRequest(f"{what} is {shown!r}, and there is no such home directory.") from None


def port_from_environment() -> int:
    """Of a server of this machine that has another database; 0 if there is none. Raises InvalidRequest."""
    port = os.environ.get("NEXUM_PORT") or str(wire.DEFAULT_PORT)
    if not (re.fullmatch("[0-9]{1,9}", port) and int(port) < 1 << 16):
        raise InvalidRequest(f"NEXUM_PORT is {port!r}; it must be a whole number from 0 to 65535.")
    return int(port)


class Nearest(Changing):
    """A `Way` to whoever has the database, or to the server at this `port` of localhost."""

    def __init__(self, database: Path, use: Use, port: int) -> None:
        super().__init__()
        self._database = Path(os.path.abspath(database))  # as of now: the current folder may change
        self._use = use
        self._port = port
        self._is_by_file = True  # the way that there is, or was last
        self._had_file = False  # there was such a way: no other database will do from then on

    @property
    def where(self) -> str:
        return self._way.where if self._way else str(self._database)

    def _may_help(self, error: ServerUnavailable) -> bool:
        return self._is_by_file and not isinstance(error, DatabaseUnavailable)

    async def _find(self) -> Way:
        """Raises ServerUnavailable, DatabaseUnavailable when the database cannot be opened."""
        from nexum_runtime.engines import embedded, host  # when they are needed: an engine is large
        from nexum_runtime.server.model.contract import StoreInUse, StoreUnavailable

        until = monotonic() + OWNER_SECONDS
        while True:
            path = Path(os.path.realpath(self._database))
            if (here := host.running(path)) is not None:
                await here.opened()
                self._had_file = True
                return embedded.Embedded(here)
            if (remote := await _of_owner(path)) is not None:
                self._had_file = True
                return remote
            if not self._had_file and self._port and await listens(wire.DEFAULT_HOST, self._port):
                self._is_by_file = False
                if path.exists():
                    log.warning(
                        "The server at localhost:%d is used, which has another database than this folder's, %s. To use "
                        "that one, say NEXUM_PORT=0.",
                        self._port,
                        path,
                    )
                return _remote(f"{wire.DEFAULT_HOST}:{self._port}", is_near=False)
            if self._use is not Use.WORK and not path.exists():
                elsewhere = f", and no server at localhost:{self._port}" if self._port else ""
                raise ServerUnavailable(
                    f"No Nexum is here: there is no database {path}{elsewhere}. Go to the folder of your agent, start "
                    "a server with `nexum dev`, or set NEXUM_ADDRESS to where one runs."
                )
            if host.is_left(path) and monotonic() < until:
                await asyncio.sleep(LOOK_SECONDS)
                continue
            try:
                is_had = partial(_address_of_owner, path)
                opening = host.looking_at(path, is_had) if self._use is Use.LOOK else host.opened(path)
                opened = embedded.Embedded(await opening)
            except StoreInUse as error:
                if monotonic() > until:
                    raise ServerUnavailable(f"{error} It does not answer.") from None
                await asyncio.sleep(LOOK_SECONDS)
            except StoreUnavailable as error:
                raise DatabaseUnavailable(str(error)) from None
            else:
                self._had_file = True
                return opened


async def ask_to_hand_over(database: Path) -> bool | None:
    """Ask the process that has the database to leave it to us. Returns whether it does, or None if none answers."""
    way = await _of_owner(Path(os.path.realpath(database)))
    if way is None:
        return None
    try:
        await way.ask("HandOver", {}, {})
    except NexumError:
        return False
    finally:
        await way.close()
    return True


async def _of_owner(database: Path) -> Way | None:
    """The way to whoever has the database, if somebody answers."""
    found = await _address_of_owner(database)
    return _remote(*found) if found else None


async def _address_of_owner(database: Path) -> tuple[str, str | None] | None:
    """Where it answers, and with which token."""
    if beside.can_have_socket(database) and await _rings(beside.socket_of(database)):
        return beside.address_of(beside.socket_of(database)), None
    with suppress(OSError):
        owner = beside.owner_of(database)
        if owner is not None and owner.address and await listens(*wire.split_address(owner.address)):
            return owner.address, owner.token
    return None


def _remote(address: str, token: str | None = None, *, is_near: bool = True) -> Way:
    from nexum_runtime.client.remote import Remote  # which imports gRPC

    return Remote(address, token, is_near=is_near)


async def _rings(path: Path) -> bool:
    """Whether gRPC speaks at this socket. What hangs up is about to start it: see `server/door.py`."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(RING_SECONDS):
            while True:
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    if await reader.read(1):
                        return True
                finally:
                    writer.close()
                await asyncio.sleep(LOOK_SECONDS)
    return False
