"""The file as a database: is it ours and sound, how it is opened, made, brought up to date, and made smaller."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from nexum_runtime import wire
from nexum_runtime.logs import Log
from nexum_runtime.server.model.contract import ANOTHER, StoreUnavailable
from nexum_runtime.server.model.states import Event
from nexum_runtime.server.store.sql.rows import EVENT_BITS
from nexum_runtime.server.store.sqlite import failures, files, inspection, last
from nexum_runtime.server.store.sqlite.schema import APPLICATION_ID, MIGRATIONS, SCHEMA, SCHEMA_VERSION
from nexum_runtime.text import MIB, printable_line, shorten

log = Log("nexum.engine")

BUSY_TIMEOUT_MS = 5_000  # a person's sqlite3 shell may hold the write lock for a moment
CHECK_MS = 100  # at most, of looking for damage when the database is opened
CHECK_MIB = 100  # of a database that is looked at then
ORIGINAL = frozenset({"workflow_executions", "workflow_versions", "task_queue"})  # tables of Nexum 0.2.0's own server
NAMED_TABLES, NAME_CHARS = 3, 40  # tables that are named of a database that is not ours
VACUUM_PAGES = 1_000  # given back in one transaction, so that other writes need not wait for long


def connect(path: Path) -> sqlite3.Connection:
    # isolation_level=None: transactions begin and end where the store says so, not where the module guesses.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heeded while the file is empty, and by VACUUM
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a commit returns when it is on the disk
        connection.execute("PRAGMA fullfsync = ON")  # macOS: or it may only be in the disk's cache
        connection.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_write(path: Path) -> sqlite3.Connection:
    """To what is there, once it has been looked at; or to a new and empty file.

    Raises StoreUnavailable, or what SQLite raises.
    """
    files.check(path)
    files.check_room(path)
    check(path)
    files.make_private(path)
    if (folder := files.open_folder(path)) is not None:
        log.warning("Every user may write to %s, and replace the database: chmod o-w %s", folder, folder)
    return connect(path)


# Whatever the last engine's own process executed has gone with it, and is shown so.
_GONE = f"t.status = 'RUNNING' AND t.worker_id LIKE '{wire.EMBEDDED_WORKER}%'"
_AS_LEFT = f"""
    CREATE TEMP VIEW tasks AS
    SELECT seq, task_key, execution_id, workflow_id, version_hash, node_id, node_type,
        iif({_GONE}, 'READY', status) AS status, attempt, attempt_limit, available_at_ms, worker_id, lease_ms,
        lease_expires_at_ms, output_json, error, error_code, held, part, parts, item_json
    FROM main.tasks t;
    CREATE TEMP VIEW story AS
    SELECT execution_id, seq, at_ms, type, node_id, attempt, data_json FROM main.story
    UNION ALL
    SELECT execution_id, (x.seq << {EVENT_BITS}) + {(1 << EVENT_BITS) - 1}, lease_expires_at_ms - lease_ms,
        '{Event.LEASE_EXPIRED}', node_id, attempt, json_object('worker', worker_id, 'error', 'Its program has gone.')
    FROM main.executions x JOIN main.tasks t USING (execution_id) WHERE {_GONE};
