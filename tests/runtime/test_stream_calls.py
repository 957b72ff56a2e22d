"""StreamCalls: many calls of a client on one stream, on the wire and as the client uses it."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from nexum.proto import nexum_pb2 as pb
from processes import PATIENCE_SECONDS, NexumDev, eventually, remote
from slow_disk import hold_commits
from test_wire import ECHO, Wire, start_request, wired
from test_worker import one_node, quick, working

from nexum_runtime import Client, InvalidRequest, LimitExceeded, ServerUnavailable
from nexum_runtime.client.calls import Broken, Calls
from nexum_runtime.server.app import Server, ServerConfig
from nexum_runtime.server.rpc import peers
from nexum_runtime.wire import batches

__all__ = ["wired"]

FOREVER_MS = "60000"


class Stream:
    """A client's call, with what it is answered in plain sight."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.call = channel.stream_stream("/nexum.NexumExtensions/StreamCalls")(timeout=PATIENCE_SECONDS)
        self._answers: list[tuple[Any, Any]] = []

    async def asks(self, *calls: tuple[str, str, Any]) -> None:
        """Send in one message: the number, the header and the request of each."""
        messages = [each for number, header, request in calls for each in (_header(number, header), request)]
        await self.call.write(batches.pack(messages))

    async def starts(self, number: str, execution_id: str, **metadata: str) -> None:
        sent = {f"nexum-{key.replace('_', '-')}": value for key, value in metadata.items()}
        await self.asks((number, json.dumps({"nexum-execution-id": execution_id} | sent), start_request()))

    async def answer(self) -> tuple[str, str, Any, Any]:
        """The next answer: its number, its status code, its metadata or the sentence, and the response."""
        if not self._answers:
            messages = batches.unpack([pb.PollResponse, pb.StatusResponse], await self.call.read())
            self._answers = list(zip(messages[::2], messages[1::2], strict=True))
        header, response = self._answers.pop(0)
        told = header.input_json if header.node_type else json.loads(header.input_json)
        return header.task_id, header.node_type, told, response


def _header(number: str, header: str) -> Any:
    return pb.CompleteRequest(task_id=number, output_json=header)


@pytest.fixture
async def stream(server: Server, wired: Wire) -> AsyncIterator[Stream]:
    async with grpc.aio.insecure_channel(f"localhost:{server.port}") as channel:
        yield Stream(channel)


def waiting(server: Server) -> set[str]:
    """The executions whose end somebody waits for."""
    return set(server.engine._watched)


async def test_each_of_several_calls_is_answered_with_its_own_result(stream: Stream, wired: Wire) -> None:
    for name in ("a", "b"):
        await stream.starts(name, f"e-{name}", wait_ms=FOREVER_MS)
    tasks = {task.execution_id: task for task in [await wired.claim(wait_ms="5000"), await wired.claim(wait_ms="5000")]}
    for execution_id in ("e-b", "e-a"):
        output_json = json.dumps({"text": execution_id})
        request = pb.CompleteRequest(task_id=tasks[execution_id].task_id, output_json=output_json)
        await wired.answer("CompleteTask", request)
    answers = {number: rest for number, *rest in [await stream.answer(), await stream.answer()]}
    told = {"nexum-status": "NEW", "nexum-attempts": "1"}
    for name in ("a", "b"):
        code, metadata, response = answers[name]
        assert (code, metadata, response.status) == ("", told, "COMPLETED")
        assert json.loads(response.completed_nodes_json) == {"run": {"text": f"e-{name}"}}


async def test_several_calls_in_one_message_are_all_made(stream: Stream, server: Server) -> None:
    headers = [json.dumps({"nexum-execution-id": f"e-{number}", "nexum-wait-ms": "0"}) for number in range(20)]
    await stream.asks(*((str(number), header, start_request()) for number, header in enumerate(headers)))
    answers = [await stream.answer() for _ in headers]
    assert Counter((code, response.status) for _, code, _, response in answers) == {("", "RUNNING"): 20}
    assert {number for number, *_ in answers} == set(map(str, range(20)))


