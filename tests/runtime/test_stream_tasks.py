"""StreamTasks and Journal on the wire: what goes out, what comes in, how each call ends."""

import asyncio
import gc
import json
import re
import sqlite3
import threading
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest
from backends import sqlite_of
from nexum import workflow
from nexum.proto import nexum_pb2 as pb
from processes import PATIENCE_SECONDS, eventually, remote
from slow_disk import hold_commits
from test_store import Faulty
from test_wire import ECHO, MIB, Text, Wire, poll_request, start_request, unused, wired

from nexum_runtime import Client, InvalidRequest, ServerUnavailable
from nexum_runtime.idempotency import key_of
from nexum_runtime.server.app import Server
from nexum_runtime.server.engine.engine import JOURNAL_PART_CHARS
from nexum_runtime.server.model.contract import StoreUnavailable
from nexum_runtime.server.model.shapes import StartOrder
from nexum_runtime.server.rpc import peers
from nexum_runtime.server.rpc.worker_calls import WorkerCalls
from nexum_runtime.wire import batches

__all__ = ["wired"]

FOUND = '{"text":"found"}'
TWO = workflow("two").effect("first", Text, unused).effect("second", Text, unused, depends_on=["first"]).build()


def named(**metadata: str) -> tuple[tuple[str, str], ...]:
    """Who asks, and for what, as metadata."""
    said = {"worker_id": "worker", "version_hash": ECHO.version_hash, "workflow_id": "echo"} | metadata
    return tuple((f"nexum-{key.replace('_', '-')}", value) for key, value in said.items())


class Stream:
    """A worker's call, with what it is answered in plain sight."""

    def __init__(self, channel: grpc.aio.Channel, **metadata: str) -> None:
        method = channel.stream_stream(
            "/nexum.NexumExtensions/StreamTasks",
            lambda each: each if isinstance(each, bytes) else each.SerializeToString(),
            pb.PollResponse.FromString,
        )
        self.call = method(metadata=named(**metadata), timeout=PATIENCE_SECONDS)

    async def tasks(self, number: int) -> list[Any]:
        """The next so many answers, which are all tasks."""
        answers = [await self.call.read() for _ in range(number)]
        assert all(answer.has_task for answer in answers)
        return answers

    async def answer(self) -> tuple[list[str], str, str]:
        """The next answer, which is no task: the tasks it is about, a status code, a sentence."""
        answer = await self.call.read()
        assert not answer.has_task
        return answer.task_id.split(), answer.node_type, answer.input_json

    async def completes(self, task_id: str, output_json: str = FOUND) -> None:
        await self.call.write(pb.CompleteRequest(task_id=task_id, output_json=output_json))

    async def ends(self) -> list[Any]:
        """Send no more; returns all that still comes."""
        await self.call.done_writing()
        answers = []
        while (answer := await self.call.read()) is not grpc.aio.EOF:
            answers.append(answer)
        return answers


@pytest.fixture
async def channel(server: Server, wired: Wire) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"localhost:{server.port}") as channel:
        yield channel


async def start_all(server: Server, execution_ids: list[str]) -> None:
    orders = [StartOrder("echo", ECHO.version_hash, "{}", execution_id) for execution_id in execution_ids]
    await asyncio.gather(*map(server.engine.start, orders))


# Tasks and completions


async def test_a_task_goes_out_and_its_result_comes_back_on_one_call(
    channel: grpc.aio.Channel, wired: Wire, client: Client
) -> None:
    stream = Stream(channel)
    await wired.start("e", timeout_ms="5000")
    (task,) = await stream.tasks(1)
    assert (task.execution_id, task.node_id, task.node_type) == ("e", "run", "EFFECT")
    assert task.input_json == '{"input":{},"deps":{},"timeout_ms":5000}'
    assert task.idempotency_key == key_of("e", "run", ECHO.version_hash)
    await stream.completes(task.task_id)
    assert await stream.answer() == ([task.task_id], "", "")
    assert (await client.status("e")).outputs == {"run": {"text": "found"}}
    assert await stream.ends() == []
    assert await stream.call.code() == grpc.StatusCode.OK


