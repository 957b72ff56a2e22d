"""The floor: what one synced commit, one round trip, and a call written by hand cost here and now.

C    one insert into SQLite, committed and synced
E    one round trip of Python's grpc.aio
F2   caller → server → worker → server → caller, two synced commits on the way, and nothing else (floor_processes)
"""

from functools import partial
from itertools import count
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
    server = await context.stack.enter_async_context(
        processes.child(
            ("-m", "bench.floor_processes", "server", folder / "floor.db"), folder / "floor-server.log", "ready at"
        )
    )
    address = server.said.split()[-1]
    await context.stack.enter_async_context(
        processes.child(("-m", "bench.floor_processes", "worker", address), folder / "floor-worker.log", "ready")
    )
    channel = await context.stack.enter_async_context(grpc.aio.insecure_channel(address, options=NO_PROXY))
    numbers = count()

    async def insert() -> None:
        connection.execute("INSERT INTO calls (input) VALUES (?)", (INPUT_JSON,))

    def method(name: str) -> Any:
        path = f"/{SERVICE}/{name}"
        return channel.unary_unary(path, pb.StartRequest.SerializeToString, pb.StatusResponse.FromString)

    async def call(unary: Any) -> None:
        answer = await unary(pb.StartRequest(workflow_id=f"call-{next(numbers)}", input_json=INPUT_JSON))
        if answer.status != "COMPLETED":
            raise BenchmarkError("The floor's server did not answer as it should.")

    echo, execute = partial(call, method("Echo")), partial(call, method("Execute"))

    async def latency(work: Any) -> Samples:
        return await one_by_one(work() for _ in range(context.slice_calls))

    return [
        Kind("floor.commit", "C: one synced commit", "ms", partial(latency, insert), SLICES),
        Kind("floor.echo", "E: one gRPC round trip", "ms", partial(latency, echo), SLICES),
        Kind("floor.call", "F2: a call by hand", "ms", partial(latency, execute), SLICES),
        *(
            Kind(f"floor.at_{n}", f"F2 with {n} at a time", "/s", partial(per_second, execute, context.calls_by(n), n))
            for n in CALLERS
        ),
    ]


def sentence(results: Results) -> str:
    commit, call = results.median("floor.commit"), results.median("floor.call")
    text = f"No call that crosses three processes and syncs twice can take much less than {shown(call)} ms here."
    if commit < NO_SYNC_MS:
        text += " But this folder's disk syncs nothing: set TMPDIR to one that does."
    return text