@pytest.mark.parametrize(
    ("header", "request_", "code", "sentence"),
    [
        ("[]", start_request(), "INVALID_ARGUMENT", "The header '[]' of the call is no JSON object of texts."),
        ("{", start_request(), "INVALID_ARGUMENT", "The header '{' of the call is no JSON object of texts."),
        (
            '{"nexum-wait-ms":5}',
            start_request(),
            "INVALID_ARGUMENT",
            "The header '{\"nexum-wait-ms\":5}' of the call is no JSON object of texts.",
        ),
        (
            '{"nexum-wait-ms":"soon"}',
            start_request(),
            "INVALID_ARGUMENT",
            "nexum-wait-ms is 'soon'; it must be a whole number from 0 to 60000.",
        ),
        (
            '{"nexum-execution-id":"a b"}',
            start_request(),
            "INVALID_ARGUMENT",
            "The execution id 'a b' is not 1 to 200 of A-Z a-z 0-9 . _ : / @ = -",
        ),
        (
            "{}",
            start_request(workflow_id="other"),
            "NOT_FOUND",
            f"No workflow 'other' of version {ECHO.version_hash!r}",
        ),
    ],
)
async def test_a_call_that_says_nonsense_is_refused_and_the_others_go_on(
    stream: Stream, header: str, request_: Any, code: str, sentence: str
) -> None:
    await stream.asks(("bad", header, request_))
    number, told_code, told, _ = await stream.answer()
    assert (number, told_code) == ("bad", code)
    assert told.startswith(sentence)
    await stream.starts("good", "e", wait_ms="0")
    assert (await stream.answer())[:2] == ("good", "")


@pytest.mark.parametrize(
    "data",
    [b"\xff", b"\x05abc", b"\x03abc\x00", batches.pack([_header("1", "{}")])],
)
async def test_bytes_that_are_no_calls_are_refused_and_calls_go_on(stream: Stream, data: bytes) -> None:
    await stream.call.write(data)
    number, code, told, _ = await stream.answer()
    assert (number, code) == ("", "INVALID_ARGUMENT")
    assert told.startswith("That is no batch of calls: ")
    await stream.starts("good", "e", wait_ms="0")
    assert (await stream.answer())[:2] == ("good", "")


async def test_a_number_names_one_call_at_a_time(stream: Stream) -> None:
    await stream.starts("1", "e", wait_ms=FOREVER_MS)
    await stream.starts("1", "other", wait_ms="0")
    assert (await stream.answer())[:3] == ("1", "INVALID_ARGUMENT", "Call 1 is under way.")


async def test_a_call_that_is_of_no_interest_any_more_is_waited_for_no_longer(stream: Stream, server: Server) -> None:
    await stream.starts("1", "e", wait_ms=FOREVER_MS)
    await stream.starts("2", "other", wait_ms=FOREVER_MS)
    await eventually(lambda: waiting(server) == {"e", "other"})
    await stream.asks(("1", "", pb.StartRequest()), ("unknown", "", pb.StartRequest()))
    await eventually(lambda: waiting(server) == {"other"})
    await stream.starts("1", "again", wait_ms="0")
    assert (await stream.answer())[:2] == ("1", "")


async def test_when_a_client_goes_nobody_waits_for_its_calls(stream: Stream, server: Server) -> None:
    for name in ("a", "b"):
        await stream.starts(name, name, wait_ms=FOREVER_MS)
    await eventually(lambda: waiting(server) == {"a", "b"})
    stream.call.cancel()
    await eventually(lambda: not waiting(server))


