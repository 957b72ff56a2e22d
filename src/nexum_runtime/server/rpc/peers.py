"""Who calls: whether they may, how much of theirs may wait here, and which workflows they have registered."""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc

from nexum_runtime import wire
from nexum_runtime.errors import LimitExceeded
from nexum_runtime.logs import Log
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.rpc.health import is_about_health
from nexum_runtime.server.rpc.messages import Context
from nexum_runtime.text import MIB, size_text

REGISTRATIONS_LIMIT = 20_000  # which connection has registered what: remembered, the latest ones
REFUSED_QUIET_SECONDS = 60.0  # between two lines about the calls without a token of one host
WARNINGS_LIMIT = 10_000  # connections that were warned of an ambiguous hash are remembered
WAITING_LIMIT = 2_000  # calls of one client that are held until there is something to say …
WAITING_LIMIT_UNIX = 10_000  # … of all clients on a Unix socket, who cannot be told apart …
WAITING_MIB_LIMIT = 256  # … and their requests, which stay in memory as long
RECORDING_LIMIT = 1_000  # results of one stream that are being recorded …
RECORDING_MIB_LIMIT = 64  # … and their size: of more, no more is read yet

UNIX = "unix:"  # how gRPC calls every client of a Unix socket

log = Log("nexum.service")


class TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Answers UNAUTHENTICATED, whatever the method and before reading the request, to a call without the token.

    Health is told to anyone.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._told: dict[str, float] = {}  # by host that was refused: when that was logged, by the monotonic clock

    async def intercept_service(self, proceed: Callable[[Any], Awaitable[Any]], call: Any) -> Any:
        given = [value for key, value in call.invocation_metadata if key == wire.AUTHORIZATION]
        if is_about_health(call) or (len(given) == 1 and wire.bears(given[0], self._token)):
            return await proceed(call)
        got = "another one" if given else "none"

        async def refuse(_: Any, context: Context) -> None:
            self._tell(context.peer().rpartition(":")[0], got)
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                f"This Nexum server demands a token and got {got}: set NEXUM_TOKEN to the one it was started with.",
            )

        return grpc.stream_stream_rpc_method_handler(refuse)  # every kind of call is a case of this one

    def _tell(self, host: str, got: str) -> None:
        """Now and then, however often somebody tries."""
        now = time.monotonic()
        if now - self._told.get(host, -REFUSED_QUIET_SECONDS) < REFUSED_QUIET_SECONDS:
            return
        if len(self._told) >= WARNINGS_LIMIT:
            self._told.clear()
        self._told[host] = now
        log.warning("Calls of %s are refused: this server demands a token, and got %s.", host, got)


class Waiting:
    """The calls that are held, by client: a bound on what one of them can make the server remember."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()  # by peer
        self._bytes: Counter[str] = Counter()

    @contextmanager
    def place(self, peer: str, request: Any) -> Iterator[None]:
        """Raises LimitExceeded when there is no place left."""
        size_bytes = request.ByteSize()
        self._enter(peer, size_bytes)
        try:
            yield
        finally:
            self._leave(peer, size_bytes)

    def _enter(self, peer: str, size_bytes: int) -> None:
        limit = WAITING_LIMIT_UNIX if peer == UNIX else WAITING_LIMIT
        if self._calls[peer] >= limit:
            raise LimitExceeded(f"This client has {limit} calls waiting already; let some of them end first.")
        if self._calls[peer] and self._bytes[peer] + size_bytes > WAITING_MIB_LIMIT * MIB:
            raise LimitExceeded(
                f"This client has calls of {size_text(self._bytes[peer])} waiting already, and one more of "
                f"{size_text(size_bytes)} is over the limit of {WAITING_MIB_LIMIT} MiB; let some of them end first."
            )
        self._calls[peer] += 1
        self._bytes[peer] += size_bytes

    def _leave(self, peer: str, size_bytes: int) -> None:
        self._calls[peer] -= 1
        self._bytes[peer] -= size_bytes
        if not self._calls[peer]:
            del self._calls[peer], self._bytes[peer]


class Recording:
    """The results of one stream that are being recorded: what ends work is not refused for lack of room, but waits."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Future[Any]] = set()
        self._bytes = 0

    async def add(self, recording: "asyncio.Future[Any]", size_bytes: int) -> None:
        """Return when more may be read."""
        self._under_way.add(recording)
        self._bytes += size_bytes
        recording.add_done_callback(partial(self._recorded, size_bytes))
        while len(self._under_way) >= RECORDING_LIMIT or self._bytes > RECORDING_MIB_LIMIT * MIB:
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)

    def _recorded(self, size_bytes: int, recording: "asyncio.Future[Any]") -> None:
        self._under_way.discard(recording)
        self._bytes -= size_bytes

    async def done(self) -> None:
        """Return when none is under way any more."""
        if self._under_way:
            await asyncio.wait(self._under_way)


class Registrations:
    """Which connection has registered which workflows: whose tasks it asks for when it names only a hash."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._registered: OrderedDict[tuple[str, str, str], None] = OrderedDict()  # (peer, workflow, hash)
        self._warned: set[tuple[str, str]] = set()  # (peer, hash): said once, though it polls ten times a second

    def add(self, peer: str, workflow_id: str, version_hash: str) -> None:
        registered = (peer, workflow_id, version_hash)
        self._registered[registered] = None
        self._registered.move_to_end(registered)
        if len(self._registered) > REGISTRATIONS_LIMIT:
            self._registered.popitem(last=False)

    async def served(self, peer: str, version_hash: str) -> list[str]:
        """Whose tasks are asked for by a hash alone, which several workflows may share."""
        candidates = await self._engine.workflow_ids(version_hash)
        own = [candidate for candidate in candidates if (peer, candidate, version_hash) in self._registered]
        if not own and len(candidates) > 1 and (peer, version_hash) not in self._warned:
            if len(self._warned) >= WARNINGS_LIMIT:
                self._warned.clear()
            self._warned.add((peer, version_hash))
            log.warning(
                "%s asks for tasks of %s, which the workflows %s share, and has registered none of them; "
                "it may get a task of any.",
                peer,
                version_hash,
                ", ".join(candidates),
            )
        return own or candidates
