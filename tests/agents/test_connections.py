"""Connections: closed with their event loops, left alone by forked processes, and made anew when they carry nothing."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from connection_process import DEFINITION, call
from nexum.proto import nexum_pb2 as pb
from nexum.proto import nexum_pb2_grpc as pb_grpc
from processes import PATIENCE_SECONDS, NexumDev, environment, eventually, run

from nexum_agents.clients import nexum_client
from nexum_runtime import Client, ServerUnavailable, Worker
from nexum_runtime.client import client as client_module
from nexum_runtime.server.app import Server
from nexum_runtime.wire import keepalive

PROGRAM = Path(__file__).with_name("connection_process.py")
FORKED = "ForkedWhileConnected: This process was forked from one that had an open connection to Nexum"
PROCESS_SECONDS = 120.0

pytestmark = pytest.mark.usefixtures("with_a_server")


async def told_by(address: str, what: str, how: str, count: int, *more: str) -> list[dict[str, Any]]:
    """What such a process says, which must write nothing to stderr."""
    command = [sys.executable, "-X", "dev", "-W", "error", str(PROGRAM), what, how, str(count), *more]
    settings = environment(NEXUM_ADDRESS=address, OPENAI_AGENTS_DISABLE_TRACING="1")
    finished = await run(
        *command,
        env={name: value for name, value in settings.items() if not name.startswith("GRPC_")},
        seconds=PROCESS_SECONDS,
    )
    # asyncio's debug mode also tells what took long, which on a busy machine may be anything.
    unexpected = re.sub(r"Executing <.*? took [\d.]+ seconds\n", "", finished.stderr, flags=re.DOTALL)
    assert (finished.code, unexpected) == (0, "")
    return [json.loads(line) for line in finished.stdout.splitlines()]


# Event loops


@pytest.mark.parametrize(
    ("how", "count"),
    [
        ("asyncio_run", 100),
        ("run_until_complete", 100),
        ("run_until_complete_at_once", 20),
        ("by_a_stopped_clock", 5),
        ("unfinished", 50),
        ("refused", 20),
        ("threads", 25),
        ("run_sync", 25),
        ("interrupted", 10),
        ("closed_from_another_loop", 10),
        ("beside_each_other", 20),
    ],
)
async def test_event_loops_that_have_ended_leave_no_connection_and_print_nothing(
    address: str, how: str, count: int
) -> None:
    [told] = await told_by(address, "loops", how, count)
    assert told["after"] == told["before"]
    assert (told["after"]["connections"], told["after"]["threads"]) == (0, 1)


async def test_event_loops_of_processes_in_each_other_s_way_leave_no_connection(address: str) -> None:
    """gRPC is slow then, and tells an event loop late that what it was writing has ended."""
    processes = [told_by(address, "loops", "run_until_complete_at_once", 40) for _ in range(6)]
    for [told] in await asyncio.gather(*processes):
        assert told["after"] == told["before"]


async def test_a_loop_left_open_at_the_end_of_the_process_prints_nothing(address: str) -> None:
    assert await told_by(address, "loops", "left_open", 0) == [{"left": False}]


async def test_each_loop_has_one_client_of_its_own(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", address)

    async def twice() -> list[Client]:
        return [nexum_client(), nexum_client()]

    here = nexum_client()
    first, second = await asyncio.to_thread(lambda: asyncio.run(twice()))
    assert first is second
    assert first is not here
    assert nexum_client() is here
    assert here.address == address


async def test_a_task_that_is_cancelled_with_its_loop_can_still_make_a_call(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", address)
    ends = []

    async def until_cancelled() -> None:
        client = nexum_client()
        try:
            await asyncio.Event().wait()
        finally:
            ends.append(await call(client))

    async def main() -> None:
        task = asyncio.create_task(until_cancelled())
        await asyncio.sleep(0)
        assert not task.done()

    await asyncio.to_thread(lambda: asyncio.run(main()))
    assert ends == ["answered"]


# Forks


@pytest.mark.parametrize("more", [(), ("grpc-first",)], ids=["", "grpc imported before"])
async def test_a_process_that_forks_while_connected_goes_on_and_its_child_is_told(
    address: str, more: tuple[str, ...]
) -> None:
    *told, last = await told_by(address, "forks", "connected", 6, *more)
    assert {each["parent"] for each in told} == {"goes on"}
    for number, each in enumerate(told):
        assert each["child"].startswith("wants none" if number % 3 == 2 else FORKED), each
    assert last == {"parent": "answered", "child": "answered"}  # everything is closed by then


async def test_a_process_that_forks_between_two_calls_goes_on_and_its_child_is_told(address: str) -> None:
    for number, each in enumerate(await told_by(address, "forks", "idle", 6)):
        assert each["parent"] == "answered"
        assert each["child"].startswith("wants none" if number % 3 == 2 else FORKED), each


async def test_a_process_that_is_forked_when_all_clients_are_closed_has_connections_of_its_own(address: str) -> None:
    told = await told_by(address, "forks", "closed", 4)
    assert told == [{"parent": "answered", "child": ["answered", "answered"]}] * 4


async def test_a_process_that_is_forked_before_the_first_use_has_connections_of_its_own(address: str) -> None:
    *told, last = await told_by(address, "forks", "unused", 5)
    assert told == [{"child": "answered"}] * 5
    assert last == {"parent": "answered"}


async def test_a_pool_of_processes_is_told_unless_it_spawns_them(address: str) -> None:
    told = {each["method"]: each for each in await told_by(address, "forks", "pools", 1)}
    assert told["fork"]["child"].startswith(FORKED)
    assert told["spawn"]["child"] == told["fork, closed"]["child"] == "answered"
    assert {each["parent"] for each in told.values()} == {"answered"}


# A way that goes dead


class Flow:
    """One connection through a Way."""

    def __init__(self) -> None:
        self.is_cut = False
        self.ended_by: set[str] = set()  # "client", "server": who has closed it
        self.sent = {"client": 0, "server": 0}  # how often each has sent something


class Way:
    """A way to a port. When it is cut, what is open stays open and carries nothing more; what is opened later works."""

    def __init__(self, to: int, delay: float = 0.0) -> None:
        self._to, self._delay = to, delay  # seconds, each way
        self._going = asyncio.Event()
        self._going.set()
        self._carrying: set[asyncio.Task[None]] = set()
        self.flows: list[Flow] = []

    async def __aenter__(self) -> "Way":
        self._server = await asyncio.start_server(self._open, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._carrying:
            task.cancel()
        if self._carrying:
            await asyncio.wait(self._carrying)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        for flow in self.flows:
            flow.is_cut = True

    def pause(self) -> None:
        self._going.clear()

    def resume(self) -> None:
        self._going.set()

    async def _open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self.flows.append(flow := Flow())
        for carry in (
            self._carry(flow, "client", reader, there_writer),
            self._carry(flow, "server", there_reader, writer),
        ):
            task = asyncio.create_task(carry)
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

    async def _carry(self, flow: Flow, who: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError):
                while data := await source.read(65536):
                    flow.sent[who] += 1
                    await self._going.wait()
                    await asyncio.sleep(self._delay)
                    if not flow.is_cut:
                        sink.write(data)
            flow.ended_by.add(who)
            if flow.is_cut:
                await asyncio.Event().wait()  # nobody hears of it
        finally:
            sink.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decided within half a minute is decided within two seconds."""
    monkeypatch.setattr(keepalive, "QUIET_MS", 300)
    monkeypatch.setattr(keepalive, "ANSWER_MS", 1_500)


