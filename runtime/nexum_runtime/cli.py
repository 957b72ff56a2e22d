"""The `nexum` command: flags and printing. Everything it does is in the modules it calls, imported when needed."""

import asyncio
import os
import re
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from nexum_runtime import wire
from nexum_runtime.text import duration_text, error_line, printable, printable_line, shorten, size_text

if TYPE_CHECKING:
    from rich.console import Console

DATABASE_DEFAULT = ".nexum/local.db"
SHOWN_CHARS = 200  # of an input or an error
PIPED_CHARS = 300  # of a line of `ps` that no terminal shows: the longest id, and the other columns

app = typer.Typer(
    help="Nexum: durable executions, recorded in SQLite.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_show_locals=False,  # a token may be among them, and older versions of typer show them
)

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
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Demand the token in this file on every call (or the one in NEXUM_TOKEN)."),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Serve TLS with this certificate and its chain, in PEM.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate's private key, in PEM, without a passphrase.")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Listen without a token: who reaches --host can read all results and run tools."
        ),
    ] = False,
) -> None:
    """Run a server. NEXUM_DATABASE_URL (sqlite:///path) names the database when --db does not.

    With another --host than 127.0.0.1, ::1 or localhost it demands a token, best with TLS.
    """
    import logging

    from nexum_runtime.errors import InvalidRequest
    from nexum_runtime.logs import log_to_stderr
    from nexum_runtime.server.app import CannotBind, Server, ServerConfig, Tls, is_loopback
    from nexum_runtime.server.store.base import StoreUnavailable
    from nexum_runtime.signals import stop_requested

    log_to_stderr("%(asctime)s %(levelname)s %(message)s")
    log = logging.getLogger("nexum.dev")
    logging.getLogger("grpc").setLevel(logging.ERROR)  # it warns of every call that a stop cuts short
    if bool(tls_cert) != bool(tls_key):
        _fail("TLS needs both --tls-cert and --tls-key.")
    try:
        config = ServerConfig(
            database=db or _database_from_environment(),
            host=host,
            port=port,
            max_message_mib=max_message_mib,
            token=_token(token_file),
            tls=Tls.read(tls_cert, tls_key) if tls_cert and tls_key else None,
            insecure=insecure,
        )
    except InvalidRequest as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"Cannot read {error.filename}: {error.strerror}.")

    async def serve() -> None:
        server = Server(config)
        await server.start()
        shown_host = "localhost" if host == "127.0.0.1" else f"[{host}]" if ":" in host else host
        guards = "".join(f" · {what}" for what, on in (("TLS", config.tls), ("token demanded", config.token)) if on)
        print(f"Nexum is ready at {shown_host}:{server.port} · database {server.store.path}{guards}", flush=True)
        if not is_loopback(host) and not config.token:
            log.warning("Anyone who reaches %s can read every result and run your tools.", host)
        if not is_loopback(host) and not config.tls:
            what = "The token and all else that travels" if config.token else "What travels"
            log.warning("%s to and from %s is not encrypted: use --tls-cert and --tls-key.", what, host)
        await stop_requested()
        await server.stop()
        print("Nexum has stopped. What it acknowledged is in the database.", flush=True)

    try:
        asyncio.run(serve())
    except (CannotBind, StoreUnavailable) as error:
        _fail(str(error))


def _token(token_file: Path | None) -> str | None:
    """Raises OSError, or InvalidRequest for what cannot be a token."""
    if token_file is None:
        token = os.environ.get("NEXUM_TOKEN")
        return wire.check_token(token, "NEXUM_TOKEN") if token else None
    with token_file.open("rb") as file:
        text = file.read(wire.TOKEN_CHARS_LIMIT + len("\r\n") + 1).decode(errors="replace")
    return wire.check_token(text.removesuffix("\n").removesuffix("\r"), str(token_file))


