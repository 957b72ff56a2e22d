"""`nexum ps`: the executions there are."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexum_runtime.cli.base import (
    OPEN,
    SHOWN_CHARS,
    USAGE,
    Address,
    Json,
    app,
    clock_text,
    color,
    console,
    examples,
    fail,
    print_json,
    run,
    shown,
    what_text,
    whole_number,
)
from nexum_runtime.cli.watch import redraw, repeat
from nexum_runtime.text import middle, printable_line, shorten

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from nexum_runtime.client import Client

STATE_CELLS = 2 + len("COMPLETED  2026-11-25 18:22:11  ")  # of a line, between an id and what it is
WHAT_CELLS_MIN = 24
FRAME_LINES = 3  # around the list, on a terminal that it is redrawn on


STATES = ("STOPPED", "UNKNOWN", "WAITING", "PARKED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED")


def _state(text: str) -> str:
    if text and text.upper() not in STATES:
        known = ", ".join(STATES).lower()
        fail(f"--status is {shorten(text, SHOWN_CHARS)!r}; it must be one of {known}.", USAGE)
    return text.upper()


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
        str,
        typer.Option(
            parser=_state,
            metavar="STATE",
            autocompletion=lambda: [state.lower() for state in STATES],
            help=f"Only those that are {', '.join(STATES[:-1]).lower()} or {STATES[-1].lower()}.",
            show_default=False,
        ),
    ] = "",
    workflow: Annotated[
        str, typer.Option(metavar="WORKFLOW", help="Only those of this workflow.", show_default=False)
    ] = "",
    limit: Annotated[
        int,
        typer.Option(parser=whole_number("--limit", 1, 10_000), metavar="N", help="At most this many, the newest."),
    ] = 20,
    watch: Annotated[bool, typer.Option("--watch", help="Keep printing what changes, until Ctrl-C.")] = False,
    as_json: Json = False,
    address: Address = None,
) -> None:
    """List executions, the newest first.

    --watch redraws the list, and prints a line for each change where no terminal shows it.
    """
    from nexum_runtime.engines import Use, near

    async def fetch(client: "Client") -> list[dict[str, Any]]:
        return await client.listed(prefix, limit, status=status, workflow_id=workflow)

    async def once() -> list[dict[str, Any]]:
        async with near(address, use=Use.LOOK) as client:
            return await fetch(client)

    async def go_on() -> None:
        async with near(address, use=Use.LOOK) as client:
            if as_json or not out.is_terminal:
                await _tell_changes(client, fetch, print_json if as_json else _print_line)
            else:
                await _redraw(client, fetch, out)

    out = console()
    if watch:
        run(go_on())
        return
    executions = run(once())
    if as_json:
        for execution in executions:
            print_json(execution)
    elif executions:
        for line in _lines(executions, out.width if out.is_terminal else None):
            out.print(line, soft_wrap=True)
        if len(executions) == limit:
            print(f"Only the newest {limit} are shown. For more add: --limit {10 * limit}")
    else:
        print("No such executions." if prefix or status or workflow else "No executions yet.")


async def _redraw(
    client: "Client", fetch: "Callable[[Client], Awaitable[list[dict[str, Any]]]]", out: "Console"
) -> None:
    async def look() -> "tuple[list[RenderableType], bool]":
        executions = (await fetch(client))[: max(1, out.height - FRAME_LINES)]
        return _lines(executions, out.width) if executions else ["No such executions yet."], False

    await redraw(out, look)


async def _tell_changes(
    client: "Client",
    fetch: "Callable[[Client], Awaitable[list[dict[str, Any]]]]",
    tell: Callable[[dict[str, Any]], None],
) -> None:
    """A line for each execution that is there, the oldest first, and one whenever a status changes."""
    known: dict[str, dict[str, Any]] = {}
    told: dict[str, str] = {}

    async def look() -> bool:
        found = {execution["execution_id"]: execution for execution in reversed(await fetch(client))}
        for name, status in list(told.items()):  # what runs is told to its end, also when it is of the newest no more
            if status in OPEN and name not in found:
                if now := [each for each in await client.listed(name, 1) if each["execution_id"] == name]:
                    found[name] = now[0]
                else:  # it has ended, and was pruned
                    del told[name]
        for name, execution in found.items():
            if told.get(name) != execution["status"]:
                tell(execution)
            known[name], told[name] = execution, execution["status"]
        return False

    await repeat(look)


def _print_line(execution: dict[str, Any]) -> None:
    started = clock_text(execution["created_at"])
    print(printable_line(f"{execution['execution_id']}  {execution['status']}  {started}"), flush=True)


def _lines(executions: list[dict[str, Any]], width: int | None) -> "list[RenderableType]":
    """A line for each, or some where a terminal is too narrow: its id stays whole, to be copied."""
    from rich.text import Text

    cells = max(len(execution["execution_id"]) for execution in executions)
    room = SHOWN_CHARS if width is None else width - cells - STATE_CELLS  # for what it is
    whats = [printable_line(what_text(execution["labels"])) for execution in executions]
    is_table = room >= WHAT_CELLS_MIN or (room >= 0 and not any(whats))
    head = Text(f"{'EXECUTION'.ljust(cells)}  STATUS     STARTED (UTC)        WHAT", "dim", no_wrap=True)
    lines: list[RenderableType] = [head] if is_table else []
    for execution, what in zip(executions, whats, strict=True):
        name, status = printable_line(execution["execution_id"]), execution["status"]
        state = Text(status.ljust(11), color(status)) + Text(clock_text(execution["created_at"]))
        if is_table:
            line = Text(f"{name.ljust(cells)}  ") + state + Text(f"  {middle(what, room)}")
            line.rstrip()
            lines.append(line)
            continue
        assert width is not None, "only a terminal is narrow"
        lines.append(shown(name))
        if width - STATE_CELLS >= WHAT_CELLS_MIN:
            lines.append(Text("  ") + state + Text(f"  {middle(what, width - STATE_CELLS)}"))
        else:
            lines += [Text("  ") + state, *([Text(f"  {middle(what, width - 2)}")] if what else [])]
    return lines
