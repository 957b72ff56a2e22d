"""uvicorn, as a part of a server that has signals and a log of its own."""

import asyncio
import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 10.0  # until a connection has sent its first request
CONNECTIONS_LIMIT = 200  # at once; more are told to come back


class Protocol(H11Protocol):
    """Hangs up on who connects and asks nothing: uvicorn waits for ever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        asyncio.get_running_loop().call_later(REQUEST_SECONDS, self._hang_up_if_silent)

    def _hang_up_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are those of the whole server."""
        yield


def server_of(app: Any, tls: ssl.SSLContext | None, closing_seconds: float) -> Server:
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS_LIMIT,
        timeout_graceful_shutdown=int(closing_seconds),
        ssl_context_factory=(lambda *_: tls) if tls else None,
    )
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it warns of whatever a stranger sends
    config.load()
    return Server(config)
