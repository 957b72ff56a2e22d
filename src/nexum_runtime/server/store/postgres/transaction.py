"""What is written to PostgreSQL in words of its own, so that several servers may write to it.

A session is changed by one server at a time: who changes it holds an advisory lock with its name until the commit. What
a write is about is locked before it begins, in order, so that no two servers wait for each other. A task to claim is
found by looking for one: while another server has its session, it is looked for again a few times.
"""

import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nexum_runtime.server.model.contract import Execution, Rebuild, Stop, Task
from nexum_runtime.server.model.states import ExecutionStatus
from nexum_runtime.server.store.postgres.connection import Connection
from nexum_runtime.server.store.postgres.database import LOCK
from nexum_runtime.server.store.sql.connection import Rows
from nexum_runtime.server.store.sql.rows import IS_NO_ITEM, IS_NOT_STOPPED, TASK, marks, number_of, task_of
from nexum_runtime.server.store.sql.transaction import Numbers, SqlTransaction

SESSION_LOCK = LOCK + 1
CLAIM_TRIES = 12  # while another server has the session of what could be claimed
CLAIM_PAUSE_SECONDS = 0.003

_KEY = "hashtext(split_part(execution_id, '/', 1))"
_LOCK = f"""
    SELECT pg_advisory_xact_lock({SESSION_LOCK}, key) FROM (
        SELECT hashtext(name) AS key FROM unnest(CAST(? AS text[])) AS name
        UNION SELECT {_KEY} FROM tasks WHERE seq = ANY(CAST(? AS bigint[]))
        ORDER BY key
    ) ordered
"""
_OF = (r"\bexecutions\b|\bstory\b", r"\bsessions\b", r"\btasks\b", r"\bevents\b|\bstory\b")  # what is added
_HAD = f"pg_try_advisory_xact_lock({SESSION_LOCK}, {_KEY})"


class PostgresTransaction(SqlTransaction):
    _empty_copies = "TRUNCATE copied"
    _new_number = "nextval(pg_get_serial_sequence('executions', 'seq'))"

    def __init__(self, connection: Connection, numbers: Numbers) -> None:
        super().__init__(connection, numbers)
        self._together = connection.together
        self._is_of_others = False

    def _sql(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """What was added is inserted before something is asked that it may be part of."""
        if not self._is_of_others and any(
            rows and re.search(its, sql) for its, rows in zip(_OF, self._added, strict=True)
        ):
            self.flush()
        return self._execute(sql, parameters)

    @contextmanager
    def _unless(self, was_added: bool) -> Iterator[None]:
        """What is asked here is not part of what was added, unless it was."""
        self._is_of_others = not was_added
        try:
            yield
        finally:
            self._is_of_others = False

    def execution(self, execution_id: str) -> Execution | None:
        with self._unless(any(added.execution_id == execution_id for added in self._executions)):
            return super().execution(execution_id)

    def hindrances(self, session_id: str) -> tuple[Stop | None, Rebuild | None]:
        with self._unless(False):  # no session is added that is stopped
            return super().hindrances(session_id)

    def finish(self, task_key: str, attempt: int, output_json: str) -> Task | None:
        with self._unless(any(task_key in added for added in self._tasks)):
            return super().finish(task_key, attempt, output_json)

    def move_execution(self, execution_id: str, to: ExecutionStatus, **how: Any) -> Execution | None:
        with self._unless(any(added.execution_id == execution_id for added in self._executions)):
            return super().move_execution(execution_id, to, **how)

    def lock(self, about: Collection[str], about_tasks: Collection[str]) -> None:
        """Wait until no other server changes these sessions, and keep them to the commit."""
        names = sorted({execution_id.partition("/")[0] for execution_id in about})
        numbers = sorted({number for key in about_tasks if (number := number_of(key)) is not None})
        if names or numbers:
            self._execute(_LOCK, (names, numbers))

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
        sql = f"""
            WITH first AS (
                SELECT seq, execution_id FROM tasks WHERE status = 'READY' AND held = 0 AND version_hash = ?
                AND workflow_id IN ({marks(workflow_ids)}) AND available_at_ms <= ?{one}{kind} AND {IS_NOT_STOPPED}
                ORDER BY seq LIMIT 1
            ), looked AS MATERIALIZED (SELECT seq, {_HAD} AS had FROM first
            ), claimed AS (
                UPDATE tasks SET status = 'RUNNING', attempt = attempt + 1, worker_id = ?, lease_ms = ?,
                    lease_expires_at_ms = ?
                FROM looked WHERE had AND tasks.seq = looked.seq AND status = 'READY' AND held = 0
                RETURNING {TASK}
            )
            SELECT had, {TASK} FROM looked LEFT JOIN claimed ON true
        """
        parameters = (version_hash, *workflow_ids, now_ms, *([] if execution_id is None else [execution_id]))
        for _ in range(CLAIM_TRIES):
            row = self._sql(sql, (*parameters, worker_id, lease_ms, now_ms + lease_ms)).fetchone()
            if row is None:
                return None
            had, *task = row
            if task[0] is not None:
                return task_of(tuple(task))
            if not had:
                time.sleep(CLAIM_PAUSE_SECONDS)  # its commit is a matter of milliseconds
        return None

    def touch(self) -> None:
        self._sql("UPDATE about SET touched = touched + 1")

    def _list_copies(self, session_id: str, orders: Collection[int]) -> int:
        count = super()._list_copies(session_id, orders)
        self._sql("ANALYZE copied")  # else it takes them for thousands, and goes through whole tables for them
        return count

    def _defer_references(self) -> None:
        self._sql("SET CONSTRAINTS ALL DEFERRED")
