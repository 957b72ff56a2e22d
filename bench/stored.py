"""Databases with many stored calls, made in seconds: copies of a call that a server and a worker have really carried.

The rows are copied column by column, whatever the schema is, and only what must differ does: ids, numbers, inputs.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from nexum_runtime.server.store.sql.rows import EVENT_BITS

CACHE_KIB = 512 * 1024  # the index over ids is written all over
NUMBERS = {
    "executions": "copied.seq + copies.number",
    "tasks": "copied.seq + copies.number * (SELECT count(*) FROM copied)",
    "events": f"copied.seq + (copies.number << {EVENT_BITS})",  # which begin with the execution's
}
SESSIONS = """
    INSERT INTO sessions (session_id, began_at_ms, heard_at_ms)
    SELECT substr(execution_id, 1, instr(execution_id, '/') - 1) AS session, min(created_at_ms), max(created_at_ms)
    FROM executions WHERE instr(execution_id, '/') > 1 GROUP BY session
    ON CONFLICT (session_id) DO NOTHING
"""


def fill(database: Path, calls: Iterable[tuple[str, str]]) -> None:
    """Store the one execution that is there again under each of the ids, each with its input as JSON."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        run = connection.execute
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}"):
            run(f"PRAGMA {pragma}")
        run("CREATE TEMP TABLE copies (number INTEGER PRIMARY KEY, id TEXT, input TEXT)")
        run("BEGIN")
        connection.executemany("INSERT INTO copies (id, input) VALUES (?, ?)", calls)
        for table, number in NUMBERS.items():
            differs = {
                "seq": number,
                "execution_id": "copies.id",
                "input_json": "copies.input",
                "task_key": f"({number}) || '-' || lower(hex(randomblob(8)))",
            }
            columns = [name for _, name, *_ in run(f"PRAGMA table_info({table})")]
            run(f"CREATE TEMP TABLE copied AS SELECT * FROM main.{table} ORDER BY seq")
            values = ", ".join(differs.get(name, f"copied.{name}") for name in columns)
            run(
                f"INSERT INTO main.{table} ({', '.join(columns)}) SELECT {values} FROM copies CROSS JOIN copied "
                "ORDER BY copies.number, copied.rowid"
            )
            run("DROP TABLE copied")
        run(SESSIONS)
        run("COMMIT")
        run("PRAGMA journal_mode = WAL")
