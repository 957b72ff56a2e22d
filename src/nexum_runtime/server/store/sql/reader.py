"""What is read, in SQL."""

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from nexum_runtime import wire
from nexum_runtime.server.model.contract import (
    TAKEN_BACK,
    Approval,
    EventRow,
    Execution,
    Rebuild,
    Session,
    Span,
    Stop,
    Task,
    Workflow,
    is_taken_back,
)
from nexum_runtime.server.model.states import OPEN_STATUSES, Event, ExecutionStatus
from nexum_runtime.server.store.sql.connection import Connection, Rows
from nexum_runtime.server.store.sql.rows import (
    EVENT_BITS,
    EXECUTION,
    IN_SPAN,
    IS_NO_ITEM,
    IS_TURN,
    OPEN,
    TASK,
    WORKFLOW,
    by_key,
    execution_of,
    in_orders,
    marks,
    open_ones,
    orders_of,
    span_of,
    task_of,
)

FEW = 5  # executions of a session that are named


class SqlReader:
    def __init__(self, connection: Connection) -> None:
        self._execute = connection.execute

    def _sql(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        return self._execute(sql, parameters)

    def _rows(self, sql: str, parameters: Sequence[Any]) -> Iterable[Any]:
        """Of which not all may be wanted: they are fetched as they are."""
        return self._sql(sql, parameters)

    def workflow(self, workflow_id: str, version_hash: str) -> Workflow | None:
        row = self._sql(
            f"SELECT {WORKFLOW} FROM workflows WHERE workflow_id = ? AND (version_hash = ? OR ? = '') "
            "ORDER BY seq DESC LIMIT 1",
            (workflow_id, version_hash, version_hash),
        ).fetchone()
        return Workflow(*row) if row else None

    def workflows(self, workflow_id: str) -> list[Workflow]:
        rows = self._sql(
            "WITH running AS (SELECT workflow_id, version_hash, count(DISTINCT execution_id) AS executions "
            f"FROM ({open_ones('execution_id, workflow_id, version_hash')}) opened GROUP BY 1, 2) "
            f"SELECT {WORKFLOW}, coalesce(executions, 0) "
            "FROM workflows LEFT JOIN running USING (workflow_id, version_hash) "
            "WHERE workflow_id = ? OR ? = '' ORDER BY seq DESC",
            (workflow_id, workflow_id),
        )
        return [Workflow(*row) for row in rows]

    def workflow_ids(self, version_hash: str) -> list[str]:
        rows = self._sql("SELECT workflow_id FROM workflows WHERE version_hash = ? ORDER BY seq", (version_hash,))
        return [workflow_id for (workflow_id,) in rows]

    def count_workflows(self) -> int:
        return int(self._sql("SELECT count(*) FROM workflows").fetchone()[0])

    def execution(self, execution_id: str) -> Execution | None:
        row = self._sql(f"SELECT {EXECUTION} FROM executions WHERE execution_id = ?", (execution_id,)).fetchone()
        return execution_of(row) if row else None

    def executions(self, workflow_id: str, status: str, prefix: str, limit: int) -> list[Execution]:
        conditions, parameters = [], []
        if workflow_id:
            conditions.append("workflow_id = ?")
            parameters.append(workflow_id)
        if status:
            conditions.append(f"status = '{ExecutionStatus(status)}'")  # spelled out: an index is of some of them
        if status == ExecutionStatus.RUNNING:
            conditions.append(f"execution_id IN ({open_ones()})")
        if prefix:
            conditions.append("execution_id >= ? AND execution_id < ?")
            parameters += [prefix, _after_prefix(prefix)]
        where = "WHERE " + " AND ".join(conditions) if conditions else ""
        rows = self._sql(f"SELECT {EXECUTION} FROM executions {where} ORDER BY seq DESC LIMIT ?", (*parameters, limit))
        return [execution_of(row) for row in rows]

    def sessions(self, prefix: str, limit: int) -> list[Session]:
        where, parameters = "WHERE true ", list[str]()
        if prefix.endswith("/"):
            where, parameters = "WHERE session_id = ? ", [prefix[:-1]]
        elif prefix:
            where, parameters = "WHERE session_id >= ? AND session_id < ? ", [prefix, _after_prefix(prefix)]
        where += (
            f"AND session_id < '{TAKEN_BACK}' "
            if is_taken_back(prefix)
            else f"AND instr(session_id, '{TAKEN_BACK}') = 0 "
        )
        rows = self._sql(
            "SELECT session_id, began_at_ms, heard_at_ms, stopped_json, "
            f"(SELECT stopped_json FROM sessions r WHERE r.session_id = '{TAKEN_BACK}' || s.session_id) "
            f"FROM sessions s {where}"
            "ORDER BY heard_at_ms DESC, session_id LIMIT ?",
            (*parameters, limit),
        )
        return [self._session(*row) for row in rows.fetchall()]

    def _session(
        self,
        session_id: str,
        began_at_ms: int,
        heard_at_ms: int,
        stopped_json: str | None,
        rebuild_json: str | None,
    ) -> Session:
        of_it = (f"{session_id}/", f"{session_id}0")  # "0" comes after "/"
        theirs = "FROM executions WHERE execution_id >= ? AND execution_id < ?"
        kind, run = (f"json_extract(labels_json, '$.{key}')" for key in ("kind", "run"))
        count, runs, ended_at_ms, last = self._sql(
            f"SELECT count(*), count(DISTINCT {run}), max(ended_at_ms), max(seq) {theirs}", of_it
        ).fetchone()
        kinds = self._sql(
            f"SELECT {kind}, count(*), count(*) FILTER (WHERE status = 'COMPLETED') {theirs} "
            f"AND {kind} IS NOT NULL GROUP BY 1",
            of_it,
        ).fetchall()
        end = self._sql(
            f"SELECT execution_id {theirs} AND {kind} = 'run' AND status = 'COMPLETED' ORDER BY seq DESC LIMIT 1", of_it
        ).fetchone()
        numbers = self._sql(
            "SELECT key, sum(value) FROM executions, json_each(labels_json, '$.numbers') "
            "WHERE execution_id >= ? AND execution_id < ? AND labels_json IS NOT NULL GROUP BY key",
            of_it,
        )
        unknown = self._sql(
            f"SELECT execution_id {theirs} AND error_code = 'OUTCOME_UNKNOWN' AND status = 'FAILED' "
            f"ORDER BY seq LIMIT {FEW}",
            of_it,
        )
        open_tasks: dict[str, list[str]] = {"WAITING": [], "READY": [], "RUNNING": [], "PARKED": []}
        local: set[str] = set()
        for execution_id, status, node_type, is_local in self._sql(
            f"SELECT execution_id, t.status, node_type, coalesce(worker_id LIKE '{wire.LOCAL_WORKER}%', false) "
            "FROM executions x JOIN tasks t USING (execution_id) "
            f"WHERE execution_id >= ? AND execution_id < ? AND x.status = 'RUNNING' AND t.{OPEN} ORDER BY t.seq",
            of_it,
        ):
            if status == "WAITING" and node_type == "EFFECT":
                open_tasks["PARKED"].append(execution_id)
            elif status != "WAITING" or node_type == "HUMAN_APPROVAL":
                open_tasks[status].append(execution_id)
            if status == "READY" and is_local:
                local.add(execution_id)
        row = self._sql(f"SELECT {EXECUTION} FROM executions WHERE seq = ?", (last,)).fetchone()
        waiting = [each for each in open_tasks["READY"] if each not in open_tasks["RUNNING"]]
        begins = {*open_tasks["READY"], *open_tasks["RUNNING"]}
        return Session(
            session_id=session_id,
            began_at_ms=began_at_ms,
            heard_at_ms=max(heard_at_ms, ended_at_ms or 0),
            stop=_stop_of(stopped_json),
            rebuild=_rebuild_of(rebuild_json),
            executions=count,
            kinds={name: count for name, count, _ in kinds},
            recorded={name: count for name, _, count in kinds},
            runs=runs,
            numbers=dict(numbers.fetchall()),
            unknown=[execution_id for (execution_id,) in unknown],
            asks=open_tasks["WAITING"][:FEW],
            waiting=waiting[:FEW],
            waits_for_worker=any(each not in local for each in waiting),
            running=open_tasks["RUNNING"][:FEW],
            parked=[each for each in open_tasks["PARKED"] if each not in begins][:FEW],
            last=execution_of(row) if row else None,
            end=end[0] if end else None,
            forked_from=self._forked_from(session_id),
            taken_back=self.taken_back(session_id),
        )

    def _forked_from(self, session_id: str) -> dict[str, Any] | None:
        if not (forks := self._forks(session_id)):
            return None
        at_ms, data_json = forks[-1]
        return dict(json.loads(data_json)) | {"forked_at_ms": at_ms}

    def _forks(self, session_id: str) -> list[tuple[int, str]]:
        """When each fork was made that led to this session, and its data; its first execution tells of them."""
        return self._sql(
            "SELECT at_ms, data_json FROM (SELECT min(seq) AS first FROM executions "
            "WHERE execution_id >= ? AND execution_id < ?) its, events "
            f"WHERE events.seq BETWEEN first << {EVENT_BITS} AND (first << {EVENT_BITS}) + {(1 << EVENT_BITS) - 1} "
            f"AND type = '{Event.EXECUTION_FORKED}' ORDER BY events.seq",
            (f"{session_id}/", f"{session_id}0"),
        ).fetchall()

    def first_session(self, session_id: str) -> str:
        forks = self._forks(session_id)
        return str(json.loads(forks[0][1])["session_id"]) if forks else session_id

    def taken_back(self, session_id: str) -> list[str]:
        prefix = f"{session_id}{TAKEN_BACK}"
        rows = self._sql(
            "SELECT session_id FROM sessions WHERE session_id >= ? AND session_id < ? "
            "ORDER BY length(session_id), session_id",
            (prefix, _after_prefix(prefix)),
        )
        return [each for (each,) in rows]

    def turns(self, session_id: str) -> list[tuple[int, str]]:
        return self._sql(
            "SELECT seq, execution_id FROM executions WHERE execution_id >= ? AND execution_id < ? "
            f"AND {IS_TURN} ORDER BY seq",
            (f"{session_id}/", f"{session_id}0"),
        ).fetchall()

    def order_of(self, execution_id: str) -> int | None:
        row = self._sql("SELECT seq FROM executions WHERE execution_id = ?", (execution_id,)).fetchone()
        return int(row[0]) if row else None

    def before(self, prefix: str, order: int, limit: int) -> list[tuple[int, str]]:
        return self._sql(
            "SELECT seq, execution_id FROM executions WHERE execution_id >= ? AND execution_id < ? AND seq < ? "
            "ORDER BY seq DESC LIMIT ?",
            (prefix, _after_prefix(prefix), order, limit),
        ).fetchall()

    def after(self, prefix: str, order: int, limit: int, *, is_near: bool) -> list[tuple[int, str]]:
        name = "execution_id || ''" if is_near else "execution_id"  # so the index by order is taken, or that by id
        return self._sql(
            f"SELECT seq, execution_id FROM executions WHERE {name} >= ? AND {name} < ? AND seq > ? "
            "ORDER BY seq LIMIT ?",
            (prefix, _after_prefix(prefix), order, limit),
        ).fetchall()

    def named(self, orders: Collection[int]) -> dict[int, str]:
        sql = f"SELECT seq, execution_id FROM executions WHERE seq IN ({marks(orders)})"
        return dict(self._sql(sql, tuple(orders)).fetchall())

    def under_way(self, span: Span) -> list[Execution]:
        rows = self._sql(
            f"SELECT {EXECUTION} FROM executions x WHERE {IN_SPAN} AND execution_id IN ({open_ones()}) ORDER BY +seq",
            span_of(span),
        )
        return [execution_of(row) for row in rows]

    def orders(self, span: Span) -> list[int]:
        rows = self._sql(f"SELECT seq FROM executions x WHERE {IN_SPAN} ORDER BY +seq", span_of(span))
        return [order for (order,) in rows]

    def ended(self, span: Span, orders: Collection[int] | None = None) -> list[tuple[int, int]]:
        these, parameters = IN_SPAN, span_of(span)
        if orders is not None:
            these, parameters = in_orders(orders), orders_of(span.session_id, orders)
        return self._sql(
            "SELECT x.seq, CASE x.status WHEN 'COMPLETED' THEN 0 ELSE (SELECT max(v.seq) FROM events v WHERE v.seq "
            f"BETWEEN x.seq << {EVENT_BITS} AND (x.seq << {EVENT_BITS}) + {(1 << EVENT_BITS) - 1}) END "
            f"FROM executions x WHERE {these} AND NOT EXISTS "
            f"(SELECT 1 FROM tasks t WHERE t.execution_id = x.execution_id AND t.{OPEN}) ORDER BY +x.seq",
            parameters,
        ).fetchall()

    def would_happen_again(self, orders: Collection[int]) -> list[tuple[int, str]]:
        return self._sql(
            f"SELECT seq, execution_id FROM executions x WHERE seq IN ({marks(orders)}) AND EXISTS "
            "(SELECT 1 FROM tasks t "
            "WHERE t.execution_id = x.execution_id AND CASE node_type WHEN 'HUMAN_APPROVAL' THEN t.status = 'DONE' "
            "ELSE x.effect = 'once' AND t.attempt > 0 AND t.status IN ('DONE', 'FAILED') END) ORDER BY seq",
            tuple(orders),
        ).fetchall()

    def longest_id(self, span: Span) -> int:
        sql = f"SELECT coalesce(max(length(execution_id)), 0) FROM executions x WHERE {IN_SPAN}"
        return int(self._sql(sql, span_of(span)).fetchone()[0])

    def knows_session(self, session_id: str) -> bool:
        return self._sql("SELECT 1 FROM sessions WHERE session_id = ?", (session_id,)).fetchone() is not None

    def is_larger(self, session_id: str, than: int) -> bool:
        rows = self._sql(
            "SELECT 1 FROM executions WHERE execution_id >= ? AND execution_id < ? LIMIT 1 OFFSET ?",
            (f"{session_id}/", f"{session_id}0", than),
        )
        return rows.fetchone() is not None

    def stop_of(self, session_id: str) -> Stop | None:
        return self.hindrances(session_id)[0]

    def hindrances(self, session_id: str) -> tuple[Stop | None, Rebuild | None]:
        rebuild = f"{TAKEN_BACK}{session_id}"
        sql = "SELECT session_id, stopped_json FROM sessions WHERE session_id IN (?, ?)"
        found = dict(self._sql(sql, (session_id, rebuild)).fetchall())
        return _stop_of(found.get(session_id)), _rebuild_of(found.get(rebuild))

    def rebuilds(self) -> list[tuple[Rebuild, int]]:
        rows = self._sql(
            "SELECT stopped_json, heard_at_ms FROM sessions WHERE session_id >= ? AND session_id < ?",
            (TAKEN_BACK, _after_prefix(TAKEN_BACK)),
        )
        return [(Rebuild(**json.loads(rebuild_json)), heard_at_ms) for rebuild_json, heard_at_ms in rows]

    def count_running(self, prefix: str, limit: int) -> int:
        row = self._sql(
            f"SELECT count(*) FROM (SELECT DISTINCT execution_id FROM ({open_ones()}) opened "
            "WHERE execution_id || '' >= ? AND execution_id || '' < ? LIMIT ?) running",
            (prefix, _after_prefix(prefix), limit),
        ).fetchone()
        return int(row[0])

    def ended_before(self, at_ms: int, prefix: str, after_seq: int, limit: int) -> list[tuple[int, str]]:
        rows = self._sql(
            "SELECT seq, execution_id FROM executions e WHERE seq > ? AND ended_at_ms <= ? AND status <> 'RUNNING' "
            "AND substr(execution_id, 1, CAST(? AS INTEGER)) = ? AND NOT EXISTS "
            "(SELECT 1 FROM tasks t WHERE t.execution_id = e.execution_id AND t.status = 'RUNNING') "
            f"AND (coalesce(error_code, '') <> 'OUTCOME_UNKNOWN' OR instr(execution_id, '{TAKEN_BACK}') > 0) "
            "ORDER BY seq LIMIT ?",
            (after_seq, at_ms, len(prefix), prefix, limit),
        )
        return rows.fetchall()

    def outputs(self, execution_id: str, nodes: Collection[str] | None = None) -> dict[str, str]:
        if nodes is not None and not nodes:
            return {}
        these = "" if nodes is None else f" AND node_id IN ({marks(nodes)})"
        rows = self._sql(
            "SELECT node_id, output_json FROM tasks WHERE execution_id = ? AND status = 'DONE' "
            f"AND {IS_NO_ITEM}{these} ORDER BY seq",
            (execution_id, *(nodes or ())),
        )
        return dict(rows.fetchall())

    def child(self, execution_id: str, node_id: str) -> Execution | None:
        row = self._sql(
            f"SELECT {EXECUTION} FROM executions WHERE execution_id >= ? AND execution_id < ? AND parent_node = ? "
            "AND instr(substr(execution_id, CAST(? AS INTEGER)), '/') = 0",
            (f"{execution_id}/", f"{execution_id}0", node_id, len(execution_id) + 2),
        ).fetchone()
        return execution_of(row) if row else None

    def item_outputs(self, execution_id: str, map_id: str) -> list[str]:
        rows = self._sql(
            "SELECT output_json FROM tasks WHERE execution_id = ? AND node_type = 'MAP_SUBTASK' AND status = 'DONE' "
            "AND node_id = ? || '__' || part ORDER BY part",
            (execution_id, map_id),
        )
        return [output_json for (output_json,) in rows]

    def item(self, task_key: str) -> str:
        condition, parameters = by_key(task_key)
        return str(self._sql(f"SELECT item_json FROM tasks WHERE {condition}", parameters).fetchone()[0])

    def ready_item(self, version_hash: str, workflow_ids: Collection[str]) -> str | None:
        row = self._sql(
            "SELECT execution_id FROM tasks WHERE status = 'READY' AND held = 0 AND version_hash = ? "
            f"AND workflow_id IN ({marks(workflow_ids)}) AND node_type = 'MAP_SUBTASK' LIMIT 1",
            (version_hash, *workflow_ids),
        ).fetchone()
        return row[0] if row else None

    def journal(self, prefix: str, after: str, limit_chars: int) -> tuple[dict[str, dict[str, str]], str]:
        rows = self._rows(
            "SELECT x.execution_id, node_id, output_json FROM executions x CROSS JOIN tasks t WHERE "
            f"t.execution_id = x.execution_id AND x.execution_id {'>' if after else '>='} ? AND x.execution_id < ? "
            f"AND x.status = 'COMPLETED' AND t.status = 'DONE' AND {IS_NO_ITEM} ORDER BY x.execution_id, t.seq",
            (after or prefix, _after_prefix(prefix)),
        )
        found: dict[str, dict[str, str]] = {}
        chars = 0
        for execution_id, node_id, output_json in rows:
            if execution_id not in found and chars >= limit_chars:
                break
            found.setdefault(execution_id, {})[node_id] = output_json
            chars += len(output_json) + len(execution_id)
        return found, next(reversed(found), after)

    def tasks(self, execution_id: str) -> list[Task]:
        rows = self._sql(f"SELECT {TASK} FROM tasks WHERE execution_id = ? ORDER BY seq", (execution_id,))
        return [task_of(row) for row in rows]

    def node_task(self, execution_id: str, node_id: str) -> Task | None:
        sql = f"SELECT {TASK} FROM tasks WHERE execution_id = ? AND node_id = ?"
        row = self._sql(sql, (execution_id, node_id)).fetchone()
        return task_of(row) if row else None

    def count_tasks(self) -> dict[tuple[str, str], int]:
        counts = " UNION ALL ".join(
            f"SELECT status, node_type, count(*) FROM tasks WHERE status = '{status}' GROUP BY status, node_type"
            for status in OPEN_STATUSES
        )
        return {(status, node_type): count for status, node_type, count in self._sql(counts)}

    def task(self, task_key: str) -> Task | None:
        condition, parameters = by_key(task_key)
        row = self._sql(f"SELECT {TASK} FROM tasks WHERE {condition}", parameters).fetchone()
        return task_of(row) if row else None

    def events(self, execution_id: str) -> list[EventRow]:
        rows = self._sql(
            "SELECT at_ms, type, node_id, attempt, data_json FROM story WHERE execution_id = ? ORDER BY seq",
            (execution_id,),
        )
        return [
            EventRow(at_ms, Event(type), node_id, attempt, json.loads(data))
            for at_ms, type, node_id, attempt, data in rows
        ]

    def count_events(self, execution_id: str) -> int:
        row = self._sql("SELECT count(*) FROM story WHERE execution_id = ?", (execution_id,)).fetchone()
        return int(row[0])

    def expired(self, now_ms: int) -> list[Task]:
        rows = self._sql(
            f"SELECT {TASK} FROM tasks WHERE status = 'RUNNING' AND lease_expires_at_ms <= ? ORDER BY seq",
            (now_ms,),
        )
        return [task_of(row) for row in rows]

    def approvals(self, limit: int) -> list[Approval]:
        rows = self._sql(
            "SELECT execution_id, node_id, workflow_id, (SELECT max(at_ms) FROM story v WHERE v.execution_id = "
            "t.execution_id AND v.node_id = t.node_id AND v.type = 'ApprovalRequested') AS since_ms "
            "FROM tasks t WHERE status = 'WAITING' AND node_type = 'HUMAN_APPROVAL' ORDER BY since_ms, seq LIMIT ?",
            (limit,),
        )
        return [Approval(*row) for row in rows]

    def next_timer(self) -> int | None:
        firsts = (  # each is one look at the index
            "SELECT min(available_at_ms) AS due_ms FROM tasks "
            f"WHERE status = 'WAITING' AND node_type = '{node_type}' AND available_at_ms > 0"
            for node_type in ("TIMER", "HUMAN_APPROVAL", "EFFECT")
        )
        row = self._sql(f"SELECT min(due_ms) FROM ({' UNION ALL '.join(firsts)}) each_first").fetchone()
        due_ms: int | None = row[0]
        return due_ms

    def due(self, now_ms: int, limit: int) -> list[Task]:
        rows = self._sql(
            f"SELECT {TASK} FROM tasks WHERE status = 'WAITING' AND node_type IN ('TIMER', 'HUMAN_APPROVAL', 'EFFECT') "
            "AND available_at_ms > 0 AND available_at_ms <= ? ORDER BY available_at_ms, seq LIMIT ?",
            (now_ms, limit),
        )
        return [task_of(row) for row in rows]

    def held(self, worker_id: str) -> list[Task]:
        rows = self._sql(
            f"SELECT {TASK} FROM tasks WHERE status = 'RUNNING' AND worker_id = ? ORDER BY seq", (worker_id,)
        )
        return [task_of(row) for row in rows]

    def holders(self, prefix: str) -> list[str]:
        rows = self._sql(
            "SELECT DISTINCT worker_id FROM tasks WHERE status = 'RUNNING' AND worker_id >= ? AND worker_id < ?",
            (prefix, _after_prefix(prefix)),
        )
        return [worker_id for (worker_id,) in rows]


def _stop_of(stopped_json: str | None) -> Stop | None:
    return Stop(**json.loads(stopped_json)) if stopped_json else None


def _rebuild_of(rebuild_json: str | None) -> Rebuild | None:
    return Rebuild(**json.loads(rebuild_json)) if rebuild_json else None


def _after_prefix(prefix: str) -> str:
    """The first text that no longer begins with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
