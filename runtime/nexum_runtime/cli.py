"""The `nexum` command: flags and printing. Everything it does is in the modules it calls, imported when needed."""

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from nexum_runtime import wire
from nexum_runtime.text import duration_text, shorten, size_text

if TYPE_CHECKING:
    from rich.console import Console

DATABASE_DEFAULT = ".nexum/local.db"
SHOWN_CHARS = 200  # of an input or an error

app = typer.Typer(help="Nexum: durable executions, recorded in SQLite.", no_args_is_help=True, rich_markup_mode=None)

Address = Annotated[str, typer.Option(envvar="NEXUM_ADDRESS", help="Where the server is.", metavar="HOST:PORT")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]


@app.command()
def dev(
    host: Annotated[str, typer.Option(envvar="NEXUM_HOST", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="NEXUM_PORT", min=0, max=65535, help="0 takes any free one.")
    ] = wire.DEFAULT_PORT,
    db: Annotated[
        Path | None, typer.Option(help=f"The SQLite file.  [default: {DATABASE_DEFAULT}]", show_default=False)
    ] = None,
    max_message_mib: Annotated[
        int, typer.Option(min=1, max=256, help="The largest input or result, in MiB.")
    ] = wire.MESSAGE_MIB_DEFAULT,
) -> None:
    """Run a server. NEXUM_DATABASE_URL (sqlite:///path) names the database when --db does not."""
    import logging

    from nexum_runtime.server.app import CannotBind, Server, ServerConfig
    from nexum_runtime.server.store.base import StoreUnavailable
    from nexum_runtime.signals import stop_requested

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("grpc").setLevel(logging.ERROR)  # it warns of every call that a stop cuts short
    database = db or _database_from_environment()

    async def serve() -> None:
        server = Server(ServerConfig(database, host, port, max_message_mib))
        await server.start()
        shown_host = "localhost" if host == "127.0.0.1" else f"[{host}]" if ":" in host else host
        print(f"Nexum is ready at {shown_host}:{server.port} · database {server.store.path}", flush=True)
        await stop_requested()
        await server.stop()
        print("Nexum has stopped. What it acknowledged is in the database.", flush=True)

    try:
        asyncio.run(serve())
    except (CannotBind, StoreUnavailable) as error:
        _fail(str(error))


def _database_from_environment() -> Path:
    url = os.environ.get("NEXUM_DATABASE_URL", f"sqlite:///{DATABASE_DEFAULT}")
    scheme, _, path = url.partition(":///")
    if scheme != "sqlite" or not path or path == ":memory:" or "?" in path:
        _fail(f"NEXUM_DATABASE_URL is {url!r}; it must be sqlite:///path, or sqlite:////path from the root.")
    return Path(path).expanduser()


@app.command()
def ps(
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="Only executions whose id begins with this.", show_default=False)
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most this many, the newest.")] = 20,
    as_json: Json = False,
    address: Address = wire.DEFAULT_ADDRESS,
) -> None:
    """List executions, the newest first."""
    from rich.table import Table

    from nexum_runtime.client import Client

    async def fetch() -> list[Any]:
        async with Client(address) as client:
            return await client.executions(prefix, limit)

    executions = _run(fetch())
    if as_json:
        for execution in executions:
            print(
                wire.canonical_json(
                    {
                        "execution_id": execution.execution_id,
                        "workflow_id": execution.workflow_id,
                        "version_hash": execution.version_hash,
                        "status": execution.status,
                        "created_at": execution.created_at,
                    }
                )
            )
        return
    if not executions:
        print(f"No execution's id begins with {prefix!r}." if prefix else "No executions yet.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("EXECUTION", overflow="fold")
    table.add_column("STATUS", no_wrap=True)
    table.add_column("STARTED (UTC)", no_wrap=True)
    for execution in executions:
        table.add_row(
            execution.execution_id,
            f"[{_color(execution.status)}]{execution.status}[/]",
            execution.created_at[:19].replace("T", " "),
        )
    _console().print(table)
    if len(executions) == limit:
        print(f"The newest {limit}; there may be more: --limit")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="EXECUTION_OR_SESSION")],
    as_json: Json = False,
    address: Address = wire.DEFAULT_ADDRESS,
) -> None:
    """Tell the story of one execution, or of every execution of a session, event by event."""
    from nexum_runtime.client import Client
    from nexum_runtime.errors import NotFound

    async def fetch() -> list[dict[str, Any]]:
        async with Client(address) as client:
            try:
                return [history async for history in client.history(name)]
            except NotFound:
                return [history async for history in client.history(f"{name}/")]

    histories = _run(fetch())
    if not histories:
        _fail(f"No execution or session {name!r} is known. See what is there with: nexum ps")
    console = _console()
    for history in histories:
        if as_json:
            print(wire.canonical_json(history))
        else:
            _print_history(console, history)


