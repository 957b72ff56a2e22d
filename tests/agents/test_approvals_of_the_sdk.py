"""Tools that need a yes: by the SDK's own approvals, and by durable tools, in runs that are killed while they wait."""

import asyncio
import dataclasses
import json
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    ApplyPatchTool,
    CustomTool,
    FunctionTool,
    RunContextWrapper,
    Runner,
    RunState,
    ShellTool,
    function_tool,
)
from agents.mcp import MCPServer
from agents.testing import ModelCall, ModelStep, function_call
from command import nexum as nexum_command
from mcp.types import CallToolResult, TextContent
from mcp.types import Tool as MCPTool
from other_calls import custom_call, patch_call, shell_call
from processes import NexumDev, Process, environment, eventually
from test_tools_of_agents import Books, Editor, agent_with, awaits, calls, happened, nexum, outputs, returns, says

from nexum_agents import (
    DurableCallError,
    DurableEvent,
    TurnEvent,
    Worker,
    durable_session,
    durable_tool,
    run_with_approvals,
)
from nexum_agents.clients import nexum_client
from nexum_runtime import Client
from nexum_runtime.errors import InvalidRequest
from nexum_runtime.server.app import Server, ServerConfig

__all__ = ["nexum"]

pytestmark = pytest.mark.usefixtures("nexum")


async def ask(agent: Agent[Any], input: Any = "go", session_id: str = "s", on_event: Any = None, **options: Any) -> Any:
    """One run with approvals in a block of its own."""
    with durable_session(session_id, on_event=on_event):
        return await run_with_approvals(agent, input, **options)


# In this process


def pays() -> FunctionTool:
    @function_tool(needs_approval=True)
    def pay() -> str:
        happened.append("pay")
        return f"paid {len(happened)}"

    return pay


def once(*names: str) -> list[Any]:
    """What a model says that calls these tools, a turn each, and is done."""
    return [*(calls((name, {})) for name in names), says("done")]


async def _yes() -> bool:
    return True


async def _no() -> bool:
    return False


@pytest.mark.parametrize("needs_approval", [True, lambda *_: _yes()])
async def test_an_approved_run_goes_on_and_a_replay_asks_for_the_approval_again_but_does_nothing(
    needs_approval: Any,
) -> None:
    agent = agent_with(dataclasses.replace(returns("paid"), needs_approval=needs_approval))
    for _ in range(2):
        with durable_session("s"):
            interrupted = await Runner.run(agent, "go")
            state = interrupted.to_state()
            (interruption,) = interrupted.interruptions
            state.approve(interruption)
            result = await Runner.run(agent, state)
        assert outputs(result) == ["paid"]
    assert happened == ["give"]


async def test_an_interrupted_run_that_goes_on_from_a_text_counts_its_identical_calls_on() -> None:
    tool = dataclasses.replace(returns("paid"), needs_approval=True)
    agent = agent_with(tool, turns=once("give", "give"))
    for _ in range(2):
        with durable_session("s"):
            result = await Runner.run(agent, "go")
            for _ in range(2):
                state: Any = await RunState.from_string(agent, result.to_state().to_string())
                state.approve(result.interruptions[0])
                result = await Runner.run(agent, state)
        assert outputs(result) == ["paid", "paid"]
    assert happened == ["give", "give"]


async def test_an_approval_for_always_holds_for_the_next_question() -> None:
    agent = agent_with(pays(), turns=once("pay", "pay"))
    with durable_session("s"):
        interrupted = await Runner.run(agent, "go")
        state = interrupted.to_state()
        state.approve(interrupted.interruptions[0], always_approve=True)
        result = await Runner.run(agent, state)
    assert outputs(result) == ["paid 1", "paid 2"]


async def answered(client: Client, running: "asyncio.Task[Any]", reason: str = "") -> None:
    """Kill what runs as soon as it asks a person, and answer it then: with a no, if there is a `reason`."""
    (waiting,) = await eventually(client.approvals)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    if reason:
        await client.reject(waiting.execution_id, waiting.node_id, "Eva", reason)
    else:
        await client.approve(waiting.execution_id, waiting.node_id, "Eva")


