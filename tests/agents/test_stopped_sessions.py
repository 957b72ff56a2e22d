"""A session that a person stops: its runs end where they are, and go on when it is let."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import Agent, FunctionTool, Runner, function_tool
from agents.testing import ScriptedModel
from processes import PATIENCE_SECONDS, eventually
from test_sessions import Fake, happened, told

from nexum_agents import (
    DurableCallError,
    SessionStopped,
    Worker,
    durable_session,
    durable_step,
    durable_tool,
    go_session,
    stop_session,
)
from nexum_agents.clients import nexum_client
from nexum_runtime import Client

WORDS = "Session s was stopped by ann: wrong customer. Let it go on with: nexum go s"

held: asyncio.Event  # what holds all that is executed here, until it is set


@pytest.fixture(autouse=True)
async def nexum(address: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setenv("NEXUM_ADDRESS", address)
    happened.clear()
    global held
    held = asyncio.Event()
    yield
    await nexum_client().close()


async def hold(what: str) -> str:
    """Begin, and go on when it is let; cut short, say so."""
    happened.append(what)
    try:
        await held.wait()
    except asyncio.CancelledError:
        happened.append(f"{what} cut")
        raise
    return f"{what} done"


class Slow(Fake):
    """Its first turn takes its time."""

    async def get_response(self, *args: Any, **named: Any) -> Any:
        await hold("turn")
        return await super().get_response(*args, **named)

    async def stream_response(self, *args: Any, **named: Any) -> Any:
        await hold("turn")
        async for event in super().stream_response(*args, **named):
            yield event


def holding(name: str = "search") -> FunctionTool:
    return function_tool(hold, name_override=name)


def searches() -> Fake:
    return Fake([("search", {"what": "call"})], "answer")


async def in_a_step() -> None:
    await durable_step("step", hold, "step")


def agent_of(what: str) -> Agent[Any]:
    if what in ("turn", "streamed turn"):
        return Agent(name="A", model=Slow("answer"))
    if what == "agent as a tool":
        inner = Agent(name="Inner", model=Slow("found")).as_tool("search", "Search.")
        return Agent(name="A", model=Fake([("search", {"input": "x"})], "answer"), tools=[inner])
    return Agent(name="A", model=searches(), tools=[holding()])


async def work(what: str) -> Any:
    async with durable_session("s"):
        if what == "step":
            return await durable_step("step", hold, "step")
        agent = agent_of(what)
        if what == "streamed turn":
            result = Runner.run_streamed(agent, "go")
            async for _ in result.stream_events():
                pass
            return result.final_output
        return (await Runner.run(agent, "go")).final_output


async def stop() -> None:
    await stop_session("s", reason="wrong customer", by="ann")


@pytest.mark.parametrize("what", ["turn", "streamed turn", "call", "step", "agent as a tool"])
async def test_what_runs_is_cut_short_and_the_run_says_who_stopped_it_until_it_goes_on(what: str) -> None:
    for _ in range(2):
        running = asyncio.create_task(work(what))
        await eventually(lambda: happened)
        began = list(happened)
        await stop()
        with pytest.raises(SessionStopped, match=re.escape(WORDS)):
            await asyncio.wait_for(running, PATIENCE_SECONDS)
        assert happened == [*began, f"{began[0]} cut"]
        for _ in range(2):
            with pytest.raises(SessionStopped, match=re.escape(WORDS)):
                await work(what)
        assert happened == [*began, f"{began[0]} cut"]
        assert await go_session("s")
        happened.clear()
    held.set()
    assert await work(what) in ("answer", "step done")
    assert len(happened) == 1


async def test_a_run_between_two_effects_ends_at_the_next_one() -> None:
    async with durable_session("s"):
        await durable_step("first", happened.append, 1)
        await stop()
        with pytest.raises(SessionStopped, match=re.escape(WORDS)):
            await durable_step("second", happened.append, 2)
        with pytest.raises(SessionStopped):
            await Runner.run(Agent(name="A", model=ScriptedModel([])), "go")
    assert happened == [1]


async def test_a_call_that_happens_once_is_let_finish_and_its_run_ends() -> None:
    agent = Agent(name="A", model=searches(), tools=[holding()])
    with durable_session("s", effects={"search": "once"}):
        running = asyncio.create_task(Runner.run(agent, "go"))
        await eventually(lambda: happened)
        [once] = await stop_session("s")
        assert once.startswith("s/search/")
        held.set()
        with pytest.raises(SessionStopped):
            await asyncio.wait_for(running, PATIENCE_SECONDS)
    await go_session("s")
    with durable_session("s", effects={"search": "once"}):
        assert told(await Runner.run(agent, "go")) == ["call done"]
    assert happened == ["call"]


async def test_a_workers_tool_is_told_to_stop_and_begins_again_when_the_session_goes_on(address: str) -> None:
    search = durable_tool(hold, name_override="search")
    agent = Agent(name="A", model=searches(), tools=[search])
    worker = Worker([search])
    serving = asyncio.create_task(worker.run())
    try:
        with durable_session("s"):
            running = asyncio.create_task(Runner.run(agent, "go"))
            await eventually(lambda: happened)
            await stop()
            with pytest.raises(SessionStopped, match=re.escape(WORDS)):
                await asyncio.wait_for(running, PATIENCE_SECONDS)
        await eventually(lambda: happened == ["call", "call cut"])
        await go_session("s")
        held.set()
        with durable_session("s"):
            assert told(await Runner.run(agent, "go")) == ["call done"]
        assert happened == ["call", "call cut", "call"]
    finally:
        worker.stop()
        await serving


async def test_every_process_of_the_session_is_stopped(client: Client) -> None:
    running = [asyncio.create_task(work("call")) for _ in range(3)]
    await eventually(lambda: happened)
    await stop()
    for each in running:
        with pytest.raises(SessionStopped):
            await asyncio.wait_for(each, PATIENCE_SECONDS)
    assert happened == ["call", "call cut"]


async def test_a_session_that_nothing_was_recorded_in_cannot_be_stopped() -> None:
    with pytest.raises(DurableCallError, match="No session 's' is known"):
        await stop()
    with pytest.raises(DurableCallError, match="session_id is 'a/b'"):
        await stop_session("a/b")


async def test_the_executions_of_a_run_say_what_they_are(client: Client) -> None:
    held.set()
    agent = Agent(name="A", model=Fake([("search", {"what": "call"}), ("search", {"what": "é" * 300})], "answer"))
    agent.tools = [holding()]
    with durable_session("s"):
        await durable_step("note", happened.append, "x")
        await Runner.run(agent, "go")
    (session,) = await client.sessions()
    assert session["kinds"] | {"run": 0} == {"turn": 2, "call": 2, "step": 1, "run": 0}
    assert session["runs"] == 1
    found = {(each["labels"]["kind"], each["labels"].get("text", "")[:9]) for each in await client.listed()}
    assert {("call", '"call"'), ("call", '"éééééééé'), ("step", '"x"'), ("turn", "Fake")} <= found
    with durable_session("s"):
        await Runner.run(agent, "go")
        await Runner.run(agent, [{"role": "user", "content": [{"type": "input_text", "text": "and\nthen?"}]}])
    labels = [each["labels"] for each in reversed(await client.listed())]
    asked = [each["asked"] for each in labels if each["kind"] == "turn"]
    assert asked[:3] == ["go", "go", "and\nthen?"]
    blocks = list(dict.fromkeys(each["block"] for each in labels if each["kind"] != "run"))
    assert len(blocks) == 2, "what came from the store is of the first"