class Gone:
    """The server's end of a call whose client has gone, of which gRPC says first that it sends no more."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return named(batches="true")

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def send_initial_metadata(self, metadata: Any) -> None:
        pass

    async def requests(self) -> AsyncIterator[bytes]:
        await eventually(lambda: self._written, "it is sent a task")
        nothing: tuple[bytes, ...] = ()
        for each in nothing:
            yield each

    async def write(self, message: bytes) -> None:
        if self._written:
            raise grpc.aio.InternalError("Nobody is there.")
        self._written.append(message)


async def test_a_worker_that_has_gone_is_missed_also_when_all_that_is_told_first_is_that_it_sends_no_more(
    server: Server, wired: Wire, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.server.engine.engine.ABSENT_MS", 1)
    await wired.start("e")
    calls, gone = WorkerCalls(server.engine, peers.Waiting(), peers.Registrations(server.engine)), Gone()
    with pytest.raises(grpc.aio.InternalError):
        await calls.StreamTasks(gone.requests(), cast(Any, gone))

    async def lost() -> list[str]:
        events = [event async for each in client.history("e") for event in each["events"]]
        return [event["error"] for event in events if event["type"] == "LeaseExpired"]

    assert await eventually(lost) == ["Worker worker has gone."]


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"slots": "0"}, "nexum-slots is '0'; it must be a whole number from 1 to 1000."),
        ({"slots": "1001"}, "nexum-slots is '1001'; it must be a whole number from 1 to 1000."),
        ({"slots": "many"}, "nexum-slots is 'many'; it must be a whole number from 1 to 1000."),
        ({"lease_ms": "999"}, "nexum-lease-ms is '999'; it must be a whole number from 1000 to 3600000."),
        ({"worker_id": ""}, "The worker id '' must be 1 to 200 characters long."),
        ({"worker_id": "w" * 201}, f"The worker id '{'w' * 40}' must be 1 to 200 characters long."),
        ({"version_hash": ""}, "The version hash '' must be 1 to 200 characters long."),
    ],
)
async def test_a_stream_that_says_nonsense_is_refused(
    channel: grpc.aio.Channel, server: Server, metadata: dict[str, str], sentence: str
) -> None:
    call = Stream(channel, **metadata).call
    assert (await call.code(), await call.details()) == (grpc.StatusCode.INVALID_ARGUMENT, sentence)
    assert server.engine._streams.pools() == []


async def test_a_stream_of_a_version_that_is_not_known_yet_has_its_tasks_when_it_is(
    channel: grpc.aio.Channel, wired: Wire
) -> None:
    stream = Stream(channel, version_hash="later")
    await wired.answer(
        "RegisterWorkflow", pb.WorkflowIR(workflow_id="echo", version_hash="later", ir_json=ECHO.ir_json)
    )
    await wired.call("StartExecution", start_request(version_hash="later"), execution_id="later")
    (task,) = await stream.tasks(1)
    assert task.execution_id == "later"


async def test_whoever_sends_no_more_is_given_nothing_new_and_all_it_has_sent_is_recorded(
    channel: grpc.aio.Channel, server: Server, wired: Wire, client: Client
) -> None:
    stream, gate = Stream(channel, slots="4"), threading.Event()
    for name in ("a", "b", "c"):
        await wired.start(name)
    tasks = await stream.tasks(3)
    hold_commits(server.store, gate)
    for task in tasks:
        await stream.completes(task.task_id)
    ending = asyncio.create_task(stream.ends())
    await eventually(lambda: server.engine._streams.pools() == [])
    late = asyncio.create_task(wired.start("late"))
    await eventually(lambda: sqlite_of(server)._waiting)
    assert not ending.done(), "nothing is recorded yet"
    gate.set()
    assert sorted(task_id for answer in await ending for task_id in answer.task_id.split()) == sorted(
        task.task_id for task in tasks
    )
    await late
    assert sorted(await client.journal("a") | await client.journal("b") | await client.journal("c")) == ["a", "b", "c"]
    assert (await client.status("late")).attempts == 0


async def test_what_is_no_completion_is_refused_and_the_stream_goes_on(channel: grpc.aio.Channel, wired: Wire) -> None:
    stream = Stream(channel)
    await stream.call.write(b"\x0a\xff")
    task_ids, code, sentence = await stream.answer()
    assert (task_ids, code) == ([], "INVALID_ARGUMENT")
    assert sentence.startswith("The request is not a CompleteRequest: ")
    await wired.start()
    (task,) = await stream.tasks(1)
    await stream.completes(task.task_id)
    assert await stream.answer() == ([task.task_id], "", "")


async def test_a_completion_that_is_not_recorded_says_how_and_why(
    channel: grpc.aio.Channel, server: Server, wired: Wire
) -> None:
    stream = Stream(channel, slots="2")
    await wired.start()
    (task,) = await stream.tasks(1)
    await stream.completes("nothing.1")
    assert await stream.answer() == (["nothing.1"], "NOT_FOUND", "No task 'nothing.1' is known.")
    await stream.completes(task.task_id, "{")
    task_ids, code, sentence = await stream.answer()
    assert (task_ids, code) == ([task.task_id], "INVALID_ARGUMENT")
    assert sentence.startswith(f"The output of task '{task.task_id}' is not JSON: ")
    connection = sqlite_of(server)._write_connection
    sqlite_of(server)._write_connection = cast(sqlite3.Connection, Faulty(connection, "COMMIT"))
    await stream.completes(task.task_id)
    task_ids, code, sentence = await stream.answer()
    assert (task_ids, code) == ([task.task_id], "UNAVAILABLE")
    assert sentence.startswith(f"Cannot use the database {sqlite_of(server).path}: disk I/O error.")
    await stream.completes(task.task_id)
    assert await stream.answer() == ([task.task_id], "", "")
    await stream.completes(task.task_id)
    assert await stream.answer() == (
        [task.task_id],
        "",
        "Node run was completed already; this result was not recorded.",
    )


async def test_a_completion_that_is_too_large_fails_its_task(
    channel: grpc.aio.Channel, server: Server, wired: Wire, client: Client
) -> None:
    server.engine.max_message_bytes = 10
    stream = Stream(channel)
    await wired.start()
    (task,) = await stream.tasks(1)
    await stream.completes(task.task_id)
    task_ids, _, sentence = await stream.answer()
    assert task_ids == [task.task_id]
    assert "the limit is 10 B" in sentence
    assert (await client.status("e")).error == sentence.partition(" The task has failed.")[0]


async def test_a_thousand_completions_at_once_are_recorded_and_acknowledged_together(
    channel: grpc.aio.Channel, server: Server, client: Client
) -> None:
    stream = Stream(channel, slots="1000")
    names = [f"s/{number:03}" for number in range(1_000)]
    await start_all(server, names)
    tasks = await stream.tasks(len(names))
    for task in tasks:
        await stream.completes(task.task_id, json.dumps({"text": task.execution_id}))
    answers = await stream.ends()
    assert {answer.input_json for answer in answers} == {""}
    acknowledged = [task_id for answer in answers for task_id in answer.task_id.split()]
    assert sorted(acknowledged) == sorted(task.task_id for task in tasks)
    assert len(answers) < len(names) / 10
    assert await client.journal("s/") == {name: {"run": {"text": name}} for name in names}


async def test_no_more_completions_are_read_than_can_be_recorded(
    channel: grpc.aio.Channel, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "RECORDING_LIMIT", 3)
    under_way, most, record = 0, 0, server.engine.record

    def counted(task_id: str, output_json: str) -> asyncio.Future[str]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        recording = record(task_id, output_json)
        recording.add_done_callback(over)
        return recording

    def over(_: asyncio.Future[str]) -> None:
        nonlocal under_way
        under_way -= 1

    monkeypatch.setattr(server.engine, "record", counted)
    stream = Stream(channel, slots="20")
    await start_all(server, [f"e{number}" for number in range(20)])
    tasks, go = await stream.tasks(20), threading.Event()
    hold_commits(server.store, go)
    for task in tasks:
        await stream.completes(task.task_id)
    await eventually(lambda: under_way >= 3)
    go.set()
    answers = await stream.ends()
    assert sum(len(answer.task_id.split()) for answer in answers) == 20
    assert most == 3


# Several messages in one


class BatchStream:
    """A worker's call that has agreed on several messages in one."""

    def __init__(self, channel: grpc.aio.Channel, **metadata: str) -> None:
        method = channel.stream_stream("/nexum.NexumExtensions/StreamTasks")
        self.call = method(metadata=named(batches="true", **metadata), timeout=PATIENCE_SECONDS)

    async def together(self) -> list[Any]:
        """The messages in the next one."""
        return batches.unpack([pb.PollResponse], await self.call.read())