async def test_an_interrupted_run_goes_on_at_its_interruption_and_counts_identical_calls_on(client: Client) -> None:
    agent = agent_with(pays(), turns=once("pay", "pay"))
    events: list[DurableEvent] = []
    for _ in range(2):
        await answered(client, asyncio.create_task(ask(agent)))
    for kinds in (["started", "stored"], ["cached"]):
        events.clear()
        result = await ask(agent, on_event=events.append)
        assert outputs(result) == ["paid 1", "paid 2"]
        assert [each.kind for each in events if isinstance(each, TurnEvent)] == kinds
    assert happened == ["pay", "pay"]


async def test_a_no_to_an_interruption_is_told_to_the_model_and_by_every_later_run(client: Client) -> None:
    agent = agent_with(pays(), returns("beside"))
    await answered(client, asyncio.create_task(ask(agent)), "no money")
    for _ in range(2):
        result = await ask(agent)
        assert sorted(outputs(result)) == ["This call of pay was not made. Rejected by Eva: no money", "beside"]
    assert happened == ["give"], "the other one"


async def test_an_interruption_inside_of_an_agent_tool_goes_on_in_the_next_run(client: Client) -> None:
    inner = agent_with(pays())
    inner.name = "Inner"
    outer = agent_with(inner.as_tool("ask", "Ask."), turns=[calls(("ask", {"input": "pay"})), says("done")])
    await answered(client, asyncio.create_task(ask(outer)))
    for _ in range(2):
        assert (await ask(outer)).final_output == "done"
    assert happened == ["pay"]


async def test_a_state_is_of_one_question_to_one_agent_in_one_session(client: Client) -> None:
    agent = agent_with(pays(), turns=[*[calls(("pay", {}))] * 3, says("done")])
    await answered(client, asyncio.create_task(ask(agent)))
    for question, session_id in (("stop", "s"), ("go", "t")):
        another = asyncio.create_task(ask(agent, question, session_id))
        await answered(client, another)
    assert happened == []
    assert outputs(await ask(agent)) == ["paid 1"]


async def test_a_second_run_of_a_block_is_another_one_that_asks_the_model_and_the_person_again(client: Client) -> None:
    agent = agent_with(pays(), turns=once("pay") * 2)

    async def twice() -> list[Any]:
        with durable_session("s"):
            return [outputs(await run_with_approvals(agent, "go")) for _ in range(2)]

    for _ in range(2):
        await answered(client, asyncio.create_task(twice()))
    for _ in range(2):
        assert await twice() == [["paid 1"], ["paid 2"]]
    assert agent.model.remaining_steps == 0  # type: ignore[union-attr]


async def test_two_runs_side_by_side_go_on_each_at_its_own_interruption(client: Client) -> None:
    agent = agent_with(pays(), turns=[*[calls(("pay", {}))] * 2, *[says("done")] * 2])
    events: list[DurableEvent] = []

    async def both() -> Any:
        with durable_session("s", on_event=events.append):
            return await asyncio.gather(*(run_with_approvals(agent, question) for question in ("one", "two")))

    async def two() -> Any:
        found = await client.approvals()
        return found if len(found) == 2 else None

    running = asyncio.create_task(both())
    waiting = await eventually(two)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    for each in waiting:
        await client.approve(each.execution_id, each.node_id, "Eva")
    for kinds in (["started", "started", "stored", "stored"], ["cached", "cached"]):
        events.clear()
        assert sorted(output for result in await both() for output in outputs(result)) == ["paid 1", "paid 2"]
        assert sorted(each.kind for each in events if isinstance(each, TurnEvent)) == sorted(kinds)
    assert happened == ["pay", "pay"]


async def test_a_state_of_an_agent_that_has_changed_is_let_go_and_its_run_begun_anew(client: Client) -> None:
    agent = agent_with(pays(), turns=once("pay", "pay"))
    await answered(client, asyncio.create_task(ask(agent)))
    agent.name, agent.model = "Payer", agent_with(pays(), turns=once("pay", "pay")).model
    for _ in range(2):
        await answered(client, asyncio.create_task(ask(agent)))
    assert outputs(await ask(agent)) == ["paid 1", "paid 2"]


async def test_a_context_that_json_does_not_carry_is_given_anew(client: Client) -> None:
    class Wallet:
        coins = 5

    @function_tool(needs_approval=True)
    def pay(context: RunContextWrapper[Wallet]) -> int:
        context.context.coins -= 1
        return context.context.coins

    agent = agent_with(pay)
    await answered(client, asyncio.create_task(ask(agent, context=Wallet())))
    assert outputs(await ask(agent, context=Wallet())) == ["4"]