@pytest.fixture
async def way(impatient: None, server: Server) -> AsyncIterator[Way]:
    async with Way(server.port) as way:
        yield way


@pytest.fixture
async def worker(server: Server) -> AsyncIterator[Worker]:
    """One that nothing is in the way of."""
    worker = Worker([DEFINITION], port=server.port, drain_seconds=0.0)
    running = asyncio.create_task(worker.run())
    yield worker
    worker.stop()
    await running


def test_a_dead_connection_is_noticed_within_half_a_minute_and_a_pause_of_ten_seconds_breaks_none() -> None:
    assert keepalive.QUIET_MS + keepalive.ANSWER_MS < 30_000
    assert keepalive.ANSWER_MS > 10_000


async def test_a_client_goes_on_over_a_new_connection_when_the_old_one_has_gone_dead(way: Way, worker: Worker) -> None:
    async with Client(way.address) as client:
        await client.execute(DEFINITION, {"n": 1}, timeout=PATIENCE_SECONDS)
        way.cut()
        outcome = await client.execute(DEFINITION, {"n": 2}, timeout=PATIENCE_SECONDS)
        assert outcome.status == "COMPLETED"
        await client.executions()
        assert len(way.flows) == 2


async def test_a_client_that_waits_for_nothing_notices_as_well(way: Way) -> None:
    async with Client(way.address) as client:
        await client.executions()
        way.cut()
        await eventually(lambda: "client" in way.flows[0].ended_by)
        await client.executions()


async def test_a_local_effect_whose_connection_has_gone_dead_is_recorded_over_a_new_one(way: Way) -> None:
    async with Client(way.address) as client:
        async with client.local_effect(DEFINITION, {}, execution_id="e1", timeout=PATIENCE_SECONDS) as effect:
            way.cut()
            await eventually(lambda: "client" in way.flows[0].ended_by)
            await effect.record({"n": 1})
        assert (await client.status("e1")).outputs == {"answer": {"n": 1}}


