"""`nexum dev`: a server in this process."""

import asyncio
import gc
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from nexum_runtime import wire
from nexum_runtime.cli.base import app, examples, fail, whole_number
from nexum_runtime.engines.nearest import DATABASE_DEFAULT

PORT_MAX = 65535
BEGIN_SECONDS = 3.0  # that one gets to listen which has just taken the database
WEB_PORT = 8051
HAND_OVER_SECONDS = 10.0  # that a process which runs the engine itself gets to leave the database


@app.command(
    epilog=examples(
        "nexum dev",
        "nexum dev --db /var/lib/nexum/nexum.db --port 6000",
        "nexum dev --host 0.0.0.0 --token-file token --tls-cert cert.pem --tls-key key.pem",
    )
)
def dev(
    context: typer.Context,
    host: Annotated[str, typer.Option(envvar="NEXUM_HOST", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            envvar="NEXUM_PORT",
            parser=whole_number("--port", 0, PORT_MAX, "NEXUM_PORT"),
            metavar="PORT",
            help="0 takes any free one.",
        ),
    ] = wire.DEFAULT_PORT,
    db: Annotated[
        str | None,
        typer.Option(
            help=f"The SQLite file, or the postgresql:// URL.  [default: {DATABASE_DEFAULT}]", show_default=False
        ),
    ] = None,
    max_message_mib: Annotated[
        int,
        typer.Option(
            parser=whole_number("--max-message-mib", 1, 256), metavar="N", help="The largest input or result, in MiB."
        ),
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
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="NEXUM_METRICS_PORT",
            parser=whole_number("--metrics-port", 0, PORT_MAX, "NEXUM_METRICS_PORT"),
            metavar="PORT",
            help="Serve /metrics for Prometheus on this port, /healthz and /readyz.",
        ),
    ] = None,
    web_port: Annotated[
        int | None,
        typer.Option(
            envvar="NEXUM_WEB_PORT",
            parser=whole_number("--web-port", 0, PORT_MAX, "NEXUM_WEB_PORT"),
            metavar="PORT",
            help=f"Serve the page, its API and /metrics on this port.  [default: {WEB_PORT}, or any free one]",
            show_default=False,
        ),
    ] = None,
    no_web: Annotated[bool, typer.Option("--no-web", help="Serve no page.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log one JSON object per line.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log each start, attempt, retry, loss and end of an execution.")
    ] = False,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Listen without a token: anyone who reaches --host can read all results and run tools."
        ),
    ] = False,
    any_local_user: Annotated[
        bool,
        typer.Option("--any-local-user", help="Let in every user of this machine, not only this user and root."),
    ] = False,
) -> None:
    """Run a server. NEXUM_DATABASE_URL names the database when --db does not: sqlite:///path or postgresql://…

    On another --host than 127.0.0.1, ::1 or localhost it needs a token. Use TLS there too.
    """
    import logging

    from nexum_runtime.cli import events
    from nexum_runtime.cli.garbage import rarely_full
    from nexum_runtime.engines.nearest import (
        LOOK_SECONDS,
        ask_to_hand_over,
        database_from_environment,
        database_named,
    )
    from nexum_runtime.errors import InvalidRequest
    from nexum_runtime.logs import Log, log_to_stderr
    from nexum_runtime.signals import stop_requested

    try:
        from nexum_runtime.server.app import CannotBind, Server, ServerConfig, Tls
        from nexum_runtime.server.model.contract import StoreInUse, StoreUnavailable
        from nexum_runtime.server.rpc.listening import allow_connections
    except ImportError as error:  # on Windows
        fail(str(error))

    log_to_stderr("%(asctime)s %(levelname)s %(message)s", as_json=log_json)
    log = Log("nexum.dev")
    for name in ("nexum.dev", "nexum.operator", *(["nexum.events"] if verbose else [])):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.getLogger("grpc").setLevel(logging.ERROR)  # it warns of every call that a stop cuts short
    if bool(tls_cert) != bool(tls_key):
        fail("TLS needs both --tls-cert and --tls-key.")
    source = context.get_parameter_source("web_port")  # the variable may be set for other servers
    if no_web and source is not None and source.name == "COMMANDLINE":
        fail("Say --web-port or --no-web, not both.")
    try:
        config = ServerConfig(
            database=database_named(db, "--db") if db else database_from_environment(),
            host=host,
            port=port,
            max_message_mib=max_message_mib,
            token=_token(token_file),
            tls=Tls.read(tls_cert, tls_key) if tls_cert and tls_key else None,
            insecure=insecure,
            any_local_user=any_local_user,
            metrics_port=metrics_port,
            web_port=None if no_web else WEB_PORT if web_port is None else web_port,
            takes_other_web_port=web_port is None,
        )
    except InvalidRequest as error:
        fail(str(error))
    except OSError as error:
        fail(f"Cannot read {error.filename}: {error.strerror}.")

    def say(sentence: str) -> None:
        if log_json:
            log.info("%s", sentence)
        else:
            print(sentence, flush=True)

    if db is None and os.environ.get("DATABASE_URL") and not os.environ.get("NEXUM_DATABASE_URL"):
        log.warning(
            "DATABASE_URL is set, but Nexum reads NEXUM_DATABASE_URL, which is not set. It uses its own default."
        )

    async def opened() -> Server:
        """Once the process that runs the engine itself, if there is one, has handed its database over."""
        is_handed_over, began = False, time.monotonic()
        while True:
            try:
                return Server(config)
            except StoreInUse:
                asked = await ask_to_hand_over(config.database) if isinstance(config.database, Path) else False
                is_handed_over = is_handed_over or bool(asked)
                seconds = HAND_OVER_SECONDS if is_handed_over else BEGIN_SECONDS if asked is None else 0.0
                if time.monotonic() > began + seconds:
                    raise
            await asyncio.sleep(LOOK_SECONDS)

    async def serve() -> None:
        allow_connections()
        server = await opened()
        server.store.watch = events.EventLog()
        await server.start()
        gc.freeze()  # what is loaded stays; to look through all of it now and then would hold up every call
        shown_host = "localhost" if host == "127.0.0.1" else f"[{host}]" if ":" in host else host
        guards = "".join(f" · {what}" for what, on in (("TLS", config.tls), ("token demanded", config.token)) if on)
        ready = f"Nexum is ready at {shown_host}:{server.port} · database {server.store.where}{guards}"
        if not (config.token or server.is_for_own_user) and wire.is_loopback(host):
            ready += " · every user of this machine is let in"
        scheme = "https" if config.tls else "http"
        if server.web_port is not None:
            ready += f" · page at {scheme}://{shown_host}:{server.web_port}"
        if server.metrics_port is not None:
            ready += f" · metrics at {scheme}://{shown_host}:{server.metrics_port}/metrics"
        if server.store.lacks_room is not None:
            ready += " · its disk is full, and nothing can be recorded until there is room"
        say(ready)
        if server.why_no_page:
            log.warning("%s", server.why_no_page)
        if not wire.is_loopback(host) and not config.token:
            log.warning("Anyone who reaches %s can read every result and run your tools.", host)
        if not wire.is_loopback(host) and not config.tls:
            what = "The token and all else that travels" if config.token else "What travels"
            log.warning("%s to and from %s is not encrypted: use --tls-cert and --tls-key.", what, host)
        await stop_requested()
        await server.stop()
        say("Nexum has stopped. What it acknowledged is in the database.")

    try:
        with rarely_full():
            asyncio.run(serve())
    except (CannotBind, InvalidRequest, StoreUnavailable) as error:
        fail(str(error))


def _token(token_file: Path | None) -> str | None:
    """Raises OSError, or InvalidRequest for what cannot be a token."""
    if token_file is None:
        token = os.environ.get("NEXUM_TOKEN")
        return wire.check_token(token, "NEXUM_TOKEN") if token else None
    with token_file.open("rb") as file:
        text = file.read(wire.TOKEN_CHARS_LIMIT + len("\r\n") + 1).decode(errors="replace")
    return wire.check_token(text.removesuffix("\n").removesuffix("\r"), str(token_file))
