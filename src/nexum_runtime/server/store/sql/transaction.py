"""What is written, in SQL."""

import json
import os
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any

from nexum_runtime import wire
from nexum_runtime.crash import crash_point
from nexum_runtime.server.model.contract import (
    ANSWERING,
    TAKEN_BACK,
    Execution,
    Rebuild,
    Stop,
    Task,
    Workflow,
    session_of,
)
from nexum_runtime.server.model.states import (
    EXECUTION_SOURCES,
    TASK_SOURCES,
    ErrorCode,
    Event,
    ExecutionStatus,
    TaskStatus,
)
from nexum_runtime.server.store.sql.connection import Connection, Rows
from nexum_runtime.server.store.sql.reader import SqlReader
from nexum_runtime.server.store.sql.rows import (
    EVENT_BITS,
    EXECUTION,
    IS_NO_ITEM,
    IS_NOT_STOPPED,
    NAMED,
    NUMBERED,
    TASK,
    WORKFLOW,
    by_key,
    execution_of,
    in_orders,
    listed,
    marks,
    number_of,
    orders_of,
    task_of,
)

KEY_BYTES = 8  # of a task's key: no stale one is that of another task, nor can one be guessed

_encode = json.JSONEncoder(ensure_ascii=False).encode

# The statements of every call: the same text each time, so that SQLite's module finds them prepared.
_ADD_EXECUTION = f"INSERT INTO executions ({EXECUTION}) VALUES ({marks(Execution._fields)})"
# To the second, so that few calls change it.
_HEAR_SESSION = """
    INSERT INTO sessions (session_id, began_at_ms, heard_at_ms) VALUES (?, ?, ?)
    ON CONFLICT (session_id) DO UPDATE SET heard_at_ms = excluded.heard_at_ms
    WHERE excluded.heard_at_ms >= sessions.heard_at_ms + 1000
"""
_ADD_TASK = f"INSERT INTO tasks (seq, item_json, {TASK}) VALUES (?, ?, {marks(Task._fields)})"
_ADD_EVENT = f"""
    INSERT INTO events (seq, at_ms, type, node_id, attempt, data_json)
    SELECT coalesce(
        (SELECT max(seq) FROM events
         WHERE seq BETWEEN x.seq << {EVENT_BITS} AND (x.seq << {EVENT_BITS}) + {(1 << EVENT_BITS) - 1}),
        x.seq << {EVENT_BITS}) + 1, ?, ?, ?, CAST(? AS INTEGER), ? FROM executions x WHERE execution_id = ?
"""
_FINISH = {
    key: "UPDATE tasks SET status = 'DONE', output_json = ?, lease_expires_at_ms = NULL, available_at_ms = 0, "
    f"error = NULL, error_code = NULL WHERE {key} AND attempt = ? AND status = 'RUNNING' "
    f"AND node_type NOT IN ({listed(ANSWERING)}) RETURNING {TASK}"
    for key in (NUMBERED, NAMED)
}
_MOVE_EXECUTION = {
    to: f"UPDATE executions SET status = '{to}', error = ?, error_code = ?, ended_at_ms = ? "
    f"WHERE execution_id = ? AND status IN ({listed(sources)}) RETURNING {EXECUTION}"
    for to, sources in EXECUTION_SOURCES.items()
}
_MOVE_TASK = {
    to: f"UPDATE tasks SET status = '{to}', held = 0, output_json = ?, lease_expires_at_ms = NULL, "
    f"available_at_ms = ?, attempt_limit = coalesce(?, attempt_limit), error = ?, error_code = ? "
    f"WHERE status IN ({listed(sources)}) AND "
    for to, sources in TASK_SOURCES.items()
}

# So that no claim passes over them one by one, as it does over the few that become READY while it is stopped.
# The "||" is as `open_ones` has it.
_HOLD = "UPDATE tasks SET held = ? WHERE status = 'READY' AND execution_id || '' >= ? AND execution_id || '' < ?"