def _database_from_environment() -> Path:
    url = os.environ.get("NEXUM_DATABASE_URL", f"sqlite:///{DATABASE_DEFAULT}")
    scheme, _, path = url.partition(":///")
    if scheme != "sqlite" or not path or path == ":memory:" or "?" in path:
        _fail(f"NEXUM_DATABASE_URL is {url!r}; it must be sqlite:///path, or sqlite:////path from the root.")
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~somebody whom this machine does not know
        _fail(f"NEXUM_DATABASE_URL is {url!r}, and there is no such home directory.")


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
            _print_json(
                {
                    "execution_id": execution.execution_id,
                    "workflow_id": execution.workflow_id,
                    "version_hash": execution.version_hash,
                    "status": execution.status,
                    "created_at": execution.created_at,
                }
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
            _shown(execution.execution_id),
            f"[{_color(execution.status)}]{_shown(execution.status)}[/]",
            _shown(execution.created_at[:19].replace("T", " ")),
        )
    console = _console()
    if not console.is_terminal:
        console.width = PIPED_CHARS  # an id folded in two is of no use to another program
    console.print(table)
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
            _print_json(history)
        else:
            _print_history(console, history)


@app.command()
def resolve(
    execution: Annotated[str, typer.Argument(metavar="EXECUTION", help="Its id, as `nexum ps` shows it.")],
    result: Annotated[str | None, typer.Option(metavar="TEXT", help="It happened, and this is its result.")] = None,
    failed: Annotated[str | None, typer.Option(metavar="REASON", help="It failed, for this reason.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Attempt it again, whatever came of it.")] = False,
    node: Annotated[str, typer.Option(help="Which node, when several are unknown.", show_default=False)] = "",
    address: Address = wire.DEFAULT_ADDRESS,
) -> None:
    """Settle an execution whose outcome is unknown: say what became of it, or have it attempted again."""
    from nexum_runtime.client import Client

    if sum((result is not None, failed is not None, retry)) != 1:
        _fail("Say one of --result TEXT, --failed REASON and --retry.")

    async def send() -> str:
        async with Client(address) as client:
            if result is not None:
                return await client.resolve(execution, "result", wire.canonical_json(result), node_id=node)
            if failed is not None:
                return await client.resolve(execution, "failed", failed, node_id=node)
            return await client.resolve(execution, "retry", node_id=node)

    print(_run(send()))


@app.command()
def prune(
    older_than: Annotated[str, typer.Option(metavar="AGE", help="What ended longer ago than that: 30d, 12h, 90m, 0s.")],
    session: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX", help="Only this session, such as s1 (not s10), or one tool of it: s1/web_search."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count them, and delete nothing.")] = False,
    address: Address = wire.DEFAULT_ADDRESS,
) -> None:
    """Delete executions that ended long ago, and give their disk space back.

    What runs stays, and so does what waits for a person's word: an outcome that is unknown. A session that is run
    again after it was pruned executes its calls anew.
    """
    from nexum_runtime.client import Client

    match = re.fullmatch(r"([0-9]{1,6})([smhd])", older_than)
    if not match:
        _fail(f"--older-than is {older_than!r}; it must be a whole number with s, m, h or d, such as 30d.")
    if session == "":
        _fail("--session is empty; leave it out to prune every session.")
    prefix = f"{session.removesuffix('/')}/" if session else ""
    age_ms = int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] * 1000

    async def send() -> dict[str, int]:
        async with Client(address) as client:
            return await client.prune(prefix, age_ms, dry_run=dry_run)

    pruned = _run(send())
    executions = f"{pruned['executions']} execution{'s' if pruned['executions'] != 1 else ''}"
    if dry_run:
        print(f"{executions} would be deleted.")
    else:
        print(f"{executions} deleted, {size_text(pruned['bytes'])} given back to the disk.")


