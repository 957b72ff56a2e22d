"""All records of a store, copied into another one that has none.

An end is a store's database in one transaction, with nobody else at it. What was written is read back before it is
committed: a copy that ends before leaves nothing, and can be made again.
"""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from nexum_runtime.crash import crash_point
from nexum_runtime.server.model.contract import StoreUnavailable

TABLES = {  # with their columns, the first of which is the key; each comes after those that it refers to
    "workflows": "seq, workflow_id, version_hash, ir_json, compatibility, registered_at_ms",
    "executions": "seq, execution_id, workflow_id, version_hash, status, input_json, max_attempts, error, error_code, "
    "created_at_ms, ended_at_ms, effect, timeout_ms, labels_json, parent_node, awaited_by_json",
    "sessions": "session_id, began_at_ms, heard_at_ms, stopped_json",
    "tasks": "seq, task_key, execution_id, workflow_id, version_hash, node_id, node_type, status, attempt, "
    "attempt_limit, available_at_ms, worker_id, lease_ms, lease_expires_at_ms, output_json, error, error_code, held, "
    "part, parts, item_json",
    "events": "seq, at_ms, type, node_id, attempt, data_json",
}
TOLD_ROWS = 1_000  # between two words on how far it is

Row = tuple[Any, ...]
Told = Callable[[str, int, int], None]  # what is done, and how many rows of how many


class RowRefused(Exception):
    """What was read is not as a store may have it."""


class End(Protocol):
    where: str  # without a password

    def count(self, table: str) -> int: ...

    def rows(self, table: str) -> Generator[Row, None, None]:
        """In the order of their keys, read one after the other. Raises StoreUnavailable."""
        ...

    def held(self, row: Row) -> Row:
        """As this store can hold it: itself, or another one."""
        ...

    def add(self, table: str, rows: Iterable[Row]) -> None:
        """Raises StoreUnavailable, RowRefused, and what `rows` raises."""
        ...

    def commit(self) -> None:
        """Raises StoreUnavailable."""
        ...


class Table(NamedTuple):
    rows: int
    digest: str  # SHA-256, of the rows in the order of their keys


@dataclass
class Copied:
    source: str
    target: str
    tables: dict[str, Table] = field(default_factory=dict)
    changed: int = 0  # rows that the target cannot hold as they are
    was_there: bool = False  # all of it, from an earlier copy


class _Passing:
    """Rows on their way: counted, and their digest taken."""

    def __init__(self, rows: Iterable[Row], held: Callable[[Row], Row], told: Callable[[int], None]) -> None:
        self._rows, self._held, self._told = rows, held, told
        self._digest = hashlib.sha256()
        self.count = self.changed = 0

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            kept = self._held(row)
            self.changed += kept is not row
            self._digest.update(repr(kept).encode())
            self.count += 1
            if self.count % TOLD_ROWS == 0:
                self._told(self.count)
            yield kept
        self._told(self.count)

    def look(self) -> None:
        for _ in self:
            pass

    @property
    def table(self) -> Table:
        return Table(self.count, self._digest.hexdigest())


def copy(source: End, target: End, told: Told) -> Copied:
    """Raises StoreUnavailable when nothing was copied."""
    counts = {table: source.count(table) for table in TABLES}
    there = {table: target.count(table) for table in TABLES}
    copied = Copied(source.where, target.where, was_there=any(there.values()))
    if copied.was_there and there != counts:
        raise _not_empty(source, target, there)
    total, done = 2 * sum(counts.values()), 0

    @contextmanager
    def passing(what: str, table: str, end: End) -> Iterator[_Passing]:
        with closing(end.rows(table)) as rows:
            yield _Passing(rows, target.held, lambda count: told(f"{what} {table}", done + count, total))

    for table, count in counts.items():
        crash_point("in-copy")
        with passing("Reading" if copied.was_there else "Copying", table, source) as rows:
            if copied.was_there:
                rows.look()
            else:
                _add(source, target, table, rows)
        if rows.count != count:
            raise StoreUnavailable(
                f"Cannot copy the database {source.where}: it counts {count:,} rows in its table {table}, and "
                f"{rows.count:,} can be read. It is damaged: put a backup in its place. Nothing was copied."
            )
        copied.tables[table] = rows.table
        copied.changed += rows.changed
        done += count
    for table, expected in copied.tables.items():
        with passing("Checking", table, target) as rows:
            rows.look()
        if rows.table != expected:
            raise _not_empty(source, target, there) if copied.was_there else _differs(source, target, table)
        done += expected.rows
    if not copied.was_there:
        crash_point("copied-uncommitted")
        target.commit()
        crash_point("copied")
    return copied


def _add(source: End, target: End, table: str, rows: _Passing) -> None:
    try:
        target.add(table, rows)
    except RowRefused as error:
        raise StoreUnavailable(
            f"Cannot copy the database {source.where}: its table {table} has a row that is not as Nexum writes it "
            f"({error}). Nothing was copied."
        ) from None


def _differs(source: End, target: End, table: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"The table {table} in {target.where} is not what was read from {source.where}. Nothing was copied. Look at "
        "the disks and the memory of both machines before you try it again."
    )


def _not_empty(source: End, target: End, there: dict[str, int]) -> StoreUnavailable:
    found = ", ".join(f"{count:,} in {table}" for table, count in there.items() if count)
    return StoreUnavailable(
        f"The database {target.where} is not empty: it has rows ({found}), and not the same as {source.where}. Nothing "
        "was copied. Name an empty one with --to."
    )
