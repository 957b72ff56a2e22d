"""Weight: a small call and the server's memory beside the heaviest mix that is legal, and on an idle server."""

import sys
from pathlib import Path

from bench import processes
from bench.calls import Caller
from bench.context import Context
from bench.measure import Kind, Results, Samples, one_by_one, shown

CALLS = 100
LINUX = Path("/proc")


async def kinds(context: Context) -> list[Kind]:
    server, address = await context.stack.enter_async_context(
        processes.server(context.folder, context.folder / "weight.db")
    )
    client = await context.client(address)
    caller = Caller(client)
    await caller.local()

    async def idle() -> Samples:
        return await one_by_one(caller.local() for _ in range(CALLS))

    async def beside() -> Samples:
        command = ("-m", "bench.weight_process", address)
        async with processes.child(command, context.folder / "weight.log", "ready"):
            return await one_by_one(caller.local() for _ in range(CALLS))

    async def memory() -> Samples:
        return [_most_mb(server)]

    return [
        Kind("weight.idle", "a small call, idle server", "ms", idle),
        Kind("weight.beside", "… beside the heaviest mix", "ms", beside),
        Kind("weight.memory", "server's memory, at most", "MB", memory),
    ]


def _most_mb(server: processes.Child) -> float:
    """What the process has held at most; where the system does not tell, what it holds."""
    if sys.platform != "linux":
        return server.memory_mb()
    status = (LINUX / str(server.pid) / "status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def sentence(results: Results) -> str:
    beside, idle = (shown(results.percentile(f"weight.{key}", 99)) for key in ("beside", "idle"))
    return f"Beside the heaviest mix a small call takes {beside} ms at its p99, and {idle} ms on an idle server."
