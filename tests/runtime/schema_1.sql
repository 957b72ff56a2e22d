-- A database as schema version 1 left it: one execution that runs, with a task to claim, one whose task a worker
-- has, and one that is over. The tables are those of version 1, to the letter.

PRAGMA application_id = 0x4E58554D;
PRAGMA user_version = 1;

CREATE TABLE workflows (
    seq              INTEGER PRIMARY KEY AUTOINCREMENT,   -- the latest version is the one with the highest
    workflow_id      TEXT NOT NULL,
    version_hash     TEXT NOT NULL,
    ir_json          TEXT NOT NULL,
    compatibility    TEXT NOT NULL CHECK (compatibility IN ('NEW', 'IDENTICAL', 'SAFE', 'BREAKING')),
    registered_at_ms INTEGER NOT NULL,
    UNIQUE (workflow_id, version_hash)
) STRICT;

CREATE INDEX workflows_by_hash ON workflows (version_hash);  -- a stock worker's poll names nothing else

CREATE TABLE executions (
    seq           INTEGER PRIMARY KEY AUTOINCREMENT,       -- the order in which they were started
    execution_id  TEXT NOT NULL UNIQUE,                    -- "{session}/…": one session is one range of this index
    workflow_id   TEXT NOT NULL,
    version_hash  TEXT NOT NULL,
    status        TEXT NOT NULL CHECK (status IN ('RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    input_json    TEXT NOT NULL,
    max_attempts  INTEGER NOT NULL,                        -- of each of its tasks
    error         TEXT,                                    -- why it is FAILED or CANCELLED
    error_code    TEXT CHECK (error_code IN ('TOOL_ERROR', 'OUTCOME_UNKNOWN', 'REJECTED', 'CANCELLED')),
    created_at_ms INTEGER NOT NULL,
    ended_at_ms   INTEGER
) STRICT;

CREATE INDEX executions_by_workflow ON executions (workflow_id, version_hash, status);
CREATE INDEX executions_by_status ON executions (status, seq);

CREATE TABLE tasks (
    seq                 INTEGER PRIMARY KEY AUTOINCREMENT, -- first scheduled, first claimed
    task_key            TEXT NOT NULL UNIQUE,              -- random; with ".{attempt}" it names one attempt
    execution_id        TEXT NOT NULL REFERENCES executions (execution_id),
    workflow_id         TEXT NOT NULL,                     -- as in executions, here for the claim's index
    version_hash        TEXT NOT NULL,
    node_id             TEXT NOT NULL,
    node_type           TEXT NOT NULL,
    status              TEXT NOT NULL CHECK (status IN ('READY', 'RUNNING', 'DONE', 'FAILED', 'CANCELLED')),
    attempt             INTEGER NOT NULL,                  -- attempts begun so far
    attempt_limit       INTEGER NOT NULL,
    available_at_ms     INTEGER NOT NULL,                  -- READY: a retry waits until then
    worker_id           TEXT,                              -- who has, or had, the latest attempt
    lease_ms            INTEGER,
    lease_expires_at_ms INTEGER,                           -- RUNNING: silent beyond this, the attempt is given up
    output_json         TEXT,                              -- DONE: the recorded result
    error               TEXT,                              -- FAILED: why
    error_code          TEXT CHECK (error_code IN ('TOOL_ERROR', 'OUTCOME_UNKNOWN', 'REJECTED')),
    UNIQUE (execution_id, node_id),
    CHECK ((status = 'DONE') = (output_json IS NOT NULL)),
    CHECK ((status = 'RUNNING') = (lease_expires_at_ms IS NOT NULL)),
    CHECK ((status = 'FAILED') = (error_code IS NOT NULL))
) STRICT;

CREATE INDEX tasks_ready ON tasks (version_hash, workflow_id, seq) WHERE status = 'READY';
CREATE INDEX tasks_leased ON tasks (lease_expires_at_ms) WHERE status = 'RUNNING';
CREATE INDEX tasks_of_worker ON tasks (worker_id) WHERE status = 'RUNNING';

CREATE TABLE events (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    execution_id TEXT NOT NULL REFERENCES executions (execution_id),
    at_ms        INTEGER NOT NULL,
    type         TEXT NOT NULL,
    node_id      TEXT,
    attempt      INTEGER,
    data_json    TEXT NOT NULL
) STRICT;

CREATE INDEX events_of_execution ON events (execution_id, seq);

INSERT INTO workflows VALUES (1, 'w', 'h', '{"nodes":{"run":{"type":"EFFECT","dependencies":[]}}}', 'NEW', 1700000000000);

INSERT INTO executions VALUES (1, 's/ready', 'w', 'h', 'RUNNING', '{"q":1}', 4, NULL, NULL, 1700000000000, NULL);
INSERT INTO executions VALUES (2, 's/claimed', 'w', 'h', 'RUNNING', '{"q":2}', 4, NULL, NULL, 1700000000001, NULL);
INSERT INTO executions VALUES (3, 's/done', 'w', 'h', 'COMPLETED', '{"q":3}', 4, NULL, NULL, 1700000000002, 1700000000009);

INSERT INTO tasks VALUES (1, '5d1c0b9a33e24f7788', 's/ready', 'w', 'h', 'run', 'EFFECT', 'READY', 0, 4, 0,
    NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO tasks VALUES (2, '018bcfe5680112d687', 's/claimed', 'w', 'h', 'run', 'EFFECT', 'RUNNING', 1, 4, 0,
    'worker-1', 10000, 1700000010001, NULL, NULL, NULL);
INSERT INTO tasks VALUES (3, '7e60d3aa90b14c2f01', 's/done', 'w', 'h', 'run', 'EFFECT', 'DONE', 1, 4, 0,
    'worker-1', 10000, NULL, '{"text":"kept"}', NULL, NULL);

INSERT INTO events VALUES (1, 's/ready', 1700000000000, 'ExecutionStarted', NULL, NULL, '{}');
INSERT INTO events VALUES (2, 's/claimed', 1700000000001, 'ExecutionStarted', NULL, NULL, '{}');
INSERT INTO events VALUES (3, 's/done', 1700000000002, 'ExecutionStarted', NULL, NULL, '{}');
INSERT INTO events VALUES (4, 's/claimed', 1700000000003, 'AttemptStarted', 'run', 1, '{"worker_id": "worker-1"}');
INSERT INTO events VALUES (5, 's/done', 1700000000004, 'AttemptStarted', 'run', 1, '{"worker_id": "worker-1"}');
INSERT INTO events VALUES (6, 's/done', 1700000000004, 'TaskCompleted', 'run', 1, '{}');
INSERT INTO events VALUES (9, 's/done', 1700000000004, 'ExecutionCompleted', NULL, NULL, '{}');
