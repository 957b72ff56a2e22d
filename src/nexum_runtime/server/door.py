"""How an engine is found by the processes of its own user: by a Unix socket beside the database, of mode 0600.

Until somebody comes there is no gRPC, which takes its time and its memory: what listens then only notes that it is
wanted, and hangs up. Whoever comes tries again, and by then gRPC has that socket:

    connect ──▶ a plain socket ── hangs up, and starts ──▶ gRPC, under the same name from then on
    connect ──▶ gRPC

Where there can be no socket, as its path would be too long, gRPC listens on a loopback port from the start. That and a
token of its own stand in the lock file, which has mode 0600 as well.
"""

import asyncio
import os
import secrets
import socket
import tempfile
from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nexum_runtime.logs import Log
from nexum_runtime.server.methods.methods import Methods
from nexum_runtime.wire import beside

SOCKET_MODE = 0o600
DRAIN_SECONDS = 1.0

log = Log("nexum.engine")


class Door:
    """Of one engine. `tell(address, token)` is told where it listens, if that is not the socket."""

    def __init__(self, database: Path, methods: Methods, tell: Callable[[str, str], None]) -> None:
        self._database, self._tell = database, tell
        self._methods = methods
        self._path = beside.socket_of(database)
        self._plain: socket.socket | None = None
        self._placed: os.stat_result | None = None
        self._starting: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._grpc: Any = None
        self._is_closing = False
        self._has_failed = False

    async def open(self) -> None:
        """Listen. Where that cannot be, it is logged: then other processes do not find the engine by the file."""
        try:
            if beside.can_have_socket(self._database):
                with suppress(OSError):  # a file system that knows no sockets
                    self._plain = self._placed_socket()
                    self._listening = asyncio.create_task(self._until_rung(self._plain))
                    return
            await self._open_port()
        except (OSError, RuntimeError) as error:
            log.warning("Other processes cannot find what has %s: %s", self._database, error)

    async def close(self) -> None:
        self._is_closing = True
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
        if self._starting is not None:
            await asyncio.wait([self._starting])
        with suppress(OSError):
            if self._placed is not None and os.path.samestat(self._path.lstat(), self._placed):
                self._path.unlink()
        if self._plain is not None:
            self._plain.close()
        if self._grpc is not None:
            await self._grpc.stop(DRAIN_SECONDS)

    def forget(self) -> None:
        """In a process that was forked: let go of what is the parent's."""
        if self._plain is not None:
            os.close(self._plain.detach())

    async def _until_rung(self, plain: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while self._grpc is None and not self._is_closing:
            connection, _ = await loop.sock_accept(plain)
            with connection:
                self._starting = asyncio.create_task(self._start_grpc())
                await asyncio.shield(self._starting)
        plain.close()  # nobody finds it any more; who waits in it is hung up on

    async def _start_grpc(self) -> None:
        """Listen by gRPC at a socket of another name, and give it the name of the plain one."""
        try:
            grpc_server = await asyncio.to_thread(_imported)
            if self._is_closing or not _begins_threads():
                return
            server = grpc_server(self._methods, None)
            with tempfile.TemporaryDirectory(prefix=".nexum-", dir=self._path.parent) as folder:  # of mode 0700
                path = Path(folder) / "s"
                server.add_insecure_port(beside.address_of(path))
                path.chmod(SOCKET_MODE)
                await server.start()
                self._placed = path.lstat()
                path.rename(self._path)
            self._grpc = server
        except Exception as error:  # whoever rings next has another try
            if not self._has_failed and _begins_threads():
                what = error if isinstance(error, OSError | RuntimeError) else f"{type(error).__name__}: {error}"
                log.warning("Other processes cannot reach what has %s: %s", self._database, what)
            self._has_failed = True

    def _placed_socket(self) -> socket.socket:
        """Listening under its name, with its mode from the first moment on."""
        with tempfile.TemporaryDirectory(prefix=".nexum-", dir=self._path.parent) as folder:
            path = Path(folder) / "s"
            plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                plain.setblocking(False)
                plain.bind(str(path))
                path.chmod(SOCKET_MODE)
                plain.listen()
                self._placed = path.lstat()
                path.rename(self._path)
            except BaseException:
                plain.close()
                raise
        return plain

    async def _open_port(self) -> None:
        token = secrets.token_hex(32)
        self._grpc = (await asyncio.to_thread(_imported))(self._methods, token)
        port = self._grpc.add_insecure_port("127.0.0.1:0")
        await self._grpc.start()
        self._tell(f"127.0.0.1:{port}", token)


def _imported() -> Callable[[Methods, str | None], Any]:
    """What makes a server of gRPC. Importing that takes a while, and others are served meanwhile."""
    from nexum_runtime.server.rpc.listening import grpc_server
    from nexum_runtime.server.rpc.peers import Waiting
    from nexum_runtime.server.rpc.traffic import Traffic

    return lambda methods, token: grpc_server(methods, Waiting(), Traffic(), token)


def _begins_threads() -> bool:
    """Not at the end of the interpreter, since Python 3.12: then gRPC would end it by a fault of its own."""
    try:
        start_new_thread(int, ())
    except RuntimeError:
        return False
    return True