"""


def connect_to_look(path: Path) -> sqlite3.Connection:
    """To a database that nobody has open."""
    connection = connect_to_read(path)
    connection.executescript(_AS_LEFT)
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    return _look_at(path, "mode=ro")


def connect_alone(path: Path, why: StoreUnavailable) -> sqlite3.Connection:
    """To read without another file of SQLite's, which a full disk has no room for. Nobody else can then.

    Raises `why` that is so for what is not ours or of an older schema, StoreUnavailable for what is damaged, and what
    SQLite raises.
    """
    with closing(_look_at(path, "immutable=1")) as connection:  # which leaves it as it is
        if _pragma(connection, "application_id") != APPLICATION_ID:
            raise why
    connection = _look_at(path, "mode=rw")
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        _check_open(path, connection)
        if _pragma(connection, "user_version") != SCHEMA_VERSION:
            raise why
    except BaseException:
        connection.close()
        raise
    return connection


def check_version(path: Path) -> None:
    """Refuse what cannot be read as it is, without changing it. Raises StoreUnavailable, or what SQLite raises."""
    with closing(connect_to_read(path)) as connection:
        application_id, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    if application_id != APPLICATION_ID:
        raise StoreUnavailable(f"{path} is a database of another program. {failures.OTHER_FILE}")
    if version != SCHEMA_VERSION:
        raise StoreUnavailable(
            f"{path} has schema version {version}, and this Nexum reads version {SCHEMA_VERSION}. "
            "Bring an older one forward by starting `nexum dev` once."
        )


def check(path: Path) -> None:
    """Refuse a file that is neither ours nor empty, or is damaged, without changing any of its files."""
    log = files.wal_of(path)
    if not (log.exists() and log.stat().st_size):
        _is_ours(path, "immutable=1")
        return
    try:
        _is_ours(path, "mode=ro")
    except (StoreUnavailable, sqlite3.DatabaseError) as error:
        if isinstance(error, sqlite3.OperationalError):  # not what the files hold: they could not be read
            raise
        with suppress(StoreUnavailable, sqlite3.DatabaseError):
            if _is_ours(path, "immutable=1"):
                error = failures.unusable(path, f"{log} does not fit it", failures.LOST_LOG)
        raise error from None


def _is_ours(path: Path, how: str) -> bool:
    """False for an empty one. Raises StoreUnavailable, or what SQLite raises."""
    with closing(_look_at(path, how)) as connection:
        return _check_open(path, connection)


def _look_at(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.as_uri()}?{how}", uri=True, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return connection


def _check_open(path: Path, connection: sqlite3.Connection) -> bool:
    application_id, version = _pragma(connection, "application_id"), _pragma(connection, "user_version")
    if application_id != APPLICATION_ID:
        if _is_empty(connection):
            return False
        raise StoreUnavailable(f"{path} is {_whose(connection)}. {failures.OTHER_FILE}")
    if version != SCHEMA_VERSION and version not in MIGRATIONS:
        raise StoreUnavailable(
            f"{path} has schema version {version}, and this Nexum knows versions up to {SCHEMA_VERSION}. "
            f"Use the Nexum that wrote it, or another file: {ANOTHER}."
        )
    _look_for_damage(path, connection)
    if version == SCHEMA_VERSION:
        last.check(path, connection)
    return True


def _whose(connection: sqlite3.Connection) -> str:
    """What a database is that is not ours, by its tables."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE name NOT GLOB 'sqlite_*' AND type <> 'index'")
    names = sorted(name for (name,) in rows)
    if ORIGINAL.issubset(names):
        return "a database of the original Nexum server, which keeps its records in another way"
    shown = ", ".join(printable_line(shorten(name, NAME_CHARS)) for name in names[:NAMED_TABLES])
    more = f" and {len(names) - NAMED_TABLES} more" if len(names) > NAMED_TABLES else ""
    return f"a database of another program: it has {shown}{more}" if shown else "a database of another program"


def _look_for_damage(path: Path, connection: sqlite3.Connection) -> None:
    """As far as time allows. What is found later is told by the call that comes upon it."""
    if path.stat().st_size > CHECK_MIB * MIB:  # each table is looked at in one step, however large it is
        return
    if found := inspection.damage_of(connection, CHECK_MS):
        raise failures.damaged(path, found)


def create_schema(connection: sqlite3.Connection) -> bool:
    """Returns whether there was none."""
    if is_new := _is_empty(connection):
        connection.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID};"
            f"PRAGMA user_version = {SCHEMA_VERSION};\n{SCHEMA}\nCOMMIT;"
        )
    return is_new


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an older file forward, one version a transaction."""
    while (version := _pragma(connection, "user_version")) < SCHEMA_VERSION:
        migration = MIGRATIONS[version]
        connection.executescript(f"BEGIN IMMEDIATE; {migration} PRAGMA user_version = {version + 1}; COMMIT;")


def vacuum(connection: sqlite3.Connection) -> int:
    """Give back some of the pages that are free. Returns how many bytes they are."""
    before = _size_bytes(connection)
    if _pragma(connection, "auto_vacuum") == 0:  # a file of schema version 1
        connection.execute("VACUUM")
    # A script runs to its end; `execute` would stop after the first page.
    connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
    return max(before - _size_bytes(connection), 0)


def _size_bytes(connection: sqlite3.Connection) -> int:
    return _pragma(connection, "page_count") * _pragma(connection, "page_size")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None
