"""The schema's version, how events are numbered in it, and the SQL that brings an older database forward.

What is stored, and why: schema.sql.
"""

import re
from pathlib import Path

from nexum_runtime.server.store.sql.rows import EVENT_BITS

SCHEMA_VERSION = 7
APPLICATION_ID = 0x4E58554D  # "NXUM": another program's database is never taken for ours

SCHEMA = (Path(__file__).parent / "schema.sql").read_text(encoding="utf-8")

_SCHEMA_6 = re.sub(r",( *-- of a child: the node.*\n) *awaited_by_json.*\n", r"\1", SCHEMA)
_SCHEMA_5 = re.sub(r",( *-- what its client says.*\n) *parent_node.*\n", r"\1", _SCHEMA_6)
_SCHEMA_5 = re.sub(r"(?m)^ *(part|parts|item_json) .*\n", "", _SCHEMA_5)
_SESSIONS = SCHEMA[SCHEMA.index("CREATE TABLE sessions") : SCHEMA.index("CREATE TABLE tasks")]  # since version 4
_READY = "CREATE INDEX tasks_ready ON tasks (version_hash, workflow_id, {}seq) WHERE status = 'READY';"
_SCHEMA_4 = re.sub(r" *held .*\n", "", _SCHEMA_5.replace(_READY.format("held, "), _READY.format("")))
_SCHEMA_3 = re.sub(r",( *-- of one attempt\n) *labels_json.*\n", r"\1", _SCHEMA_4.replace(_SESSIONS, ""))

_TABLES = {  # of version 2, with their columns, but for events; each comes after those that it refers to
    "workflows": "seq, workflow_id, version_hash, ir_json, compatibility, registered_at_ms",
    "executions": "seq, execution_id, workflow_id, version_hash, status, input_json, max_attempts, error, error_code, "
    "created_at_ms, ended_at_ms, effect, timeout_ms",
    "tasks": "seq, task_key, execution_id, workflow_id, version_hash, node_id, node_type, status, attempt, "
    "attempt_limit, available_at_ms, worker_id, lease_ms, lease_expires_at_ms, output_json, error, error_code",
}
_INDEXES = """
    workflows_by_hash executions_by_workflow executions_by_status executions_running
    tasks_ready tasks_leased tasks_of_worker events_of_execution
"""
_renamed = " ".join(
    [f"ALTER TABLE {table} RENAME TO old_{table};" for table in _TABLES]
    + ["ALTER TABLE events RENAME TO old_events;"]
    + [f"DROP INDEX {index};" for index in _INDEXES.split()]
)
_copied = " ".join(
    [f"INSERT INTO {table} ({columns}) SELECT {columns} FROM old_{table};" for table, columns in _TABLES.items()]
    + [
        f"""
        INSERT INTO events (seq, at_ms, type, node_id, attempt, data_json)
        SELECT (x.seq << {EVENT_BITS}) + row_number() OVER (PARTITION BY x.seq ORDER BY v.seq), at_ms, type, node_id,
            attempt, data_json
        FROM old_events v JOIN executions x USING (execution_id);
        """
    ]
    + [f"DROP TABLE old_{table};" for table in ("events", *reversed(_TABLES))]
)

MIGRATIONS = {  # schema version → the SQL that makes it the next one
    1: """
        ALTER TABLE executions ADD COLUMN effect TEXT NOT NULL DEFAULT 'idempotent'
            CHECK (effect IN ('read', 'idempotent', 'once'));
        ALTER TABLE executions ADD COLUMN timeout_ms INTEGER;
        CREATE INDEX executions_running ON executions (execution_id) WHERE status = 'RUNNING';
    """,
    2: f"""
        {_renamed}
        {_SCHEMA_3}
        {_copied}
    """,
    3: f"""
        ALTER TABLE executions ADD COLUMN labels_json TEXT;
        {_SESSIONS}
        INSERT INTO sessions (session_id, began_at_ms, heard_at_ms)
        SELECT substr(execution_id, 1, instr(execution_id, '/') - 1) AS session, min(created_at_ms), max(created_at_ms)
        FROM executions WHERE instr(execution_id, '/') > 1 GROUP BY session;
    """,
    4: f"""
        ALTER TABLE tasks ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
        DROP INDEX tasks_ready;
        {_READY.format("held, ")}
    """,
    5: """
        ALTER TABLE executions ADD COLUMN parent_node TEXT;
        ALTER TABLE tasks ADD COLUMN part INTEGER;
        ALTER TABLE tasks ADD COLUMN parts INTEGER;
        ALTER TABLE tasks ADD COLUMN item_json TEXT;
    """,
    6: "ALTER TABLE executions ADD COLUMN awaited_by_json TEXT;",
}
