"""A server's life: open the store, bind, serve, drain, stop."""

import asyncio
import errno
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from nexum_runtime import tracing, wire
from nexum_runtime.errors import InvalidRequest
from nexum_runtime.server.door import Door
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.methods.methods import Methods
from nexum_runtime.server.model.contract import StoreUnavailable
from nexum_runtime.server.rpc import neighbours
from nexum_runtime.server.rpc.listening import grpc_server
from nexum_runtime.server.rpc.peers import Waiting
from nexum_runtime.server.rpc.traffic import Traffic
from nexum_runtime.server.store.opened import opened
from nexum_runtime.server.store.sqlite import SqliteStore
from nexum_runtime.server.web.listening import Page
from nexum_runtime.text import MIB

DRAIN_SECONDS = 3.0
PORT_IN_USE = "the port is in use"


class CannotBind(Exception):
    """The address cannot be listened on; the text says why and what to do."""


@dataclass(frozen=True)
class Tls:
    """A certificate with its chain, and its key, both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    context: ssl.SSLContext = field(repr=False)  # the same for others than gRPC

    @classmethod
    def read(cls, certificate: Path, key: Path) -> "Tls":
        """Raises OSError, and InvalidRequest for files that TLS cannot be served with, of which gRPC says nothing."""
        tls = cls(certificate.read_bytes(), key.read_bytes(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        try:
            tls.context.load_cert_chain(certificate, key, password="")
        except ssl.SSLError as error:
            files = f"the key in {key} is not that of the certificate in {certificate}"
            if error.reason != "KEY_VALUES_MISMATCH":
                files = f"{certificate} and {key} are not both in PEM, the key without a passphrase"
            raise InvalidRequest(f"Cannot serve TLS: {files}. Name a certificate and its own key.") from None
        return tls


@dataclass(frozen=True)
class ServerConfig:
    database: Path | str  # a SQLite file, or the URL of a PostgreSQL database
    host: str = "127.0.0.1"
    port: int = wire.DEFAULT_PORT  # 0: any free one
    max_message_mib: int = wire.MESSAGE_MIB_DEFAULT
    token: str | None = field(default=None, repr=False)  # demanded on every call
    tls: Tls | None = None
    insecure: bool = False  # let anyone in, from anywhere
    any_local_user: bool = False  # let in every user of this machine, and not its own and root alone
    metrics_port: int | None = None  # 0: any free one; None: no metrics are served
    web_port: int | None = None  # of the page; likewise
    takes_other_web_port: bool = False  # any free one, if that is taken

    def check(self) -> None:
        """Raise CannotBind when whoever reaches the address could do what they like."""
        if not (self.token or self.insecure or wire.is_loopback(self.host)):
            raise CannotBind(
                f"Whoever reaches {self.host} could read every result and run your tools. Demand a token "
                "(--token-file or NEXUM_TOKEN), best with --tls-cert and --tls-key, or let anyone in with --insecure."
            )


class Server:
    """A Nexum server in this process. `start()` binds and serves, `stop()` drains; `port` is the one bound.

    So is `metrics_port`, if metrics are to be served, and `web_port`, if the page is.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Open the database. Raises StoreUnavailable, or CannotBind for an address that is open to anyone."""
        config.check()
        self._config = config
        self.port = config.port
        self.metrics_port = config.metrics_port
        self._scraped: list[asyncio.Server] = []
        self._serves = False
        self.web_port: int | None = None
        self.why_no_page = ""  # why it is not served, though it was to be
        self._page: Page | None = None
        # Without a token, on loopback, where the system tells whose a connection is.
        self.is_for_own_user = (
            not (config.token or config.any_local_user or config.insecure or not wire.is_loopback(config.host))
            and neighbours.can_tell()
        )
        self.store = opened(config.database)
        self.engine = Engine(self.store, max_message_bytes=config.max_message_mib * MIB)
        self.methods = Methods(self.engine)
        self.waiting = Waiting()
        self.traffic = Traffic()
        self._door = (
            Door(self.store.path, self.methods, self.store.tell_where) if isinstance(self.store, SqliteStore) else None
        )

    async def start(self) -> None:
        """Serve. Raises CannotBind."""
        tracing.tracer("server")
        own_user = neighbours.OwnUser(self._listens_at) if self.is_for_own_user else None
        self._grpc = grpc_server(self.methods, self.waiting, self.traffic, self._config.token, own_user)
        try:
            for host in self._hosts():
                self.port = self._bind(host)
                if self.metrics_port is not None:
                    self.metrics_port = await self._serve_metrics(host, self.metrics_port)
            self.engine.listen()
            await self.engine.take_over()
        except BaseException:
            self._stop_metrics()
            await self.store.close()
            raise
        self.engine.name = f"{socket.gethostname()}:{self.port}"
        await self._grpc.start()
        self._serves = True
        self._open_page()
        if self._door is not None:
            await self._door.open()
        self._sweeper = asyncio.create_task(self.engine.run_sweeper())

    async def stop(self) -> None:
        """Answer the calls that wait, finish those under way, and close the database."""
        served, self._serves = self._serves, False  # it may be stopped again meanwhile
        self._sweeper.cancel()
        await asyncio.wait([self._sweeper])
        await self.engine.close()  # the calls that wait are answered
        if self._page is not None:
            await self._page.close()
        if self._door is not None:
            await self._door.close()
        await self._grpc.stop(DRAIN_SECONDS)
        self._stop_metrics()
        await self.engine.close()  # what the last calls began is finished
        if self.store.is_shared and served:
            with suppress(StoreUnavailable):
                await self.engine.hand_over()
        self.engine.end()
        await self.store.close()

    async def _serve_metrics(self, host: str, port: int) -> int:
        """Returns the port. Raises CannotBind."""
        from nexum_runtime.server.web.scrape import serve_metrics

        tls = self._config.tls
        reason = _why_not(host, port)
        if reason is None:
            try:
                scraped = await serve_metrics(
                    host,
                    port,
                    self.engine.measure,
                    self._is_ready,
                    self._config.token,
                    tls.context if tls else None,
                    *([neighbours.why_not_them] if self.is_for_own_user else []),
                )
            except OSError as error:
                reason = str(error.strerror or error).lower()
            else:
                self._scraped.append(scraped)
                return int(scraped.sockets[0].getsockname()[1])
        raise CannotBind(f"Cannot serve metrics on {_address(host, port)}: {reason}. Choose another --metrics-port.")

    async def _is_ready(self) -> bool:
        return self._serves and await self.engine.is_ready()

    def _stop_metrics(self) -> None:
        for scraped in self._scraped:
            scraped.close()

    def _open_page(self) -> None:
        """Listen for who wants to look. A port that is taken is no reason not to serve calls."""
        config = self._config
        if config.web_port is None:
            return
        page = Page(self._load_page, config.tls.context if config.tls else None)
        for port in (config.web_port, *([0] if config.takes_other_web_port else [])):
            try:
                self.web_port = page.open(self._hosts(), port)
            except OSError as error:
                reason = PORT_IN_USE if error.errno == errno.EADDRINUSE else str(error.strerror or error).lower()
                where = _address(self._hosts()[0], port)
                self.why_no_page = (
                    f"The page is not served: cannot listen on {where}: {reason}. Choose another --web-port."
                )
            else:
                self._page, self.why_no_page = page, ""
                self.methods.page = self.page_url
                return

    @property
    def page_url(self) -> str:
        """Where the page is; "" where none is served, or where it listens at every address."""
        if self.web_port is None or self._config.host in ("0.0.0.0", "::"):
            return ""
        host = "localhost" if self._config.host == "127.0.0.1" else self._config.host
        return f"{'https' if self._config.tls else 'http'}://{_address(host, self.web_port)}"

    def _load_page(self) -> Any:
        from nexum_runtime.server.web.feed import Feed
        from nexum_runtime.server.web.load import application

        feed = Feed(self.engine.closing, self.store.is_shared, self.store.watch)
        self.store.watch = feed.hear
        return application(
            self.methods,
            feed,
            token=self._config.token,
            host=self._config.host,
            is_for_own_user=self.is_for_own_user,
            why_not=neighbours.why_not_them if self.is_for_own_user else None,
        )

    def _hosts(self) -> list[str]:
        """Loopback means both: `localhost` may be either."""
        if self._config.host in ("127.0.0.1", "localhost"):
            return ["127.0.0.1", "::1"] if _has_ipv6_loopback() else ["127.0.0.1"]
        return [self._config.host]

    def _listens_at(self, version: int) -> neighbours.End:
        own = next((host for host in self._hosts() if (":" in host) == (version == 6)), self._hosts()[0])
        return own, self.port

    def _add_port(self, address: str) -> int:
        tls = self._config.tls
        if tls is None:
            return int(self._grpc.add_insecure_port(address))
        credentials = grpc.ssl_server_credentials([(tls.key, tls.certificate)])
        return int(self._grpc.add_secure_port(address, credentials))

    def _bind(self, host: str) -> int:
        address = _address(host, self.port)
        # gRPC says only that it failed, and that in its own way on stderr; a bind of our own says why.
        reason = _why_not(host, self.port)
        if reason is None:
            try:
                port = self._add_port(address)
            except RuntimeError:
                reason = "the address is not available"
            else:
                return port
        hint = " Is a Nexum server running there already? Choose another port with --port."
        raise CannotBind(f"Cannot listen on {address}: {reason}.{hint if reason == PORT_IN_USE else ''}")


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _why_not(host: str, port: int) -> str | None:
    """Why this address cannot be listened on; None if it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC: the last server's port is free
            probe.bind((host, port))
    except OSError as error:
        return PORT_IN_USE if error.errno == errno.EADDRINUSE else str(error.strerror or error).lower()
    return None
