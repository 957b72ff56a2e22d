"""The HTTP server of the page: bound at the start, and loaded when the first request comes.

Starlette, uvicorn and Jinja2 take a while to import and some 15 MB. A server that nobody looks at needs none of them:

    bind ──▶ the first connection waits in the backlog, the libraries are loaded in a thread ──▶ uvicorn accepts it
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from nexum_runtime.logs import Log

BACKLOG = 100
CLOSING_SECONDS = 2.0  # that answers under way get

log = Log("nexum.web")


class Page:
    """`load()` imports what is needed and returns the server's application; it is called in a thread."""

    def __init__(self, load: Callable[[], Any], tls: ssl.SSLContext | None) -> None:
        self._load, self._tls = load, tls
        self._sockets: list[socket.socket] = []
        self._loading: asyncio.Task[None] | None = None
        self._server: Any = None  # uvicorn's

    def open(self, hosts: Sequence[str], port: int) -> int:
        """Bind one port at all hosts; 0 is any free one. Returns it. Raises OSError, and then nothing is bound."""
        try:
            for host in hosts:
                listening = socket.create_server(
                    (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG
                )
                listening.setblocking(False)
                self._sockets.append(listening)
                port = listening.getsockname()[1]
        except OSError:
            self._let_go()
            raise
        for each in self._sockets:
            asyncio.get_running_loop().add_reader(each, self._wanted)
        return port

    async def close(self) -> None:
        """After the engine's `closing` is set: what is live ends by that."""
        self._unwatch()
        if self._server is not None:
            self._server.should_exit = True
        if self._loading is not None:
            with suppress(asyncio.CancelledError):
                await asyncio.wait([self._loading], timeout=CLOSING_SECONDS + 1)
            self._loading.cancel()
        self._let_go()

    def _wanted(self) -> None:
        self._unwatch()
        self._loading = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        try:
            self._server = await asyncio.to_thread(self._loaded)
            await self._server.serve(sockets=self._sockets)
        except Exception:
            log.exception("The page cannot be served.")
            self._let_go()

    def _loaded(self) -> Any:
        from nexum_runtime.server.web.http import server_of

        return server_of(self._load(), self._tls, CLOSING_SECONDS)

    def _unwatch(self) -> None:
        for each in self._sockets:
            if each.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(each)

    def _let_go(self) -> None:
        for each in self._sockets:
            each.close()
        self._sockets.clear()
