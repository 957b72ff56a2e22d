"""All stores there are, for the tests that every one of them has to pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import postgres

from nexum_runtime.server.model.contract import Store
from nexum_runtime.server.store.postgres.place import place_of
from nexum_runtime.server.store.postgres.store import PostgresStore
from nexum_runtime.server.store.sqlite import SqliteStore

BACKENDS: dict[str, Callable[[Path], Store]] = {  # each opens the one that goes with a folder
    "sqlite": lambda folder: SqliteStore(folder / "store.db"),
    "postgres": lambda folder: PostgresStore(place_of(postgres.schema_for(folder))),
}


def sqlite_of(owner: Any) -> SqliteStore:
    assert isinstance(owner.store, SqliteStore)
    return owner.store