async def test_what_there_is_goes_out_and_comes_back_together(
    channel: grpc.aio.Channel, server: Server, client: Client
) -> None:
    names = [f"s/{number:02}" for number in range(20)]
    await start_all(server, names)
    stream = BatchStream(channel, slots="20")
    assert dict(await stream.call.initial_metadata())["nexum-batches"] == "true"
    tasks = await stream.together()
    assert [task.execution_id for task in tasks] == names
    await stream.call.write(
        batches.pack([pb.CompleteRequest(task_id=each.task_id, output_json=FOUND) for each in tasks])
    )
    (acknowledged,) = await stream.together()
    assert acknowledged.task_id.split() == [task.task_id for task in tasks]
    assert await client.journal("s/") == {name: {"run": {"text": "found"}} for name in names}


async def test_large_tasks_travel_in_several_messages(channel: grpc.aio.Channel, server: Server) -> None:
    for number, size in enumerate((30_000, 30_000, 30_000, 1, 200_000, 1, 1)):
        await server.engine.start(StartOrder("echo", ECHO.version_hash, json.dumps("x" * size), f"e{number}"))
    stream = BatchStream(channel, slots="20")
    together = [[task.execution_id for task in await stream.together()] for _ in range(4)]
    assert together == [["e0", "e1"], ["e2", "e3"], ["e4"], ["e5", "e6"]]