class Numbers:
    """Of tasks: each is higher than those before it, and than `floor` tells."""

    def __init__(self, last: int, floor: Callable[[], int] = lambda: 0) -> None:
        self._last, self._floor = last, floor

    def take(self, count: int = 1) -> int:
        """The first of so many that follow each other."""
        first = max(self._last + 1, self._floor())
        self._last = first + count - 1
        return first


class SqlTransaction(SqlReader):
    """What is added is inserted together, when something else is asked or done, or by `flush`."""

    _empty_copies = "DELETE FROM copied"
    _new_number: str  # of an execution, each higher than those before, in SQL that goes through many by their numbers

    def __init__(self, connection: Connection, numbers: Numbers) -> None:
        super().__init__(connection)
        self._execute_many = connection.executemany
        self._numbers = numbers  # of tasks
        self._executions: list[Execution] = []
        self._heard: list[tuple[str, int, int]] = []  # sessions, by executions that began then
        self._tasks: list[tuple[Any, ...]] = []
        self._events: list[tuple[Any, ...]] = []
        self.added_events: list[tuple[Any, ...]] = []  # by the work that runs
        self.takes_away = False  # events that were committed, or their names
        self._added: tuple[list[Any], ...] = (self._executions, self._heard, self._tasks, self._events)
        self._before = [0] * len(self._added)  # how many of each there were when the work that runs began

    def flush(self) -> None:
        if self._executions or self._tasks or self._events:
            self._insert()

    def _insert(self) -> None:
        added: tuple[tuple[str, list[Any]], ...] = (
            (_ADD_EXECUTION, self._executions),
            (_HEAR_SESSION, self._heard),
            (_ADD_TASK, self._tasks),
            (_ADD_EVENT, self._events),
        )
        for sql, rows in added:
            if rows:
                self._execute_many(sql, rows)
                rows.clear()

    def begin_work(self) -> None:
        self.added_events = []
        self._before = list(map(len, self._added))

    def forget(self) -> None:
        """What the work that runs has added and is not inserted yet."""
        for rows, before in zip(self._added, self._before, strict=True):
            del rows[before:]

    def _sql(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        self.flush()
        return self._execute(sql, parameters)

    def new_task_key(self) -> str:
        return f"{self._numbers.take()}-{os.urandom(KEY_BYTES).hex()}"

    def add_workflow(self, workflow: Workflow) -> None:
        self._sql(
            f"INSERT INTO workflows (seq, {WORKFLOW}) SELECT coalesce(max(seq), 0) + 1, ?, ?, ?, ?, ? FROM workflows",
            (
                workflow.workflow_id,
                workflow.version_hash,
                workflow.ir_json,
                workflow.compatibility,
                workflow.registered_at_ms,
            ),
        )

    def make_latest(self, workflow_id: str, version_hash: str) -> None:
        self._sql(
            "UPDATE workflows SET seq = (SELECT max(seq) + 1 FROM workflows) "
            "WHERE workflow_id = ? AND version_hash = ?",
            (workflow_id, version_hash),
        )

    def add_execution(self, execution: Execution) -> None:
        self._executions.append(execution)
        if session_id := execution.session_id:
            self._heard.append((session_id, execution.created_at_ms, execution.created_at_ms))

    def label(self, execution_id: str, labels_json: str) -> None:
        self._sql("UPDATE executions SET labels_json = ? WHERE execution_id = ?", (labels_json, execution_id))

    def set_stop(self, session_id: str, stop: Stop | None) -> None:
        stopped = _encode(vars(stop)) if stop else None
        self._sql("UPDATE sessions SET stopped_json = ? WHERE session_id = ?", (stopped, session_id))
        self._sql(_HOLD, (int(stop is not None), f"{session_id}/", f"{session_id}0"))

    def rename_holder(self, worker_id: str, to: str) -> None:
        self._sql("UPDATE tasks SET worker_id = ? WHERE status = 'RUNNING' AND worker_id = ?", (to, worker_id))

    def move_execution(
        self,
        execution_id: str,
        to: ExecutionStatus,
        *,
        error: str | None = None,
        error_code: ErrorCode | None = None,
        ended_at_ms: int | None = None,
    ) -> Execution | None:
        rows = self._sql(_MOVE_EXECUTION[to], (error, error_code, ended_at_ms, execution_id)).fetchall()
        return execution_of(rows[0]) if rows else None

    def set_awaited_by(self, execution_id: str, awaited_by_json: str) -> None:
        self._sql("UPDATE executions SET awaited_by_json = ? WHERE execution_id = ?", (awaited_by_json, execution_id))

    def set_execution_error(self, execution_id: str, error: str, error_code: ErrorCode) -> None:
        self._sql(
            "UPDATE executions SET error = ?, error_code = ? WHERE execution_id = ? AND status = 'FAILED'",
            (error, error_code, execution_id),
        )

    def declare(self, execution_id: str, max_attempts: int, effect: str, timeout_ms: int | None) -> None:
        self._sql(
            "UPDATE tasks SET attempt_limit = attempt_limit + ? - "
            "(SELECT max_attempts FROM executions WHERE execution_id = ?) WHERE execution_id = ?",
            (max_attempts, execution_id, execution_id),
        )
        self._sql(
            "UPDATE tasks SET attempt_limit = attempt + CASE status WHEN 'READY' THEN 1 ELSE 0 END WHERE "
            "execution_id = ? AND attempt_limit < attempt + CASE status WHEN 'READY' THEN 1 ELSE 0 END",
            (execution_id,),
        )
        self._sql(
            "UPDATE executions SET max_attempts = ?, effect = ?, timeout_ms = ? WHERE execution_id = ?",
            (max_attempts, effect, timeout_ms, execution_id),
        )

    def delete_execution(self, execution_id: str) -> None:
        self.takes_away = True
        self._sql("DELETE FROM events WHERE seq IN (SELECT seq FROM story WHERE execution_id = ?)", (execution_id,))
        for table in ("tasks", "executions"):
            self._sql(f"DELETE FROM {table} WHERE execution_id = ?", (execution_id,))
        if session_id := session_of(execution_id):
            self.delete_empty(session_id)

    def delete_empty(self, session_id: str) -> None:
        self._sql(
            "DELETE FROM sessions WHERE session_id = ? "
            f"AND (stopped_json IS NULL OR instr(session_id, '{TAKEN_BACK}') > 0) "
            "AND NOT EXISTS (SELECT 1 FROM executions WHERE execution_id >= ? AND execution_id < ?)",
            (session_id, f"{session_id}/", f"{session_id}0"),  # "0" comes after "/"
        )

    def add_session(self, session_id: str, at_ms: int) -> None:
        self._sql(
            "INSERT INTO sessions (session_id, began_at_ms, heard_at_ms) VALUES (?, ?, ?)", (session_id, at_ms, at_ms)
        )

    def set_rebuild(self, rebuild: Rebuild, now_ms: int) -> None:
        self._sql(
            "INSERT INTO sessions (session_id, began_at_ms, heard_at_ms, stopped_json) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (session_id) DO UPDATE SET heard_at_ms = excluded.heard_at_ms",
            (f"{TAKEN_BACK}{rebuild.session_id}", rebuild.at_ms, now_ms, _encode(vars(rebuild))),
        )

    def end_rebuild(self, session_id: str) -> None:
        self._sql("DELETE FROM sessions WHERE session_id = ?", (f"{TAKEN_BACK}{session_id}",))

    def take_back(self, session_id: str, orders: Collection[int], to: str, stop: Stop) -> None:
        self.takes_away = True
        cut, these = len(session_id) + 1, in_orders(orders)
        self._defer_references()  # tasks are renamed first, executions then
        self._sql(
            "UPDATE tasks SET execution_id = ? || substr(execution_id, CAST(? AS INTEGER)) WHERE execution_id IN "
            f"(SELECT execution_id FROM executions x WHERE {these})",
            (to, cut, *orders_of(session_id, orders)),
        )
        crash_point("in-forget")
        self._sql(
            f"UPDATE executions AS x SET execution_id = ? || substr(execution_id, CAST(? AS INTEGER)) WHERE {these}",
            (to, cut, *orders_of(session_id, orders)),
        )
        crash_point("in-forget")
        of_it = orders_of(to, orders)
        self._sql(
            "INSERT INTO sessions (session_id, began_at_ms, heard_at_ms, stopped_json) "
            "SELECT ?, began_at_ms, ?, ? FROM "
            f"(SELECT min(created_at_ms) AS began_at_ms FROM executions x WHERE {these}) its "
            "WHERE began_at_ms IS NOT NULL "
            "ON CONFLICT (session_id) DO UPDATE SET began_at_ms = excluded.began_at_ms",  # the latest ones come first
            (to, stop.at_ms, _encode(vars(stop)), *of_it),
        )
        told = {"session_id": session_id, "by": stop.by}
        each = f"(SELECT seq FROM executions x WHERE {these})"
        self._tell_of_each(each, of_it, stop.at_ms, Event.EXECUTION_TAKEN_BACK, told)
        crash_point("in-forget")

    def copy(self, session_id: str, orders: Collection[int], to: str, at_ms: int, data: dict[str, Any]) -> None:
        copied = self._list_copies(session_id, orders)
        columns = ", ".join(name for name in Execution._fields if name != "execution_id")
        renamed, of_renamed = "? || substr(x.execution_id, CAST(? AS INTEGER))", (to, len(session_id) + 1)
        self._sql(
            f"INSERT INTO executions (seq, execution_id, {columns}) SELECT copy, {renamed}, {columns} "
            "FROM copied CROSS JOIN executions x WHERE x.seq = copied.seq",
            of_renamed,
        )
        crash_point("in-fork")
        (most,) = self._sql(  # tasks of one of them, and so many numbers are for each
            "SELECT coalesce(max(number), 0) FROM (SELECT count(*) AS number FROM copied c CROSS JOIN executions x "
            "CROSS JOIN tasks t WHERE x.seq = c.seq AND t.execution_id = x.execution_id GROUP BY x.seq) each_one"
        ).fetchone()
        before = "(SELECT count(*) FROM tasks o WHERE o.execution_id = t.execution_id AND o.seq < t.seq)"
        number, first = f"(? + (number - 1) * {most} + {before if most > 1 else 0})", self._numbers.take(copied * most)
        named = ("task_key", "execution_id")  # anew
        of_task = ["output_json", "item_json", *(name for name in Task._fields if name not in named)]
        self._sql(
            f"INSERT INTO tasks (seq, task_key, execution_id, {', '.join(of_task)}) "
            f"SELECT {number}, {number} || '-' || lower(hex(randomblob({KEY_BYTES}))), {renamed}, "
            f"{', '.join(f't.{name}' for name in of_task)} FROM copied c CROSS JOIN executions x "
            "CROSS JOIN tasks t WHERE x.seq = c.seq AND t.execution_id = x.execution_id",
            (first, first, *of_renamed),
        )
        crash_point("in-fork")
        self._sql(
            "INSERT INTO events (seq, at_ms, type, node_id, attempt, data_json) "
            f"SELECT ((c.copy - c.seq) << {EVENT_BITS}) + v.seq, at_ms, type, node_id, attempt, data_json "
            f"FROM copied c CROSS JOIN events v WHERE v.seq BETWEEN c.seq << {EVENT_BITS} "
            f"AND (c.seq << {EVENT_BITS}) + {(1 << EVENT_BITS) - 1}"
        )
        crash_point("in-fork")
        self._tell_of_each("(SELECT copy AS seq FROM copied)", (), at_ms, Event.EXECUTION_FORKED, data)
        crash_point("in-fork")

    def _list_copies(self, session_id: str, orders: Collection[int]) -> int:
        """Which are copied, numbered in their order: each is found by its number from then on."""
        self._sql("CREATE TEMP TABLE IF NOT EXISTS copied (number BIGINT PRIMARY KEY, seq BIGINT, copy BIGINT)")
        self._sql(self._empty_copies)
        return self._sql(
            f"INSERT INTO copied (number, seq, copy) SELECT row_number() OVER (ORDER BY seq), seq, {self._new_number} "
            f"FROM executions x WHERE {in_orders(orders)}",
            orders_of(session_id, orders),
        ).rowcount

    def _tell_of_each(
        self, executions: str, parameters: Sequence[Any], at_ms: int, type: Event, data: dict[str, Any]
    ) -> None:
        """Add an event to each of these executions."""
        self._sql(
            "INSERT INTO events (seq, at_ms, type, data_json) SELECT coalesce((SELECT max(seq) FROM events WHERE seq "
            f"BETWEEN x.seq << {EVENT_BITS} AND (x.seq << {EVENT_BITS}) + {(1 << EVENT_BITS) - 1}), "
            f"x.seq << {EVENT_BITS}) + 1, ?, ?, ? FROM {executions} x",
            (at_ms, type.value, _encode(data), *parameters),
        )

    def add_task(self, task: Task, item_json: str | None = None) -> None:
        number = number_of(task.task_key)
        self._tasks.append((self._numbers.take() if number is None else number, item_json, *task))

    def move_task(
        self,
        task_key: str,
        to: TaskStatus,
        *,
        output_json: str | None = None,
        available_at_ms: int = 0,
        attempt_limit: int | None = None,
        error: str | None = None,
        error_code: ErrorCode | None = None,
    ) -> bool:
        condition, parameters = by_key(task_key)
        moved = (output_json, available_at_ms, attempt_limit, error, error_code)
        cursor = self._sql(_MOVE_TASK[to] + condition, (*moved, *parameters))
        return cursor.rowcount == 1

    def finish(self, task_key: str, attempt: int, output_json: str) -> Task | None:
        condition, parameters = by_key(task_key)
        rows = self._sql(_FINISH[condition], (output_json, *parameters, attempt)).fetchall()
        return task_of(rows[0]) if rows else None

    def wait_for_items(self, task_key: str, parts: int) -> None:
        condition, parameters = by_key(task_key)
        self._sql(
            f"UPDATE tasks SET part = 0, parts = ? WHERE status = 'WAITING' AND {condition}", (parts, *parameters)
        )

    def count_item(self, execution_id: str, map_id: str) -> Task | None:
        row = self._sql(
            "UPDATE tasks SET part = part + 1 WHERE execution_id = ? AND node_id = ? AND node_type = 'MAP' "
            f"RETURNING {TASK}",
            (execution_id, map_id),
        ).fetchone()
        return task_of(row) if row else None

    def cancel_waiting(self, execution_id: str) -> None:
        moved = (None, 0, None, None, None)  # as `move_task` has it
        this = "execution_id = ? AND status <> 'RUNNING'"
        self._sql(_MOVE_TASK[TaskStatus.CANCELLED] + this, (*moved, execution_id))

    def ready_again(self, execution_id: str, max_attempts: int) -> None:
        self._sql(
            "UPDATE tasks SET status = 'READY', held = 0, available_at_ms = 0, attempt_limit = attempt + ?, "
            "error = NULL, error_code = NULL WHERE execution_id = ? AND status IN ('FAILED', 'CANCELLED')",
            (max_attempts, execution_id),
        )

    def settle_failure(self, task_key: str, error: str) -> None:
        condition, parameters = by_key(task_key)
        self._sql(
            "UPDATE tasks SET error = ?, error_code = 'TOOL_ERROR' "
            f"WHERE error_code = 'OUTCOME_UNKNOWN' AND {condition}",
            (error, *parameters),
        )

    def say_failure(self, task_key: str, error: str, error_code: ErrorCode) -> None:
        condition, parameters = by_key(task_key)
        self._sql(
            f"UPDATE tasks SET error = ?, error_code = ? WHERE status = 'FAILED' AND {condition}",
            (error, error_code, *parameters),
        )

    def claim(
        self,
        version_hash: str,
        workflow_ids: Collection[str],
        worker_id: str,
        lease_ms: int,
        now_ms: int,
        execution_id: str | None = None,
        *,
        with_items: bool = True,
    ) -> Task | None:
        if not workflow_ids:
            return None
        one = "" if execution_id is None else " AND execution_id = ?"
        kind = "" if with_items else f" AND {IS_NO_ITEM}"
        rows = self._sql(
            "UPDATE tasks SET status = 'RUNNING', attempt = attempt + 1, worker_id = ?, lease_ms = ?, "
            "lease_expires_at_ms = ? WHERE status = 'READY' AND seq = ("
            "SELECT min(seq) FROM tasks WHERE status = 'READY' AND held = 0 AND version_hash = ? "
            f"AND workflow_id IN ({marks(workflow_ids)}) AND available_at_ms <= ?{one}{kind} AND {IS_NOT_STOPPED}) "
            f"RETURNING {TASK}",
            (worker_id, lease_ms, now_ms + lease_ms, version_hash, *workflow_ids, now_ms)
            + (() if execution_id is None else (execution_id,)),
        ).fetchall()
        return task_of(rows[0]) if rows else None

    def renew_leases(self, worker_id: str, now_ms: int, task_keys: Collection[str] | None = None) -> None:
        if task_keys is not None and not task_keys:
            return
        these = "" if task_keys is None else f" AND task_key IN ({marks(task_keys)})"
        self._sql(
            f"UPDATE tasks SET lease_expires_at_ms = ? + lease_ms WHERE status = 'RUNNING' AND worker_id = ?{these}",
            (now_ms, worker_id, *(task_keys or ())),
        )

    @abstractmethod
    def touch(self) -> None: ...

    @abstractmethod
    def _defer_references(self) -> None:
        """Let a task refer to an execution that is not there, until the commit."""

    def restart_clock(self, now_ms: int, delay_limit_ms: int) -> None:
        self._sql("UPDATE tasks SET lease_expires_at_ms = ? + lease_ms WHERE status = 'RUNNING'", (now_ms,))
        self._sql(
            "UPDATE tasks SET available_at_ms = ? WHERE status = 'READY' AND available_at_ms > ?",
            (now_ms + delay_limit_ms, now_ms + delay_limit_ms),
        )

    def shift_clock(self, by_ms: int) -> None:
        self._sql(
            "UPDATE tasks SET lease_expires_at_ms = lease_expires_at_ms + ? WHERE status = 'RUNNING' "
            "AND lease_expires_at_ms IS NOT NULL",
            (by_ms,),
        )
        self._sql("UPDATE tasks SET available_at_ms = available_at_ms + ? WHERE status = 'READY'", (by_ms,))

    def add_event(
        self,
        execution_id: str,
        at_ms: int,
        type: Event,
        node_id: str | None = None,
        attempt: int | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        data_json = _encode(data) if data else "{}"
        if not wire.is_text(data_json):  # half a character, which JSON can spell and no database can keep
            data_json = wire.json_text(data)
        event = (execution_id, at_ms, type.value, node_id, attempt, data_json)
        self._events.append((*event[1:], execution_id))
        self.added_events.append(event)
