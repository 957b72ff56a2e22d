"""What is parked goes on: an attempt that was given back until an execution ends, or until a time."""

import json

from nexum_runtime.crash import crash_point
from nexum_runtime.server.model.contract import Execution, Task, Transaction
from nexum_runtime.server.model.shapes import Notices
from nexum_runtime.server.model.states import Event, TaskStatus


def wake(tx: Transaction, notices: Notices, task: Task, now_ms: int, ended: str = "") -> None:
    """Any worker may have it: the execution `ended`, or its time has come."""
    data = {"ended": ended} if ended else {}
    tx.add_event(task.execution_id, now_ms, Event.TASK_WOKEN, task.node_id, data=data)
    limit = max(task.attempt_limit, task.attempt + 1)  # it may have been declared anew meanwhile
    tx.move_task(task.task_key, TaskStatus.READY, attempt_limit=limit)
    crash_point("in-wake")
    notices.ready.add((task.workflow_id, task.version_hash, task.execution_id))


def wake_all(tx: Transaction, notices: Notices, ended: Execution, now_ms: int) -> None:
    """What is parked until this execution ends; what has gone on meanwhile is another attempt by now."""
    for task_id in json.loads(ended.awaited_by_json or "[]"):
        task = tx.task(task_id.rpartition(".")[0])
        if task is not None and task.status == TaskStatus.WAITING and task.task_id == task_id:
            wake(tx, notices, task, now_ms, ended.execution_id)


def await_end(tx: Transaction, awaited: Execution, task: Task) -> None:
    """Have it go on when that execution ends. An earlier attempt waits no more."""
    others = [each for each in json.loads(awaited.awaited_by_json or "[]") if each.rpartition(".")[0] != task.task_key]
    tx.set_awaited_by(awaited.execution_id, json.dumps([*others, task.task_id]))