async def test_a_client_that_asks_no_more_is_told_all_that_it_has_asked(stream: Stream) -> None:
    await stream.starts("1", "e", wait_ms="300")
    await stream.call.done_writing()
    number, code, _, response = await stream.answer()
    assert (number, code, response.status) == ("1", "", "RUNNING")
    assert await stream.call.read() is grpc.aio.EOF
    assert await stream.call.code() == grpc.StatusCode.OK


async def test_a_server_that_stops_answers_what_waits_with_what_there_is(tmp_path: Path) -> None:
    server = Server(ServerConfig(tmp_path / "its.db", port=0))
    await server.start()
    async with (
        grpc.aio.insecure_channel(f"localhost:{server.port}") as channel,
        Client(f"localhost:{server.port}") as client,
    ):
        await client.register(ECHO)
        stream = Stream(channel)
        await stream.starts("1", "e", wait_ms=FOREVER_MS)
        await eventually(lambda: waiting(server) == {"e"})
        stopping = asyncio.create_task(server.stop())
        number, code, _, response = await stream.answer()
        assert (number, code, response.status) == ("1", "", "RUNNING")
        assert await stream.call.read() is grpc.aio.EOF
        await stopping


async def test_a_stream_may_not_have_more_calls_waiting_than_a_client_may(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "WAITING_LIMIT", 2)
    for number in "123":
        await stream.starts(number, f"e-{number}", wait_ms=FOREVER_MS)
    number, code, told, _ = await stream.answer()
    assert (number, code) == ("3", "RESOURCE_EXHAUSTED")
    assert told == "This client has 2 calls waiting already; let some of them end first."


async def test_a_result_is_recorded_although_its_client_has_as_many_calls_waiting_as_it_may(
    stream: Stream, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "WAITING_LIMIT", 2)
    await stream.starts("1", "e-1", claim="me")
    _, _, told, _ = await stream.answer()
    await stream.starts("2", "e-2", wait_ms=FOREVER_MS)
    await stream.starts("3", "e-3", wait_ms=FOREVER_MS)
    assert (await stream.answer())[:2] == ("3", "RESOURCE_EXHAUSTED")
    completes = json.dumps({"nexum-completes": told["nexum-task-id"]})
    await stream.asks(("4", completes, pb.StartRequest(input_json='{"text":"paid for"}')))
    assert (await stream.answer())[:3] == ("4", "", {"nexum-message": ""})
    assert (await client.status("e-1")).outputs == {"run": {"text": "paid for"}}


