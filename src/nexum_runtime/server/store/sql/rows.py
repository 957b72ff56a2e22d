"""The rows: their columns, how a task's is found by its key, and what is made of them."""

from collections.abc import Collection
from typing import Any

from nexum_runtime.server.model.contract import Execution, Span, Task
from nexum_runtime.server.model.states import OPEN_STATUSES, ErrorCode, ExecutionStatus, TaskStatus

NUMBER_LENGTH = 19  # a row's number is shorter
EVENT_BITS = 20  # an event's number is its execution's and so many bits of its own; the schemas have them too


def listed(states: Collection[str]) -> str:
    return ", ".join(f"'{state}'" for state in sorted(states))


def marks(values: Collection[Any]) -> str:
    return ", ".join("?" * len(values))


EXECUTION = ", ".join(Execution._fields)
_EXECUTION_STATUS, _EXECUTION_ERROR_CODE = map(Execution._fields.index, ("status", "error_code"))
TASK = ", ".join(Task._fields)
_TASK_STATUS, _TASK_ERROR_CODE = map(Task._fields.index, ("status", "error_code"))
OPEN = f"status IN ({listed(OPEN_STATUSES)})"  # a RUNNING execution has such a task, and few others have one


def open_ones(columns: str = "execution_id") -> str:
    """Open tasks, each status by its own index: by OPEN alone SQLite looks at all tasks.

    To choose by the id among these, compare `execution_id || ''`: else SQLite goes by the index of ids.
    """
    return " UNION ALL ".join(f"SELECT {columns} FROM tasks WHERE status = '{status}'" for status in OPEN_STATUSES)


IS_NOT_STOPPED = (  # of a task
    "NOT EXISTS (SELECT 1 FROM sessions WHERE stopped_json IS NOT NULL AND session_id = "
    "CASE WHEN instr(execution_id, '/') > 0 THEN substr(execution_id, 1, instr(execution_id, '/') - 1) END)"
)


# Of an execution x: those of these orders, which are found by them.
def in_orders(orders: Collection[int]) -> str:
    return f"x.execution_id || '' >= ? AND x.execution_id || '' < ? AND x.seq IN ({marks(orders)})"


IS_NO_ITEM = "node_type <> 'MAP_SUBTASK'"
IS_TURN = "json_extract(labels_json, '$.kind') = 'turn'"
# Of an execution x. The "+" keeps SQLite from looking through all executions in the order of their numbers instead.
IN_SPAN = "x.execution_id >= ? AND x.execution_id < ? AND +x.seq >= ? AND +x.seq < ?"
WORKFLOW = "workflow_id, version_hash, ir_json, compatibility, registered_at_ms"
# A key begins with the number of its row. Those of version 2 do not, and have an index.
NUMBERED, NAMED = "seq = ? AND task_key = ?", "task_key = ? AND task_key NOT GLOB '[0-9]*-*'"


def span_of(span: Span) -> tuple[Any, ...]:
    """The parameters of IN_SPAN; "0" comes after "/"."""
    return f"{span.session_id}/", f"{span.session_id}0", span.first, span.end


def orders_of(session_id: str, orders: Collection[int]) -> tuple[Any, ...]:
    """The parameters of `in_orders`."""
    return f"{session_id}/", f"{session_id}0", *orders


def number_of(task_key: str) -> int | None:
    number, dash, _ = task_key.partition("-")
    is_number = dash and number.isascii() and number.isdecimal() and len(number) < NUMBER_LENGTH
    return int(number) if is_number else None


def by_key(task_key: str) -> tuple[str, tuple[Any, ...]]:
    """The condition that finds the task of this key, and its parameters."""
    number = number_of(task_key)
    return (NAMED, (task_key,)) if number is None else (NUMBERED, (number, task_key))


def execution_of(row: tuple[Any, ...]) -> Execution:
    values = list(row)
    values[_EXECUTION_STATUS] = ExecutionStatus(values[_EXECUTION_STATUS])
    if (code := values[_EXECUTION_ERROR_CODE]) is not None:
        values[_EXECUTION_ERROR_CODE] = ErrorCode(code)
    return Execution(*values)


def task_of(row: tuple[Any, ...]) -> Task:
    values = list(row)
    values[_TASK_STATUS] = TaskStatus(values[_TASK_STATUS])
    if (code := values[_TASK_ERROR_CODE]) is not None:
        values[_TASK_ERROR_CODE] = ErrorCode(code)
    return Task(*values)
