"""Agents made durable by durable_agent alone, in real processes that are killed anywhere and run again."""

import asyncio
import dataclasses
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    ApplyPatchTool,
    ComputerTool,
    CustomTool,
    FunctionTool,
    GuardrailFunctionOutput,
    Handoff,
    InputGuardrail,
    InputGuardrailTripwireTriggered,
    LocalShellTool,
    Model,
    ModelProvider,
    ModelSettings,
    OutputGuardrail,
    OutputGuardrailTripwireTriggered,
    ProgrammaticToolCallingTool,
    RunConfig,
    RunContextWrapper,
    Runner,
    RunState,
    ShellTool,
    SQLiteSession,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrail,
    ToolOutputGuardrail,
    ToolOutputImage,
    ToolOutputText,
    UserError,
    WebSearchTool,
    function_tool,
)
from agents.mcp import MCPServer
from agents.sandbox import SandboxAgent
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from agents.tool_context import ToolContext
from mcp.types import CallToolResult, TextContent
from mcp.types import Tool as MCPTool
from processes import environment, eventually
from pydantic import BaseModel

import durable_session as durable_session_module
import tools
from durable_agent import durable_agent
from durable_approval import kept_state, run_with_approvals
from durable_local import durable_local
from durable_session import DurableCallError, DurableEvent, TurnEvent, durable_session, nexum_client
from nexum_runtime import Client, Worker
from nexum_runtime.server.app import Server, ServerConfig
from submit_task import Effect, durable_tool
from worker import run_tool
from workflow import tool_call_workflow

HERE = Path(__file__).parent
KILLED = -9
AT_A_TIME = 4  # agents that run in parallel


@dataclass
class Ran:
    code: int
    output: str

    @property
    def answer(self) -> str:
        assert self.code == 0, self.output
        return self.output