@pytest.mark.parametrize(
    "garbage",
    [
        pb.CompleteRequest(task_id="1-abc.1", output_json=FOUND).SerializeToString(),  # without its length
        batches.pack([pb.CompleteRequest(task_id="1-abc.1", output_json=FOUND)])[:-1],
        b"\x80",
        b"\xff" * 9 + b"\x01",  # a length beyond all bounds
        b"\x03\x0a\xff",
        "é".encode() * 1_000,
        bytes(10_000_000),  # as many empty ones
    ],
)
async def test_what_is_no_batch_is_refused_and_the_stream_goes_on(
    channel: grpc.aio.Channel, wired: Wire, garbage: bytes
) -> None:
    stream = BatchStream(channel)
    await stream.call.write(garbage)
    (refused,) = await stream.together()
    assert (refused.task_id, refused.node_type) == ("", "INVALID_ARGUMENT")
    assert re.fullmatch(r"The request is no batch of CompleteRequests: .*\w.*\.", refused.input_json)
    await wired.start()
    (task,) = await stream.together()
    await stream.call.write(batches.pack([pb.CompleteRequest(task_id=task.task_id, output_json=FOUND)]))
    (acknowledged,) = await stream.together()
    assert acknowledged.task_id == task.task_id


@pytest.mark.parametrize("said", [{}, {"batches": "false"}, {"batches": "yes"}])
async def test_who_does_not_say_that_it_speaks_batches_has_each_message_by_itself(
    channel: grpc.aio.Channel, server: Server, said: dict[str, str]
) -> None:
    await start_all(server, [f"e{number}" for number in range(5)])
    stream = Stream(channel, slots="5", **said)
    assert dict(await stream.call.initial_metadata())["nexum-batches"] == "false"
    tasks = await stream.tasks(5)
    assert {task.execution_id for task in tasks} == {f"e{number}" for number in range(5)}
    for task in tasks:
        await stream.completes(task.task_id)
    acknowledged = [task_id for answer in await stream.ends() for task_id in answer.task_id.split()]
    assert sorted(acknowledged) == sorted(task.task_id for task in tasks)


