"""The store of a database that was named: a SQLite file, or a PostgreSQL database by its URL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nexum_runtime.server.model.contract import Store, StoreUnavailable
from nexum_runtime.server.store.sqlite import SqliteStore


def opened(database: Path | str) -> Store:
    """Raises StoreUnavailable, or InvalidRequest for a URL that is none."""
    if isinstance(database, Path):
        return SqliteStore(database)
    with needs_psycopg():
        from nexum_runtime.server.store.postgres.place import place_of
        from nexum_runtime.server.store.postgres.store import PostgresStore
    return PostgresStore(place_of(database))


@contextmanager
def needs_psycopg() -> Iterator[None]:
    """Around the imports of a PostgreSQL store. Raises StoreUnavailable, which tells how it is installed."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "psycopg":
            raise
        raise StoreUnavailable(
            "A PostgreSQL database needs psycopg, which is not installed: pip install 'psycopg[binary]>=3.2,<4'"
        ) from None
