"""`nexum copy`: all records into another database."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from nexum_runtime.cli.base import app, counted, examples, fail

if TYPE_CHECKING:
    from nexum_runtime.server.store.sql.copying import Told

SAID_SECONDS = 5.0  # between two lines on how far it is, where there is no terminal


@app.command(
    epilog=examples(
        "nexum copy --from sqlite:///.nexum/local.db --to postgresql://nexum@db.example/app",
        "nexum copy --from postgresql://nexum@db.example/app --to sqlite:///.nexum/local.db",
    )
)
def copy(
    source: Annotated[
        str, typer.Option("--from", metavar="DATABASE", help="A SQLite file, or a sqlite:/// or postgresql:// URL.")
    ],
    target: Annotated[str, typer.Option("--to", metavar="DATABASE", help="Another one, without any records.")],
) -> None:
    """Copy all records into another database, and check the copy.

    No server and no agent may have either of them open. A copy that is interrupted leaves the target empty: run
    it again.
    """
    from nexum_runtime.engines.nearest import database_named
    from nexum_runtime.errors import InvalidRequest

    try:
        from nexum_runtime.server.model.contract import StoreUnavailable
        from nexum_runtime.server.store.copying import copied
    except ImportError as error:  # on Windows
        fail(str(error))
    try:
        with _progress() as told:
            done = copied(database_named(source, "--from"), database_named(target, "--to"), told)
    except (InvalidRequest, StoreUnavailable) as error:
        fail(str(error))
    for name, table in done.tables.items():
        print(f"{name:<10} {counted(table.rows, 'row'):>16}  sha256:{table.digest}")
    if done.changed:
        print(f"{counted(done.changed, 'row')} had NUL characters, which PostgreSQL cannot hold: each is now a ␀.")
    if done.was_there:
        print(f"All of {done.source} is in {done.target} already: the counts and the digests are the same.")
    else:
        print(f"All of {done.source} is copied to {done.target}. The counts and the digests are the same there.")
    print(f"Start servers and agents on {done.target} from now on; what they record is not in {done.source}.")


@contextmanager
def _progress() -> "Iterator[Told]":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    out = Console(stderr=True)
    if out.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        with Progress(*columns, console=out, transient=True) as bar:
            shown = bar.add_task("", total=None)
            yield lambda what, done, total: bar.update(shown, description=what, completed=done, total=total)
        return
    said = time.monotonic()

    def say(what: str, done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > SAID_SECONDS:
            said = time.monotonic()
            print(f"{what}: {done / total:.0%} of the work is done", file=sys.stderr, flush=True)

    yield say
