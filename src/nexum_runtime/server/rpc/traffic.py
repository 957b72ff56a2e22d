"""How much may be on its way between the server and a client: requests that come in, and answers that wait to be read.

A client that sends much at once, or does not read what it has asked for, would fill the memory. gRPC reads no more of a
request than it is asked for, and holds an answer until it can be sent; so requests are read a few at a time, and what
is large is made when there is room for it.
"""

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

import grpc

from nexum_runtime.errors import LimitExceeded
from nexum_runtime.server.methods.methods import Call
from nexum_runtime.server.methods.orders import Fields
from nexum_runtime.server.rpc.messages import (
    TOLD,
    Context,
    Method,
    Place,
    Unreadable,
    abort,
    metadata_of,
    readable,
    reader,
    writer,
)
from nexum_runtime.server.rpc.peers import UNIX
from nexum_runtime.server.rules.snapshots import Snapshot
from nexum_runtime.text import MIB, size_text

RECEIVING_LIMIT = 4  # requests of one client to one method that are being read; the others wait
RECEIVING_LIMIT_UNIX = 16  # … and of all clients on a Unix socket, who cannot be told apart
RECEIVE_SECONDS = 120.0  # for one of them to arrive
SMALL_BYTES = 16 * 1024  # an answer up to this size needs no room
UNREAD_MIB_LIMIT = 64  # of answers that one client has not read …
UNREAD_MIB_LIMIT_IN_ALL = 256  # … and that all of them have not
UNREAD_SECONDS = 30.0  # how long an answer waits for room
WRITE_SECONDS = 300.0  # for one message to be read; who takes longer has gone
WAITING_METHODS = {"Execute", "GetStatus", "PollTask"}  # their requests are not large, or wait in `Waiting`

_numbers = itertools.count(1)


async def write(context: Context, message: Any) -> None:
    """Send one message. Raises LimitExceeded when it is not read in time."""
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            await context.write(message)
    except TimeoutError:
        raise LimitExceeded(f"An answer was not read within {WRITE_SECONDS:g} s; ask again.") from None


async def _answer(context: Context, call: Call, told: Fields) -> None:
    is_sent = is_tried = False
    try:
        if call.trailing:
            context.set_trailing_metadata(call.trailing)
        is_tried = True
        await write(context, told)
        left_seconds = context.time_remaining()
        is_sent = left_seconds is None or left_seconds > 0  # a client that has given up does not read it
    finally:
        if not is_sent and call.unsent is not None:
            call.unsent(is_tried)


async def _read(context: Context) -> Any:
    """The one request of a call. Raises LimitExceeded when it does not arrive in time."""
    try:
        async with asyncio.timeout(RECEIVE_SECONDS):
            return await context.read()
    except TimeoutError:
        raise LimitExceeded(f"The request did not arrive within {RECEIVE_SECONDS:g} s.") from None


def client_of(peer: str) -> str:
    """Whose answers those of a call, or of a stream, are counted as: the connection's.

    On a Unix socket all connections are called the same: there each call is a client of its own, so that no process
    has to wait for another one to read.
    """
    return f"{peer}{next(_numbers)}" if peer.startswith(UNIX) else peer


def _receiving_limit(peer: str) -> int:
    return RECEIVING_LIMIT_UNIX if peer.startswith(UNIX) else RECEIVING_LIMIT


