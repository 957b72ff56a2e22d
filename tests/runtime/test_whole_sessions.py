"""Sessions: what is told of them, how they are stopped, and how they go on."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from command import ECHO, GATE, assert_refused, claim, finish, nexum, start
from local_process import ASK
from nexum.proto import nexum_pb2 as pb
from nexum.proto import nexum_pb2_grpc as pb_grpc
from processes import NEXUM, PATIENCE_SECONDS, Finished, NexumDev, Terminal, environment, eventually, remote

from nexum_runtime import Client, NotFound, SessionStopped
from nexum_runtime.cli.base import FAILED
from nexum_runtime.client import local

WORDS = "Session s1 was stopped by ann: wrong customer. Let it go on with: nexum go s1"


class Cut:
    """What is executed here until it is cut short."""

    def __init__(self) -> None:
        self.begun = self.cut = 0
        self.go_on = asyncio.Event()

    async def __call__(self) -> Any:
        self.begun += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cut += 1
            raise
        return {"text": "done"}


async def states(client: Client) -> dict[str, str]:
    return {each["session_id"]: each["state"] for each in await client.sessions()}


async def story(client: Client, execution_id: str) -> list[str]:
    return [event["type"] async for history in client.history(execution_id) for event in history["events"]]


async def never() -> Any:
    raise AssertionError("it begins")


# What is told of them


async def test_a_session_tells_its_labels_numbers_and_state(client: Client) -> None:
    async def answer() -> Any:
        return {"text": "42"}

    for n in range(3):
        labels = {"kind": "turn", "name": "gpt", "run": f"r{n % 2}"}
        async with client.local_effect(ASK, {}, execution_id=f"s1/turn/{n}", labels=labels) as effect:
            await effect.record(await answer(), labels | {"numbers": {"tokens": 10 + n}})
    labels = {"kind": "call", "name": "search", "text": '"durable"', "run": "r1"}
    await client.run_local(ASK, {}, answer, execution_id="s1/search/0", labels=labels)
    await finish(client, "s2/e")
    await finish(client, "alone")

    second, first = await client.sessions()
    assert (first["session_id"], second["session_id"]) == ("s1", "s2")
    assert first["kinds"] == {"turn": 3, "call": 1}
    assert first["numbers"] == {"tokens": 33}
    assert (first["runs"], first["executions"], first["state"]) == (2, 4, "RUNNING")
    assert first["began_at_ms"] <= first["heard_at_ms"] <= second["heard_at_ms"]
    assert second["kinds"] == {}
    assert [each["session_id"] for each in await client.sessions("s1")] == ["s1"]
    (listed,) = await client.listed("s1/search")
    assert listed["labels"] == labels


async def test_the_state_of_a_session_is_what_a_person_has_to_know_first(client: Client) -> None:
    await start(client, "s1/a")
    assert await states(client) == {"s1": "RUNNING"}
    await start(client, "s1/gate", GATE)
    assert await states(client) == {"s1": "WAITING"}
    executing = asyncio.create_task(client.execute(ECHO, {}, execution_id="s1/once", effect="once"))
    await client.complete(await claim(client, 60_000), '{"text": "a"}')
    await client.fail(await claim(client, 60_000), "Its worker was stopped.", interrupted=True)
    assert (await executing).error_code == "OUTCOME_UNKNOWN"
    assert await states(client) == {"s1": "UNKNOWN"}
    assert {each["execution_id"]: each["status"] for each in await client.listed()} == {
        "s1/a": "COMPLETED",
        "s1/gate": "WAITING",
        "s1/once": "UNKNOWN",
    }
    for state, found in (("WAITING", ["s1/gate"]), ("UNKNOWN", ["s1/once"]), ("FAILED", []), ("RUNNING", [])):
        assert [each["execution_id"] for each in await client.listed(status=state)] == found
    await client.stop_session("s1")
    assert await states(client) == {"s1": "STOPPED"}


async def test_how_the_last_run_ended_is_the_state_of_a_session_of_which_nothing_runs(client: Client) -> None:
    async def end() -> Any:
        return {"text": ""}

    for outcome in ("FAILED", "COMPLETED"):
        labels = {"kind": "run", "name": "Agent", "outcome": outcome}
        await client.run_local(ASK, {}, end, execution_id=f"s1/end/{outcome}", labels=labels)
        assert await states(client) == {"s1": outcome}
    await finish(client, "s1/more")
    assert await states(client) == {"s1": "RUNNING"}


@pytest.mark.parametrize("labels", ["[]", "no", '{"kind": 1}', '{"colour": "red"}', '{"numbers": {"n": "1"}}'])
async def test_labels_that_are_none_are_refused(client: Client, labels: str) -> None:
    await client.register(ECHO)
    stub = pb_grpc.NexumServiceStub(remote(client).connection.channel)
    request = pb.StartRequest(workflow_id="echo", version_hash=ECHO.version_hash, input_json="{}")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.StartExecution(request, metadata=(("nexum-labels-bin", labels.encode()),))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "nexum-labels-bin is" in str(refused.value.details())


async def test_a_session_that_was_pruned_is_listed_no_more(client: Client) -> None:
    await finish(client, "s1/a")
    await client.prune("s1/", 0)
    assert await client.sessions() == []


# They stop


async def test_of_a_stopped_session_nothing_begins_until_it_goes_on(client: Client) -> None:
    await finish(client, "s1/done")
    await start(client, "s1/ready")
    assert await client.stop_session("s1", "ann", "wrong customer") == {"stopped": [], "let_finish": []}
    assert await client.poll("worker-1", ECHO, lease_ms=60_000) is None
    for execution_id in ("s1/ready", "s1/new"):
        with pytest.raises(SessionStopped, match=re.escape(WORDS)):
            await client.execute(ECHO, {"q": "página"}, execution_id=execution_id)
        with pytest.raises(SessionStopped):
            await client.run_local(ECHO, {"q": "página"}, never, execution_id=execution_id)
    with pytest.raises(SessionStopped):
        await client.journal("s1/", to_go_on=True)
    assert list(await client.journal("s1/")) == ["s1/done"]
    assert (await client.execute(ECHO, {"q": "página"}, execution_id="s1/done")).outputs == {"run": {"text": "é"}}
    await finish(client, "s10/other")

    polling = asyncio.create_task(claim(client, 60_000))
    assert await client.go_session("s1")
    await client.complete(await asyncio.wait_for(polling, PATIENCE_SECONDS), '{"text": "a"}')
    assert (await client.execute(ECHO, {"q": "página"}, execution_id="s1/ready")).status == "COMPLETED"
    assert not await client.go_session("s1")


async def test_what_this_process_executes_is_cut_short_and_goes_on_later(client: Client, address: str) -> None:
    effect = Cut()
    async with Client(address) as other:
        running = asyncio.create_task(other.run_local(ASK, {}, effect, execution_id="s1/e"))
        await eventually(lambda: effect.begun)
        assert (await client.stop_session("s1", "ann", "wrong customer"))["stopped"] == ["s1/e"]
        with pytest.raises(SessionStopped, match=re.escape(WORDS)):
            await asyncio.wait_for(running, PATIENCE_SECONDS)
        assert effect.cut == 1
        with pytest.raises(SessionStopped):
            await other.run_local(ASK, {}, never, execution_id="s1/e")
        await client.go_session("s1")
        effect.go_on.set()
        assert (await other.run_local(ASK, {}, effect, execution_id="s1/e")).status == "COMPLETED"
    assert await story(client, "s1/e") == [
        "ExecutionStarted",
        "AttemptStarted",
        "AttemptStopped",
        "AttemptStarted",
        "TaskCompleted",
        "ExecutionCompleted",
    ]


async def test_what_happens_once_is_let_finish_and_recorded(client: Client, address: str) -> None:
    effect = Cut()
    async with Client(address) as other:
        running = asyncio.create_task(other.run_local(ASK, {}, effect, execution_id="s1/e", effect="once"))
        await eventually(lambda: effect.begun)
        assert (await client.stop_session("s1"))["let_finish"] == ["s1/e"]
        effect.go_on.set()
        assert (await asyncio.wait_for(running, PATIENCE_SECONDS)).status == "COMPLETED"
    assert effect.cut == 0


async def test_a_worker_is_told_to_stop_and_whoever_waits_is_told_why(client: Client) -> None:
    await client.register(ECHO)
    waiting = asyncio.create_task(client.execute(ECHO, {}, execution_id="s1/e"))
    task_id = await claim(client, 60_000)
    await client.stop_session("s1", "ann", "wrong customer")
    with pytest.raises(SessionStopped, match=re.escape(WORDS)):
        await asyncio.wait_for(waiting, PATIENCE_SECONDS)
    assert await client.heartbeat("worker-1", [task_id]) == [task_id]
    await client.go_session("s1")
    assert (await claim(client)).rpartition(".")[2] == "2"


async def test_a_result_that_comes_after_the_stop_is_recorded(client: Client) -> None:
    await client.register(ECHO)
    await start(client, "s1/e")
    task_id = await claim(client)
    await client.stop_session("s1")
    assert await client.complete(task_id, '{"text": "done"}') == ""
    assert (await client.status("s1/e")).status == "COMPLETED"


async def test_an_approval_of_a_stopped_session_may_be_given_and_lets_nothing_begin(client: Client) -> None:
    await start(client, "s1/gate", GATE)
    waiting = asyncio.create_task(client.execute(GATE, {"q": "página"}, execution_id="s1/gate"))
    await eventually(client.approvals)
    await client.stop_session("s1")
    with pytest.raises(SessionStopped):
        await asyncio.wait_for(waiting, PATIENCE_SECONDS)
    await client.approve("s1/gate", "approve", "ann")
    assert (await client.status("s1/gate")).status == "COMPLETED"


async def test_a_cancelled_effect_of_this_process_is_cut_short(client: Client, address: str) -> None:
    effect = Cut()
    async with Client(address) as other:
        running = asyncio.create_task(other.run_local(ASK, {}, effect, execution_id="s1/e"))
        await eventually(lambda: effect.begun)
        await client.cancel("s1/e")
        assert (await asyncio.wait_for(running, PATIENCE_SECONDS)).status == "CANCELLED"
    assert effect.cut == 1


async def test_what_has_lost_its_lease_is_not_cut_short_and_its_late_word_is_taken(
    client: Client, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LEASE_MS", 1_000)
    monkeypatch.setattr(local, "_heartbeat_seconds", lambda: 60.0)
    effect = Cut()

    async def is_lost() -> bool:
        return "LeaseExpired" in await story(client, "s1/e")

    async with Client(address) as other:
        running = asyncio.create_task(other.run_local(ASK, {}, effect, execution_id="s1/e"))
        await eventually(lambda: client.executions("s1/"))
        await eventually(is_lost)
        effect.go_on.set()
        assert (await asyncio.wait_for(running, PATIENCE_SECONDS)).status == "COMPLETED"
    assert effect.cut == 0


async def test_a_stop_outlives_the_server_and_reaches_what_runs_since_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "LEASE_MS", 1_500)
    effect = Cut()
    async with NexumDev(tmp_path) as nexum_dev, Client(nexum_dev.address) as client:
        running = asyncio.create_task(client.run_local(ASK, {}, effect, execution_id="s1/e"))
        await eventually(lambda: client.executions("s1/"))
        await eventually(lambda: effect.begun)
        nexum_dev.kill()
        nexum_dev.start()
        await nexum_dev.ready()
        async with Client(nexum_dev.address) as person:
            await person.stop_session("s1", "ann", "wrong customer")
            nexum_dev.kill()
            nexum_dev.start()
            await nexum_dev.ready()
            with pytest.raises(SessionStopped, match=re.escape(WORDS)):
                await asyncio.wait_for(running, PATIENCE_SECONDS)
            assert effect.cut == 1
            assert await states(person) == {"s1": "STOPPED"}


async def test_a_session_that_is_not_known_is_neither_stopped_nor_let_go_on(client: Client) -> None:
    for ask in (client.stop_session, client.go_session):
        with pytest.raises(NotFound, match=r"No session 'ghost' is known\. See what is there with: nexum sessions"):
            await ask("ghost")


# The command


async def test_sessions_are_listed(client: Client, address: str) -> None:
    assert await nexum(address, "sessions") == Finished(0, "No sessions yet.\n", "")
    assert await nexum(address, "sessions", "s") == Finished(0, "No such sessions.\n", "")
    await finish(client, "s1/a")
    await start(client, "s2/gate", GATE)
    head, *rows = (await nexum(address, "sessions")).stdout.splitlines()
    assert head.split() == ["SESSION", "STATE", "BEGAN", "HEARD", "RUNS", "TURNS", "CALLS", "TOKENS", "WAITS", "FOR"]
    assert [row.split()[:2] for row in rows] == [["s2", "WAITING"], ["s1", "RUNNING"]]
    assert [row.rstrip().endswith(end) for row, end in zip(rows, ("a person", "its program"), strict=True)] == [
        True
    ] * 2
    (told,) = [json.loads(line) for line in (await nexum(address, "sessions", "s2", "--json")).stdout.splitlines()]
    assert told == (await client.sessions("s2"))[0]
    assert (await nexum(address, "sessions", "--limit", "1")).stdout.endswith(
        "Only the latest 1 are shown. For more add: --limit 10\n"
    )


async def test_a_narrow_terminal_shows_every_session_whole(client: Client, address: str) -> None:
    await finish(client, f"{'s' * 60}/a")
    terminal = Terminal(NEXUM, "sessions", env=environment(NEXUM_ADDRESS=address, TERM="xterm-256color"), columns=40)
    assert await terminal.ended() == 0
    assert "s" * 60 in terminal.text


async def test_the_command_stops_a_session_and_lets_it_go_on(client: Client, address: str) -> None:
    await client.register(ECHO)
    for name, effect in (("s1/a", "idempotent"), ("s1/b", "once")):
        waiting = asyncio.create_task(client.execute(ECHO, {}, execution_id=name, effect=effect))
        await claim(client, 60_000)
        waiting.cancel()
    stopped = await nexum(address, "stop", "s1", "--as", "ann", "--reason", "wrong customer")
    assert stopped.stdout.splitlines() == [
        "Session s1 is stopped, 1 attempt cut short. Let it go on with: nexum go s1",
        "s1/b happens once, and is let finish.",
    ]
    assert (await client.sessions())[0]["stopped"]["words"] == WORDS
    assert "its session is stopped" in (await nexum(address, "show", "s1")).stdout
    assert await nexum(address, "go", "s1") == Finished(0, "Session s1 goes on.\n", "")
    assert await nexum(address, "go", "s1") == Finished(0, "Session s1 was not stopped.\n", "")
    for words in (("stop", "ghost"), ("go", "ghost")):
        assert_refused(await nexum(address, *words), "No session 'ghost' is known.", FAILED)
