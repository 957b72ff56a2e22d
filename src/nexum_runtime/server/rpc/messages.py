"""How a method reads a request with its metadata, and answers with both, or with an error's status code."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError
from nexum.proto import nexum_pb2 as pb

from nexum_runtime import tracing, wire
from nexum_runtime.errors import InvalidRequest, LimitExceeded, NexumError, NotFound, SessionStopped
from nexum_runtime.server.model.contract import StoreUnavailable
from nexum_runtime.server.model.shapes import Started, StartOrder
from nexum_runtime.server.rules.snapshots import Snapshot

Context: TypeAlias = Any  # grpc.aio.ServicerContext: grpcio ships no types
Trailing: TypeAlias = tuple[tuple[str, str | bytes], ...]
Answer = TypeVar("Answer")

LIST_LIMIT = 10_000  # executions, or approvals, in one answer
DETAILS_LIMIT = 500  # characters of an error's text: it travels in a header, percent-encoded, of at most 8 KiB

CODES: dict[type[Exception], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    SessionStopped: grpc.StatusCode.FAILED_PRECONDITION,
    StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
}


@dataclass(frozen=True)
class Unreadable:
    """A request whose bytes are not the message that its method takes."""

    reason: str


def answering(
    method: Callable[[Any, Any, Context], Awaitable[Answer]],
) -> Callable[[Any, Any, Context], Awaitable[Answer]]:
    """Turn the engine's errors into status codes."""

    @wraps(method)
    async def answer(self: Any, request: Any, context: Context) -> Answer:
        try:
            return await method(self, readable(request), context)
        except (NexumError, StoreUnavailable) as error:
            await abort(context, error)
            raise AssertionError("abort raises") from None

    return answer


def readable(request: Any) -> Any:
    if isinstance(request, Unreadable):
        raise InvalidRequest(request.reason)
    return request


async def abort(context: Context, error: Exception) -> None:
    await context.abort(CODES[type(error)], details(error))


def details(error: Exception) -> str:
    return str(error)[:DETAILS_LIMIT].encode(errors="replace").decode()


def unary(method: Any, request: Any, response: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(method, reader(request), response.SerializeToString)


def reader(message: Any) -> Callable[[bytes], Any]:
    """Parse a request so that bytes which are none are answered like any other bad argument."""

    def read(data: bytes) -> Any:
        try:
            return message.FromString(data)
        except DecodeError as error:
            return Unreadable(f"The request is not a {message.DESCRIPTOR.name}: {error}.")

    return read


def start_order(request: Any, metadata: dict[str, Any]) -> StartOrder:
    effect, traceparent = metadata.get(wire.EFFECT, wire.EFFECT_DEFAULT), metadata.get(wire.TRACEPARENT, "")
    attempts = 1 if effect == wire.ONCE else wire.ATTEMPTS_DEFAULT
    return StartOrder(
        workflow_id=request.workflow_id,
        version_hash=request.version_hash,
        input_json=request.input_json,
        execution_id=metadata.get(wire.EXECUTION_ID, ""),
        max_attempts=whole_number(metadata, wire.MAX_ATTEMPTS, attempts, 1, wire.ATTEMPTS_LIMIT),
        effect=effect,
        timeout_ms=whole_number(metadata, wire.TIMEOUT_MS, 0, 1, wire.TIMEOUT_MS_LIMIT) or None,
        restart=metadata.get(wire.RESTART, ""),
        claim=metadata.get(wire.CLAIM, ""),
        lease_ms=lease_ms(metadata),
        traceparent=traceparent if wire.is_traceparent(traceparent) else "",
        labels_json=labels_of(metadata),
        asks=metadata.get(wire.QUESTION) == "true",
        takes_args=metadata.get(wire.TAKES_ARGS) == "true",
        deadline_ms=whole_number(metadata, wire.DEADLINE_MS, 0, 1, wire.DEADLINE_MS_LIMIT) or None,
        default=_text(metadata, wire.DEFAULT),
    )


def labels_of(metadata: dict[str, Any]) -> str:
    """As text: on a stream of calls they are, in gRPC's own metadata they are bytes."""
    labels = metadata.get(wire.LABELS, "")
    return labels if isinstance(labels, str) else bytes(labels).decode(errors="replace")


@contextmanager
def traced(method: str, order: StartOrder) -> Iterator[tuple[tracing.Span, StartOrder]]:
    """A span around a start, and the order as it goes on from there."""
    tracer = tracing.span("server", method, order.execution_id, parent=order.traceparent, workflow=order.workflow_id)
    with tracer as span:
        yield span, order._replace(traceparent=span.traceparent) if span.traceparent else order


def metadata_of(context: Context) -> dict[str, Any]:
    return dict(context.invocation_metadata() or ())


def whole_number(metadata: dict[str, str], key: str, default: int, least: int, most: int) -> int:
    text = metadata.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 16 and least <= int(text) <= most):
        raise InvalidRequest(f"{key} is {text[:40]!r}; it must be a whole number from {least} to {most}.")
    return int(text)


def _text(metadata: dict[str, str], key: str) -> str | None:
    """What is sent as JSON, as a header carries ASCII alone."""
    if (told := metadata.get(key)) is None:
        return None
    try:
        text = wire.parse_json(told)
    except ValueError:
        text = None
    if not isinstance(text, str):
        raise InvalidRequest(f"{key} is {told[:40]!r}; it must be a text as JSON.")
    return text


def lease_ms(metadata: dict[str, str]) -> int:
    return whole_number(metadata, wire.LEASE_MS, wire.LEASE_MS_DEFAULT, wire.LEASE_MS_MIN, wire.LEASE_MS_LIMIT)


def started_metadata(started: Started) -> tuple[tuple[str, str], ...]:
    before = (wire.STATUS, started.before)
    return (before, (wire.TASK_ID, started.claimed.task.task_id)) if started.claimed else (before,)


def status_response(snapshot: Snapshot) -> Any:
    return pb.StatusResponse(status=snapshot.execution.status, completed_nodes_json=snapshot.outputs_json)


def outcome_metadata(snapshot: Snapshot) -> Trailing:
    attempts = (wire.ATTEMPTS, str(snapshot.attempts))
    if snapshot.waits_for:
        return (attempts, (wire.WAITS_FOR, snapshot.waits_for))
    execution = snapshot.execution
    if execution.error is None or execution.error_code is None:
        return (attempts,)
    error = execution.error.encode()[: wire.ERROR_METADATA_BYTES].decode(errors="ignore").encode()
    return (attempts, (wire.ERROR, error), (wire.ERROR_CODE, execution.error_code))
