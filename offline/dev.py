"""A Nexum server and a worker as child processes: for a first run in one command, and for the benchmark.

They stop when the block ends, and by themselves should this process be killed.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from nexum_runtime import Client, NexumError, ServerUnavailable
from nexum_runtime.signals import EXIT_WITH_PARENT
from nexum_runtime.wire import split_address

START_SECONDS = 20.0
STOP_SECONDS = 15.0
RUNNING_SERVER_SECONDS = 0.3  # how long to look for a server that runs already


@asynccontextmanager
async def local_nexum(address: str, folder: Path, worker_flags: tuple[str, ...] = ()) -> AsyncIterator[bool]:
    """Serve `address`, database and logs in `folder`. Yields False when a server was running there already.

    Raises NexumError when the server cannot be started, with the end of its log.
    """
    host, port = split_address(address)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise NexumError(f"Cannot make the folder {folder.absolute()}: {error.strerror}.") from None
    environment = os.environ | {EXIT_WITH_PARENT: "1", "NEXUM_ADDRESS": address, "PYTHONUNBUFFERED": "1"}
    async with Client(address) as client:
        with ExitStack() as children:

            def start(name: str, *command: str) -> subprocess.Popen[bytes]:
                log = children.enter_context((folder / f"{name}.log").open("wb"))
                child = subprocess.Popen(
                    [sys.executable, *command],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for us; we tell them
                )
                children.callback(_stop, child)
                return child

            own_server = not await _answers(client)
            if own_server:
                if os.environ.get("NEXUM_TLS_CA"):
                    raise NexumError(
                        f"NEXUM_TLS_CA is set, but no server at {address} answers in TLS, and the one that would be "
                        "brought here speaks none. Unset it, or start one yourself with `nexum dev --tls-cert`."
                    )
                database = folder / "local.db"
                listen = ("--host", host.strip("[]"), "--port", str(port), "--db", str(database))
                server = start("server", "-m", "nexum_runtime.cli", "dev", *listen)
                await _until_ready(client, server, folder / "server.log")
            start("worker", str(Path(__file__).parents[1] / "worker.py"), *worker_flags)
            yield own_server


async def _answers(client: Client) -> bool:
    try:
        await client.check(RUNNING_SERVER_SECONDS)
    except ServerUnavailable:
        return False
    return True


async def _until_ready(client: Client, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while not await _answers(client):
        if server.poll() is not None or asyncio.get_running_loop().time() > deadline:
            last_words = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise NexumError(f"The Nexum server did not start: {' '.join(last_words) or 'it said nothing'}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
