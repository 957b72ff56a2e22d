"""Whose a connection on loopback is: on Linux the system tells which user the other end belongs to.

Any user of this machine reaches a server on loopback, whatever the modes of its files. So without a token it lets in
its own user and root alone. It is looked up for each call, and not remembered by the port of the client: another user
may have that port the moment after it was closed. A call may be a stream of many, as those of our own clients are.
"""

import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc

from nexum_runtime.server.rpc.health import is_about_health
from nexum_runtime.server.rpc.messages import Context

End: TypeAlias = tuple[str, int]  # address, port

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST = 20, 1
HEADER = struct.Struct("=IHHII")  # length, type, flags, number, process
REQUEST = struct.Struct("=BBBBI")  # family, protocol, what else, -, states; the ends follow
ANSWER_UID = struct.Struct("=I")
UID_AT = HEADER.size + 4 + 48 + 3 * 4  # in an answer: after the state, the ends, and three counters
ANSWER_BYTES = 4096
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


def uid_of(theirs: End, ours: End) -> int | None:
    """The user whose socket is at the end `theirs` of a connection of this machine; None if it cannot be told."""
    with suppress(OSError, AttributeError):  # a system that has no such thing, or does not let us ask
        found = _ask(theirs, ours)
        if found is not None:
            return found
    with suppress(OSError):
        return _look(theirs, ours)
    return None


def can_tell() -> bool:
    """Whether this system tells: of a connection of our own it must say that it is ours."""
    with (
        suppress(OSError),
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as one,
    ):
        return uid_of(one.getsockname(), listening.getsockname()) == os.getuid()
    return False


def _ask(theirs: End, ours: End) -> int | None:
    """By a question to the kernel for this very socket."""
    family = socket.AF_INET6 if ":" in theirs[0] else socket.AF_INET
    ends = struct.pack("!HH", theirs[1], ours[1])
    ends += b"".join(socket.inet_pton(family, address).ljust(16, b"\0") for address, _ in (theirs, ours))
    ends += struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)  # any interface, any cookie
    request = REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF) + ends
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        head = HEADER.pack(HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0)
        kernel.send(head + request)
        answer = kernel.recv(ANSWER_BYTES)
    if HEADER.unpack_from(answer)[1] != SOCK_DIAG_BY_FAMILY:
        return None
    return int(ANSWER_UID.unpack_from(answer, UID_AT)[0])


def _look(theirs: End, ours: End) -> int | None:
    """In the table of all sockets, as identd does."""
    wanted = [[_spelled(end, mapped) for end in (theirs, ours)] for mapped in (False, True)]
    for table in TABLES:
        with open(table, encoding="ascii") as rows:
            for row in rows:
                fields = row.split()
                if fields[1:3] in wanted:
                    return int(fields[7])
    return None


def _spelled(end: End, mapped: bool) -> str:
    """As the tables have it: words of 32 bits as the machine keeps them, then the port."""
    address: IPv4Address | IPv6Address = ip_address(end[0])
    if mapped and address.version == 4:
        address = IPv6Address(f"::ffff:{address}")
    words = struct.iter_unpack("=I", address.packed)
    return f"{''.join(f'{word:08X}' for (word,) in words)}:{end[1]:04X}"


def end_of(peer: str) -> End:
    """The address and the port in what gRPC calls a peer: "ipv4:127.0.0.1:4711", "ipv6:%5B::1%5D:4711"."""
    address, _, port = unquote(peer.partition(":")[2]).rpartition(":")
    return address.strip("[]").partition("%")[0], int(port)


class OwnUser(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets in the calls of this server's own user, and of root. `ours(version)` is where the server
    listens with this version of IP."""

    def __init__(self, ours: Callable[[int], End]) -> None:
        self._ours = ours

    async def intercept_service(self, proceed: Callable[[Any], Awaitable[Any]], call: Any) -> Any:
        handler = await proceed(call)
        if handler is None or is_about_health(call):  # which is told to anyone
            return handler

        async def check(context: Context) -> None:
            try:
                theirs = end_of(context.peer())
            except ValueError:  # the connection has ended already
                await context.abort(grpc.StatusCode.UNAVAILABLE, "Whoever called has gone.")
            if reason := why_not_them(theirs, self._ours(ip_address(theirs[0]).version)):
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)

        if handler.request_streaming:

            async def answer(requests: Any, context: Context) -> None:
                await check(context)
                await handler.stream_stream(requests, context)

            return grpc.stream_stream_rpc_method_handler(
                answer, handler.request_deserializer, handler.response_serializer
            )

        async def answers(request: Any, context: Context) -> Any:
            await check(context)
            async with aclosing(handler.unary_stream(request, context)) as parts:
                async for part in parts:
                    yield part

        return grpc.unary_stream_rpc_method_handler(answers, handler.request_deserializer, handler.response_serializer)


def why_not_them(theirs: End, ours: End) -> str:
    """Why whoever is at that end is not let in, or ""."""
    return why_not(uid_of(theirs, ours))


def why_not(uid: int | None) -> str:
    """Why this user is not let in, or ""."""
    if uid in (os.getuid(), 0):
        return ""
    whose = "whose this connection is cannot be told" if uid is None else f"this connection is of user {uid}"
    return (
        f"This Nexum server lets in its own user ({os.getuid()}) and root alone, and {whose}. Start it with "
        "--token-file, and set NEXUM_TOKEN, or let every user of its machine in with --any-local-user."
    )