# How a call ends


async def test_a_server_that_stops_ends_the_streams(channel: grpc.aio.Channel, server: Server, wired: Wire) -> None:
    stream = Stream(channel)
    await wired.start()
    await stream.tasks(1)
    await server.engine.close()
    assert await stream.call.read() is grpc.aio.EOF
    assert await stream.call.code() == grpc.StatusCode.OK


async def test_of_a_worker_that_vanishes_nothing_is_left(
    channel: grpc.aio.Channel, server: Server, wired: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Stream(channel)
    await wired.start()
    (task,) = await stream.tasks(1)
    await stream.completes(task.task_id)
    stream.call.cancel()
    await eventually(lambda: server.engine._streams.pools() == [] and not server.waiting._calls)
    await wired.start("next")
    assert (await wired.claim()).execution_id == "next"
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name in ("asyncio", "grpc._cython.cygrpc")] == []


async def test_what_a_worker_did_not_read_before_it_sends_no_more_goes_to_others(
    channel: grpc.aio.Channel, server: Server, wired: Wire
) -> None:
    names = [f"e{number:02}" for number in range(20)]
    large = json.dumps("x" * MIB)
    for name in names:
        await server.engine.start(StartOrder("echo", ECHO.version_hash, large, name))
    stream = Stream(channel, slots="20")
    await eventually(lambda: [len(pool.held) for pool in server.engine._streams.pools()] == [20])
    await stream.call.done_writing()
    await eventually(lambda: server.engine._streams.pools() == [])
    await eventually(lambda: not server.engine._jobs)
    sent = [task.execution_id for task in await stream.ends()]
    others = []
    while (polled := await wired.answer("PollTask", poll_request("other"))).has_task:
        others.append(polled.execution_id)
    assert others
    assert sorted(sent + others) == names, "each to one of them"


