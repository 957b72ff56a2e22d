"""What one client can make the server remember has a bound, and its neighbours go on when it is reached."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fuzz import rss_mib
from grpc._cython.cygrpc import ExecuteBatchError
from nexum import workflow
from nexum.proto import nexum_pb2 as pb
from processes import Process, environment, eventually
from test_engine import ONE, Bench, poll_that_vanishes
from test_wire import ECHO, FOREVER_MS, Text, Wire, poll_request, start_request, status_request, unused, wire_to

from nexum_runtime import Client
from nexum_runtime.errors import LimitExceeded
from nexum_runtime.server.app import Server
from nexum_runtime.server.engine import engine
from nexum_runtime.server.model.shapes import Resolution
from nexum_runtime.server.rpc import peers
from nexum_runtime.server.rpc.outbox import Answer, Answers
from nexum_runtime.server.rpc.traffic import Traffic
from nexum_runtime.server.rules import course, executions
from nexum_runtime.server.store.sqlite import SqliteStore

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
CALLS_OF_A_KIND = 334
RSS_MIB_LEFT = 100  # what an allocator may keep of a thousand calls, and much less than they took

VANISHING = f"""
import asyncio, sys, grpc
from nexum.proto import nexum_pb2 as pb

async def main(address, version_hash):
    async with grpc.aio.insecure_channel(address) as channel:
        def call(path, request, **metadata):
            sent = [("nexum-" + key.replace("_", "-"), value) for key, value in metadata.items()]
            return channel.unary_unary(path, type(request).SerializeToString)(request, metadata=sent)

        async def polling():
            while True:
                request = pb.PollRequest(worker_id="vanishing", version_hash=version_hash)
                await call("/nexum.NexumService/PollTask", request, wait_ms="60000", lease_ms="10000")

        calls = []
        for number in range({CALLS_OF_A_KIND}):
            start = pb.StartRequest(workflow_id="echo", version_hash=version_hash, input_json="{{}}")
            calls.append(call("/nexum.NexumExtensions/Execute", start, execution_id=f"s/{{number}}", wait_ms="60000"))
            calls.append(polling())
            status = pb.StatusRequest(execution_id="waited-for")
            calls.append(call("/nexum.NexumService/GetStatus", status, wait_ms="60000"))
        await asyncio.gather(*calls)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = SqliteStore(tmp_path / "nexum.db")
    bench = Bench(store)
    yield bench
    await bench.engine.close()
    await store.close()


@pytest.fixture
async def wired(server: Server, client: Client) -> AsyncIterator[Wire]:
    await client.register(ECHO)
    async with wire_to(server.port) as wired:
        yield wired


async def waiting(server: Server, calls: int) -> None:
    """Wait until so many calls are held."""
    await eventually(lambda: server.waiting._calls.total() == calls, f"{calls} calls that wait")


async def test_a_client_with_a_thousand_waiting_calls_that_is_killed_leaves_nothing_behind(
    server: Server, wired: Wire, client: Client, address: str, tmp_path: Path
) -> None:
    await client.register(workflow("other").effect("other", Text, unused).build())
    await wired.call("StartExecution", start_request(), execution_id="waited-for")
    files, memory = len(os.listdir("/dev/fd")), rss_mib(os.getpid())
    vanishing = Process(
        [sys.executable, "-c", VANISHING, address, ECHO.version_hash],
        tmp_path / "vanishing.log",
        env=environment(PYTHONPATH=os.environ.get("PYTHONPATH", "")),
    )
    vanishing.start()
    await eventually(lambda: len(server.engine._watched) == CALLS_OF_A_KIND + 1, "an execution of every call")
    await waiting(server, 3 * CALLS_OF_A_KIND)
    vanishing.kill()

    await eventually(lambda: not server.engine._watched and not server.engine._ready, "no call waits")
    await waiting(server, 0)
    completed: set[str] = set()
    while len(completed) <= CALLS_OF_A_KIND:  # the tasks that it held come back as soon as its leases are over
        claimed = await wired.claim("living", wait_ms=FOREVER_MS)
        await wired.answer("CompleteTask", pb.CompleteRequest(task_id=claimed.task_id, output_json='{"text":"done"}'))
        completed.add(claimed.execution_id)
    running = await wired.answer("ListExecutions", pb.ListRequest(status="RUNNING"))
    assert not running.executions
    await eventually(lambda: not server.engine._jobs and len(os.listdir("/dev/fd")) <= files, "as many files as before")
    assert rss_mib(os.getpid()) < memory + RSS_MIB_LEFT