async def test_a_worker_takes_tasks_over_a_new_connection_when_the_old_one_has_gone_dead(
    way: Way, client: Client
) -> None:
    worker = Worker([DEFINITION], port=way.port, host="127.0.0.1", lease_ms=2_000, drain_seconds=0.0)
    running = asyncio.create_task(worker.run())
    await client.execute(DEFINITION, {"n": 1}, timeout=PATIENCE_SECONDS)
    way.cut()
    outcome = await client.execute(DEFINITION, {"n": 2}, timeout=PATIENCE_SECONDS)
    assert outcome.status == "COMPLETED"
    assert len(way.flows) == 2
    worker.stop()
    await running


async def test_the_server_closes_the_dead_connection_of_a_client(way: Way) -> None:
    async with grpc.aio.insecure_channel(way.address) as stock:  # which itself never notices
        await pb_grpc.NexumServiceStub(stock).ListExecutions(pb.ListRequest(limit=1))
        way.cut()
        await eventually(lambda: way.flows[0].ended_by == {"server"})


async def test_a_pause_that_is_shorter_than_the_time_to_answer_breaks_nothing(way: Way, worker: Worker) -> None:
    async with Client(way.address) as client:
        await client.execute(DEFINITION, {"n": 1}, timeout=PATIENCE_SECONDS)
        sent = way.flows[0].sent["client"]
        way.pause()
        waiting = asyncio.create_task(client.execute(DEFINITION, {"n": 2}, timeout=PATIENCE_SECONDS))
        await asyncio.wait({waiting}, timeout=2 * keepalive.QUIET_MS / 1000)
        assert way.flows[0].sent["client"] > sent
        way.resume()
        assert (await waiting).status == "COMPLETED"
        assert len(way.flows) == 1
        assert not way.flows[0].ended_by


async def test_a_server_that_is_there_and_does_not_answer_at_once_is_waited_for(way: Way) -> None:
    way.pause()
    async with Client(way.address) as client:
        checking = asyncio.create_task(client.check(0.1))
        await asyncio.wait({checking}, timeout=1.0)
        assert not checking.done()
        way.resume()
        await checking
        assert len(way.flows) == 1


async def test_a_server_that_never_answers_is_said_to_be_silent(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RPC_SECONDS", 0.5)
    way.pause()
    async with Client(way.address) as client:
        with pytest.raises(
            ServerUnavailable, match=rf"server at {way.address} has not answered for 0\.5 s: it is paused"
        ):
            await client.check(0.1)


async def test_a_server_that_is_far_is_reached(server: Server, worker: Worker) -> None:
    async with Way(server.port, delay=0.4) as far, Client(far.address) as client:
        await client.check()
        outcome = await client.execute(DEFINITION, {"n": 1}, timeout=PATIENCE_SECONDS)
        assert outcome.status == "COMPLETED"
        assert len(far.flows) == 1


async def test_a_client_may_ping_for_as_long_as_it_is_idle(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepalive, "QUIET_MS", 500)  # of the client: the server, which has begun, has more patience
    async with Way(server.port) as way, Client(way.address) as client:
        await client.executions()
        await lasts(way, pings=5)  # gRPC sends one in a second at most
        await client.executions()
        assert len(way.flows) == 1


async def test_a_stock_client_answers_the_pings_of_the_server(way: Way) -> None:
    async with grpc.aio.insecure_channel(way.address) as stock:
        stub = pb_grpc.NexumServiceStub(stock)
        await stub.ListExecutions(pb.ListRequest(limit=1))
        await lasts(way, pings=5)
        await stub.ListExecutions(pb.ListRequest(limit=1))
        assert len(way.flows) == 1


async def lasts(way: Way, pings: int) -> None:
    """Wait until that many were sent, and answered. Fails when the connection ends."""
    flow = way.flows[0]
    enough = {who: sent + pings for who, sent in flow.sent.items()}
    await eventually(lambda: flow.ended_by or all(flow.sent[who] >= enough[who] for who in enough))
    assert not flow.ended_by


async def test_a_server_that_is_stopped_for_a_moment_keeps_its_connections(impatient: None, tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as nexum, Way(nexum.port) as way, Client(way.address) as client:
        await call(client)
        nexum.send(signal.SIGSTOP)
        waiting = asyncio.create_task(call(client))
        await asyncio.wait({waiting}, timeout=2 * keepalive.QUIET_MS / 1000)
        assert not waiting.done()
        nexum.send(signal.SIGCONT)
        assert await waiting == "answered"
        assert len(way.flows) == 1