@pytest.mark.parametrize("at", ["its beginning", "its journal"])
async def test_a_store_that_cannot_be_used_is_told_as_unavailable(
    channel: grpc.aio.Channel, server: Server, client: Client, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("Cannot use the database: its disk is gone.")

    monkeypatch.setattr(server.store, "read", fail)
    monkeypatch.setattr(server.store, "begin_write", fail)
    if at == "its beginning":
        call = Stream(channel).call
        assert (await call.code(), await call.details()) == (
            grpc.StatusCode.UNAVAILABLE,
            "Cannot use the database: its disk is gone.",
        )
    else:
        with pytest.raises(ServerUnavailable, match="its disk is gone"):
            await client.journal("s/")


async def test_a_stream_that_names_no_workflow_has_what_its_connection_has_registered(
    channel: grpc.aio.Channel, wired: Wire
) -> None:
    """As for a workflow whose name no header can carry."""
    register = channel.unary_unary("/nexum.NexumService/RegisterWorkflow", pb.WorkflowIR.SerializeToString)
    mine, other = (
        pb.WorkflowIR(workflow_id=workflow_id, version_hash=ECHO.version_hash, ir_json=ECHO.ir_json)
        for workflow_id in ("é", "è")
    )
    await register(mine)
    await wired.answer("RegisterWorkflow", other)
    stream = Stream(channel, workflow_id="", slots="5")
    for execution_id, workflow_id in (("other", "è"), ("mine", "é"), ("echo", "echo")):
        await wired.call("StartExecution", start_request(workflow_id=workflow_id), execution_id=execution_id)
    (task,) = await stream.tasks(1)
    assert task.execution_id == "mine"
    assert await stream.ends() == []


# Journals


async def test_a_journal_has_what_is_completed_and_nothing_else(client: Client, wired: Wire) -> None:
    await wired.finish("s/done")
    await wired.start("s/failed")
    failing = await wired.claim()
    await wired.answer("FailTask", pb.FailRequest(task_id=failing.task_id, error_message="no"), retryable="false")
    await wired.start("s/cancelled")
    await wired.answer("CancelExecution", pb.CancelRequest(execution_id="s/cancelled"))
    await wired.start("s/runs")
    await wired.claim()
    await wired.start("s/waits")
    assert await client.journal("s/") == {"s/done": {"run": {"text": "found"}}}


async def test_a_journal_has_no_neighbours_of_its_prefix(client: Client, wired: Wire) -> None:
    inside = ["a_b/", "a_b/0", "a_b/zz/1", "a_b/_"]
    outside = ["a_b", "a_b.", "a_b0", "axb/0", "A_B/0", "a_/0", "a_c/0"]
    for execution_id in inside + outside:
        await wired.finish(execution_id)
    assert sorted(await client.journal("a_b/")) == sorted(inside)
    assert await client.journal("nothing/") == {}


@pytest.mark.parametrize("prefix", ["", "a b", "é", "x" * 211])
async def test_a_prefix_that_no_id_begins_with_is_refused(client: Client, prefix: str) -> None:
    with pytest.raises(InvalidRequest, match=r"The execution id .* is not 1 to 200"):
        await client.journal(prefix)


async def test_a_journal_comes_in_parts_of_about_a_million_characters_each_with_whole_executions(
    client: Client, wired: Wire
) -> None:
    sizes = {"s/0": 400_000, "s/1": 400_000, "s/2": 400_000, "s/3": 2_000_000, "s/4": 10, "s/5": 10}
    for execution_id, size in sizes.items():
        await wired.finish(execution_id, json.dumps({"text": "x" * size}))
    call = remote(client).method("Journal")(pb.StatusRequest(execution_id="s/"), metadata=())
    parts = [part async for part in call]
    assert {part.status for part in parts} == {"COMPLETED"}
    found = [json.loads(part.completed_nodes_json) for part in parts]
    assert [list(part) for part in found] == [["s/0", "s/1", "s/2"], ["s/3"], ["s/4", "s/5"]]
    assert len(parts[0].completed_nodes_json) < 1.5 * JOURNAL_PART_CHARS
    assert {name: len(nodes["run"]["text"]) for part in found for name, nodes in part.items()} == sizes
    assert {name: len(nodes["run"]["text"]) for name, nodes in (await client.journal("s/")).items()} == sizes


async def test_a_journal_has_room_for_the_largest_of_results(client: Client, wired: Wire) -> None:
    largest = 16 * MIB - len('{"text":""}')
    for execution_id in ("s/0", "s/1"):
        await wired.finish(execution_id, f'{{"text":"{"x" * largest}"}}')
    journal = await client.journal("s/")
    assert {name: len(nodes["run"]["text"]) for name, nodes in journal.items()} == {"s/0": largest, "s/1": largest}


async def test_a_journal_has_every_node_of_an_execution(client: Client, wired: Wire) -> None:
    """Also when one of them fills a part of it."""
    await client.register(TWO)
    long = "é" * JOURNAL_PART_CHARS
    await wired.call("StartExecution", start_request("{}", "two", TWO.version_hash), execution_id="s/two")
    for output in (f'{{"text":"{long}"}}', '{"text":"\\u0032"}'):
        assert await client.journal("s/") == {}
        claimed = await wired.answer("PollTask", pb.PollRequest(worker_id="worker", version_hash=TWO.version_hash))
        await wired.answer("CompleteTask", pb.CompleteRequest(task_id=claimed.task_id, output_json=output))
    assert await client.journal("s/") == {"s/two": {"first": {"text": long}, "second": {"text": "2"}}}
