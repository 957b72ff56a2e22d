-- The database of a Nexum server: five tables, and how a call passes through them.
--
-- A workflow is registered once (workflows). Starting it adds one row to executions and one to tasks for every node
-- that depends on nothing. A worker's poll claims the READY task that was scheduled first: one conditional UPDATE
-- makes it RUNNING, counts the attempt and starts its lease. Its result makes it DONE, adds a row to tasks for every
-- node that became ready by it, and, when no node is left, makes the execution COMPLETED. A node that needs no worker, a
-- person's approval or a timer, is WAITING instead until it is DONE. Each of these steps is one transaction and writes
-- its row to events in that same transaction, so events tell the whole story in order.
--
-- The first result of a MAP's task is its items: it adds a row to tasks for each of them, and the MAP's own is WAITING
-- until they are DONE. That of a SUBWORKFLOW is the input of an execution, its child, which it waits for. The id of a
-- child is its parent's, a "/" and a name of its node; so both are of one session.
--
-- An attempt that has to wait may be given back: its task is WAITING until one of some executions of its session ends,
-- which its rows in executions say, or until a time. Then it is READY again.
--
-- Executions whose ids begin with the same "{session}/" are a session. Of one that is stopped, no task is claimed. While
-- a large one is taken back or forked in many transactions, a row of sessions, "~{session}", says so in stopped_json.
--
-- Times are integer milliseconds since 1970; every *_json column holds JSON text exactly as it was received.
-- States and their legal moves: ../../model/states.py.

CREATE TABLE workflows (
    seq              INTEGER PRIMARY KEY,   -- the latest version is the one with the highest
    workflow_id      TEXT NOT NULL,
    version_hash     TEXT NOT NULL,
    ir_json          TEXT NOT NULL,
    compatibility    TEXT NOT NULL CHECK (compatibility IN ('NEW', 'IDENTICAL', 'SAFE', 'BREAKING')),
    registered_at_ms INTEGER NOT NULL,
    UNIQUE (workflow_id, version_hash)
) STRICT;

CREATE INDEX workflows_by_hash ON workflows (version_hash);  -- a stock worker's poll names nothing else

CREATE TABLE executions (
    seq           INTEGER PRIMARY KEY,       -- the order in which they were started
    execution_id  TEXT NOT NULL UNIQUE,                    -- "{session}/…": one session is one range of this index
    workflow_id   TEXT NOT NULL,
    version_hash  TEXT NOT NULL,
    status        TEXT NOT NULL CHECK (status IN ('RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    input_json    TEXT NOT NULL,
    max_attempts  INTEGER NOT NULL,                        -- of each of its tasks
    error         TEXT,                                    -- why it is FAILED or CANCELLED
    error_code    TEXT CHECK (error_code IN ('TOOL_ERROR', 'OUTCOME_UNKNOWN', 'REJECTED', 'CANCELLED')),
    created_at_ms INTEGER NOT NULL,
    ended_at_ms   INTEGER,
    effect        TEXT NOT NULL DEFAULT 'idempotent' CHECK (effect IN ('read', 'idempotent', 'once')),
    timeout_ms    INTEGER,                                 -- of one attempt
    labels_json   TEXT,                                    -- what its client says that it is: wire.LABELS
    parent_node   TEXT,                                    -- of a child: the node of its parent that waits for it
    awaited_by_json TEXT                                   -- ids of the attempts that are parked until it ends
) STRICT;

-- Every index costs each call a page of the log, or two. So none has what is COMPLETED, as most executions are, and
-- what is RUNNING is found by its open tasks.
CREATE INDEX executions_by_workflow ON executions (workflow_id);
CREATE INDEX executions_without_result ON executions (status) WHERE status IN ('FAILED', 'CANCELLED');

CREATE TABLE sessions (
    session_id   TEXT PRIMARY KEY,                         -- what stands before the first "/" of an execution's id
    began_at_ms  INTEGER NOT NULL,
    heard_at_ms  INTEGER NOT NULL,                         -- when an execution of it was started last, to the second
    stopped_json TEXT                                      -- {"at_ms", "by", "reason"} while it is stopped
) STRICT;

CREATE INDEX sessions_heard ON sessions (heard_at_ms);

CREATE TABLE tasks (
    seq                 INTEGER PRIMARY KEY, -- first scheduled, first claimed
    task_key            TEXT NOT NULL,                     -- "{seq}-{random}"; with ".{attempt}" it names one attempt
    execution_id        TEXT NOT NULL REFERENCES executions (execution_id),
    workflow_id         TEXT NOT NULL,                     -- as in executions, here for the claim's index
    version_hash        TEXT NOT NULL,
    node_id             TEXT NOT NULL,
    node_type           TEXT NOT NULL,
    status              TEXT NOT NULL
                        CHECK (status IN ('READY', 'WAITING', 'RUNNING', 'DONE', 'FAILED', 'CANCELLED')),
    attempt             INTEGER NOT NULL,                  -- attempts begun so far
    attempt_limit       INTEGER NOT NULL,
    available_at_ms     INTEGER NOT NULL,                  -- READY: a retry waits until then; WAITING: a timer fires
    worker_id           TEXT,                              -- who has, or had, the latest attempt
    lease_ms            INTEGER,
    lease_expires_at_ms INTEGER,                           -- RUNNING: silent beyond this, the attempt is given up
    output_json         TEXT,                              -- DONE: the recorded result
    error               TEXT,                              -- FAILED: why
    error_code          TEXT CHECK (error_code IN ('TOOL_ERROR', 'OUTCOME_UNKNOWN', 'REJECTED')),
    held                INTEGER NOT NULL DEFAULT 0,        -- READY: 1 when its session was stopped, for the claim's index
    part                INTEGER,                           -- of an item: which it is; of its MAP: how many are DONE
    parts               INTEGER,                           -- of both: how many items there are
    item_json           TEXT,                              -- of an item: what it is
    UNIQUE (execution_id, node_id),
    CHECK ((status = 'DONE') = (output_json IS NOT NULL)),
    CHECK ((status = 'RUNNING') = (lease_expires_at_ms IS NOT NULL)),
    CHECK ((status = 'FAILED') = (error_code IS NOT NULL))
) STRICT;

CREATE UNIQUE INDEX tasks_named ON tasks (task_key) WHERE task_key NOT GLOB '[0-9]*-*';  -- keys of schema version 2
CREATE INDEX tasks_ready ON tasks (version_hash, workflow_id, held, seq) WHERE status = 'READY';
CREATE INDEX tasks_running ON tasks (worker_id, lease_expires_at_ms) WHERE status = 'RUNNING';
CREATE INDEX tasks_waiting ON tasks (node_type, available_at_ms) WHERE status = 'WAITING';

-- The events of an execution have the numbers from (executions.seq << 20) + 1 on, in the order in which they happened.
-- So they lie side by side, and need no index. The 20 is EVENT_BITS in ../sql/rows.py.
CREATE TABLE events (
    seq          INTEGER PRIMARY KEY,
    at_ms        INTEGER NOT NULL,
    type         TEXT NOT NULL,
    node_id      TEXT,
    attempt      INTEGER,
    data_json    TEXT NOT NULL
) STRICT;

CREATE VIEW story AS
SELECT execution_id, events.* FROM executions x CROSS JOIN events
WHERE events.seq BETWEEN x.seq << 20 AND (x.seq << 20) + 1048575;