async def test_a_state_that_is_too_large_is_not_kept_and_the_run_replays_to_its_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(ServerConfig(tmp_path / "small.db", port=0, max_message_mib=1))
    await server.start()
    monkeypatch.setenv("NEXUM_ADDRESS", f"localhost:{server.port}")
    agent, question = agent_with(pays()), "go" * 1_000_000
    async with Client(f"localhost:{server.port}") as small:
        await answered(small, asyncio.create_task(ask(agent, question)))
        assert await small.executions("s/run-state", status="COMPLETED") == []
        assert outputs(await ask(agent, question)) == ["paid 1"]
    await nexum_client().close()
    await server.stop()


async def test_a_run_that_waits_for_people_is_one_of_a_session() -> None:
    with pytest.raises(DurableCallError, match="Agent 'Agent' was run outside of a session"):
        await run_with_approvals(agent_with(pays()), "go")


async def test_arguments_that_are_not_what_the_tool_gets_need_an_approval_as_without_a_session() -> None:
    @function_tool(needs_approval=lambda *_: _no())
    def pay(amount: int) -> str:
        return f"paid {amount}"

    def agent() -> Agent[Any]:
        return agent_with(pay, turns=[calls(("pay", {"amount": "3"}), ("pay", {"amount": 3})), says("done")])

    plain = await Runner.run(agent(), "go")
    with durable_session("s"):
        durable = await Runner.run(agent(), "go")
    for result in (plain, durable):
        assert [interruption.arguments for interruption in result.interruptions] == ['{"amount":"3"}']


async def test_an_agent_tool_that_needs_an_approval_in_the_middle_of_its_run_goes_on_from_there() -> None:
    inner = agent_with(dataclasses.replace(returns("paid"), needs_approval=True))
    outer = agent_with(inner.as_tool("ask", "Ask."), turns=[calls(("ask", {"input": "pay"})), says("done")])
    for _ in range(2):
        with durable_session("s"):
            interrupted = await Runner.run(outer, "go")
            state = interrupted.to_state()
            state.approve(interrupted.interruptions[0])
            assert (await Runner.run(outer, state)).final_output == "done"
    assert happened == ["give"]


@pytest.mark.parametrize("call", [custom_call("own", "x"), shell_call("rm -r"), patch_call("delete_file", "a")])
async def test_the_sdks_other_tools_wait_for_their_yes_as_well(client: Client, call: Any) -> None:
    tool = {
        "custom_tool_call": CustomTool(
            name="own", description="", on_invoke_tool=awaits("done", "x"), needs_approval=True
        ),
        "shell_call": ShellTool(executor=awaits("done", "x"), needs_approval=True),
        "apply_patch_call": ApplyPatchTool(editor=Editor("x"), needs_approval=True),
    }[call.type]
    agent = agent_with(tool, turns=[[call], says("done")])
    await answered(client, asyncio.create_task(ask(agent)))
    assert happened == []
    for _ in range(2):
        assert (await ask(agent)).final_output == "done"
    assert len(happened) == 1


# What people say with a yes


def transfers() -> FunctionTool:
    @function_tool(needs_approval=True)
    def transfer(amount: int, to: str = "Ann") -> str:
        happened.append((amount, to))
        return f"{amount} to {to}"

    return transfer


async def told_after(client: Client, agent: Callable[[], Agent[Any]], **yes: Any) -> list[Any]:
    """What the model is told of its only call: by the run that Eva said yes to while it was killed, and by a replay."""
    running = asyncio.create_task(ask(agent()))
    (waiting,) = await eventually(client.approvals)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await client.approve(waiting.execution_id, waiting.node_id, "Eva", **yes)
    return [output for _ in range(2) for output in outputs(await ask(agent()))]


def transferring(*tools: Any) -> Agent[Any]:
    def turn(call: ModelCall) -> Any:  # by what it is told: a run that goes on asks for its last turn alone
        items = [] if isinstance(call.input, str) else call.input
        is_told = any(item.get("type") == "function_call_output" for item in items)
        return says("done") if is_told else [function_call("transfer", {"amount": 500}, call_id="call_1")]

    return agent_with(*(tools or [transfers()]), turns=[ModelStep.respond(turn)] * 2)