class Traffic:
    """Of one server."""

    def __init__(self) -> None:
        self._receiving: dict[tuple[str, str], tuple[asyncio.Semaphore, int]] = {}  # by client and method, with users
        self._unread: Counter[str] = Counter()  # bytes of answers, by client
        self.unread_in_all = 0  # bytes of answers
        self._taken: dict[Hashable, tuple[str, int]] = {}  # by answer: whose, and how large it is
        # By client, in their order: answers that wait for room, how large they are, and how they are told of it.
        self._queues: dict[str, deque[tuple[Hashable, int, asyncio.Future[None]]]] = {}

    def unary(self, name: str, method: Method, types: tuple[Any, Any], waiting: Place | None = None) -> Any:
        """The handler of a method that takes one message and answers by one.

        What its requests take up while they are `waiting` is counted.
        """
        request_type, response_type = types

        async def handle(_: Any, context: Context) -> None:
            peer, answer = context.peer(), object()
            call = Call(metadata_of(context), peer, let_out=partial(self.let_out, answer, client_of(peer)))
            try:
                async with AsyncExitStack() as until_read:
                    await until_read.enter_async_context(self._place_to_read(peer, name))
                    request = await _read(context)
                    if request is grpc.aio.EOF:
                        return
                    if name in WAITING_METHODS or isinstance(request, Unreadable) or request.ByteSize() <= SMALL_BYTES:
                        await until_read.aclose()
                    with waiting(readable(request), call) if waiting else nullcontext():
                        told = await method(readable(request), call)
                    await _answer(context, call, told)
            except TOLD as error:
                await abort(context, error)
            finally:
                self.sent(answer)

        # Each kind of call is a case of this one.
        return grpc.stream_stream_rpc_method_handler(handle, reader(request_type), writer(response_type))

    @asynccontextmanager
    async def _place_to_read(self, peer: str, name: str) -> AsyncIterator[None]:
        places, users = self._receiving.get((peer, name)) or (asyncio.Semaphore(_receiving_limit(peer)), 0)
        self._receiving[peer, name] = places, users + 1
        try:
            async with places:
                yield
        finally:
            places, users = self._receiving.pop((peer, name))
            if users > 1:
                self._receiving[peer, name] = places, users - 1

    async def let_out(
        self, answer: Hashable, peer: str, snapshot: Snapshot, again: Callable[[], Awaitable[Snapshot]]
    ) -> Snapshot:
        """The snapshot, when there is room for it on its way to this client; until then it is let go of.

        The room is for `answer`, whatever that is, until that was `sent`. Raises LimitExceeded when there is none for
        long.
        """
        size_chars = snapshot.size_chars
        if size_chars <= SMALL_BYTES:
            return snapshot
        if peer not in self._queues and self._has_room(peer, size_chars):
            self._take(answer, peer, size_chars)
            return await again() if snapshot.unread_chars else snapshot
        del snapshot
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = (answer, size_chars, room)
        self._queues.setdefault(peer, deque()).append(place)
        try:
            async with asyncio.timeout(UNREAD_SECONDS):
                await room
        except TimeoutError:
            if room.cancelled():  # else it was given in the last moment, and is taken
                raise LimitExceeded(
                    f"This client has not read answers of {size_text(self._unread[peer])}, and all have not of "
                    f"{size_text(self.unread_in_all)}; the limits are {UNREAD_MIB_LIMIT} and {UNREAD_MIB_LIMIT_IN_ALL} "
                    "MiB. Read them, and ask again."
                ) from None
        finally:
            room.cancel()
            self._give_room()
        return await again()

    def sent(self, answer: Hashable) -> None:
        """It has left, or will not leave any more."""
        if (taken := self._taken.pop(answer, None)) is None:
            return
        peer, size_bytes = taken
        self.unread_in_all -= size_bytes
        self._unread[peer] -= size_bytes
        if not self._unread[peer]:
            del self._unread[peer]
        self._give_room()

    def _give_room(self) -> None:
        """To the first ones of each client: thousands may wait, and most of them are not to be woken for nothing."""
        for peer, queue in list(self._queues.items()):
            while queue:
                answer, size_bytes, room = queue[0]
                if not room.done():
                    if not self._has_room(peer, size_bytes):
                        break
                    self._take(answer, peer, size_bytes)
                    room.set_result(None)
                queue.popleft()
            else:
                del self._queues[peer]

    def _has_room(self, peer: str, size_bytes: int) -> bool:
        """Who has nothing unread has room for one answer, whatever the others do."""
        if peer not in self._unread:
            return True
        own, in_all = self._unread[peer] + size_bytes, self.unread_in_all + size_bytes
        return own <= UNREAD_MIB_LIMIT * MIB and in_all <= UNREAD_MIB_LIMIT_IN_ALL * MIB

    def _take(self, answer: Hashable, peer: str, size_bytes: int) -> None:
        self._taken[answer] = peer, size_bytes
        self._unread[peer] += size_bytes
        self.unread_in_all += size_bytes
