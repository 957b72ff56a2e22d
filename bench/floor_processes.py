"""The floor's server and worker: a call by hand, with two synced commits and nothing else in it.

    python -m bench.floor_processes server FILE
    python -m bench.floor_processes worker ADDRESS

    caller ── Execute ──▶ server: commit ── task ──▶ worker
    caller ◀── result ─── server: commit ◀── done ── worker

The task and its result travel on one stream that the worker holds open. Calls that wait at the same moment share a
commit. Messages and libraries are those of Nexum: nexum-py's stubs, Python's grpc.aio and sqlite3.
"""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from nexum.proto import nexum_pb2 as pb

from nexum_runtime.signals import stop_requested

SERVICE = "nexum.Floor"
NO_PROXY = (("grpc.enable_http_proxy", 0),)  # a proxy for web pages is none for these
OUTPUT_JSON = '{"text":"' + "x" * 100 + '"}'  # as much as Nexum's worker answers

Write: TypeAlias = tuple[str, tuple[str, ...], asyncio.Future[None]]


class Commits:
    """One SQLite file, written by one thread. What waits while a commit is synced shares the next one."""

    def __init__(self, path: Path) -> None:
        self._connection = open_synced(path)
        self._connection.execute("CREATE TABLE calls (id TEXT PRIMARY KEY, input TEXT NOT NULL, output TEXT) STRICT")
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[Write] = []
        self._committing: asyncio.Task[None] | None = None

    async def write(self, sql: str, *values: str) -> None:
        """Return when it is committed and synced."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((sql, values, done))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_all())
        await done

    async def _commit_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting, []
            await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, group)
            for _, _, done in group:
                done.set_result(None)
        self._committing = None

    def _commit(self, group: list[Write]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for sql, values, _ in group:
            self._connection.execute(sql, values)
        self._connection.execute("COMMIT")


def open_synced(path: Path) -> sqlite3.Connection:
    """A database as durable as Nexum's: in WAL mode, every commit synced."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


class Floor:
    """The service: Execute, and the stream of its worker; Echo only answers."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        self._tasks: asyncio.Queue[Any] = asyncio.Queue()
        self._results: dict[str, asyncio.Future[str]] = {}

    async def echo(self, request: Any, context: Any) -> Any:
        return pb.StatusResponse(status="COMPLETED", completed_nodes_json=request.input_json)

    async def execute(self, request: Any, context: Any) -> Any:
        name, input_json = request.workflow_id, request.input_json
        result = self._results[name] = asyncio.get_running_loop().create_future()
        await self._commits.write("INSERT INTO calls (id, input) VALUES (?, ?)", name, input_json)
        self._tasks.put_nowait(pb.PollResponse(has_task=True, task_id=name, input_json=input_json))
        return pb.StatusResponse(status="COMPLETED", completed_nodes_json=await result)

    async def work(self, results: AsyncIterator[Any], context: Any) -> None:
        async with asyncio.TaskGroup() as group:
            pushing = group.create_task(self._push(context))
            async for result in results:
                group.create_task(self._settle(result))
            pushing.cancel()

    async def _push(self, context: Any) -> None:
        while True:
            await context.write(await self._tasks.get())

    async def _settle(self, result: Any) -> None:
        await self._commits.write("UPDATE calls SET output = ?2 WHERE id = ?1", result.task_id, result.output_json)
        self._results.pop(result.task_id).set_result(result.output_json)


async def serve(path: Path) -> None:
    floor = Floor(Commits(path))
    unary = (pb.StartRequest.FromString, pb.StatusResponse.SerializeToString)
    stream = (pb.CompleteRequest.FromString, pb.PollResponse.SerializeToString)
    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(floor.echo, *unary),
        "Execute": grpc.unary_unary_rpc_method_handler(floor.execute, *unary),
        "Work": grpc.stream_stream_rpc_method_handler(floor.work, *stream),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready at localhost:{port}", flush=True)
    await stop_requested()
    await server.stop(None)


async def work(address: str) -> None:
    async with grpc.aio.insecure_channel(address, options=NO_PROXY) as channel:
        open_stream = channel.stream_stream(
            f"/{SERVICE}/Work", pb.CompleteRequest.SerializeToString, pb.PollResponse.FromString
        )
        stream = open_stream()
        await stream.wait_for_connection()
        print("ready", flush=True)
        stopping = asyncio.create_task(stop_requested())
        stopping.add_done_callback(lambda _: stream.cancel())
        with suppress(asyncio.CancelledError):
            async for task in stream:
                await stream.write(pb.CompleteRequest(task_id=task.task_id, output_json=OUTPUT_JSON))


if __name__ == "__main__":
    kind, where = sys.argv[1:]
    asyncio.run(serve(Path(where)) if kind == "server" else work(where))