async def test_a_comment_follows_the_result_also_of_a_call_that_the_sdk_held_back(client: Client) -> None:
    told = await told_after(client, transferring, comment="only this once")
    assert told == ["500 to Ann\n(Approved by Eva: only this once)"] * 2
    assert happened == [(500, "Ann")]


async def test_a_person_may_change_the_arguments_of_a_call_that_the_sdk_held_back(client: Client) -> None:
    told = await told_after(client, transferring, args={"amount": 5}, comment="less")
    assert told == ['5 to Ann\n(Approved by Eva with the arguments {"amount":5}: less)'] * 2
    assert happened == [(5, "Ann")]


async def test_changed_arguments_reach_the_worker_of_a_durable_tool_that_the_sdk_held_back(client: Client) -> None:
    async def transfer(amount: int) -> str:
        happened.append(amount)
        return f"{amount}"

    def agent() -> Agent[Any]:
        tool = durable_tool(transfer)
        tool.needs_approval = True
        return transferring(tool)

    worker = Worker([transfer])
    working = asyncio.create_task(worker.run())
    told = await told_after(client, agent, args={"amount": 5})
    assert told == ['5\n(Approved by Eva with the arguments {"amount":5})'] * 2
    assert happened == [5]
    worker.stop()
    await working


async def test_changed_arguments_reach_an_mcp_server_and_its_parts_are_followed_by_the_words(client: Client) -> None:
    class Bank(Books):
        def __init__(self) -> None:
            MCPServer.__init__(self, require_approval="always")
            self.away = False

        async def list_tools(self, *_: Any, **__: Any) -> list[MCPTool]:
            return [MCPTool(name="transfer", input_schema={"type": "object", "properties": {}})]

        async def call_tool(self, tool_name: str, arguments: Any, meta: Any = None) -> CallToolResult:
            happened.append(arguments)
            return CallToolResult(content=[TextContent(type="text", text="done")])

    bank = Bank()

    def agent() -> Agent[Any]:
        found = transferring()
        found.tools, found.mcp_servers = [], [bank]
        return found

    told = await told_after(client, agent, args={"amount": 5})
    assert [str(each).count('(Approved by Eva with the arguments {"amount":5})') for each in told] == [1, 1]
    assert happened == [{"amount": 5}]


async def test_a_call_whose_arguments_cannot_be_changed_is_not_approved_with_others(client: Client) -> None:
    tool = CustomTool(name="own", description="", on_invoke_tool=awaits("done", "x"), needs_approval=True)
    running = asyncio.create_task(ask(agent_with(tool, turns=[[custom_call("own", "x")], says("done")])))
    (waiting,) = await eventually(client.approvals)
    with pytest.raises(InvalidRequest, match="takes no other arguments"):
        await client.approve(waiting.execution_id, waiting.node_id, "Eva", args={})
    await client.approve(waiting.execution_id, waiting.node_id, "Eva", "fine")
    assert outputs(await running) == ["x"], "of another tool the model is told no comment"


# In processes of their own


ASKS = (
    r'(?m)^\[Nexum\] save_report\(name="([\w.-]+)", .+ waits for your yes'
    r"\n +NEXUM_ADDRESS=\S+ nexum approve (\S+)\n +NEXUM_ADDRESS=\S+ nexum reject \2 --reason 'why not'$"
)
BOTH = pytest.mark.parametrize("way", [{}, {"SDK": "1"}], ids=["durable_tool", "the SDK"])


class Desk:
    """A server in a process of its own, a worker in this one, and runs of approving_agent.py."""

    def __init__(self, folder: Path, server: NexumDev, way: dict[str, str]) -> None:
        self.server, self.saved = server, list[str]()  # the reports that were really saved
        self._folder, self._way = folder, way

    def agent(self) -> Process:
        env = environment(NEXUM_ADDRESS=self.server.address, OPENAI_AGENTS_DISABLE_TRACING="1", **self._way)
        command: list[str | Path] = [sys.executable, Path(__file__).with_name("approving_agent.py")]
        agent = Process(command, self._folder / "agent.log", env=env)
        agent.start()
        return agent

    async def say(self, *words: str) -> str:
        finished = await nexum_command(self.server.address, *words)
        return finished.stdout or finished.stderr

    async def requests(self) -> int:
        """How often an approval was asked for."""
        async with Client(self.server.address) as client:
            histories = [history async for history in client.history("s1/")]
        return sum(event["type"] == "ApprovalRequested" for history in histories for event in history["events"])

    def tools(self) -> list[Any]:
        async def web_search(query: str) -> str:
            return f"Of {query} there is much."

        async def save_report(name: str, text: str) -> str:
            self.saved.append(name)
            return f"Saved as {name}, {len(text)} B."

        return [web_search, save_report]