async def test_a_client_that_leaves_while_it_is_answered_is_no_error_of_the_server(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(error: Exception) -> None:
        try:
            raise error
        except Exception:
            logging.getLogger("grpc._cython.cygrpc").exception("as gRPC does when an answer cannot be sent")

    answer(ExecuteBatchError("Failed to start the batch"))
    assert caplog.text == ""
    answer(RuntimeError("what this server did wrong"))
    assert "what this server did wrong" in caplog.text


async def test_a_stream_whose_client_leaves_while_it_is_answered_fails_only_of_what_the_server_did_wrong() -> None:
    class Leaving:
        """As gRPC has it for a moment: it cannot send any more, and does not say yet that the call is over."""

        def __init__(self, error: Exception) -> None:
            self._error = error

        async def write(self, message: bytes) -> None:
            raise self._error

        def done(self) -> bool:
            return False

    async def answer(error: Exception) -> None:
        await Answers(Leaving(error), Traffic()).answer(Answer("1"), {}, pb.StatusResponse())

    await answer(ExecuteBatchError("Failed to start the batch"))
    with pytest.raises(RuntimeError, match="did wrong"):
        await answer(RuntimeError("what this server did wrong"))


async def test_a_client_has_2000_calls_waiting_and_no_more_while_others_go_on(
    server: Server, wired: Wire, address: str
) -> None:
    await wired.start()
    async with grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
        greedy = Wire(channel)
        held = [
            asyncio.create_task(greedy.answer("GetStatus", status_request(), wait_ms=FOREVER_MS))
            for _ in range(peers.WAITING_LIMIT)
        ]
        await waiting(server, peers.WAITING_LIMIT)
        for method, request in (
            ("GetStatus", status_request()),
            ("PollTask", poll_request()),
            ("Execute", start_request()),
        ):
            assert await greedy.refusal(method, request, wait_ms=FOREVER_MS) == (
                "RESOURCE_EXHAUSTED",
                "This client has 2000 calls waiting already; let some of them end first.",
            )
        claimed = await wired.claim()
        await wired.answer("CompleteTask", pb.CompleteRequest(task_id=claimed.task_id, output_json='{"text":"done"}'))
        assert {answer.status for answer in await asyncio.gather(*held)} == {"COMPLETED"}
        assert (await greedy.answer("GetStatus", status_request(), wait_ms=FOREVER_MS)).status == "COMPLETED"


async def test_the_requests_of_a_client_s_waiting_calls_are_so_large_and_no_larger(
    server: Server, wired: Wire, client: Client, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request stays in memory for as long as its call waits."""
    monkeypatch.setattr(peers, "WAITING_MIB_LIMIT", 1)
    large = start_request(json.dumps("x" * 700_000))
    await wired.start("small")
    async with grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
        greedy = Wire(channel)
        small = asyncio.create_task(greedy.answer("GetStatus", status_request("small"), wait_ms=FOREVER_MS))
        held = asyncio.create_task(greedy.answer("Execute", large, execution_id="e/0", wait_ms=FOREVER_MS))
        await eventually(
            lambda: {"small", "e/0"} <= server.engine._watched.keys(), "two executions that are waited for"
        )
        assert await greedy.refusal("Execute", large, execution_id="e/1", wait_ms=FOREVER_MS) == (
            "RESOURCE_EXHAUSTED",
            "This client has calls of 683.7 KiB waiting already, and one more of 683.7 KiB is over the limit of 1 MiB; "
            "let some of them end first.",
        )
        await eventually(lambda: client.executions("e/0"))
        await wired.answer("CancelExecution", pb.CancelRequest(execution_id="e/0"))
        assert (await held).status == "CANCELLED"
        assert (await greedy.answer("Execute", large, execution_id="e/2", wait_ms="0")).status == "RUNNING"
        await wired.answer("CancelExecution", pb.CancelRequest(execution_id="small"))
        await small
    assert not server.waiting._bytes


async def test_a_session_has_so_many_executions_under_way_and_no_more_while_its_neighbours_go_on(
    wired: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "RUNNING_LIMIT", 3)
    for number in range(3):
        await wired.start(f"s/{number}")
    assert await wired.refusal("Execute", start_request(), execution_id="s/3", wait_ms="0") == (
        "RESOURCE_EXHAUSTED",
        "Session s has 3 executions under way; let some of them end first.",
    )
    assert (await wired.start("s/0"))["nexum-status"] == "RUNNING", "what is under way is found as ever"
    for neighbour in ("s", "s2/0", "r/0", "t/0"):
        assert (await wired.start(neighbour))["nexum-status"] == "NEW"
    await wired.answer("CancelExecution", pb.CancelRequest(execution_id="s/1"))
    assert (await wired.start("s/3"))["nexum-status"] == "NEW"


@pytest.mark.parametrize("version_hash", ["", "h" * 201])
async def test_a_poll_names_the_version_in_1_to_200_characters(wired: Wire, version_hash: str) -> None:
    request = pb.PollRequest(worker_id="worker", version_hash=version_hash)
    code, details = await wired.refusal("PollTask", request, wait_ms=FOREVER_MS)
    assert (code, details) == (
        "INVALID_ARGUMENT",
        f"The version hash {version_hash[:40]!r} must be 1 to 200 characters long.",
    )


async def test_a_database_knows_so_many_versions_of_workflows_and_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions, "WORKFLOWS_LIMIT", 3)
    for version_hash in ("h", "h2", "h3"):
        await bench.register(ONE, version_hash=version_hash)
    with pytest.raises(LimitExceeded, match="This database knows 3 versions of workflows already"):
        await bench.register(ONE, version_hash="h4")
    with pytest.raises(LimitExceeded):
        await bench.register(ONE, workflow_id="w2")
    assert await bench.register(ONE) == "IDENTICAL", "what is known is taken as ever"
    await bench.start()
    await bench.engine.complete(await bench.claim(), "1")
    assert await bench.status() == "COMPLETED"


async def test_more_versions_run_than_their_graphs_are_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "GRAPHS_KEPT", 2)
    for number in range(5):
        await bench.register(ONE, workflow_id=f"w{number}")
        await bench.start(f"e{number}", workflow_id=f"w{number}")
    assert len(bench.engine._executions._course._graphs) <= 2
    for number in range(5):
        claimed = await bench.engine.poll("worker", "h", [f"w{number}"], 10_000)
        assert claimed is not None
        await bench.engine.complete(claimed.task.task_id, "1")
        assert await bench.status(f"e{number}") == "COMPLETED"


async def test_an_execution_is_not_started_afresh_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "EVENTS_LIMIT", 20)
    await bench.register(ONE)

    async def again_and_again() -> None:
        for _ in range(20):
            await bench.start(restart="failed")
            await bench.engine.cancel("e")

    with pytest.raises(LimitExceeded, match="Execution e has 20 events already, and is not tried again"):
        await again_and_again()
    with pytest.raises(LimitExceeded):
        await bench.engine.resolve("e", "", Resolution("retry"))
    assert (await bench.start()).before == "CANCELLED", "it is still told"
    assert len(await bench.story()) <= 21


async def test_a_task_is_not_claimed_and_given_back_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "EVENTS_LIMIT", 10)
    await bench.register(ONE)
    await bench.start(max_attempts=2)
    for _ in range(10):
        await poll_that_vanishes(bench)
    assert await bench.status() == "FAILED"
    story = await bench.story()
    assert story[-3:] == ["AttemptStarted run 6", "LeaseExpired run 6", "ExecutionFailed"]
    assert (await bench.snapshot()).attempts == 2, "those that were given back before are still not counted"


async def test_so_many_attempts_that_are_to_stop_are_remembered_the_latest_ones(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "STOPS_LIMIT", 3)
    await bench.register(ONE)
    claimed = []
    for number in range(5):
        await bench.start(f"e{number}")
        claimed.append(await bench.claim())
        await bench.engine.cancel(f"e{number}")
    assert await bench.engine.heartbeat("worker") == claimed[2:]
    assert await bench.engine.heartbeat("worker", claimed) == claimed, "a worker that says what it holds is told it all"


async def test_so_many_registrations_are_remembered_the_latest_ones(
    wired: Wire, client: Client, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "REGISTRATIONS_LIMIT", 1)
    twin = workflow("twin").effect("run", Text, unused).build()
    await wired.start()
    async with grpc.aio.insecure_channel(address, options=OWN_CONNECTION) as channel:
        stock = Wire(channel)

        async def register(version: Any) -> None:
            request = pb.WorkflowIR(
                workflow_id=version.workflow_id, version_hash=version.version_hash, ir_json=version.ir_json
            )
            await stock.answer("RegisterWorkflow", request)

        await register(ECHO)
        await register(twin)
        assert not (await stock.answer("PollTask", poll_request())).has_task, "it serves its latest alone"
        await register(ECHO)
        assert (await stock.answer("PollTask", poll_request())).has_task
