"""The database: is it new enough, ours, free to be used; its schema made and brought up to date."""

import time
from pathlib import Path

import psycopg
from psycopg import errors, sql

from nexum_runtime.server.model.contract import StoreInUse, StoreUnavailable
from nexum_runtime.server.store.postgres.connection import Connection
from nexum_runtime.server.store.postgres.failures import unusable
from nexum_runtime.server.store.postgres.place import Place

OLDEST = 140_000  # the version of PostgreSQL, as it counts them
SCHEMA_VERSION = 3
SCHEMA = (Path(__file__).parent / "schema.sql").read_text(encoding="utf-8")
LOCK = 0x4E58554D  # "NXUM": of advisory locks, with the schema's name
SERVER_LOCK = LOCK + 2  # … with a server's number
TAKE_SECONDS = 2.0  # that whoever has it is waited for …
LOOK_SECONDS = 0.1  # … between two looks
MIGRATIONS = {  # schema version → the SQL that makes it the next one
    1: """
        ALTER TABLE executions ADD COLUMN parent_node text COLLATE "C";
        ALTER TABLE tasks ADD COLUMN part bigint, ADD COLUMN parts bigint, ADD COLUMN item_json text;
    """,
    2: "ALTER TABLE executions ADD COLUMN awaited_by_json text;",
}


def prepare(connection: Connection, place: Place) -> None:
    """Make the schema, or bring it up to date. Raises StoreUnavailable, or what PostgreSQL raises."""
    if connection.server_version < OLDEST:
        found = f"{connection.server_version // 10_000}.{connection.server_version % 10_000}"
        raise unusable(place, f"it is PostgreSQL {found}", f"Nexum needs {OLDEST // 10_000} or newer.")
    with _transaction(connection):
        connection.execute(f"SELECT pg_advisory_xact_lock({LOCK}, hashtext(?))", (f"{place.schema} is made",))
        if not _is_made(connection):
            _make(connection, place)
        version = _version(connection)
        if version != SCHEMA_VERSION and version not in MIGRATIONS:
            raise _unknown(place, version)
        for before in range(version, SCHEMA_VERSION):
            connection.raw_execute(MIGRATIONS[before])
        connection.execute("UPDATE about SET schema_version = ? WHERE schema_version <> ?", (SCHEMA_VERSION,) * 2)


def check(connection: Connection, place: Place) -> None:
    """Refuse what cannot be read as it is, without changing it. Raises StoreUnavailable, or what PostgreSQL raises."""
    if not _is_made(connection):
        raise unusable(place, f"it has no records of Nexum in its schema {place.schema!r}", "Name the one that has.")
    if connection.execute("SELECT pg_is_in_recovery()").fetchone()[0]:
        raise unusable(place, "it is a replica, which cannot tell whether a server has it open", "Name the primary.")
    if (version := _version(connection)) in MIGRATIONS:
        raise unusable(
            place,
            f"its schema {place.schema!r} has version {version}, and this Nexum reads version {SCHEMA_VERSION}",
            "Bring it forward by starting `nexum dev` on it once.",
        )
    if version != SCHEMA_VERSION:
        raise _unknown(place, version)


def _is_made(connection: Connection) -> bool:
    return bool(connection.execute("SELECT to_regclass('about') IS NOT NULL").fetchone()[0])


def _version(connection: Connection) -> int:
    return int(connection.execute("SELECT schema_version FROM about").fetchone()[0])


def _unknown(place: Place, version: int) -> StoreUnavailable:
    return unusable(
        place,
        f"its schema {place.schema!r} has version {version}, and this Nexum knows versions up to {SCHEMA_VERSION}",
        "Use the Nexum that wrote it, or name another schema: ?schema=… in the URL.",
    )


def _make(connection: Connection, place: Place) -> None:
    name = sql.Identifier(place.schema)
    there = connection.execute(
        "SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = ? LIMIT 1",
        (place.schema,),
    ).fetchone()
    if there is not None:
        raise unusable(
            place,
            f"its schema {place.schema!r} is another program's, with {there[0]!r}",
            "Give Nexum one of its own: ?schema=… in the URL.",
        )
    if connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = ?", (place.schema,)).fetchone() is None:
        connection.raw_execute(sql.SQL("CREATE SCHEMA {}").format(name))
    connection.raw_execute(SCHEMA)
    connection.execute("INSERT INTO about (schema_version) VALUES (?)", (SCHEMA_VERSION,))


def enter(connection: Connection, place: Place) -> None:
    """Be one of the servers that write to it, as long as this connection lasts. Raises StoreInUse."""
    if not _has_lock(connection, place, "pg_try_advisory_lock_shared"):
        raise StoreInUse(f"The database {place} is being copied. Wait until that has ended.")


def be_there(connection: Connection, server: str) -> None:
    """Be this server for the others, as long as this connection lasts, or another one that does the same."""
    connection.execute(f"SELECT pg_advisory_lock_shared({SERVER_LOCK}, {int(server)})")


def servers(connection: Connection) -> set[str]:
    """Those that are there."""
    found = connection.execute(
        f"SELECT objid::text FROM pg_locks WHERE locktype = 'advisory' AND classid = {SERVER_LOCK} AND granted "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return {server for (server,) in found.fetchall()}


def _has_lock(connection: Connection, place: Place, function: str) -> bool:
    """Within a moment: whoever had it may have just been killed."""
    until = time.monotonic() + TAKE_SECONDS
    while not connection.execute(f"SELECT {function}({LOCK}, hashtext(?))", (place.schema,)).fetchone()[0]:
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def take(connection: Connection, place: Place) -> None:
    """Have all of it, as long as this connection lasts. Raises StoreInUse."""
    if _has_lock(connection, place, "pg_try_advisory_lock"):
        return
    holder = connection.execute(
        "SELECT coalesce(host(client_addr), 'its own machine'), l.pid FROM pg_locks l "
        "LEFT JOIN pg_stat_activity a USING (pid) WHERE locktype = 'advisory' AND l.granted "
        f"AND classid = {LOCK} AND objid = hashtext(?)::oid LIMIT 1",
        (place.schema,),
    ).fetchone()
    who = f" (from {holder[0]}, PostgreSQL's process {holder[1]})" if holder else ""
    raise StoreInUse(f"A Nexum server{who} has the database {place}, schema {place.schema!r}.")


def leave(connection: Connection) -> None:
    """Let another server have it, now and not only when PostgreSQL notices that this connection has ended."""
    connection.execute("SELECT pg_advisory_unlock_all()")


class _transaction:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.raw_execute("BEGIN")

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is None:
            self._connection.raw_execute("COMMIT")
        elif not self._connection.is_broken:
            self._connection.raw_execute("ROLLBACK")


def may_succeed_again(error: psycopg.Error) -> bool:
    """Whether another server has come between, or the way to the database was cut; not when what is asked is wrong."""
    return isinstance(error, errors.UniqueViolation) or not isinstance(
        error, errors.IntegrityError | errors.DataError | errors.ProgrammingError
    )
