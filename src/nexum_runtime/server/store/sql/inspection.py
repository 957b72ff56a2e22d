"""What a person asks of a store who wonders what is wrong: what waits in it, and since when."""

import json
from typing import Any

from nexum_runtime import wire
from nexum_runtime.server.model.contract import TAKEN_BACK
from nexum_runtime.server.store.sql.connection import Connection
from nexum_runtime.server.store.sql.rows import IS_NOT_STOPPED

LISTED_LIMIT = 20  # of a kind
EXPIRED_AGE_MS = 600_000  # how long an expired lease is news

_WAITING = f"""
    SELECT workflow_id, version_hash, local, count(*), min(seq) FROM (
        SELECT workflow_id, version_hash, seq, coalesce(worker_id LIKE '{wire.LOCAL_WORKER}%', false) AS local
        FROM tasks WHERE status = 'READY' AND node_type IN ('EFFECT', 'COMPUTE') AND available_at_ms <= ?
        AND {IS_NOT_STOPPED}
    ) each_one GROUP BY workflow_id, version_hash, local ORDER BY min(seq) LIMIT {LISTED_LIMIT}
"""
# Since when it could be claimed, as far as events tell: after the last thing that happened.
_FIRST = """
    SELECT execution_id, CASE WHEN last_ms > available_at_ms THEN last_ms ELSE available_at_ms END FROM (
        SELECT execution_id, available_at_ms,
            (SELECT max(at_ms) FROM story s WHERE s.execution_id = t.execution_id) AS last_ms
        FROM tasks t WHERE seq = ?
    ) first
"""
_RUNNING = f"""
    SELECT execution_id, node_id, attempt, worker_id, lease_ms, lease_expires_at_ms FROM tasks
    WHERE status = 'RUNNING' AND lease_expires_at_ms IS NOT NULL ORDER BY lease_expires_at_ms LIMIT {LISTED_LIMIT}
"""
_EXPIRED = f"""
    WITH open AS (
        SELECT execution_id FROM tasks WHERE status = 'READY' AND attempt > 0
        UNION SELECT execution_id FROM tasks WHERE status = 'RUNNING' AND attempt > 1
    )
    SELECT open.execution_id, node_id, attempt, at_ms, json_extract(data_json, '$.error')
    FROM open CROSS JOIN story WHERE story.execution_id = open.execution_id
        AND type || '' = 'LeaseExpired' AND at_ms > ?
        AND json_extract(data_json, '$.worker') NOT LIKE '{wire.LOCAL_WORKER}%'
    ORDER BY at_ms DESC LIMIT {LISTED_LIMIT}
"""
_UNKNOWN = f"""
    SELECT execution_id FROM executions WHERE status = 'FAILED' AND error_code = 'OUTCOME_UNKNOWN'
        AND instr(execution_id, '{TAKEN_BACK}') = 0
    ORDER BY seq DESC LIMIT {LISTED_LIMIT}
"""
_STATES = f"""
    SELECT CASE
        WHEN error_code = 'OUTCOME_UNKNOWN' THEN 'UNKNOWN'
        WHEN status <> 'RUNNING' THEN status
        WHEN NOT {IS_NOT_STOPPED} THEN 'STOPPED'
        WHEN (SELECT count(*) FILTER (WHERE t.status = 'WAITING' AND node_type = 'HUMAN_APPROVAL') > 0
                AND count(*) FILTER (WHERE t.status IN ('READY', 'RUNNING')) = 0
              FROM tasks t WHERE t.execution_id = x.execution_id) THEN 'WAITING'
        WHEN (SELECT count(*) FILTER (WHERE t.status = 'WAITING' AND node_type = 'EFFECT') > 0
                AND count(*) FILTER (WHERE t.status IN ('READY', 'RUNNING')) = 0
              FROM tasks t WHERE t.execution_id = x.execution_id) THEN 'PARKED'
        ELSE 'RUNNING' END AS state, count(*)
    FROM executions x GROUP BY state
"""
_STOPPED = f"""
    SELECT session_id, stopped_json FROM sessions
    WHERE stopped_json IS NOT NULL AND instr(session_id, '{TAKEN_BACK}') = 0 LIMIT {LISTED_LIMIT}
"""


def overview(connection: Connection, now_ms: int) -> dict[str, Any]:
    """What `Store.inspect` has besides "database"."""
    sql = connection.execute
    running = [
        {
            "execution_id": execution_id,
            "node_id": node_id,
            "attempt": attempt,
            "worker_id": worker_id,
            "silent_ms": now_ms - (expires_at_ms - lease_ms),
            "lease_ms": lease_ms,
        }
        for execution_id, node_id, attempt, worker_id, lease_ms, expires_at_ms in sql(_RUNNING)
    ]
    expired = [
        {"execution_id": execution_id, "node_id": node_id, "attempt": attempt, "ago_ms": now_ms - at_ms, "error": error}
        for execution_id, node_id, attempt, at_ms, error in sql(_EXPIRED, (now_ms - EXPIRED_AGE_MS,))
    ]
    waiting = []
    for workflow_id, version_hash, local, count, seq in sql(_WAITING, (now_ms,)).fetchall():
        execution_id, since_ms = sql(_FIRST, (seq,)).fetchone()
        waiting.append(
            {
                "workflow_id": workflow_id,
                "version_hash": version_hash,
                "local": bool(local),
                "tasks": count,
                "execution_id": execution_id,
                "since_ms": now_ms - since_ms,
            }
        )
    return {
        "executions": dict(sql(_STATES).fetchall()),
        "stopped": [{"session_id": session_id} | json.loads(stopped) for session_id, stopped in sql(_STOPPED)],
        "held": dict(sql("SELECT worker_id, count(*) FROM tasks WHERE status = 'RUNNING' GROUP BY worker_id")),
        "waiting": waiting,
        "running": running,
        "expired": expired,
        "unknown": [execution_id for (execution_id,) in sql(_UNKNOWN)],
    }