@asynccontextmanager
async def desk_of(folder: Path, way: dict[str, str]) -> AsyncIterator[Desk]:
    async with NexumDev(folder, database=folder / "own.db") as server:
        desk = Desk(folder, server, way)
        worker = Worker(desk.tools(), address=server.address)
        working = asyncio.create_task(worker.run())
        try:
            yield desk
        finally:
            worker.stop()
            await working


async def asked(agent: Process) -> list[str]:
    """The ids of what is asked of both reports, the first report's first, as soon as they are printed."""
    await eventually(lambda: len(re.findall(ASKS, agent.output)) == 2 or not agent.alive)
    assert agent.alive, agent.output
    found = sorted(re.findall(ASKS, agent.output))
    assert [name for name, _ in found] == ["a.md", "b.md"]
    return [execution_id for _, execution_id in found]


async def told(agent: Process) -> dict[str, str]:
    """What the model was told of each of its calls."""
    assert await agent.ended() == 0, agent.output
    assert "Traceback" not in agent.output
    found: dict[str, str] = json.loads(agent.output.partition("answer: ")[2])
    return found


@BOTH
async def test_of_two_approvals_in_one_turn_each_is_answered_and_other_calls_go_on_meanwhile(
    tmp_path: Path, way: dict[str, str]
) -> None:
    async with desk_of(tmp_path, way) as desk:
        agent = desk.agent()
        yes, no = await asked(agent)
        await agent.says(r"web_search\(.+stored ✓")
        assert desk.saved == []
        assert await desk.say("approve", yes, "--as", "anna") == "Approved.\n"
        assert await desk.say("reject", no, "--as", "bob", "--reason", "it is too short") == "Rejected.\n"
        first = await told(agent)
        assert first["a"] == "Saved as a.md, 9 B."
        assert first["b"] == "This call of save_report was not made. Rejected by bob: it is too short"
        assert "rejected ✗ Rejected by bob: it is too short" in agent.output

        again = desk.agent()
        assert await told(again) == first
        assert "waits for your yes" not in again.output
        assert "rejected ✗ Rejected by bob: it is too short" in again.output
        assert "stored ✓" not in again.output
        assert (desk.saved, await desk.requests()) == (["a.md"], 2)


@BOTH
async def test_a_run_killed_while_it_waits_for_a_person_goes_on_with_what_was_approved_meanwhile(
    tmp_path: Path, way: dict[str, str]
) -> None:
    async with desk_of(tmp_path, way) as desk:
        agent = desk.agent()
        first, second = await asked(agent)
        agent.kill()
        assert await desk.say("approve", first) == "Approved.\n"

        agent = desk.agent()
        await agent.says(r'save_report\(name="b.md".+ waits for your yes')
        assert 'save_report(name="a.md", text="the first") waits for your yes' not in agent.output
        agent.kill()
        assert await desk.say("approve", second) == "Approved.\n"
        if not way:  # the calls themselves were approved: they are made, whoever waits for them
            await eventually(lambda: len(desk.saved) == 2)

        agent = desk.agent()
        results = await told(agent)
        assert [results["a"], results["b"]] == ["Saved as a.md, 9 B.", "Saved as b.md, 10 B."]
        assert "waits for your yes" not in agent.output
        assert (sorted(desk.saved), await desk.requests()) == (["a.md", "b.md"], 2)


@BOTH
async def test_an_approval_outlives_the_server_that_was_asked_for_it(tmp_path: Path, way: dict[str, str]) -> None:
    async with desk_of(tmp_path, way) as desk:
        agent = desk.agent()
        both = await asked(agent)
        desk.server.kill()
        assert "No Nexum server answers" in await desk.say("approve", both[0])
        await desk.server.restart()
        for each in both:
            assert await desk.say("approve", each) == "Approved.\n"
        assert sorted(await told(agent)) == ["a", "b", "search"]
        assert (sorted(desk.saved), await desk.requests()) == (["a.md", "b.md"], 2)
