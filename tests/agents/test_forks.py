"""Sessions that begin with what another one has recorded, and sessions that call no tool."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, ModelBehaviorError, Runner, ShellTool, function_tool
from agents.mcp import MCPServerStdio
from other_calls import shell_call
from processes import PATIENCE_SECONDS, eventually
from test_sessions import Fake, ask, happened, nexum, told
from test_tools_of_agents import agent_with

from nexum_agents import (
    DurableCallError,
    NotRecorded,
    ToolError,
    ToolFailed,
    Worker,
    durable_session,
    durable_step,
    durable_tool,
    final_output,
    fork_session,
    run_with_approvals,
)
from nexum_agents.clients import nexum_client
from nexum_agents.sessions import digest
from nexum_agents.workflows import ASKED_ANEW

__all__ = ["nexum"]

pytestmark = pytest.mark.usefixtures("nexum")


async def turns_of(session_id: str) -> list[str]:
    """The ids of its turns, in the order in which they began."""
    found = await nexum_client().executions(f"{session_id}/model-turn/", limit=100)
    return [each.execution_id for each in reversed(found)]


def looks(model: Any = None, **options: Any) -> Agent[Any]:
    """An agent that looks twice, a turn each, and answers with what it found."""
    model = model or Fake([("look", {"n": 1})], [("look", {"n": 2})], " ".join)

    def look(n: int) -> str:
        """Look."""
        happened.append(n)
        return f"found {n}"

    return Agent(name="A", model=model, tools=[function_tool(look)], **options)


# Forks


async def test_a_run_in_a_fork_has_what_was_recorded_and_asks_nobody() -> None:
    agent = looks()
    await ask(agent, "s1")
    assert await fork_session("s1", "s2") == []
    assert (await ask(agent, "s2")).final_output == "found 1 found 2"
    assert (happened, agent.model.asked) == ([1, 2], 3)  # type: ignore[union-attr]


async def test_a_fork_goes_on_from_a_turn_and_leaves_the_other_session_as_it_is() -> None:
    await ask(looks(), "s1")
    turns = await turns_of("s1")
    await fork_session("s1", "s2", before=turns[1])
    other = looks(Fake([("look", {"n": 1})], [("look", {"n": 5})], " ".join))
    assert (await ask(other, "s2")).final_output == "found 1 found 5"
    assert (happened, other.model.asked) == ([1, 2, 5], 2)  # type: ignore[union-attr]
    assert await turns_of("s1") == turns
    again = looks(Fake())
    assert (await ask(again, "s1")).final_output == "found 1 found 2"


async def test_what_happened_inside_of_calls_is_known_in_a_fork_and_in_a_fork_of_that() -> None:
    def booked(city: str) -> str:
        happened.append(city)
        return f"room in {city}"

    async def book(city: str) -> str:
        """Book."""
        return str(await durable_step("book", booked, city, effect="once"))

    def trip() -> tuple[Agent[Any], Fake, Fake]:
        inner, outer = Fake([("book", {"city": "Rome"})], " ".join), Fake([("plan", {"input": "Rome"})], " ".join)
        planner = Agent(name="planner", model=inner, tools=[function_tool(book)])
        return Agent(name="top", model=outer, tools=[planner.as_tool("plan", "Plan.")]), inner, outer

    def replay_book() -> dict[str, Any]:
        return {"effects": {"book": "replay"}}

    agent, *_ = trip()
    with durable_session("s1", **replay_book()):
        await Runner.run(agent, "go")
    for session, fork in (("s1", "s2"), ("s2", "s3")):
        await fork_session(session, fork)
        agent, inner, outer = trip()
        with durable_session(fork, **replay_book()):
            assert (await Runner.run(agent, "go")).final_output == "room in Rome"
        assert (happened, inner.asked, outer.asked) == (["Rome"], 0, 0)


async def test_a_turn_that_was_asked_anew_is_so_in_a_fork() -> None:
    answers: Any = iter([[("no_such_tool", {})], "done"])
    model = Fake([("look", {"n": 1})], lambda results: next(answers))
    with pytest.raises(ModelBehaviorError):
        await ask(looks(model), "s1")
    await fork_session("s1", "s2")
    assert (await ask(looks(model), "s2")).final_output == "done", "the note was copied with the turn"
    await ask(looks(model), "s2")
    assert (model.asked, happened) == (3, [1])
    (note,) = [outputs for id, outputs in (await nexum_client().journal("s2/asked-anew/")).items()]
    assert note["asked_anew"]["result"]["id"].startswith("model-turn/"), "and names no session"


async def test_a_note_of_an_older_version_which_names_its_session_is_read_in_it_and_in_a_fork() -> None:
    answers: Any = iter([[("no_such_tool", {})], "done", "done"])
    model = Fake([("look", {"n": 1})], lambda results: next(answers))
    with pytest.raises(ModelBehaviorError):
        await ask(looks(model), "s1")
    await nexum_client().prune("s1/asked-anew/", 0)
    id = (await turns_of("s1"))[-1]
    note = {"id": id, "times": 1, "why": "an old note"}

    async def record() -> Any:
        return {"result": note, "duration_ms": 0}

    execution_id = f"s1/asked-anew/{digest(id)}/0"
    await nexum_client().run_local(ASKED_ANEW, note, record, execution_id=execution_id)
    await fork_session("s1", "s2")
    for session in ("s1", "s2"):
        assert (await ask(looks(model), session)).final_output == "done"
    assert (model.asked, happened) == (4, [1])


async def test_a_yes_that_was_given_counts_in_a_fork() -> None:
    @function_tool(needs_approval=True)
    def pay() -> str:
        """Pay."""
        happened.append("pay")
        return "paid"

    def payer() -> Agent[Any]:
        return Agent(name="A", model=Fake([("pay", {})], " ".join), tools=[pay])

    async def approved() -> bool:
        for each in await nexum_client().approvals():
            await nexum_client().approve(each.execution_id, each.node_id, "ann")
            return True
        return False

    async def run(session: str) -> Any:
        async with durable_session(session):
            return await run_with_approvals(payer(), "go")

    running = asyncio.create_task(run("s1"))
    await eventually(approved)
    assert (await running).final_output == "paid"
    await fork_session("s1", "s2")
    assert (await asyncio.wait_for(run("s2"), PATIENCE_SECONDS)).final_output == "paid"
    assert happened == ["pay"]


async def test_a_fork_that_is_there_is_refused_unless_that_is_said_to_be_well() -> None:
    await ask(looks(), "s1")
    await ask(looks(), "other")
    await fork_session("s1", "s2")
    assert await fork_session("s1", "s2", exist_ok=True) == []
    for session, exist_ok in (("s1", False), ("other", True)):
        with pytest.raises(DurableCallError, match=r"Session s2 is there already"):
            await fork_session(session, "s2", exist_ok=exist_ok)
    with pytest.raises(DurableCallError, match=r"No session 'ghost' is known"):
        await fork_session("ghost", "s3")
    with pytest.raises(DurableCallError, match=r"new_session_id is 'a/b'"):
        await fork_session("s1", "a/b")


async def test_a_run_asks_anew_from_where_its_session_was_taken_back() -> None:
    await ask(looks(), "s1")
    turns = await turns_of("s1")
    await nexum_client().forget_session("s1", turn=turns[1])
    agent = looks()
    assert (await ask(agent, "s1")).final_output == "found 1 found 2"
    assert (happened, agent.model.asked) == ([1, 2, 2], 2)  # type: ignore[union-attr]
    assert (await turns_of("s1"))[:2] == turns[:2], "the same question has the same id"
    assert await turns_of("s1~1") == [turn.replace("s1/", "s1~1/") for turn in turns[1:]]


async def test_a_note_that_a_turn_is_asked_anew_is_taken_back_with_the_turn() -> None:
    answers: Any = iter([[("no_such_tool", {})], "done", "done again"])
    model = Fake([("look", {"n": 1})], lambda results: next(answers))
    with pytest.raises(ModelBehaviorError):
        await ask(looks(model), "s1")
    assert (await ask(looks(model), "s1")).final_output == "done"
    bad_turn = (await turns_of("s1"))[1]
    await nexum_client().forget_session("s1", turn=bad_turn)
    assert await nexum_client().executions("s1/asked-anew/") == []
    assert (await ask(looks(model), "s1")).final_output == "done again"
    assert (await turns_of("s1"))[1] == bad_turn, "it is asked as if for the first time"
    assert happened == [1]


# Sessions that call no tool


async def what_if(agent: Agent[Any], session: str = "s2", **options: Any) -> Any:
    """One run in a block that calls no tool."""
    with durable_session(session, tools="cached-only", **options):
        return await Runner.run(agent, "go")


async def test_another_prompt_is_tried_on_what_is_recorded_and_no_tool_is_called_twice() -> None:
    await ask(looks(), "s1")
    await fork_session("s1", "s2")
    other = looks(instructions="Be brief.")
    assert (await what_if(other)).final_output == "found 1 found 2"
    assert (happened, other.model.asked) == ([1, 2], 3)  # type: ignore[union-attr]


async def test_how_a_run_of_a_fork_ended_is_recorded_beside_how_it_ended_before() -> None:
    await ask(looks(), "s1")
    await fork_session("s1", "s2")
    other = Fake([("look", {"n": 1})], "something else")
    for _ in range(2):
        assert (await what_if(looks(other, instructions="Be brief."))).final_output == "something else"
    assert await final_output("s2") == "something else"
    assert await final_output("s1") == "found 1 found 2"
    assert len(await nexum_client().executions("s2/run-end/")) == 2, "a replay records no end"


async def test_a_call_that_is_not_recorded_ends_the_run_with_one_sentence() -> None:
    await ask(looks(), "s1")
    await fork_session("s1", "s2")
    events: list[Any] = []
    model = Fake([("look", {"n": 1}), ("look", {"n": 7})], "never")
    with pytest.raises(NotRecorded) as refused:
        await what_if(looks(model, instructions="Be bold."), on_event=events.append)
    assert str(refused.value) == (
        'look({"n":7}) is not recorded in session s2, and tools="cached-only" makes no call that is not.'
    )
    assert isinstance(refused.value, DurableCallError)
    assert (happened, model.asked) == ([1, 2], 1)
    assert [event.detail for event in events if event.kind == "failed"] == [str(refused.value)]
    assert (await nexum_client().executions("s2/look/"))[0].status == "COMPLETED"
    with durable_session("s2"):
        result = await Runner.run(looks(model, instructions="Be bold."), "go")
    assert (result.final_output, happened) == ("never", [1, 2, 7])


async def test_a_call_that_an_agent_as_a_tool_makes_ends_the_outer_run_too() -> None:
    inner = looks(Fake([("look", {"n": 1})], "well"))
    outer = Fake([("ask_it", {"input": "?"})], "never")
    with pytest.raises(NotRecorded, match=r'look\({"n":1}\) is not recorded in session s2'):
        await what_if(Agent(name="top", model=outer, tools=[inner.as_tool("ask_it", "Ask.")]))
    assert (happened, outer.asked) == ([], 1)


async def test_a_step_is_refused_and_one_inside_of_a_tool_ends_the_run() -> None:
    with durable_session("s2", tools="cached-only"):
        for _ in range(2):
            with pytest.raises(NotRecorded, match=r'note\({"a":1}\) is not recorded in session s2'):
                await durable_step("note", lambda a: happened.append(a), 1)
    with durable_session("s2"):
        await durable_step("note", lambda a: happened.append(a), 1)
    with durable_session("s2", tools="cached-only"):
        await durable_step("note", lambda a: happened.append(a), 1)
    assert happened == [1]

    async def book() -> str:
        """Book."""
        await durable_step("inner", happened.append, "booked")
        return "booked"

    agent = Agent(name="A", model=Fake([("book", {})], "never"), tools=[function_tool(book)])
    with pytest.raises(NotRecorded, match="inner"):
        await what_if(agent, effects={"book": "replay"})
    assert happened == [1]


async def test_a_call_of_an_mcp_server_is_refused(tmp_path: Path) -> None:
    params: Any = {
        "command": sys.executable,
        "args": [str(Path(__file__).with_name("mcp_ledger_server.py"))],
        "env": {"LEDGER": str(tmp_path / "ledger")},
    }
    async with MCPServerStdio(params, client_session_timeout_seconds=60) as server:
        agent = Agent(name="A", model=Fake([("append", {"line": "x"})], "never"), mcp_servers=[server])
        with pytest.raises(NotRecorded, match=r'append\({"line":"x"}\) is not recorded in session s2'):
            await what_if(agent)
    assert not (tmp_path / "ledger").exists()


async def test_a_shell_command_is_refused() -> None:
    def execute(request: Any) -> str:
        happened.append("shell")
        return "done"

    with pytest.raises(NotRecorded, match=r"shell.* is not recorded in session s2"):
        await what_if(agent_with(ShellTool(execute), turns=[[shell_call("ls")]]))
    assert happened == []


@asynccontextmanager
async def working(*tools: Any) -> AsyncIterator[None]:
    worker = Worker(list(tools))
    running = asyncio.create_task(worker.run())
    yield
    worker.stop()
    await running


async def test_a_worker_gets_no_call_and_what_failed_there_has_failed() -> None:
    def look(n: int) -> str:
        """Look."""
        happened.append(n)
        if n == 2:
            raise ToolError("There is no 2.", retryable=False)
        return f"found {n}"

    def agent(*turns: Any, instructions: str = "") -> Agent[Any]:
        return Agent(name="A", model=Fake(*turns), tools=[durable_tool(look)], instructions=instructions)

    async with working(look):
        first = await ask(agent([("look", {"n": 1}), ("look", {"n": 2})], "done"), "s1")
        await fork_session("s1", "s2")
        other = await what_if(agent([("look", {"n": 2}), ("look", {"n": 1})], "other", instructions="Be bold."))
        assert sorted(told(other)) == sorted(told(first)) == ["There is no 2.", "found 1"]
        with pytest.raises(NotRecorded, match=r'look\({"n":3}\) is not recorded in session s2'):
            await what_if(agent([("look", {"n": 3})], "never", instructions="Be bolder."))
    assert sorted(happened) == [1, 2]
    assert await nexum_client().executions("s2/look/", status="RUNNING") == []


async def test_a_once_step_that_failed_has_failed() -> None:
    def fails() -> None:
        raise ValueError("no")

    with durable_session("s2"), pytest.raises(ValueError, match="no"):
        await durable_step("pay", fails, effect="once")
    with durable_session("s2", tools="cached-only"), pytest.raises(ToolFailed, match="no"):
        await durable_step("pay", fails, effect="once")


async def test_what_a_session_does_with_tools_is_one_of_two_things() -> None:
    with pytest.raises(ValueError, match=r"tools is 'none'; it can be run, cached-only\."):
        durable_session("s", tools="none")  # type: ignore[arg-type]
