"""`nexum ps`: the executions there are."""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexum_runtime import wire
from nexum_runtime.cli.base import (
    Address,
    Json,
    app,
    clock_text,
    color,
    console,
    examples,
    print_json,
    run,
    shown,
)
from nexum_runtime.cli.watch import redraw, repeat
from nexum_runtime.errors import NotFound
from nexum_runtime.text import printable_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from nexum_runtime.client import Client

FRAME_LINES = 3  # around the list, on a terminal that it is redrawn on


class Status(StrEnum):
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


@app.command(
    epilog=examples(
        "nexum ps",
        "nexum ps my-session/ --status failed",
        "nexum ps --watch",
        "nexum ps --json --limit 10000 | jq -r 'select(.status == \"FAILED\").execution_id'",
    )
)
def ps(
    prefix: Annotated[
        str, typer.Argument(metavar="PREFIX", help="Only executions whose id begins with this.", show_default=False)
    ] = "",
    status: Annotated[
        Status | None, typer.Option(help="Only those of this status.", case_sensitive=False, show_default=False)
    ] = None,
    workflow: Annotated[
        str, typer.Option(metavar="WORKFLOW", help="Only those of this workflow.", show_default=False)
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most this many, the newest.")] = 20,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and tell what changes, until Ctrl-C.")] = False,
    as_json: Json = False,
    address: Address = wire.DEFAULT_ADDRESS,
) -> None:
    """List executions, the newest first.

    --watch redraws the list, and prints a line for each change where no terminal shows it.
    """
    from nexum_runtime.client import Client

    async def fetch(client: Client) -> list[Any]:
        return await client.executions(prefix, limit, status=status or "", workflow_id=workflow)

    async def once() -> list[Any]:
        async with Client(address) as client:
            return await fetch(client)

    async def go_on() -> None:
        async with Client(address) as client:
            if as_json or not out.is_terminal:
                await _tell_changes(client, fetch, _print_json if as_json else _print_line)
            else:
                await _redraw(client, fetch, out)

    out = console()
    if watch:
        run(go_on())
        return
    executions = run(once())
    if as_json:
        for execution in executions:
            _print_json(execution)
    elif executions:
        out.print(_table(executions))
        if len(executions) == limit:
            print(f"The newest {limit}; there may be more: --limit")
    else:
        print("No such executions." if prefix or status or workflow else "No executions yet.")


async def _redraw(client: "Client", fetch: "Callable[[Client], Awaitable[list[Any]]]", out: "Console") -> None:
    async def look() -> tuple[list[Any], bool]:
        executions = (await fetch(client))[: max(1, out.height - FRAME_LINES)]
        return [_table(executions) if executions else "No such executions yet."], False

    await redraw(out, look)


async def _tell_changes(
    client: "Client", fetch: "Callable[[Client], Awaitable[list[Any]]]", tell: Callable[[Any], None]
) -> None:
    """A line for each execution that is there, the oldest first, and one whenever a status changes."""
    known: dict[str, Any] = {}
    told: dict[str, str] = {}

    async def look() -> bool:
        found = {execution.execution_id: execution for execution in reversed(await fetch(client))}
        for name, status in list(told.items()):  # what runs is told to its end, also when it is of the newest no more
            if status == Status.RUNNING and name not in found:
                try:
                    known[name].status = (await client.status(name)).status
                    found[name] = known[name]
                except NotFound:  # it has ended, and was pruned
                    del told[name]
        for name, execution in found.items():
            if told.get(name) != execution.status:
                tell(execution)
            known[name], told[name] = execution, execution.status
        return False

    await repeat(look)


def _print_json(execution: Any) -> None:
    print_json(
        {
            "execution_id": execution.execution_id,
            "workflow_id": execution.workflow_id,
            "version_hash": execution.version_hash,
            "status": execution.status,
            "created_at": execution.created_at,
        }
    )


def _print_line(execution: Any) -> None:
    started = clock_text(execution.created_at)
    print(printable_line(f"{execution.execution_id}  {execution.status}  {started}"), flush=True)


def _table(executions: list[Any]) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("EXECUTION", overflow="fold")
    table.add_column("STATUS", no_wrap=True)
    table.add_column("STARTED (UTC)", no_wrap=True)
    for execution in executions:
        table.add_row(
            shown(execution.execution_id),
            f"[{color(execution.status)}]{shown(execution.status)}[/]",
            shown(clock_text(execution.created_at)),
        )
    return table
