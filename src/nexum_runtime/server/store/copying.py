"""A copy of all records between two databases that were named, of one kind or of two."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from nexum_runtime.errors import InvalidRequest
from nexum_runtime.server.store.opened import needs_psycopg
from nexum_runtime.server.store.sql.copying import Copied, End, Told, copy
from nexum_runtime.server.store.sqlite import copying as of_sqlite


class _Ends(Protocol):
    """What a kind of database has."""

    def source(self, database: Any, /) -> AbstractContextManager[End]: ...

    def target(self, database: Any, /) -> AbstractContextManager[End]: ...


def copied(source: Path | str, target: Path | str, told: Told) -> Copied:
    """Raises StoreUnavailable when nothing was copied, or InvalidRequest for what does not name two databases."""
    if source == target or (
        isinstance(source, Path) and isinstance(target, Path) and source.resolve() == target.resolve()
    ):
        raise InvalidRequest(
            "The database to copy from and the one to copy to are the same. Name another one with --to."
        )
    with _ends(source).source(source) as read, _ends(target).target(target) as written:
        return copy(read, written, told)


def _ends(database: Path | str) -> _Ends:
    if isinstance(database, Path):
        return of_sqlite
    with needs_psycopg():
        from nexum_runtime.server.store.postgres import copying as of_postgres
    return of_postgres
