"""The way to a server: its address, the token and the certificates for it, and what gRPC says of it in our words."""

import asyncio
import logging
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

import grpc

from nexum_runtime import forking, wire
from nexum_runtime.client.way import RPC_SECONDS, Metadata
from nexum_runtime.errors import (
    DatabaseUnavailable,
    InvalidRequest,
    LimitExceeded,
    NexumError,
    NotFound,
    ServerUnavailable,
    SessionStopped,
    Unauthenticated,
)
from nexum_runtime.logs import Log
from nexum_runtime.wire import keepalive

SETTLE_SECONDS = 0.005  # after a channel was closed, until gRPC has told its event loop how the calls have ended
CALLS_END_SECONDS = 1.0  # what the calls of an event loop that ends get to hear of it, on a busy machine
RECONNECT_SECONDS_MIN, RECONNECT_SECONDS_MAX = 0.1, 1.0  # between two attempts
CONNECT_SECONDS = 20.0  # for one attempt: a server that is far, busy or paused takes its time

log = Log("nexum.client")

# Another try may succeed: the server is restarting, went away in mid-call, or its disk is full.
PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
CUT_OFF = "Internal error from Core"  # gRPC's own word when what was being sent could not be
ERRORS: dict[grpc.StatusCode, type[NexumError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
    grpc.StatusCode.FAILED_PRECONDITION: SessionStopped,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Unauthenticated,
}


class Connection:
    """Of one client. `token` and `tls_ca` are as `Client` has them; what `is_near` has none of the environment's."""

    def __init__(self, address: str, token: str | None, tls_ca: Path | None, *, is_near: bool = False) -> None:
        forking.begin()
        host = "localhost"
        if not address.startswith("unix:"):
            host, _ = wire.split_address(address)  # gRPC would take anything, and never connect
        self.address = address
        token = token or (None if is_near else os.environ.get("NEXUM_TOKEN"))
        self._token = wire.check_token(token, "NEXUM_TOKEN") if token else None
        self._tls_ca = tls_ca or (None if is_near else _path_from_environment("NEXUM_TLS_CA"))
        self.channel = _channel(address, self._tls_ca)
        if self._token and not self._tls_ca and not wire.is_loopback(host):
            _warn_of_open_token(address)

    async def close(self) -> None:
        """Cut off the calls under way. Returns when gRPC has no more to tell this event loop, which may end then."""
        await self.channel.close()
        end = monotonic() + SETTLE_SECONDS
        while monotonic() < end:  # not by the loop's timers: in a test that stops the clock they never end
            await asyncio.sleep(0)

    def metadata(self, metadata: Metadata) -> tuple[tuple[str, str | bytes], ...]:
        forking.check()
        for key, value in metadata.items():
            if not key.endswith("-bin") and not wire.fits_header(value):  # gRPC would say so in no words of ours
                raise InvalidRequest(f"{key} is {value[:80]!r}; it must be printable ASCII.")
        token = {wire.AUTHORIZATION: f"Bearer {self._token}"} if self._token else {}
        return tuple(
            (key, value.encode() if key.endswith("-bin") else value) for key, value in {**metadata, **token}.items()
        )

    async def call(
        self, method: Any, request: Any, metadata: Metadata, timeout: float = RPC_SECONDS
    ) -> tuple[Any, dict[str, Any]]:
        """The answer, and its trailing metadata."""
        call = method(request, metadata=self.metadata(metadata))
        try:
            # Not by a deadline of gRPC's, which goes by the time of day: that may be set, and stands still in tests.
            async with asyncio.timeout(timeout):
                return await call, dict(await call.trailing_metadata() or ())
        except grpc.aio.AioRpcError as error:
            raise self.error(error) from None
        except TimeoutError:
            raise self.silent(timeout) from None

    async def stream(
        self,
        method: Any,
        request: Any,
        patience: float | None,
        metadata: Metadata,
        tell: Callable[[dict[str, Any]], None] | None = None,
    ) -> AsyncIterator[Any]:
        """The messages of an answer that has several; ServerUnavailable if none comes for `patience` seconds.

        `tell` is told of the metadata before them.
        """
        call = method(request, metadata=self.metadata(metadata))
        try:
            while True:
                async with asyncio.timeout(patience):
                    if tell is not None:
                        tell(dict(await call.initial_metadata() or ()))
                        tell = None
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    return
                yield answer
        except grpc.aio.AioRpcError as error:
            raise self.error(error) from None
        except TimeoutError:
            raise self.silent(patience or 0) from None
        finally:
            call.cancel()

    def error(self, error: grpc.aio.AioRpcError) -> NexumError:
        return self.error_of(error.code(), error.details() or "")

    def error_of(self, code: grpc.StatusCode, details: str) -> NexumError:
        if code in PASSING or details == CUT_OFF:
            if details.startswith(("Cannot use", wire.NO_MEMORY)):  # the server's own words; the others are gRPC's
                return DatabaseUnavailable(details)
            return ServerUnavailable(self.unreachable(details))
        return ERRORS.get(code, NexumError)(details or f"Nexum at {self.address} answered {code.name}.")

    def silent(self, seconds: float) -> ServerUnavailable:
        return ServerUnavailable(
            f"The Nexum server at {self.address} has not answered for {seconds:g} s: it is paused or very busy, or the "
            "network drops what is sent to it. Look at its terminal, and try `nexum doctor`."
        )

    def unreachable(self, details: str) -> str:
        """Why no server could be talked to, by the transport's `details`: no server, or not the same TLS as ours."""
        if distrust := re.search(r"CERTIFICATE_VERIFY_FAILED: ([\w ]+)", details):
            return (
                f"The certificate of the server at {self.address} is not trusted ({distrust[1]}). "
                f"Set NEXUM_TLS_CA to its certificate, or to that of its issuer; it is {self._tls_ca}."
            )
        if "Hostname Verification" in details:
            return (
                f"The certificate of the server at {self.address} is for another name. Set NEXUM_ADDRESS to a name "
                "that is in it, or serve one with this name."
            )
        if details.startswith("failed to connect") and re.search("Socket closed|reset by peer|handshake", details):
            if self._tls_ca:
                how = "does not answer in TLS. Unset NEXUM_TLS_CA, or start it with --tls-cert and --tls-key."
            else:
                how = (
                    "hangs up. If it serves TLS (nexum dev --tls-cert), set NEXUM_TLS_CA to its certificate. "
                    f"If it has {wire.CONNECTIONS_LIMIT:,} connections, or no more files to open, close some."
                )
            return f"The server at {self.address} {how}"
        if self.address.startswith("unix:"):
            return f"Nobody answers at {self.address}: the process that ran the engine there has gone."
        return (
            f"No Nexum server answers at {self.address}. Start one with `nexum dev`, "
            "or set NEXUM_ADDRESS to where one runs."
        )


@cache
def _warn_of_open_token(address: str) -> None:
    """Once for each address."""
    log.warning(
        "The token goes to %s without TLS, for everyone on the way to read: serve it with --tls-cert and --tls-key, "
        "and set NEXUM_TLS_CA.",
        address,
    )


async def calls_ended() -> None:
    """Return when this event loop has no call under way, or CALLS_END_SECONDS later: one that is left keeps the
    connection open, though its channel was closed."""
    if calls := [task for task in asyncio.all_tasks() if _is_of_a_call(task)]:
        await asyncio.wait(calls, timeout=CALLS_END_SECONDS)


def _is_of_a_call(task: "asyncio.Task[Any]") -> bool:
    """Whether gRPC runs this task for a call."""
    code = getattr(task.get_coro(), "cr_code", None)
    return "/grpc/" in getattr(code, "co_filename", "")


def _channel(address: str, tls_ca: Path | None) -> Any:
    options = [
        *keepalive.both_ends(),
        ("grpc.enable_http_proxy", 0),  # a proxy for web pages is none for Nexum
        ("grpc.use_local_subchannel_pool", 1),  # what another client has tried in vain is tried anew
        ("grpc.max_receive_message_length", -1),  # the server has the limits
        ("grpc.max_send_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", int(RECONNECT_SECONDS_MIN * 1000)),
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_SECONDS * 1000)),  # which is only how long an attempt may take
        ("grpc.max_reconnect_backoff_ms", int(RECONNECT_SECONDS_MAX * 1000)),
    ]
    if tls_ca is None:
        return grpc.aio.insecure_channel(address, options=options)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(tls_ca)  # gRPC would fail at every connection
        certificates = tls_ca.read_bytes()
    except ssl.SSLError:
        raise InvalidRequest(f"{tls_ca} (NEXUM_TLS_CA) holds no certificate in PEM.") from None
    except OSError as error:
        raise InvalidRequest(f"Cannot read the certificates in {tls_ca} (NEXUM_TLS_CA): {error.strerror}.") from None
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(certificates), options=options)


def _is_not_of_the_poller(record: logging.LogRecord) -> bool:
    """Any loop that runs hands on what gRPC tells another one.

    If that one is closed by then (RuntimeError), or was quicker (BlockingIOError), asyncio logs an error that is none.
    """
    error = record.exc_info[1] if record.exc_info else None
    is_none = isinstance(error, RuntimeError | BlockingIOError)
    return not (is_none and "PollerCompletionQueue._handle_events" in record.getMessage())


logging.getLogger("asyncio").addFilter(_is_not_of_the_poller)


def _path_from_environment(name: str) -> Path | None:
    return Path(os.environ[name]) if os.environ.get(name) else None
