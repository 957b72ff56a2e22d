"""What a person asks of a database whose server they wonder about: is it sound, what waits in it, and since when.

It has a connection of its own, so that no other reader waits for it.
"""

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from nexum_runtime import wire
from nexum_runtime.server.model.contract import TAKEN_BACK
from nexum_runtime.server.store.sqlite import files
from nexum_runtime.server.store.sqlite.rows import IS_NOT_STOPPED

CHECK_MS = 500  # at most, of looking for damage
CHECK_STEPS = 10_000  # of SQLite's machine between two looks at the clock
LISTED_LIMIT = 20  # of a kind
EXPIRED_AGE_MS = 600_000  # how long an expired lease is news

_WAITING = f"""
    SELECT workflow_id, version_hash, local, count(*), min(seq), execution_id FROM (
        SELECT workflow_id, version_hash, seq, execution_id,
            ifnull(worker_id LIKE '{wire.LOCAL_WORKER}%', 0) AS local
        FROM tasks WHERE status = 'READY' AND node_type IN ('EFFECT', 'COMPUTE') AND available_at_ms <= ?
        AND {IS_NOT_STOPPED}
    ) GROUP BY workflow_id, version_hash, local ORDER BY min(seq) LIMIT {LISTED_LIMIT}
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
    SELECT execution_id, node_id, attempt, at_ms, json_extract(data_json, '$.error')
    FROM open CROSS JOIN story USING (execution_id)
    WHERE +type = 'LeaseExpired' AND at_ms > ?
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
        WHEN (SELECT max(t.status = 'WAITING' AND node_type = 'HUMAN_APPROVAL') > max(t.status IN ('READY', 'RUNNING'))
              FROM tasks t WHERE t.execution_id = x.execution_id) THEN 'WAITING'
        ELSE 'RUNNING' END AS state, count(*)
    FROM executions x GROUP BY state
"""
_STOPPED = f"SELECT session_id, stopped_json FROM sessions WHERE stopped_json IS NOT NULL LIMIT {LISTED_LIMIT}"


def inspect(path: Path, now_ms: int, connection: sqlite3.Connection | None = None) -> dict[str, Any]:
    """`{"database": {"path", "size_bytes", "free_bytes", "damage"}, "executions", "held", "waiting", "running",
    "expired", "unknown", "stopped"}`, each as `Store.inspect` has it, as far as a damaged database can tell.

    By the `connection`, if nobody else can have one.
    """
    database: dict[str, Any] = {
        "path": str(path),
        "size_bytes": sum(identity.st_size for _, identity in files.identities(path) if identity),
        "free_bytes": shutil.disk_usage(path.parent).free if path.parent.exists() else None,
        "damage": None,
    }
    told: dict[str, Any] = {"database": database}
    try:
        with _looking(path, connection) as looking:
            looking.execute("BEGIN")  # one snapshot
            told |= _state(looking, now_ms)
            database["damage"] = damage_of(looking)
    except sqlite3.Error as error:
        database["damage"] = str(error)
    return told


@contextmanager
def _looking(path: Path, connection: sqlite3.Connection | None) -> Iterator[sqlite3.Connection]:
    if connection is None:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)) as own:
            yield own
        return
    try:
        yield connection
    finally:
        connection.set_progress_handler(None, 0)
        connection.rollback()


def _state(connection: sqlite3.Connection, now_ms: int) -> dict[str, Any]:
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
    waiting = [
        {
            "workflow_id": workflow_id,
            "version_hash": version_hash,
            "local": bool(local),
            "tasks": count,
            "execution_id": execution_id,
            "since_ms": now_ms - _ready_since(connection, seq, execution_id),
        }
        for workflow_id, version_hash, local, count, seq, execution_id in sql(_WAITING, (now_ms,)).fetchall()
    ]
    return {
        "executions": dict(sql(_STATES).fetchall()),
        "stopped": [{"session_id": session_id} | json.loads(stopped) for session_id, stopped in sql(_STOPPED)],
        "held": dict(sql("SELECT worker_id, count(*) FROM tasks WHERE status = 'RUNNING' GROUP BY worker_id")),
        "waiting": waiting,
        "running": running,
        "expired": expired,
        "unknown": [execution_id for (execution_id,) in sql(_UNKNOWN)],
    }


def _ready_since(connection: sqlite3.Connection, seq: int, execution_id: str) -> int:
    """When a READY task could first be claimed, as far as events tell: after the last thing that happened."""
    (at_ms,) = connection.execute(
        "SELECT max((SELECT max(at_ms) FROM story WHERE execution_id = ?), available_at_ms) FROM tasks WHERE seq = ?",
        (execution_id, seq),
    ).fetchone()
    return int(at_ms)


def damage_of(connection: sqlite3.Connection, ms: int = CHECK_MS) -> str | None:
    """What SQLite finds wrong in the time it has, or None."""
    deadline = time.monotonic() + ms / 1000
    connection.set_progress_handler(lambda: time.monotonic() > deadline, CHECK_STEPS)
    try:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return None
    return None if found == "ok" else " ".join(str(found).split())