@pytest.mark.parametrize(("limit", "value"), [("RECORDING_LIMIT", 2), ("RECORDING_MIB_LIMIT", 0.0001)])
async def test_no_more_results_are_read_than_can_be_recorded_and_none_is_refused(
    stream: Stream, server: Server, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    monkeypatch.setattr(peers, limit, value)
    most, under_way, complete = 0, 0, server.engine.complete

    async def counted(*args: Any) -> str:
        nonlocal most, under_way
        under_way += 1
        most = max(most, under_way)
        try:
            return await complete(*args)
        finally:
            under_way -= 1

    monkeypatch.setattr(server.engine, "complete", counted)
    completions = []
    for number in range(20):
        await stream.starts(f"{number}", f"e-{number}", claim="me")
        _, _, told, _ = await stream.answer()
        completes = json.dumps({"nexum-completes": told["nexum-task-id"]})
        completions.append((f"r-{number}", completes, pb.StartRequest(input_json=json.dumps({"text": "x" * 60}))))
    await stream.asks(*completions)
    for _ in completions:
        assert (await stream.answer())[1:3] == ("", {"nexum-message": ""})
    assert most <= 2


async def test_the_header_of_a_call_has_a_limit(stream: Stream) -> None:
    await stream.asks(("1", json.dumps({"nexum-execution-id": "x" * 70_000}), start_request()))
    number, code, told, _ = await stream.answer()
    assert (number, code) == ("1", "INVALID_ARGUMENT")
    assert told == "The header of the call has 70026 characters; the limit is 65536."


@pytest.mark.parametrize("how", ["it says so", "its stream ends"])
async def test_who_claims_holds_its_task_until_its_call_is_over(stream: Stream, wired: Wire, how: str) -> None:
    await stream.starts("1", "e", claim="me", lease_ms="3600000")
    number, code, told, response = await stream.answer()
    assert (number, code, response.status) == ("1", "", "RUNNING")
    assert told.keys() == {"nexum-status", "nexum-attempts", "nexum-task-id"}
    assert (told["nexum-status"], told["nexum-attempts"]) == ("NEW", "1")
    assert "nexum-task-id" not in await wired.start("e", claim="another")
    if how == "it says so":
        await stream.asks(("1", "", pb.StartRequest()))
    else:
        stream.call.cancel()

    async def taken_over() -> str:
        return str((await wired.start("e", claim="another")).get("nexum-task-id", ""))

    assert await eventually(taken_over) == told["nexum-task-id"].removesuffix(".1") + ".2"


async def test_who_claims_what_has_ended_is_told_and_has_nothing_to_hold(
    stream: Stream, server: Server, wired: Wire
) -> None:
    await wired.finish("e")
    await stream.starts("1", "e", claim="me")
    number, code, told, response = await stream.answer()
    assert (number, code, response.status) == ("1", "", "COMPLETED")
    assert told == {"nexum-status": "COMPLETED", "nexum-attempts": "1"}
    await stream.starts("1", "other", wait_ms="0")  # the number is free
    assert (await stream.answer())[:2] == ("1", "")
    assert not server.engine._present


async def test_a_result_is_recorded_on_the_stream_and_what_is_too_late_is_said(stream: Stream, client: Client) -> None:
    await stream.starts("1", "e", claim="me")
    _, _, told, _ = await stream.answer()
    completes = json.dumps({"nexum-completes": told["nexum-task-id"]})
    await stream.asks(("2", completes, pb.StartRequest(input_json='{"text":"mine"}')))
    assert (await stream.answer())[:3] == ("2", "", {"nexum-message": ""})
    assert (await client.status("e")).outputs == {"run": {"text": "mine"}}
    await stream.asks(("3", completes, pb.StartRequest(input_json='{"text":"again"}')))
    late = "Node run was completed already; this result was not recorded."
    assert (await stream.answer())[:3] == ("3", "", {"nexum-message": late})
    await stream.asks(("4", completes, pb.StartRequest(input_json="{")))
    assert (await stream.answer())[:2] == ("4", "INVALID_ARGUMENT")


# As the client uses it


def counted(client: Client) -> Counter[str]:
    """How many streams of calls it opens, and how many calls it makes by themselves."""
    counts: Counter[str] = Counter()
    way = remote(client)
    open_stream, execute = way.calls._open_stream, way.method("Execute")

    def counting_open() -> Any:
        counts["streams"] += 1
        return open_stream()

    def counting_execute(*args: Any, **kwargs: Any) -> Any:
        counts["alone"] += 1
        return execute(*args, **kwargs)

    way.calls._open_stream, way._methods["Execute"] = counting_open, counting_execute
    return counts


async def test_all_calls_of_a_client_go_on_one_stream(server: Server, client: Client) -> None:
    built, counts = one_node(quick), counted(client)
    async with working(server.port, built, concurrency=20):
        names = [f"e-{number}" for number in range(200)]
        outcomes = await asyncio.gather(*(client.execute(built, name, execution_id=name) for name in names))
    assert [(each.execution_id, each.status) for each in outcomes] == [(name, "COMPLETED") for name in names]
    assert counts == {"streams": 1}


async def test_a_server_that_knows_no_such_stream_is_asked_call_by_call(server: Server, client: Client) -> None:
    counts = counted(client)
    remote(client).calls._open_stream = remote(client).connection.channel.stream_stream(
        "/nexum.NexumExtensions/OfTheFuture"
    )
    built = one_node(quick)
    await client.register(built)

    async def local() -> dict[str, str]:
        await eventually(lambda: server.engine._present)  # it is seen nevertheless
        return {"text": "here"}

    async with working(server.port, built):
        for name in ("a", "b"):
            assert (await client.execute(built, {}, execution_id=name)).status == "COMPLETED"
        here = await client.run_local(built, {}, local, execution_id="here")
    assert (here.before, here.outputs) == ("NEW", {"run": {"text": "here"}})
    assert counts == {"alone": 3}


async def test_a_call_that_is_cancelled_ends_no_other(server: Server, client: Client) -> None:
    built = one_node(quick)
    left, stays = (asyncio.create_task(client.execute(built, {}, execution_id=name)) for name in ("left", "stays"))
    await eventually(lambda: waiting(server) == {"left", "stays"})
    left.cancel()
    await eventually(lambda: waiting(server) == {"stays"})
    async with working(server.port, built):
        assert (await stays).before == "NEW"
    assert left.cancelled()


async def test_a_call_that_is_not_answered_in_time_ends_no_other(server: Server, client: Client) -> None:
    built, counts, gate = one_node(quick), counted(client), threading.Event()
    await client.register(built)
    stays = asyncio.create_task(client.execute(built, {}, execution_id="stays"))
    await eventually(lambda: client.executions("stays"))
    hold_commits(server.store, gate)
    with pytest.raises(ServerUnavailable):
        await client.execute(built, {}, execution_id="late", timeout=0.1)
    gate.set()
    async with working(server.port, built):
        assert (await stays).status == "COMPLETED"
    assert counts == {"streams": 1}


async def test_refusals_are_the_errors_that_they_are_by_themselves(server: Server, client: Client) -> None:
    built = one_node(quick)
    with pytest.raises(InvalidRequest, match="The execution id 'a b' is not"):
        await client.execute(built, {}, execution_id="a b")
    with pytest.raises(LimitExceeded, match=r"The input is 17\.0 MiB; the limit is 16\.0 MiB"):
        await client.execute(built, "x" * 17 * 1024 * 1024, execution_id="e")


async def test_a_call_outlives_its_server_and_its_stream(tmp_path: Path) -> None:
    built = one_node(quick)
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        counts = counted(client)
        executing = asyncio.create_task(client.execute(built, {}, execution_id="e", timeout=PATIENCE_SECONDS))
        await eventually(lambda: client.executions("e"))
        await nexum.restart()
        async with working(nexum.port, built):
            assert (await executing).status == "COMPLETED"
        assert counts["streams"] >= 2


async def test_without_a_server_a_call_says_so(unused_tcp_port: int) -> None:
    async with Client(f"localhost:{unused_tcp_port}") as client:
        with pytest.raises(ServerUnavailable, match="No Nexum server answers"):
            await client.execute(one_node(quick), {}, execution_id="e", timeout=0.3)


class Stuck:
    """A stream that takes nothing, and ends when it is told to."""

    def __init__(self) -> None:
        self.ended, self.written = asyncio.Event(), 0

    async def write(self, data: bytes) -> None:
        self.written += 1
        await asyncio.Event().wait()

    async def read(self) -> Any:
        await self.ended.wait()
        return grpc.aio.EOF

    def cancel(self) -> None:
        pass


async def test_a_stream_that_got_stuck_holds_up_no_call_on_the_next_one() -> None:
    first, second = Stuck(), Stuck()
    calls = Calls(iter([first, second]).__next__)
    asking = asyncio.create_task(calls.ask(start_request(), {}, PATIENCE_SECONDS))
    await eventually(lambda: first.written)
    first.ended.set()
    with pytest.raises(Broken, match="The server has ended the stream"):
        await asking
    asking = asyncio.create_task(calls.ask(start_request(), {}, PATIENCE_SECONDS))
    await eventually(lambda: second.written)
    calls.close()
    with pytest.raises(Broken, match="The client was closed"):
        await asking
