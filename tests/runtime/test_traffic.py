"""What is on its way between the server and its clients has a bound, whoever does not read, or does not send."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from nexum.proto import nexum_pb2 as pb
from processes import PATIENCE_SECONDS, eventually
from test_wire import ECHO, Wire, poll_request, start_request, status_request, wired

from nexum_runtime import Client, LimitExceeded, wire
from nexum_runtime.server.app import Server, ServerConfig
from nexum_runtime.server.methods.methods import Call
from nexum_runtime.server.rpc import listening, messages, outbox, peers, traffic
from nexum_runtime.server.rpc.traffic import Traffic
from nexum_runtime.text import MIB
from nexum_runtime.wire import batches

__all__ = ["wired"]  # a fixture

LARGE = json.dumps({"text": "x" * 300_000})
ANSWERS = 20


class Sized(NamedTuple):
    """What Traffic asks of a snapshot."""

    size_chars: int
    unread_chars: int


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.http2.bdp_probe", 0),  # else gRPC takes in ever more of what nobody has asked for
        ("grpc.http2.lookahead_bytes", 65_536),
    ]
    async with grpc.aio.insecure_channel(f"localhost:{server.port}", options=options) as channel:
        yield channel


@pytest.fixture
async def traffic_of(server: Server, wired: Wire, monkeypatch: pytest.MonkeyPatch) -> "Traffic":
    """Of the server, which has an execution "large" that is done, and lets 1 MiB of answers be unread."""
    for module in (traffic, outbox):
        monkeypatch.setattr(module, "UNREAD_MIB_LIMIT", 1)
    await wired.start("large")
    task_id = (await wired.claim()).task_id
    await wired.answer("CompleteTask", pb.CompleteRequest(task_id=task_id, output_json=LARGE))
    return server.traffic


def unread_calls(channel: grpc.aio.Channel) -> list[Any]:
    """Calls that are answered by one message, which nobody reads until `read()`."""
    path = "/nexum.NexumService/GetStatus"
    ask = channel.unary_stream(path, pb.StatusRequest.SerializeToString, pb.StatusResponse.FromString)
    return [ask(status_request("large")) for _ in range(ANSWERS)]


def one_stream(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream("/nexum.NexumExtensions/StreamCalls")()


def execute_large(number: int) -> list[Any]:
    header = json.dumps({"nexum-execution-id": "large"})
    return [pb.CompleteRequest(task_id=f"{number}", output_json=header), start_request()]


async def test_answers_that_nobody_reads_are_made_when_there_is_room_for_them(
    channel: grpc.aio.Channel, traffic_of: Traffic, wired: Wire
) -> None:
    calls = unread_calls(channel)
    await eventually(lambda: 2 * len(LARGE) < traffic_of.unread_in_all)
    for number in range(10):
        await wired.start(f"small-{number}")
        assert traffic_of.unread_in_all <= MIB
    for answer in await asyncio.gather(*(call.read() for call in calls)):
        assert json.loads(answer.completed_nodes_json) == {"run": json.loads(LARGE)}
    await eventually(lambda: not traffic_of.unread_in_all)


async def test_answers_of_a_stream_that_nobody_reads_are_made_when_there_is_room_for_them(
    channel: grpc.aio.Channel, traffic_of: Traffic, wired: Wire
) -> None:
    stream = one_stream(channel)
    for number in range(ANSWERS):
        await stream.write(batches.pack(execute_large(number)))
    await eventually(lambda: 2 * len(LARGE) < traffic_of.unread_in_all)
    for number in range(10):
        await wired.start(f"small-{number}")
        assert traffic_of.unread_in_all <= MIB
    answered: set[str] = set()
    while len(answered) < ANSWERS:
        messages = batches.unpack([pb.PollResponse, pb.StatusResponse], await stream.read())
        for header, response in zip(messages[::2], messages[1::2], strict=True):
            assert json.loads(response.completed_nodes_json) == {"run": json.loads(LARGE)}
            answered.add(header.task_id)
    await eventually(lambda: not traffic_of.unread_in_all)


@pytest.mark.parametrize("kind", ["calls", "stream"])
async def test_a_client_that_goes_leaves_nothing_unread(
    channel: grpc.aio.Channel, traffic_of: Traffic, kind: str
) -> None:
    calls = unread_calls(channel) if kind == "calls" else [one_stream(channel)]
    if kind == "stream":
        for number in range(ANSWERS):
            await calls[0].write(batches.pack(execute_large(number)))
    await eventually(lambda: traffic_of.unread_in_all)
    for call in calls:
        call.cancel()
    await eventually(lambda: not traffic_of.unread_in_all)


async def test_an_answer_that_finds_no_room_for_long_is_refused_with_both_sizes(
    channel: grpc.aio.Channel, traffic_of: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "UNREAD_SECONDS", 0.1)
    refused, abort = [], messages.abort

    async def noted(context: Any, error: Exception) -> None:
        refused.append(str(error))
        await abort(context, error)

    monkeypatch.setattr(traffic, "abort", noted)
    calls = unread_calls(channel)
    await eventually(lambda: len(refused) >= ANSWERS // 2)
    assert {each.partition(" of ")[0] for each in refused} == {"This client has not read answers"}
    assert {each.partition("; ")[2] for each in refused} == {
        "the limits are 1 and 256 MiB. Read them, and ask again.",
    }
    found = [await _answer_or_none(call) for call in calls]
    assert found.count(None) == len(refused)


async def _answer_or_none(call: Any) -> Any:
    try:
        return await call.read()
    except grpc.aio.AioRpcError:
        return None


async def test_an_answer_that_is_not_read_in_time_ends_its_call(
    channel: grpc.aio.Channel, traffic_of: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "WRITE_SECONDS", 0.1)
    calls = unread_calls(channel)
    await eventually(lambda: traffic_of.unread_in_all)
    await eventually(lambda: not traffic_of.unread_in_all)
    del calls


async def test_so_many_large_requests_of_a_client_are_read_at_a_time_and_all_are_answered(
    server: Server, wired: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"e-{number}" for number in range(ANSWERS)]
    for name in names:
        await wired.start(name)
    tasks = [await wired.claim() for _ in names]
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
    requests = [pb.CompleteRequest(task_id=task.task_id, output_json=LARGE) for task in tasks]
    await asyncio.gather(*(wired.answer("CompleteTask", request) for request in requests))
    assert most <= traffic.RECEIVING_LIMIT
    assert not server.traffic._receiving


async def test_a_request_that_does_not_arrive_is_given_up(
    channel: grpc.aio.Channel, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "RECEIVE_SECONDS", 0.1)
    call = channel.stream_unary("/nexum.NexumService/CompleteTask")()
    assert (await call.code()).name == "RESOURCE_EXHAUSTED"
    assert await call.details() == "The request did not arrive within 0.1 s."
    await eventually(lambda: not server.traffic._receiving)


@pytest.mark.parametrize("word", [b"", b"PRI * HTTP/2.0\r\n"])
async def test_a_connection_that_does_not_finish_its_greeting_is_closed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, word: bytes
) -> None:
    monkeypatch.setattr(listening, "GREETING_SECONDS", 0.2)
    server = Server(ServerConfig(tmp_path / "greeted.db", port=0))
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(word)
    async with asyncio.timeout(20):
        await reader.read()  # to its end
    writer.close()
    await server.stop()


async def test_a_connection_without_a_call_is_closed_and_a_client_opens_another_one(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "IDLE_SECONDS", 0.2)
    server = Server(ServerConfig(tmp_path / "idle.db", port=0))
    await server.start()
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"localhost:{server.port}", options=options) as channel:
        await channel.channel_ready()
        async with asyncio.timeout(20):
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
    async with Client(f"localhost:{server.port}") as client:
        assert await client.register(ECHO) == "NEW"
    await server.stop()


async def test_more_connections_than_a_server_takes_are_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "CONNECTIONS_LIMIT", 2)
    server = Server(ServerConfig(tmp_path / "nexum.db", port=0))
    await server.start()
    idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
    refused, refused_writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(PATIENCE_SECONDS):
        with suppress(ConnectionResetError):
            assert await refused.read() == b"", "it was hung up on"
    for writer in (refused_writer, *(writer for _, writer in idle)):
        writer.close()
        with suppress(ConnectionResetError):
            await writer.wait_closed()
    async with Client(f"127.0.0.1:{server.port}") as client:
        await client.check()
    await server.stop()


def test_what_a_server_takes_is_bound_by_its_limit_on_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, taken in ((100, 1), (1_024, 412), (1_000_000, wire.CONNECTIONS_LIMIT), (-1, wire.CONNECTIONS_LIMIT)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert listening.connections_limit() == taken


def test_on_a_unix_socket_whose_clients_cannot_be_told_apart_each_call_is_one_of_its_own() -> None:
    peer = "ipv4:127.0.0.1:4711"
    assert traffic.client_of(peer) == traffic.client_of(peer) == peer
    assert traffic.client_of("unix:") != traffic.client_of("unix:")


async def test_clients_on_a_unix_socket_have_more_places_together_than_one_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "WAITING_LIMIT", 1)
    monkeypatch.setattr(peers, "WAITING_LIMIT_UNIX", 2)
    for peer, limit in (("ipv4:127.0.0.1:4711", 1), ("unix:", 2)):
        waiting = peers.Waiting()
        with ExitStack() as places:
            for _ in range(limit):
                places.enter_context(waiting.place(peer, pb.EmptyRequest()))
            with pytest.raises(LimitExceeded, match=f"^This client has {limit} calls waiting"):
                places.enter_context(waiting.place(peer, pb.EmptyRequest()))


async def test_answers_that_wait_for_room_get_it_in_their_order_and_are_not_woken_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten thousand who wait for one large result, say: each answer that left woke all of them, for 12 s in all."""
    monkeypatch.setattr(traffic, "UNREAD_MIB_LIMIT", 1)
    room, waiting, looks, has_room = Traffic(), 300, 0, Traffic._has_room

    def counted(*args: Any) -> bool:
        nonlocal looks
        looks += 1
        return has_room(*args)

    monkeypatch.setattr(Traffic, "_has_room", counted)
    order: list[int] = []

    async def answer(number: int) -> None:
        snapshot: Any = Sized(MIB // 2, 0)

        async def again() -> Any:
            return snapshot

        await room.let_out(number, "peer", snapshot, again)
        order.append(number)
        await asyncio.sleep(0)
        room.sent(number)

    await asyncio.gather(*(answer(number) for number in range(waiting)))
    assert order == list(range(waiting))
    assert looks < 5 * waiting
    assert (room.unread_in_all, room._queues) == (0, {})


# Answers that cannot be sent


@pytest.mark.parametrize("method", ["PollTask", "Execute", "StartExecution"])
@pytest.mark.parametrize("effect", ["idempotent", "once"])
async def test_a_claim_whose_answer_was_not_sent_is_for_others_at_once(
    server: Server, wired: Wire, monkeypatch: pytest.MonkeyPatch, method: str, effect: str
) -> None:
    """A stock worker's poll that times out as its answer leaves, say. What happens once may have begun then."""
    writing, gate = asyncio.Event(), asyncio.Event()

    async def held(context: Any, message: Any) -> None:
        writing.set()
        await gate.wait()

    if method == "PollTask":
        await wired.start("e", effect=effect)
        asking = asyncio.create_task(wired.answer("PollTask", poll_request("gone")))
    else:
        claim = {"claim": "gone", "lease_ms": "60000"}
        asking = asyncio.create_task(wired.answer(method, start_request(), execution_id="e", effect=effect, **claim))
    with monkeypatch.context() as slow:
        slow.setattr(traffic, "write", held)
        await eventually(writing.is_set)
        asking.cancel()
        await asyncio.wait([asking])
    if effect == "once":
        await eventually(lambda: not server.traffic._receiving)  # the call has ended
        await server.engine.close()
        assert len(await server.store.read(lambda reader: reader.held("gone"))) == 1
    else:
        claimed = await wired.answer("PollTask", poll_request("next"), wait_ms="20000")
        assert claimed.execution_id == "e"
        await wired.answer("CompleteTask", pb.CompleteRequest(task_id=claimed.task_id, output_json="{}"))
        assert (await server.engine.snapshot("e")).attempts == 1


@pytest.mark.parametrize(("left_seconds", "is_sent"), [(None, True), (1.0, True), (0.0, False)])
async def test_an_answer_that_was_written_when_its_time_was_up_counts_as_not_sent(
    left_seconds: float | None, is_sent: bool
) -> None:
    class Late:
        async def write(self, message: Any) -> None: ...

        def time_remaining(self) -> float | None:
            return left_seconds

    told: list[bool] = []
    await traffic._answer(Late(), Call({}, unsent=told.append), {})
    assert told == ([] if is_sent else [True])
