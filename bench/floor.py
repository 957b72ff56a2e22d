"""The floor: what one synced commit, one round trip, and a call written by hand cost here and now.

commit     one insert into SQLite, committed and synced
echo       one round trip of Python's grpc.aio
the least  caller → server → worker → server → caller, two synced commits on the way, and nothing else (floor_processes)

The server and the worker of the least have gRPC as it comes; with tuned gRPC they have it as Nexum sets it. The
caller, which is this process, has it as Nexum sets it in either case.
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import grpc
from nexum.proto import nexum_pb2 as pb

from bench import processes
from bench.context import SLICES, Context
from bench.floor_processes import NO_PROXY, SERVICE, open_synced
from bench.measure import BenchmarkError, Kind, Results, Samples, one_by_one, per_second, shown

CALLERS = (1, 8, 50)
INPUT_JSON = '{"chars":100}'
NO_SYNC_MS = 0.02  # no disk is that fast


async def kinds(context: Context) -> list[Kind]:
    folder = context.folder
    connection = open_synced(folder / "commit.db")
    context.stack.callback(connection.close)
    connection.execute("CREATE TABLE calls (number INTEGER PRIMARY KEY, input TEXT NOT NULL)")
    plain = await _by_hand(context, "plain", GRPC_EXPERIMENTS="")
    tuned = await _by_hand(context, "tuned")
    numbers = count()

    async def insert() -> None:
        connection.execute("INSERT INTO calls (input) VALUES (?)", (INPUT_JSON,))

    async def call(unary: Any) -> None:
        answer = await unary(pb.StartRequest(workflow_id=f"call-{next(numbers)}", input_json=INPUT_JSON))
        if answer.status != "COMPLETED":
            raise BenchmarkError("The floor's server did not answer as it should.")

    echo, execute = partial(call, plain("Echo")), partial(call, plain("Execute"))

    async def latency(work: Any) -> Samples:
        return await one_by_one(work() for _ in range(context.slice_calls))

    return [
        Kind("floor.commit", "one synced commit", "ms", partial(latency, insert), SLICES),
        Kind("floor.echo", "one gRPC round trip", "ms", partial(latency, echo), SLICES),
        Kind("floor.call", "the least: 2 synced commits, 3 processes", "ms", partial(latency, execute), SLICES),
        Kind(
            "floor.call_tuned",
            "the least, tuned gRPC",
            "ms",
            partial(latency, partial(call, tuned("Execute"))),
            SLICES,
        ),
        *(
            Kind(
                f"floor.at_{n}", f"the least, {n} at a time", "/s", partial(per_second, execute, context.calls_by(n), n)
            )
            for n in CALLERS
        ),
    ]


async def _by_hand(context: Context, name: str, **environment: str) -> Callable[[str], Any]:
    """The methods, by their names, of a server of floor_processes that has a worker."""
    folder = context.folder

    async def start(*command: str | Path, ready: str) -> processes.Child:
        log = folder / f"floor-{name}-{command[0]}.log"
        child = processes.child(("-m", "bench.floor_processes", *command), log, ready, **environment)
        return await context.stack.enter_async_context(child)

    server = await start("server", folder / f"floor-{name}.db", ready="ready at")
    address = server.said.split()[-1]
    await start("worker", address, ready="ready")
    channel = await context.stack.enter_async_context(grpc.aio.insecure_channel(address, options=NO_PROXY))

    def method(called: str) -> Any:
        path = f"/{SERVICE}/{called}"
        return channel.unary_unary(path, pb.StartRequest.SerializeToString, pb.StatusResponse.FromString)

    return method


def sentence(results: Results) -> str:
    commit, call = results.median("floor.commit"), results.median("floor.call")
    text = (
        "The least that this machine can do: a call written by hand, with two synced commits and three processes. "
        f"It takes {shown(call)} ms. No call that does the same can take much less."
    )
    if commit < NO_SYNC_MS:
        text += " But this folder's disk syncs nothing: set TMPDIR to one that does."
    return text
