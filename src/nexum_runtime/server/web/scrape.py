"""HTTP for whoever watches the server: GET /metrics, /healthz (does it answer?) and /readyz (can it work?)."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

from nexum_runtime import wire
from nexum_runtime.server.model.metrics import CONTENT_TYPE

REQUEST_SECONDS = 5.0  # for a request and its answer
REQUEST_BYTES_LIMIT = 16 * 1024
CONNECTIONS_LIMIT = 20  # at once; more are hung up on


async def serve_metrics(
    host: str,
    port: int,
    metrics: Callable[[], Awaitable[str]],
    is_ready: Callable[[], Awaitable[bool]],
    token: str | None,
    tls: ssl.SSLContext | None,
    why_not: Callable[[tuple[str, int], tuple[str, int]], str] = lambda theirs, ours: "",
) -> asyncio.Server:
    """Answer with what `metrics()` tells, to who has the token if there is one. Raises OSError.

    `why_not(theirs, ours)` says why who is at the other end of a connection is not let in, or "".
    """
    under_way = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal under_way
        under_way += 1
        try:
            # Not a scraper, or one that has left; or this server stops, which asyncio would log as an error.
            with suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError, asyncio.CancelledError):
                async with asyncio.timeout(REQUEST_SECONDS):
                    if under_way <= CONNECTIONS_LIMIT:
                        theirs, ours = (writer.get_extra_info(end)[:2] for end in ("peername", "sockname"))
                        request, refusal = await reader.readuntil(b"\r\n\r\n"), why_not(theirs, ours)
                        writer.write(await _answer(request, metrics, is_ready, token, refusal))
                        await writer.drain()
        finally:
            under_way -= 1
            writer.close()

    return await asyncio.start_server(serve, host, port, ssl=tls, limit=REQUEST_BYTES_LIMIT)


async def _answer(
    request: bytes,
    metrics: Callable[[], Awaitable[str]],
    is_ready: Callable[[], Awaitable[bool]],
    token: str | None,
    refusal: str,
) -> bytes:
    line, *lines = request.decode("latin-1").split("\r\n")
    method, _, target = line.partition(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    path = target.partition(" ")[0].partition("?")[0]
    is_read = method in ("GET", "HEAD")
    if is_read and path == "/healthz":  # without a token: whoever looks after processes has none, and learns nothing
        return _response("200 OK", "ok\n", with_body=method == "GET")
    if is_read and path == "/readyz":
        status, said = ("200 OK", "ready\n") if await is_ready() else ("503 Service Unavailable", "not ready\n")
        return _response(status, said, with_body=method == "GET")
    if refusal:
        return _response("403 Forbidden", f"{refusal}\n")
    if token is not None and not wire.bears(headers.get(wire.AUTHORIZATION, ""), token):
        return _response("401 Unauthorized", "This Nexum server demands its token: Authorization: Bearer …\n")
    if not is_read or path != "/metrics":
        return _response("404 Not Found", "The metrics are at /metrics.\n")
    return _response("200 OK", await metrics(), with_body=method == "GET")


def _response(status: str, body: str, *, with_body: bool = True) -> bytes:
    data = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n"
    if status.startswith("401"):
        head += "WWW-Authenticate: Bearer\r\n"
    return f"{head}\r\n".encode() + (data if with_body else b"")
