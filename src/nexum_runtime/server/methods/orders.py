"""The metadata of a call as the engine takes it, and what the engine tells, as metadata and messages have it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from nexum_runtime import tracing, wire
from nexum_runtime.errors import InvalidRequest
from nexum_runtime.idempotency import key_of
from nexum_runtime.server.model import graph
from nexum_runtime.server.model.shapes import Claimed, Started, StartOrder
from nexum_runtime.server.rules.snapshots import Snapshot

Trailing: TypeAlias = tuple[tuple[str, str | bytes], ...]
Fields: TypeAlias = dict[str, Any]  # of a message


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
        synced=metadata.get(wire.SYNCED) == "true",
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


def told_of(started: Started, snapshot: Snapshot) -> Trailing:
    return (*started_metadata(started), *outcome_metadata(snapshot))


def status_fields(snapshot: Snapshot) -> Fields:
    return {"status": snapshot.execution.status, "completed_nodes_json": snapshot.outputs_json}


def task_fields(claimed: Claimed) -> Fields:
    """Of a PollResponse."""
    task = claimed.task
    fields = {
        "has_task": True,
        "task_id": task.task_id,
        "execution_id": task.execution_id,
        "node_id": task.node_id,
        "node_type": task.node_type,
        "input_json": claimed.input_json,
        "idempotency_key": key_of(task.execution_id, task.node_id, task.version_hash),
    }
    if task.node_type == graph.ITEM:
        fields |= {
            "node_id": graph.map_of(task.node_id),
            "is_map_subtask": True,
            "map_item_json": claimed.item_json,
            "map_index": task.part,
            "map_total": task.parts,
        }
    return fields


def outcome_metadata(snapshot: Snapshot) -> Trailing:
    attempts = (wire.ATTEMPTS, str(snapshot.attempts))
    if snapshot.waits_for:
        return (attempts, (wire.WAITS_FOR, snapshot.waits_for))
    execution = snapshot.execution
    if execution.error is None or execution.error_code is None:
        return (attempts,)
    error = execution.error.encode()[: wire.ERROR_METADATA_BYTES].decode(errors="ignore").encode()
    return (attempts, (wire.ERROR, error), (wire.ERROR_CODE, execution.error_code))
