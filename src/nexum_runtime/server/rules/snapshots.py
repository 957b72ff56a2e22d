"""What an execution is like at a moment, with all that it has recorded."""

from typing import NamedTuple

from nexum_runtime import wire
from nexum_runtime.errors import NotFound
from nexum_runtime.server.model import graph
from nexum_runtime.server.model.contract import Execution, Reader, session_of
from nexum_runtime.server.model.shapes import Claimed, Ending
from nexum_runtime.server.model.states import ErrorCode, ExecutionStatus, State, TaskStatus
from nexum_runtime.server.rules.attempts import tries


class Snapshot(NamedTuple):
    """An execution with the JSON text of every recorded output."""

    execution: Execution
    outputs: dict[str, str]
    attempts: int  # the most that any of its tasks has had
    waits_for: str  # "worker" when none of its tasks runs and one could, "approval" when a person is asked, or ""
    state: State | None = None  # what people are told of it, where they ask
    unread_chars: int = 0  # about how large its outputs are, when they were not read

    @property
    def size_chars(self) -> int:
        """About, of all outputs."""
        return self.unread_chars or sum(map(len, self.outputs.values()))

    @property
    def outputs_json(self) -> str:
        return outputs_json(self.outputs)


def read(reader: Reader, execution_id: str, now_ms: int, unread_chars: int = 0) -> Snapshot:
    """With `unread_chars`, without the outputs of one that is COMPLETED, which are about so large."""
    execution = reader.execution(execution_id)
    if execution is None:
        raise NotFound(f"No execution {execution_id!r} is known.")
    tasks = reader.tasks(execution_id)
    attempts = max((tries(task, execution) for task in tasks), default=0)
    ready = any(task.status == TaskStatus.READY and task.available_at_ms <= now_ms for task in tasks)
    running = any(task.status == TaskStatus.RUNNING for task in tasks)
    asked = any(task.status == TaskStatus.WAITING and task.node_type == graph.APPROVAL for task in tasks)
    waits_for = "worker" if ready and not running else "approval" if asked else ""
    if unread_chars and execution.status == ExecutionStatus.COMPLETED:
        return Snapshot(execution, {}, attempts, waits_for, unread_chars=unread_chars)
    return Snapshot(execution, reader.outputs(execution_id), attempts, waits_for)


def state_of(reader: Reader, execution: Execution) -> State:
    """How people are told that it is."""
    if execution.error_code == ErrorCode.OUTCOME_UNKNOWN:
        return State.UNKNOWN
    if execution.status != ExecutionStatus.RUNNING:
        return State(execution.status)
    session_id = session_of(execution.execution_id)
    if session_id and reader.stop_of(session_id) is not None:
        return State.STOPPED
    found = {(task.status, task.node_type) for task in reader.tasks(execution.execution_id)}
    asked = (TaskStatus.WAITING, graph.APPROVAL) in found
    begins = any(status in (TaskStatus.READY, TaskStatus.RUNNING) for status, _ in found)
    if begins:
        return State.RUNNING
    is_parked = (TaskStatus.WAITING, graph.EFFECT) in found
    return State.WAITING if asked else State.PARKED if is_parked else State.RUNNING


def ended(reader: Reader, execution_id: str, ending: Ending | None, now_ms: int) -> Snapshot:
    if ending is None:
        return read(reader, execution_id, now_ms)
    execution, task, output_json = ending
    return Snapshot(execution, {task.node_id: output_json}, tries(task, execution), waits_for="")


def begun(claimed: Claimed) -> Snapshot:
    """Of an execution that is new, and whose first task was claimed."""
    return Snapshot(claimed.execution, {}, tries(claimed.task, claimed.execution), waits_for="")


def is_over(found: Snapshot, or_ready: bool) -> bool:
    return found.execution.status != ExecutionStatus.RUNNING or (or_ready and found.waits_for == "worker")


def outputs_json(outputs: dict[str, str]) -> str:
    """`{node: output}` as one JSON text, made without parsing what is in it."""
    return "{" + ",".join(f"{wire.canonical_json(node)}:{text}" for node, text in outputs.items()) + "}"
