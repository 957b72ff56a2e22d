"""How a method reads a request with its metadata, and answers with both, or with an error's status code."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, LimitExceeded, NexumError, NotFound, SessionStopped
from nexum_runtime.server.methods.methods import Call
from nexum_runtime.server.methods.orders import Fields
from nexum_runtime.server.model.contract import StoreUnavailable

Context: TypeAlias = Any  # grpc.aio.ServicerContext: grpcio ships no types
Method: TypeAlias = Callable[[Any, Call], Awaitable[Fields]]
Place: TypeAlias = Callable[[Any, Call], AbstractContextManager[None]]  # that a call takes up while it is held

DETAILS_LIMIT = 500  # characters of an error's text: it travels in a header, percent-encoded, of at most 8 KiB

CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SessionStopped: grpc.StatusCode.FAILED_PRECONDITION,
    StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    MemoryError: grpc.StatusCode.UNAVAILABLE,
}
TOLD = (NexumError, StoreUnavailable, MemoryError)  # by its code, whoever asked


@dataclass(frozen=True)
class Unreadable:
    """A request whose bytes are not the message that its method takes."""

    reason: str
    lacks_memory: bool = False


def readable(request: Any) -> Any:
    """Raises InvalidRequest, or MemoryError."""
    if isinstance(request, Unreadable) and request.lacks_memory:
        raise MemoryError
    if isinstance(request, Unreadable):
        raise InvalidRequest(request.reason)
    return request


def check_memory(receiving: "asyncio.Task[None]") -> None:
    """Raise MemoryError if who received the messages of a stream ended by that: whose they were cannot be told."""
    if receiving.done() and not receiving.cancelled() and isinstance(receiving.exception(), MemoryError):
        raise MemoryError


async def abort(context: Context, error: Exception) -> None:
    await context.abort(CODES[type(error)], details(error))


def details(error: Exception) -> str:
    return (str(error) or wire.NO_MEMORY)[:DETAILS_LIMIT].encode(errors="replace").decode()


def streaming(
    method: Callable[[Any, Call], AsyncGenerator[Fields, None]],
    types: tuple[Any, Any],
    waiting: Place | None = None,
) -> Any:
    """One whose answer is several messages."""
    request_type, response_type = types

    async def answer(request: Any, context: Context) -> AsyncIterator[Fields]:
        call = Call(metadata_of(context), context.peer())
        try:
            with waiting(readable(request), call) if waiting else nullcontext():
                async with aclosing(method(readable(request), call)) as answers:
                    async for told in answers:
                        await _send_leading(context, call)
                        yield told
            await _send_leading(context, call)
        except TOLD as error:
            await abort(context, error)

    return grpc.unary_stream_rpc_method_handler(answer, reader(request_type), writer(response_type))


async def _send_leading(context: Context, call: Call) -> None:
    if call.leading:
        await context.send_initial_metadata(call.leading)
        call.leading = ()


def writer(message: Any) -> Callable[[Fields], bytes]:
    return lambda fields: bytes(message(**fields).SerializeToString())


def reader(message: Any) -> Callable[[bytes], Any]:
    """Parse a request so that bytes which are none are answered like any other bad argument."""

    def read(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except DecodeError as error:
            lacks_memory = wire.is_lack_of_memory(error)
            return Unreadable(f"The request is not a {message.DESCRIPTOR.name}: {error}.", lacks_memory)
        except MemoryError as error:
            return Unreadable(str(error), lacks_memory=True)

    return read


def metadata_of(context: Context) -> dict[str, Any]:
    return dict(context.invocation_metadata() or ())
