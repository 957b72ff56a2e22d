"""The store of a database that was named: a SQLite file, or a PostgreSQL database by its URL."""

from pathlib import Path

from nexum_runtime.server.model.contract import Store, StoreUnavailable
from nexum_runtime.server.store.sqlite import SqliteStore


def opened(database: Path | str) -> Store:
    """Raises StoreUnavailable, or InvalidRequest for a URL that is none."""
    if isinstance(database, Path):
        return SqliteStore(database)
    try:
        from nexum_runtime.server.store.postgres.place import place_of
        from nexum_runtime.server.store.postgres.store import PostgresStore
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "psycopg":
            raise
        raise StoreUnavailable(
            "A PostgreSQL database needs psycopg, which is not installed: pip install 'psycopg[binary]>=3.2,<4'"
        ) from None
    return PostgresStore(place_of(database))
