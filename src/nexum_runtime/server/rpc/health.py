"""`grpc.health.v1.Health`, which load balancers ask: https://github.com/grpc/grpc/blob/master/doc/health-checking.md

Each of its messages has one field, and is read and written here. They tell whether the server can do its work and
nothing else, so they are for anyone: a load balancer has no token, and is another user's process.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc
from nexum.proto import nexum_pb2 as pb

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, LimitExceeded, NotFound
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.rpc.messages import TOLD, Context, abort, readable, reader

SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
SERVICES = ("", wire.SERVICE, wire.EXTENSIONS)  # the empty name is all of the server
LOOK_SECONDS = 1.0  # between two looks for whoever watches
WATCHERS_LIMIT = 1_000


def is_about_health(call: Any) -> bool:
    return str(call.method).startswith(f"/{wire.HEALTH}/")


class Health:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._watchers = 0

    async def Check(self, request: Any, context: Context) -> bytes:
        try:
            service = _service_of(request)
            if service not in SERVICES:
                raise NotFound(f"This Nexum server has no service {service[:200]!r}.")
            return await self._state(service)
        except TOLD as error:
            await abort(context, error)
            raise

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[bytes]:
        """Tells each change, until the server stops."""
        self._watchers += 1
        try:
            if self._watchers > WATCHERS_LIMIT:
                raise LimitExceeded(f"{WATCHERS_LIMIT} clients watch the health of this server already.")
            service, closing, told = _service_of(request), self._engine.closing, b""
            while True:
                if (state := await self._state(service)) != told:
                    yield (told := state)
                if closing.is_set():
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(closing.wait(), LOOK_SECONDS)
        except TOLD as error:
            await abort(context, error)
        finally:
            self._watchers -= 1

    async def _state(self, service: str) -> bytes:
        if service not in SERVICES:
            return SERVICE_UNKNOWN
        return SERVING if await self._engine.is_ready() else NOT_SERVING

    def handlers(self) -> Any:
        read = reader(pb.StatusRequest)  # a message with a text in its first field, as this one
        return grpc.method_handlers_generic_handler(
            wire.HEALTH,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.Check, read),
                "Watch": grpc.unary_stream_rpc_method_handler(self.Watch, read),
            },
        )


def _service_of(request: Any) -> str:
    """Raises InvalidRequest."""
    try:
        return str(readable(request).execution_id)
    except InvalidRequest:
        raise InvalidRequest(f"The request is not one of {wire.HEALTH}.") from None