def _print_history(console: "Console", history: dict[str, Any]) -> None:
    started_ms = history["created_at_ms"]
    took = f" in {duration_text(history['ended_at_ms'] - started_ms)}" if history["ended_at_ms"] else ""
    console.print(
        f"[bold]{_shown(history['execution_id'])}[/] [{_color(history['status'])}]{_shown(history['status'])}[/]{took}",
        soft_wrap=True,
    )
    told_input = shorten(_short_values_first(history["input"]), SHOWN_CHARS)
    console.print(f"  input {_shown(told_input)}", no_wrap=True, overflow="ellipsis", style="dim")
    attempt_started_ms: dict[tuple[str, int], int] = {}
    for event in history["events"]:
        key = (event["node_id"], event["attempt"])
        if event["type"] == "AttemptStarted":
            attempt_started_ms[key] = event["at_ms"]
        took_ms = event["at_ms"] - attempt_started_ms.get(key, event["at_ms"])
        console.print(
            f"  {_offset(event['at_ms'] - started_ms)}  {_shown(_event_text(history['workflow_id'], event, took_ms))}",
            soft_wrap=True,
        )
    if history["error_code"] == "OUTCOME_UNKNOWN":
        settle = f"nexum resolve {history['execution_id']} --result TEXT | --failed REASON | --retry"
        console.print(f"  settle it with: {_shown(settle)}", soft_wrap=True)
    console.print()


def _short_values_first(value: Any) -> str:
    """JSON in the order that tells most when it is cut: plain values, then lists and objects, and nothings last."""
    if not isinstance(value, dict):
        return wire.canonical_json(value)

    def place(item: tuple[str, Any]) -> tuple[bool, bool, str]:
        return item[1] in (None, {}, [], ""), isinstance(item[1], dict | list), item[0]

    return wire.json_text(dict(sorted(value.items(), key=place)))


def _event_text(workflow_id: str, event: dict[str, Any], took_ms: int) -> str:
    """One event in words; `took_ms` is how long its attempt had run by then."""
    node, attempt, worker = event["node_id"], event["attempt"], event.get("worker")
    error = shorten(error_line(event.get("error") or ""), SHOWN_CHARS)
    match event["type"]:
        case "ExecutionStarted":
            return f"{workflow_id} started at {_clock_time(event['at_ms'])}"
        case "ExecutionRestarted":
            return f"{workflow_id} started again at {_clock_time(event['at_ms'])}"
        case "AttemptStarted":
            return f"{node}: attempt {attempt} by {worker}"
        case "AttemptFailed" if "retry_at_ms" in event:
            pause = duration_text(event["retry_at_ms"] - event["at_ms"])
            return f"{node}: attempt {attempt} failed after {duration_text(took_ms)}, next in {pause}: {error}"
        case "AttemptFailed":
            late = ", when it had been given up" if event.get("late") else ""
            return f"{node}: attempt {attempt} failed after {duration_text(took_ms)}{late}: {error}"
        case "AttemptReturned":
            return f"{node}: attempt {attempt} returned unused by {worker}"
        case "LeaseExpired":
            return f"{node}: attempt {attempt} given up after {duration_text(took_ms)}: {error}"
        case "OutcomeResolved":
            said = {"result": "it happened, and this is its result", "failed": f"it failed: {error}"}
            return f"{node}: a person said: {said[event['as']]}" if node else "a person said: try again"
        case "TaskCompleted":
            late = ", after it had been given up" if event.get("late") else ""
            size = size_text(event["output_bytes"])
            return f"{node}: attempt {attempt} done in {duration_text(took_ms)}, result of {size} stored{late}"
        case "ExecutionFailed":
            return f"failed ({event['error_code']}): {error}"
        case other:
            ended = {"ExecutionCompleted": "completed", "ExecutionCancelled": "cancelled"}
            return (ended | {"CancelRequested": "to be cancelled"}).get(other, str(other))


def _run(job: Coroutine[Any, Any, Any]) -> Any:
    from nexum_runtime.errors import NexumError

    try:
        return asyncio.run(job)
    except NexumError as error:
        _fail(str(error))
    except UnicodeEncodeError as error:  # bytes that the shell passed on as they were
        _fail(f"A word of this command is not Unicode text: {shorten(error.object, SHOWN_CHARS)!r}.")


def _fail(message: str) -> NoReturn:
    print(error_line(message), file=sys.stderr)
    raise typer.Exit(1)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, emoji=False)


def _shown(text: str) -> str:
    """On one line, nothing in it acted upon: neither by the terminal nor, as markup, by rich."""
    from rich.markup import escape

    return escape(printable_line(text))


def _print_json(value: Any) -> None:
    print(printable(wire.canonical_json(value)))  # JSON itself lets some control characters pass


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