class Agents:
    """Runs the cases of agent_process.py, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = (folder / "agents.log").open("w")
        self._runs = 0
        self._process = subprocess.Popen(
            [sys.executable, HERE / "agent_process.py"],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=environment(PYTHONWARNINGS="error"),
            text=True,
        )

    async def run(self, case: str, **env: str) -> Ran:
        self._runs += 1
        out = self._folder / f"run-{self._runs}"
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"case": case, "out": str(out), "env": env}) + "\n")
        self._process.stdin.flush()
        code = Path(f"{out}.code")
        await eventually(code.exists, f"the end of {case}", seconds=60)
        return Ran(int(code.read_text()), out.read_text())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    agents = Agents(tmp_path_factory.mktemp("agents"))
    yield agents
    agents.close()


@dataclass
class Desk:
    """One durable session of a case, with a ledger of its own."""

    agents: Agents
    case: str
    env: dict[str, str]

    async def run(self, **env: str) -> Ran:
        return await self.agents.run(self.case, **self.env, **env)

    @property
    def ledger(self) -> list[Any]:
        file = Path(self.env["LEDGER"])
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def repeated(self) -> list[Any]:
        """The effects that happened twice. None happens more often."""
        counts = Counter(json.dumps(line) for line in self.ledger)
        assert max(counts.values()) <= 2, counts
        return [json.loads(line) for line, count in counts.items() if count == 2]


class Desks:
    def __init__(self, agents: Agents, folder: Path, address: str) -> None:
        self._agents, self._folder, self._address = agents, folder, address

    def open(self, case: str, session_id: str = "s", **env: str) -> Desk:
        ledger = str(self._folder / f"{session_id}.ledger")
        return Desk(
            self._agents, case, {"NEXUM_ADDRESS": self._address, "SESSION_ID": session_id, "LEDGER": ledger, **env}
        )


@pytest.fixture
def desks(agents: Agents, tmp_path: Path, address: str) -> Desks:
    return Desks(agents, tmp_path, address)


# Killed and run again


PARALLEL: list[list[Any]] = [[["deposit", 3]], [["weather"]], [["picture"]], [["facts"]]]
OVER_MCP: list[list[Any]] = [[["append", "one"]], [["append", "two"]], [["fail"]]]
IN_THE_HELPER: list[list[Any]] = [[["look_up"]], [["model", "expert", 0], ["measure"], ["model", "expert", 1]]]
SIDE_BY_SIDE = [PARALLEL, OVER_MCP, IN_THE_HELPER]  # each some chains of effects, one after the other in a chain
ALONE = [
    ["model", name, number] for name, turns in (("triage", 5), ("billing", 2), ("helper", 2)) for number in range(turns)
]
OFFICE = [*ALONE, ["refund"], *(line for chains in SIDE_BY_SIDE for chain in chains for line in chain)]


def same(one: list[Any], other: list[Any]) -> bool:
    return sorted(map(json.dumps, one)) == sorted(map(json.dumps, other))


def at_most_one_of_each(chains: list[list[Any]], lines: list[Any]) -> bool:
    """Whether the lines are effects that could be under way at one time, if there is nothing but these chains."""
    found = [[line for line in lines if line in chain] for chain in chains]
    return all(len(each) <= 1 for each in found) and sum(map(len, found)) == len(lines)


async def killed_and_run_again(desk: Desk, **kill: str) -> str:
    assert (await desk.run(**kill)).code == KILLED
    again = await desk.run()
    answer, effects = again.answer, desk.ledger
    third = await desk.run()
    assert third.answer == answer
    assert desk.ledger == effects, "a third run does nothing at all"
    return answer


async def each(numbers: Iterable[int], kill: Callable[[int], Any]) -> None:
    """`kill` each of them, a few at a time."""
    numbers = iter(numbers)

    async def one_after_the_other() -> None:
        for number in numbers:
            await kill(number)

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_A_TIME)))


async def test_an_agent_killed_in_the_middle_of_any_effect_repeats_that_one_only(desks: Desks) -> None:
    async def kill(number: int) -> None:
        desk = desks.open("office", f"s{number}")
        answer = await killed_and_run_again(desk, DIE_AT=str(number))
        assert "Nothing works" in answer, "an MCP tool's error is a result like any other"
        killed = desk.ledger[number - 1]
        beside = [chains for chains in SIDE_BY_SIDE if any(killed in chain for chain in chains)]
        assert killed in desk.repeated
        assert at_most_one_of_each(beside[0] if beside else [[killed]], desk.repeated)
        assert same(desk.ledger, OFFICE + desk.repeated)

    await each(range(1, len(OFFICE) + 1, 2), kill)


async def test_an_agent_killed_between_any_two_effects_repeats_none(desks: Desks, client: Client) -> None:
    async def kill(number: int) -> None:
        desk = desks.open("office-streamed", f"s{number}")
        await killed_and_run_again(desk, NEXUM_CRASH_AT=f"task-claimed:{number}")
        beside = [chains for chains in SIDE_BY_SIDE if at_most_one_of_each(chains, desk.repeated)]
        assert any(len(desk.repeated) < len(chains) for chains in beside), (
            "but what ran beside the one that had not begun"
        )
        assert same(desk.ledger, OFFICE + desk.repeated)
        events = [event async for known in client.history(f"s{number}/") for event in known["events"]]
        lost = [event["error"] for event in events if event["type"] == "LeaseExpired"]
        assert lost
        assert all(error.endswith(" has gone.") for error in lost), "no lease had to be waited for"

    await each(range(2, len(OFFICE) + 1, 3), kill)


async def test_a_killed_agent_with_guardrails_asks_them_again_only_where_it_was_killed(desks: Desks) -> None:
    async def kill(number: int) -> None:
        desk = desks.open("guarded", f"s{number}")
        await killed_and_run_again(desk, DIE_AT=str(number))
        assert desk.repeated == [desk.ledger[number - 1]]
        assert len(desk.ledger) == 6

    await each(range(1, 6), kill)


async def test_a_tripwire_trips_again_without_the_guardrail_being_asked(desks: Desks) -> None:
    desk = desks.open("guarded", TRIP="before")
    first, second = await desk.run(), await desk.run()
    assert first.answer.startswith("tripped: ")
    assert second.answer == first.answer
    assert desk.ledger == [["before"]]


async def test_a_tool_that_happens_once_is_not_called_again_until_a_person_has_said_what_came_of_it(
    desks: Desks, client: Client
) -> None:
    desk = desks.open("sender", ONCE="yes")
    assert (await desk.run(DIE_AT="2")).code == KILLED
    told = await desk.run()
    assert "This call of send may or may not have run." in told.answer
    assert (await desk.run()).answer == told.answer
    assert desk.ledger.count(["send"]) == 1

    (execution,) = await client.executions("s/send/")
    await client.resolve(execution.execution_id, "result", json.dumps("It was sent."))
    settled = await desk.run()
    assert '"output": "It was sent."' in settled.answer
    assert (await desk.run()).answer == settled.answer
    assert desk.ledger == [["model", "sender", 0], ["send"], ["model", "sender", 1], ["model", "sender", 1]]


async def test_run_sync_runs_and_replays_and_says_nothing_at_its_end(desks: Desks) -> None:
    desk = desks.open("sync")
    first, second = await desk.run(), await desk.run()
    assert second.answer == first.answer
    assert len(first.output.splitlines()) == 5, first.output
    assert len(desk.ledger) == 3


# In this process

happened: list[Any] = []
_ids = itertools.count()


@pytest.fixture
async def nexum(address: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setenv("NEXUM_ADDRESS", address)
    happened.clear()
    yield
    await nexum_client().close()


pytestmark = pytest.mark.usefixtures("nexum")


def calls(*named: tuple[str, dict[str, Any]]) -> list[Any]:
    return [function_call(name, arguments, call_id=f"call_{next(_ids)}") for name, arguments in named]


def says(text: str) -> list[Any]:
    return [assistant_message(text, item_id=f"message_{next(_ids)}")]


def agent_with(*tools: Any, turns: list[Any] | None = None, **options: Any) -> Agent[Any]:
    """An agent that calls each of its tools once, all in one turn."""
    turns = turns or [calls(*((tool.name, {}) for tool in tools)), says("done")]
    return Agent(name="Agent", model=ScriptedModel(turns), tools=list(tools), **options)


async def run_twice(agent: Agent[Any], session_id: str = "s", **options: Any) -> Any:
    """The result of two runs of one session, after which the model, which knows no more, has not been asked again."""
    first = await Runner.run(durable_agent(agent, session_id, **options), "go")
    effects = list(happened)
    second = await Runner.run(durable_agent(agent, session_id, **options), "go")
    assert second.to_input_list() == first.to_input_list()
    assert second.final_output == first.final_output
    assert happened == effects, "nothing happens again"
    return second


def outputs(result: Any) -> list[Any]:
    return [item["output"] for item in result.to_input_list() if item.get("type") == "function_call_output"]


class Weather(BaseModel):
    city: str


def returns(value: Any) -> FunctionTool:
    @function_tool
    def give(context: RunContextWrapper[Any]) -> Any:
        happened.append("give")
        return value

    return give


def breaks(**options: Any) -> FunctionTool:
    tool: Any = function_tool(**options)

    async def give(context: ToolContext[Any]) -> Any:
        happened.append(context.tool_name)
        raise ValueError("It is broken.")

    made: FunctionTool = tool(give)
    return made


def hangs(**options: Any) -> FunctionTool:
    tool: Any = function_tool(timeout=0.01, **options)

    async def give() -> Any:
        happened.append("give")
        await asyncio.Event().wait()

    made: FunctionTool = tool(give)
    return made


def custom() -> FunctionTool:
    async def invoke(context: RunContextWrapper[Any], arguments: str) -> str:
        happened.append(type(context).__name__)
        return f"{type(context).__name__} {arguments}"

    return FunctionTool("give", "Give.", {"type": "object", "properties": {}}, invoke, strict_json_schema=False)


def guarded_tool(name: str, **more: Any) -> FunctionTool:
    """A tool with a guardrail before it, or after it, that turns down what is asked, or what is returned."""

    def check(data: Any) -> ToolGuardrailFunctionOutput:
        happened.append("check")
        return ToolGuardrailFunctionOutput.reject_content("Turned down.", output_info=Weather(city="Rome"))

    guardrail: Any = ToolInputGuardrail if name == "tool_input_guardrails" else ToolOutputGuardrail
    options: dict[str, Any] = {name: [guardrail(check)]}
    return dataclasses.replace(returns("secret"), **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: returns(None),
        lambda: returns({"a": [1, None, 2.5]}),
        lambda: returns(Weather(city="Rome")),
        lambda: returns(("a", 1)),
        lambda: returns(ToolOutputText(text="text")),
        lambda: returns([ToolOutputText(text="text"), ToolOutputImage(image_url="https://site.example/i.png")]),
        lambda: returns({"type": "text", "text": "text"}),
        lambda: returns((ToolOutputText(text="text"), ToolOutputImage(image_url="https://site.example/i.png"))),
        lambda: returns(({"type": "text", "text": "text"},)),
        lambda: returns((ToolOutputText(text="text"), 1)),
        lambda: returns(()),
        lambda: breaks(),
        lambda: breaks(failure_error_function=lambda context, error: f"Told: {error}"),
        lambda: hangs(),
        lambda: hangs(timeout_error_function=lambda context, error: f"Told: {error}"),
        lambda: custom(),
        lambda: guarded_tool("tool_input_guardrails"),
        lambda: guarded_tool("tool_output_guardrails"),
        lambda: dataclasses.replace(returns("hidden"), is_enabled=True, needs_approval=lambda *_: _no()),
    ],
)
async def test_a_durable_tool_tells_the_model_what_the_plain_one_tells_it(make: Callable[[], FunctionTool]) -> None:
    turns = [calls(("give", {})), says("done")]
    plain = await Runner.run(agent_with(make(), turns=turns), "go")
    effects = list(happened)
    happened.clear()
    durable = await run_twice(agent_with(make(), turns=turns))
    assert durable.to_input_list() == plain.to_input_list()
    assert happened == effects


async def _no() -> bool:
    return False


@pytest.mark.parametrize(
    ("tool", "error"),
    [
        (lambda: breaks(failure_error_function=None), UserError),
        (lambda: hangs(timeout_behavior="raise_exception"), Exception),
    ],
)
async def test_a_tool_whose_error_ends_the_run_is_called_again_by_the_next(
    tool: Callable[[], FunctionTool], error: type[Exception]
) -> None:
    agent = agent_with(tool())
    for tries in (1, 2):
        with pytest.raises(error):
            await Runner.run(durable_agent(agent, "s"), "go")
        assert happened == ["give"] * tries


async def test_a_tool_that_is_not_enabled_is_not_on_offer() -> None:
    agent = agent_with(dataclasses.replace(returns("x"), is_enabled=lambda context, agent: False), turns=[says("done")])
    await run_twice(agent)
    assert asked(agent).tools == []


def asked(agent: Agent[Any]) -> ModelCall:
    assert isinstance(agent.model, ScriptedModel)
    call = agent.model.last_call
    assert call
    return call


async def test_identical_calls_in_parallel_are_calls_of_their_own() -> None:
    rolls = iter(range(100))
    roll = function_tool(lambda: next(rolls), name_override="roll")
    result = await run_twice(agent_with(roll, turns=[calls(*[("roll", {})] * 4), says("done")]))
    assert sorted(outputs(result)) == ["0", "1", "2", "3"]


async def test_two_sessions_of_one_agent_at_once_share_nothing() -> None:
    rolls = iter(range(100))

    @function_tool
    async def roll() -> int:
        await asyncio.sleep(0)
        return next(rolls)

    turns = [calls(("roll", {})), says("done")]
    agent = agent_with(roll, turns=[turns[0], turns[0], turns[1], turns[1]])

    async def both() -> list[Any]:
        one, other = durable_agent(agent, "one"), durable_agent(agent, "other")
        return [outputs(each) for each in await asyncio.gather(Runner.run(one, "go"), Runner.run(other, "go"))]

    first = await both()
    assert sorted(first) == [["0"], ["1"]]
    assert await both() == first


@pytest.mark.parametrize("needs_approval", [True, lambda *_: _yes()])
async def test_an_approved_run_goes_on_and_a_replay_asks_for_the_approval_again_but_does_nothing(
    needs_approval: Any,
) -> None:
    agent = agent_with(dataclasses.replace(returns("paid"), needs_approval=needs_approval))
    for _ in range(2):
        durable = durable_agent(agent, "s")
        interrupted = await Runner.run(durable, "go")
        state = interrupted.to_state()
        (interruption,) = interrupted.interruptions
        state.approve(interruption)
        result = await Runner.run(durable, state)
        assert outputs(result) == ["paid"]
    assert happened == ["give"]


async def test_an_interrupted_run_that_goes_on_in_its_own_copy_counts_its_identical_calls_on() -> None:
    tool = dataclasses.replace(returns("paid"), needs_approval=True)
    durable = durable_agent(agent_with(tool, turns=[calls(("give", {})), calls(("give", {})), says("done")]), "s")
    result = await Runner.run(durable, "go")
    for _ in range(2):
        state: Any = await RunState.from_string(durable, result.to_state().to_string())
        state.approve(result.interruptions[0])
        result = await Runner.run(durable, state)
    assert outputs(result) == ["paid", "paid"]
    assert happened == ["give", "give"]


async def answered(client: Client, running: asyncio.Task[Any], reason: str = "") -> None:
    """Kill what runs as soon as it asks a person, and answer it then: with a no, if there is a `reason`."""
    (waiting,) = await eventually(client.approvals)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    if reason:
        await client.reject(waiting.execution_id, waiting.node_id, "Eva", reason)
    else:
        await client.approve(waiting.execution_id, waiting.node_id, "Eva")


def pays() -> FunctionTool:
    @function_tool(needs_approval=True)
    def pay() -> str:
        happened.append("pay")
        return f"paid {len(happened)}"

    return pay


async def test_an_interrupted_run_goes_on_in_a_new_copy_at_its_interruption_and_counts_identical_calls_on(
    client: Client,
) -> None:
    agent = agent_with(pays(), turns=[calls(("pay", {})), calls(("pay", {})), says("done")])
    events: list[DurableEvent] = []

    async def run() -> Any:
        events.clear()
        with durable_session("s", events.append):
            return await run_with_approvals(durable_agent(agent, "s"), "go")

    for _ in range(2):
        await answered(client, asyncio.create_task(run()))
    for turns in ([(3, "started"), (3, "stored")], [(3, "cached")]):
        result = await run()
        assert outputs(result) == ["paid 1", "paid 2"]
        assert [(each.number, each.kind) for each in events if isinstance(each, TurnEvent)] == turns
    assert happened == ["pay", "pay"]


async def test_a_no_to_an_interruption_is_told_to_the_model_and_by_every_later_run(client: Client) -> None:
    agent = agent_with(pays(), returns("beside"))
    await answered(client, asyncio.create_task(run_with_approvals(durable_agent(agent, "s"), "go")), "no money")
    for _ in range(2):
        result = await run_with_approvals(durable_agent(agent, "s"), "go")
        assert sorted(outputs(result)) == ["This call of pay was not made. Rejected by Eva: no money", "beside"]
    assert happened == ["give"], "the other one"


async def test_an_interruption_inside_of_an_agent_tool_goes_on_in_a_new_copy(client: Client) -> None:
    inner = agent_with(pays())
    inner.name = "Inner"
    outer = agent_with(inner.as_tool("ask", "Ask."), turns=[calls(("ask", {"input": "pay"})), says("done")])
    await answered(client, asyncio.create_task(run_with_approvals(durable_agent(outer, "s"), "go")))
    for _ in range(2):
        result = await run_with_approvals(durable_agent(outer, "s"), "go")
        assert result.final_output == "done"
    assert happened == ["pay"]


async def test_the_state_of_a_run_with_another_question_is_not_gone_on_with(client: Client) -> None:
    agent = agent_with(pays())
    await answered(client, asyncio.create_task(run_with_approvals(durable_agent(agent, "s"), "go")))
    assert await kept_state(durable_agent(agent, "s"), "go") is not None
    assert await kept_state(durable_agent(agent, "s"), "stop") is None
    assert await kept_state(durable_agent(agent, "t"), "go") is None


async def test_a_state_of_an_agent_that_has_changed_is_let_go_and_its_run_replayed(client: Client) -> None:
    agent = agent_with(pays(), turns=[calls(("pay", {})), calls(("pay", {})), says("done")])
    await answered(client, asyncio.create_task(run_with_approvals(durable_agent(agent, "s"), "go")))
    agent.name = "Payer"
    assert await kept_state(durable_agent(agent, "s"), "go") is None
    await answered(client, asyncio.create_task(run_with_approvals(durable_agent(agent, "s"), "go")))
    assert outputs(await run_with_approvals(durable_agent(agent, "s"), "go")) == ["paid 1", "paid 2"]


async def test_a_context_that_json_does_not_carry_is_given_anew(client: Client) -> None:
    class Wallet:
        coins = 5

    @function_tool(needs_approval=True)
    def pay(context: RunContextWrapper[Wallet]) -> int:
        context.context.coins -= 1
        return context.context.coins

    agent = agent_with(pay)

    def run() -> Any:
        return run_with_approvals(durable_agent(agent, "s"), "go", context=Wallet())

    await answered(client, asyncio.create_task(run()))
    assert outputs(await run()) == ["4"]


async def test_a_state_that_is_too_large_is_not_kept_and_the_run_replays_to_its_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(ServerConfig(tmp_path / "small.db", port=0, max_message_mib=1))
    await server.start()
    monkeypatch.setenv("NEXUM_ADDRESS", f"localhost:{server.port}")
    vars(durable_session_module)["_clients"].clear()
    agent, question = agent_with(pays()), "go" * 1_000_000
    async with Client(f"localhost:{server.port}") as client:
        await answered(client, asyncio.create_task(run_with_approvals(durable_agent(agent, "s"), question)))
        assert await kept_state(durable_agent(agent, "s"), question) is None
        assert outputs(await run_with_approvals(durable_agent(agent, "s"), question)) == ["paid 1"]
    await nexum_client().close()
    await server.stop()


async def test_a_run_that_waits_for_people_is_one_of_a_session() -> None:
    with pytest.raises(DurableCallError, match="Agent 'Agent' was run outside of a session"):
        await run_with_approvals(agent_with(pays()), "go")


async def _yes() -> bool:
    return True


async def test_arguments_that_are_not_what_the_tool_gets_need_an_approval_as_in_the_plain_agent() -> None:
    @function_tool(needs_approval=lambda *_: _no())
    def pay(amount: int) -> str:
        return f"paid {amount}"

    def agent() -> Agent[Any]:
        return agent_with(pay, turns=[calls(("pay", {"amount": "3"}), ("pay", {"amount": 3})), says("done")])

    for each in (agent(), durable_agent(agent(), "s")):
        result = await Runner.run(each, "go")
        assert [interruption.arguments for interruption in result.interruptions] == ['{"amount":"3"}']


async def test_an_agent_tool_that_needs_an_approval_in_the_middle_of_its_run_goes_on_from_there() -> None:
    inner = agent_with(dataclasses.replace(returns("paid"), needs_approval=True))
    outer = agent_with(inner.as_tool("ask", "Ask."), turns=[calls(("ask", {"input": "pay"})), says("done")])
    for _ in range(2):
        durable = durable_agent(outer, "s")
        interrupted = await Runner.run(durable, "go")
        state = interrupted.to_state()
        state.approve(interrupted.interruptions[0])
        assert (await Runner.run(durable, state)).final_output == "done"
    assert happened == ["give"]


async def test_nexum_gone_in_the_middle_of_an_agent_tool_stops_the_whole_run() -> None:
    @function_tool(failure_error_function=None)
    def lose() -> str:
        raise DurableCallError("No Nexum server answers.")

    inner = agent_with(lose)
    outer = agent_with(inner.as_tool("ask", "Ask."), turns=[calls(("ask", {"input": "x"})), says("done")])
    with pytest.raises(DurableCallError):
        await Runner.run(durable_agent(outer, "s"), "go")


async def test_an_agent_tool_that_fails_is_told_of_as_it_is_of_a_plain_one() -> None:
    def outer() -> Agent[Any]:
        inner = agent_with(breaks(failure_error_function=None), turns=[calls(("give", {}))])
        ask = inner.as_tool("ask", "Ask.", failure_error_function=lambda context, error: f"Told: {error}")
        return agent_with(ask, turns=[[function_call("ask", {"input": "x"}, call_id="call_ask")], says("done")])

    plain = await Runner.run(outer(), "go")
    durable = await Runner.run(durable_agent(outer(), "s"), "go")
    assert outputs(durable) == outputs(plain)
    assert outputs(plain)[0].startswith("Told: ")


async def test_a_guardrail_that_runs_beside_the_model_and_trips_is_not_asked_again() -> None:
    async def check(*_: Any) -> GuardrailFunctionOutput:
        happened.append("check")
        return GuardrailFunctionOutput({"why": "so"}, tripwire_triggered=True)

    for guardrails, error in (
        ({"input_guardrails": [InputGuardrail(check)]}, InputGuardrailTripwireTriggered),
        ({"output_guardrails": [OutputGuardrail(check)]}, OutputGuardrailTripwireTriggered),
    ):
        agent = agent_with(turns=[says("done"), says("done"), says("done")], **guardrails)
        happened.clear()
        for _ in range(2):
            with pytest.raises(error) as raised:
                await Runner.run(durable_agent(agent, f"s-{error.__name__}"), "go")
            assert raised.value.guardrail_result.output.output_info == {"why": "so"}  # type: ignore[attr-defined]
        assert happened == ["check"]


async def test_a_trip_that_cut_the_first_turn_short_is_replayed_before_a_model_is_asked() -> None:
    is_asked = asyncio.Event()

    async def check(*_: Any) -> GuardrailFunctionOutput:
        await is_asked.wait()
        return GuardrailFunctionOutput(None, tripwire_triggered=True)

    async def never(call: ModelCall) -> Any:
        happened.append("asked")
        is_asked.set()
        await asyncio.Event().wait()

    agent = agent_with(turns=[ModelStep.respond(never)] * 5, input_guardrails=[InputGuardrail(check)])
    for _ in range(3):
        is_asked.clear()
        with pytest.raises(InputGuardrailTripwireTriggered):
            await Runner.run(durable_agent(agent, "s"), "go")
    assert happened == ["asked"]


class Books(MCPServer):
    """An MCP server in this process."""

    @property
    def name(self) -> str:
        return "books"

    async def connect(self) -> None: ...

    async def cleanup(self) -> None: ...

    async def list_tools(self, *_: Any, **__: Any) -> list[MCPTool]:
        return [MCPTool(name="lend", input_schema={"type": "object", "properties": {}})]

    async def call_tool(self, *_: Any, **__: Any) -> CallToolResult:
        happened.append("lend")
        return CallToolResult(content=[TextContent(type="text", text=f"lent {len(happened)}")])

    async def list_prompts(self) -> Any: ...

    async def get_prompt(self, *_: Any, **__: Any) -> Any: ...


class OwnAgent(Agent[Any]):
    def greeting(self) -> str:
        return f"I am {self.name}."


async def test_a_clone_and_a_subclass_of_an_agent_stay_what_they_are_and_durable() -> None:
    agent = OwnAgent(
        name="Own",
        model=ScriptedModel([calls(("lend", {})), says("done")]),
        mcp_servers=[Books()],
        handoff_description="Lends.",
        instructions="Lend.",
    )
    for _ in range(2):
        durable = durable_agent(agent, "s").clone(instructions="Lend it.")
        assert isinstance(durable, OwnAgent)
        assert (durable.greeting(), durable.handoff_description) == ("I am Own.", "Lends.")
        assert type(durable).__name__ == "OwnAgent"
        await Runner.run(durable, "go")
    assert happened == ["lend"]


async def test_the_original_agent_is_untouched() -> None:
    inner = agent_with(returns("x"))
    guard = InputGuardrail(lambda *_: GuardrailFunctionOutput(None, False), "guard")
    turns = [calls(("give", {}), ("ask", {"input": "x"})), says("done")]
    agent = agent_with(returns("y"), inner.as_tool("ask", "Ask."), turns=turns, input_guardrails=[guard])
    other = Agent(name="Other", handoffs=[agent])
    agent.handoffs = [other]
    tools_before = [dict(vars(tool)) for tool in agent.tools]
    before = [dict(vars(each)) for each in (agent, other, inner, guard)]
    await Runner.run(durable_agent(agent, "s"), "go")
    assert [dict(vars(each)) for each in (agent, other, inner, guard)] == before
    assert [dict(vars(tool)) for tool in agent.tools] == tools_before
    assert len(nexum_sessions := await nexum_client().executions("s/", limit=100)) > 3, nexum_sessions


class Named(ModelProvider):
    def __init__(self) -> None:
        self.models: dict[str | None, ScriptedModel] = {}

    def get_model(self, model_name: str | None) -> Model:
        return self.models.setdefault(model_name, ScriptedModel([calls(("give", {})), says("done")]))


@pytest.mark.parametrize("model", [None, "gpt-5.1", "gpt-4o"])
@pytest.mark.parametrize("settings", [None, ModelSettings(), ModelSettings(temperature=0.5, parallel_tool_calls=False)])
async def test_a_model_given_by_name_is_asked_the_same_as_by_the_plain_agent(
    model: str | None, settings: ModelSettings | None
) -> None:
    def build() -> Agent[Any]:
        named = {} if settings is None else {"model_settings": settings}
        return Agent(name="Agent", model=model, tools=[returns("x")], output_type=Weather | None, **named)  # type: ignore[arg-type]

    plain, durable = Named(), Named()
    plain_config = RunConfig(model_provider=plain, model_settings=ModelSettings(top_p=0.9))
    with pytest.raises(Exception, match="JSON"):  # as "done" is no Weather
        await Runner.run(build(), "go", run_config=plain_config)
    durable_config = RunConfig(model_settings=ModelSettings(top_p=0.9))
    with pytest.raises(Exception, match="JSON"):
        await Runner.run(durable_agent(build(), "s", provider=durable), "go", run_config=durable_config)

    def told(call: ModelCall) -> Any:
        schema = call.output_schema and call.output_schema.json_schema()
        offered = [(tool.name, tool.params_json_schema) for tool in call.tools if isinstance(tool, FunctionTool)]
        return call.system_instructions, call.model_settings, offered, schema, call.prompt, call.handoffs

    assert durable.models.keys() == plain.models.keys() == {model}
    assert [told(call) for call in durable.models[model].calls] == [told(call) for call in plain.models[model].calls]


async def test_hosted_tools_stay_as_they_are() -> None:
    shell = ShellTool(environment={"type": "container_auto"})
    hosted = [WebSearchTool(), shell, ProgrammaticToolCallingTool()]
    assert all(one is other for one, other in zip(durable_agent(agent_with(*hosted), "s").tools, hosted, strict=True))


class OwnTool(LocalShellTool):
    pass


async def _nothing(*_: Any) -> Any: ...


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (lambda: agent_with(ComputerTool(computer=_nothing)), "ComputerTool"),
        (lambda: agent_with(ShellTool(executor=_nothing)), "ShellTool"),
        (lambda: agent_with(LocalShellTool(executor=_nothing)), "LocalShellTool"),
        (lambda: agent_with(OwnTool(executor=_nothing)), "OwnTool"),
        (lambda: agent_with(ApplyPatchTool(editor=object())), "ApplyPatchTool"),  # type: ignore[arg-type]
        (lambda: agent_with(CustomTool(name="own", description="", on_invoke_tool=_nothing)), "CustomTool"),
        (lambda: SandboxAgent(name="Boxed"), "'Boxed' .* sandbox"),
        (lambda: Agent(name="Outer", handoffs=[SandboxAgent(name="Boxed")]), "'Boxed' .* sandbox"),
        (lambda: agent_with(agent_with().as_tool("ask", "", run_config=RunConfig())), "ask .* run_config of its own"),
        (lambda: agent_with(agent_with().as_tool("ask", "", session=SQLiteSession("x"))), "ask .* session of its own"),
        (
            lambda: agent_with(
                dataclasses.replace(returns(1), output_json_schema={"type": "object", "properties": {}})
            ),
            "give .* output schema",
        ),
    ],
)
async def test_what_cannot_be_made_durable_is_refused_by_name(agent: Callable[[], Agent[Any]], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        durable_agent(agent(), "s")


async def test_an_effect_of_a_tool_that_no_agent_has_is_refused() -> None:
    effects: dict[str, Effect] = {"gvie": "once"}
    with pytest.raises(ValueError, match="No agent has a tool 'gvie'"):
        durable_agent(agent_with(returns(1)), "s", effects=effects)
    durable_agent(Agent(name="Agent", mcp_servers=[Books()]), "s", effects=effects)


async def test_a_hand_off_that_decides_where_to_during_the_run_is_durable_too() -> None:
    target = agent_with(returns("x"))

    async def decide(context: Any, arguments: str) -> Agent[Any]:
        return target

    handoff = Handoff[Any, Any]("go_on", "Go on.", {}, decide, "Agent")
    agent = Agent(name="First", model=ScriptedModel([calls(("go_on", {}))]), handoffs=[handoff])
    result = await run_twice(agent)
    assert result.last_agent.name == "Agent"
    assert happened == ["give"]


async def test_a_hand_off_to_an_agent_that_is_durable_already_leads_to_that_one() -> None:
    async def back(context: Any, arguments: str) -> Agent[Any]:
        return durable

    agent = agent_with(turns=[calls(("back", {})), says("done")])
    agent.handoffs = [Handoff[Any, Any]("back", "Go back.", {}, back, "Agent")]
    durable = durable_agent(agent, "s")
    assert (await Runner.run(durable, "go")).last_agent is durable


def weigh(what: str) -> str:
    """Weigh."""
    happened.append(what)
    return f"{what}: {len(happened)} kg"


async def test_a_durable_tool_keeps_going_to_its_worker(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "TOOLS", {"weigh": weigh})
    port = int(address.partition(":")[2])
    worker = Worker([tool_call_workflow(run_tool)], port=port, drain_seconds=0)
    running = asyncio.create_task(worker.run())
    agent = agent_with(durable_tool(weigh), turns=[calls(("weigh", {"what": "gold"})), says("done")])
    await run_twice(agent)
    worker.stop()
    await running
    (execution,) = await nexum_client().executions("s/weigh/")
    assert execution.workflow_id == "openai-agents-tool-call"
    assert happened == ["gold"]


async def test_durable_local_makes_one_tool_durable_in_the_session_around_it() -> None:
    for _ in range(2):
        with durable_session("s"):
            turns = [calls(("give", {})), says("done")]
            assert outputs(await Runner.run(agent_with(durable_local(returns("x")), turns=turns), "go")) == ["x"]
    assert happened == ["give"]
    with pytest.raises(DurableCallError, match=r"put Runner\.run"):
        await Runner.run(agent_with(durable_local(returns("x"))), "go")
