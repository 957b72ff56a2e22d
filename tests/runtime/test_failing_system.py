"""What the system refuses: a disk that fails to sync, and memory that has run out. Nothing is final then."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from backends import sqlite_of
from failing_disk import FILE_POINTER, JOURNAL_POINTER, failing_syncs
from nexum import workflow
from nexum.proto import nexum_pb2 as pb
from processes import eventually
from test_wire import Text, Wire, start_request, wired

from nexum_runtime import Client, LimitExceeded, Worker, wire
from nexum_runtime.errors import DatabaseUnavailable
from nexum_runtime.server.app import Server
from nexum_runtime.server.engine.apart import Apart
from nexum_runtime.server.store.sql.transaction import SqlTransaction
from nexum_runtime.server.store.sqlite import SqliteStore, store

__all__ = ["wired"]  # a fixture


# A disk whose syncs fail


async def test_a_commit_whose_sync_fails_is_not_acknowledged_and_made_when_it_succeeds(
    server: Server, wired: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    await wired.start("before")
    with failing_syncs(sqlite_of(server)._write_connection, JOURNAL_POINTER) as failed:
        for _ in range(2):
            code, details = await wired.refusal("StartExecution", start_request(), execution_id="e")
            assert code == "UNAVAILABLE"
            assert details.startswith(
                f"Cannot use the database {sqlite_of(server).path}: disk I/O error. Its disk is failing"
            )
        assert failed
    assert [text for text in caplog.messages if "disk I/O error" in text] == [details], "once"
    await wired.start("e")
    assert (await server.engine.snapshot("e")).execution.status == "RUNNING"


async def test_a_log_that_cannot_be_written_into_the_database_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite says nothing of it: each commit succeeds, and the log grows until the disk is full."""
    monkeypatch.setattr(store, "LOG_MIB", 1)
    monkeypatch.setattr(store, "LOG_LOOK_SECONDS", 0.0)
    caplog.set_level(logging.WARNING)
    opened = SqliteStore(tmp_path / "nexum.db")

    def write(tx: Any) -> None:
        tx._sql("CREATE TABLE IF NOT EXISTS filler (text TEXT)")
        tx._sql("INSERT INTO filler VALUES (zeroblob(5000000))")

    with failing_syncs(opened._write_connection, FILE_POINTER) as failed:
        for _ in range(3):
            await opened.write(write)
        told = f"Cannot use the database {opened.path}: its log cannot be written into it, and grows (disk I/O error)."
        await eventually(lambda: caplog.messages)
        assert [text[: len(told)] for text in caplog.messages] == [told], "once"
        assert (await opened.inspect(0))["database"]["log_problem"] == caplog.messages[0]
        assert failed
    await opened.write(write)
    await eventually(lambda: "The log of the database can be written into it again." in caplog.messages)
    assert (await opened.inspect(0))["database"]["log_problem"] is None
    await opened.close()


# No memory left


async def test_a_write_without_memory_is_answered_as_what_is_tried_again(
    wired: Wire, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await wired.start("e")
    task_id = (await wired.claim()).task_id
    result = pb.CompleteRequest(task_id=task_id, output_json='{"text": "done"}')
    with monkeypatch.context() as without:
        without.setattr(SqlTransaction, "finish", _no_memory)
        assert await wired.refusal("CompleteTask", result) == ("UNAVAILABLE", wire.NO_MEMORY)
        with pytest.raises(DatabaseUnavailable, match=r"^The Nexum server has no memory left"):
            await client.complete(task_id, result.output_json)
    await wired.answer("CompleteTask", result)
    assert (await client.status("e")).outputs == {"run": {"text": "done"}}


async def raw(channel: grpc.aio.Channel, method: str) -> str:
    """The status of a call whose bytes are no message."""
    try:
        if method == "GetStatus":
            await channel.unary_unary("/nexum.NexumService/GetStatus")(b"\xff")
        else:
            call = channel.stream_stream(f"/nexum.NexumExtensions/{method}")(
                metadata=((wire.WORKER_ID, "worker"), (wire.VERSION_HASH, "v1"), (wire.WORKFLOW_ID, "w"))
            )
            await call.write(b"\x01\xff")
            async for _ in call:
                call.cancel()  # it is answered, and the stream goes on
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    except asyncio.CancelledError:
        return "goes on"
    return "ends"


@pytest.mark.parametrize("method", ["GetStatus", "StreamCalls", "StreamTasks"])
async def test_a_request_that_there_is_no_memory_to_parse_is_answered_as_what_is_tried_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    async with grpc.aio.insecure_channel(f"localhost:{server.port}") as channel:
        assert await raw(channel, method) == ("INVALID_ARGUMENT" if method == "GetStatus" else "goes on")
        monkeypatch.setattr(wire, "is_lack_of_memory", lambda error: True)
        assert await raw(channel, method) == "UNAVAILABLE"


LIMITED = """
import resource
from nexum.proto import nexum_pb2 as pb
from nexum_runtime.server.rpc.messages import reader
data = pb.CompleteRequest(task_id="t", output_json="x" * (64 << 20)).SerializeToString()
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (16 << 20), -1))
print(reader(pb.CompleteRequest)(data).lacks_memory)
"""


def test_protobuf_s_own_word_for_a_lack_of_memory_is_known() -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("how much memory a process has is told on Linux alone")
    finished = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert finished.stdout == "True\n", finished


async def test_a_result_that_a_worker_sends_to_a_server_without_memory_is_recorded_later(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = 0

    def fail(*_: Any) -> Any:
        nonlocal failed
        failed += 1
        if failed < 3:
            raise MemoryError
        return finish(*_)

    finish = SqlTransaction.finish
    monkeypatch.setattr(SqlTransaction, "finish", fail)
    echo = workflow("echo").effect("run", Text, _echo).build()
    worker = Worker([echo], port=server.port, poll_interval=0.01)
    running = asyncio.create_task(worker.run())
    outcome = await client.execute(echo, {}, execution_id="e")
    assert (outcome.status, outcome.attempts, failed) == ("COMPLETED", 1, 3)
    worker.stop()
    await running


@pytest.fixture
async def other_process() -> AsyncIterator[Apart]:
    other_process = Apart()
    yield other_process
    other_process.close()


async def test_a_parser_that_the_system_ends_for_its_memory_is_no_final_refusal(other_process: Apart) -> None:
    with pytest.raises(MemoryError):
        await other_process.run("It", signal.raise_signal, signal.SIGKILL)
    with pytest.raises(LimitExceeded):
        await other_process.run("It", os.abort)
    assert await other_process.run("It", len, "abc") == 3


def _no_memory(*_: Any) -> Any:
    raise MemoryError


async def _echo(_: Any) -> Text:
    return Text(text="done")
