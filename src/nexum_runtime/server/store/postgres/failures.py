"""What keeps a PostgreSQL database from being used, told with what to do next."""

import psycopg
from psycopg import errors

from nexum_runtime.server.model.contract import StoreUnavailable
from nexum_runtime.server.store.postgres.place import Place

ROOM = "Make room on its disk."
UNKNOWN = "PostgreSQL's log may say more."
REASON_CHARS = 300

_START = "Start PostgreSQL there, or put the right host and port into its URL."
_PREFIXES = ("connection failed: ", "connection is bad: ", "- ", "FATAL:  ")
_NEXT: tuple[tuple[type[psycopg.Error], str], ...] = (
    (errors.DiskFull, ROOM),
    (errors.InvalidPassword, "Put the right user and password into its URL, PGPASSWORD or ~/.pgpass."),
    (errors.InvalidAuthorizationSpecification, "Its pg_hba.conf must let this user in."),
    (errors.InsufficientPrivilege, "Its user needs CREATE on the database, or a schema that is its own."),
    (errors.InvalidCatalogName, "Make it with createdb, or name another one."),
    (errors.TooManyConnections, "Raise its max_connections, or end other programs' connections."),
    (errors.ReadOnlySqlTransaction, "It is a replica, or read-only: name the one that can be written to."),
)
_NEXT_OF_WORDS = (  # of a connection that was never made, libpq says why in words alone
    ("password authentication failed", _NEXT[1][1]),
    ("no password supplied", _NEXT[1][1]),
    ("pg_hba.conf", _NEXT[2][1]),
    ("does not exist", "Make it, or name another one."),
    ("could not translate host name", "Put the right host into its URL."),
    ("Connection refused", _START),
    ("No such file or directory", _START),
    ("timeout expired", _START),
    ("too many", _NEXT[5][1]),
    ("certificate", "Give libpq the certificate of its authority: sslrootcert=… in the URL."),
)


def told(place: Place, error: BaseException) -> BaseException:
    return unavailable(place, error) if isinstance(error, psycopg.Error) else error


def unavailable(place: Place, error: psycopg.Error) -> StoreUnavailable:
    why = reason(error)
    for kind, what_next in _NEXT:
        if isinstance(error, kind):
            return unusable(place, why, what_next)
    for words, what_next in _NEXT_OF_WORDS:
        if words in why:
            return unusable(place, why, what_next)
    return unusable(place, why, UNKNOWN)


def unusable(place: Place, why: str, what_next: str) -> StoreUnavailable:
    return StoreUnavailable(f"Cannot use the database {place}: {why}. {what_next}", for_room=what_next == ROOM)


def reason(error: psycopg.Error) -> str:
    """In one line; of several addresses that were tried, the last."""
    text = error.diag.message_primary or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("Multiple", "\t"))]
    last = lines[-1] if lines else type(error).__name__
    for prefix in _PREFIXES:
        last = last.replace(prefix, "")
    return last[:REASON_CHARS].rstrip(".")