def _print_history(console: "Console", history: dict[str, Any]) -> None:
    from rich.markup import escape

    started_ms = history["created_at_ms"]
    took = f" in {duration_text(history['ended_at_ms'] - started_ms)}" if history["ended_at_ms"] else ""
    console.print(
        f"[bold]{escape(history['execution_id'])}[/] "
        f"[{_color(history['status'])}]{history['status']}[/]{took}, begun {_clock_time(started_ms)}",
        soft_wrap=True,
    )
    console.print(
        f"  input {escape(shorten(wire.canonical_json(history['input']), SHOWN_CHARS))}", soft_wrap=True, style="dim"
    )
    attempt_started_ms: dict[tuple[str, int], int] = {}
    for event in history["events"]:
        key = (event["node_id"], event["attempt"])
        if event["type"] == "AttemptStarted":
            attempt_started_ms[key] = event["at_ms"]
        took_ms = event["at_ms"] - attempt_started_ms.get(key, event["at_ms"])
        console.print(
            f"  {_offset(event['at_ms'] - started_ms)}  {escape(_event_text(event, took_ms))}", soft_wrap=True
        )
    console.print()


def _event_text(event: dict[str, Any], took_ms: int) -> str:
    """One event in words; `took_ms` is how long its attempt had run by then."""
    node, attempt, worker = event["node_id"], event["attempt"], event.get("worker")
    error = shorten(event.get("error") or "", SHOWN_CHARS)
    match event["type"]:
        case "ExecutionStarted":
            return "started"
        case "ExecutionRestarted":
            return "started again"
        case "AttemptStarted":
            return f"{node}: attempt {attempt} by {worker}"
        case "AttemptFailed" if "retry_at_ms" in event:
            pause = duration_text(event["retry_at_ms"] - event["at_ms"])
            return f"{node}: attempt {attempt} failed after {duration_text(took_ms)}, next in {pause}: {error}"
        case "AttemptFailed":
            return f"{node}: attempt {attempt} failed after {duration_text(took_ms)}: {error}"
        case "AttemptReturned":
            return f"{node}: attempt {attempt} returned unused by {worker}"
        case "LeaseExpired":
            return f"{node}: attempt {attempt} given up after {duration_text(took_ms)}: {error}"
        case "TaskCompleted":
            late = ", after it had been given up" if event.get("late") else ""
            size = size_text(event["output_bytes"])
            return f"{node}: attempt {attempt} done in {duration_text(took_ms)}, result of {size} stored{late}"
        case "ExecutionFailed":
            return f"failed ({event['error_code']}): {error}"
        case other:
            return {"ExecutionCompleted": "completed", "ExecutionCancelled": "cancelled"}.get(other, str(other))


def _run(job: Coroutine[Any, Any, Any]) -> Any:
    from nexum_runtime.errors import NexumError

    try:
        return asyncio.run(job)
    except NexumError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(1)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def _color(status: str) -> str:
    return {"COMPLETED": "green", "FAILED": "red", "CANCELLED": "yellow"}.get(status, "cyan")


def _offset(ms: int) -> str:
    return f"+{ms / 1000:8.3f} s"


def _clock_time(epoch_ms: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
