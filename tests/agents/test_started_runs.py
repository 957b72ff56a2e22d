"""Runs that are started from anywhere, and executed by workers, which may die."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, RunContextWrapper, function_tool
from agents.mcp import MCPServerStdio
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from processes import Process, engine_at, environment, eventually
from pydantic import BaseModel
from runs_worker import fetch

from nexum_agents import DurableCallError, RunFailed, SessionStopped, Worker, start_run, stop_session, submit_tool_call
from nexum_runtime import Client
from nexum_runtime.worker.worker import LEASE_MS

WORKER = Path(__file__).with_name("runs_worker.py")
ANSWER = "durable means much; execution was fetched"


@pytest.fixture(autouse=True)
def _address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", address)


@asynccontextmanager
async def working(*agents: Agent[Any], **options: Any) -> AsyncIterator[Worker]:
    worker = Worker(agents=agents, **options)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await running


class Fleet:
    """Workers in processes of their own, and the ledger of what they did."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder, self._address = folder, address
        self._ledger = folder / "ledger"
        self._processes: list[Process] = []

    def start(self, **env: str) -> Process:
        env = environment(LEDGER=str(self._ledger), **engine_at(self._address)) | env
        log = self._folder / f"worker-{len(self._processes)}.log"
        process = Process([sys.executable, str(WORKER)], log, env=env)
        process.start()
        self._processes.append(process)
        return process

    @property
    def effects(self) -> Counter[str]:
        lines = self._ledger.read_text().splitlines() if self._ledger.exists() else []
        return Counter(" ".join(map(str, json.loads(line))) for line in lines)

    def kill(self) -> None:
        for process in self._processes:
            process.kill()


@pytest.fixture
async def fleet(tmp_path: Path, address: str) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path, address)
    yield fleet
    fleet.kill()


ALL = {"model 0": 1, "look_up durable": 1, "note durable": 1, "model 1": 1, "fetch execution": 1, "model 2": 1}


async def test_a_run_is_started_before_there_is_a_worker_and_is_the_same_wherever_it_is_started_again(
    fleet: Fleet,
) -> None:
    run = await start_run("Researcher", "What is durable execution?", session_id="s1")
    fleet.start()
    outcome = await run.result()
    assert (outcome.final_output, outcome.last_agent) == (ANSWER, "Researcher")
    assert [item["type"] for item in outcome.new_items].count("function_call_output") == 2
    assert outcome.usage["requests"] == 3
    again = await start_run("Researcher", "What is durable execution?", session_id="s1")
    assert again.execution_id == run.execution_id
    assert (await again.result()).final_output == ANSWER
    assert fleet.effects == ALL


async def researcher_of(*turns: Any, **options: Any) -> Agent[Any]:
    return Agent(name="Researcher", model=ScriptedModel([ModelStep.respond(each) for each in turns]), **options)


def says(text: str) -> Any:
    return lambda _: [assistant_message(text)]


class City(BaseModel):
    name: str


async def test_structured_output_comes_back_as_its_type_and_a_context_is_given_to_the_run(client: Client) -> None:
    seen: list[Any] = []

    def look(context: RunContextWrapper[Any]) -> str:
        """Look."""
        seen.append(context.context)
        return "seen"

    calls = lambda _: [function_call("look", "{}", call_id="1")]  # noqa: E731
    agent = await researcher_of(calls, says('{"name": "Paris"}'), tools=[function_tool(look)], output_type=City)
    async with working(agent):
        run = await start_run(agent, [{"role": "user", "content": "go"}], session_id="s1", context={"user": 7})
        assert (await run.result(timeout=30)).final_output == City(name="Paris")
        by_name = await start_run(
            "Researcher", [{"role": "user", "content": "go"}], session_id="s1", context={"user": 7}
        )
        assert (await by_name.result()).final_output == {"name": "Paris"}
        assert (await by_name.result(City)).final_output == City(name="Paris")
    assert seen == [{"user": 7}]


async def test_a_run_that_failed_says_why_and_goes_on_when_it_is_started_again(client: Client) -> None:
    asked: list[int] = []

    def turn(call: ModelCall) -> Any:
        asked.append(1)
        if len(asked) == 1:
            raise RuntimeError("the model is away")
        return [assistant_message("here")]

    async with working(await researcher_of(turn, turn)):
        run = await start_run("Researcher", "go", session_id="s1")
        with pytest.raises(RunFailed, match="the model is away"):
            await run.result()
        with pytest.raises(RunFailed, match="the model is away"):
            await run.result()
        assert (await (await start_run("Researcher", "go", session_id="s1")).result()).final_output == "here"
    assert len(asked) == 2


async def test_another_worker_has_the_run_of_one_that_died_long_before_its_lease_ends(
    fleet: Fleet, client: Client
) -> None:
    dying = fleet.start(DIE_AT="4")
    await dying.says("Connected")
    run = await start_run("Researcher", "go", session_id="s1")
    await dying.ended()
    fleet.start()
    await run.result()
    events = [event async for each in client.history(run.execution_id) for event in each["events"]]
    lost = next(event for event in events if event["type"] == "LeaseExpired")
    begun = next(event for event in events if event["type"] == "AttemptStarted")
    assert lost["error"].endswith(" has gone.")
    assert lost["at_ms"] - begun["at_ms"] < LEASE_MS


async def test_a_run_is_gone_on_with_by_a_worker_of_another_version_which_says_what_differs(fleet: Fleet) -> None:
    dying = fleet.start(DIE_AT="5", INSTRUCTIONS="Be short.")
    await dying.says("Connected")
    run = await start_run("Researcher", "go", session_id="s1")
    await dying.ended()
    other = fleet.start(INSTRUCTIONS="Be long.")
    assert (await run.result()).final_output == ANSWER
    await other.says("turn 1 is new: instructions changed")
    again = {"model 0", "model 1", "fetch execution"}  # the turns, as what they are asked is new
    assert fleet.effects == Counter({what: 1 + (what in again) for what in ALL})


async def test_a_run_that_is_pinned_to_a_version_waits_for_a_worker_that_serves_it(
    fleet: Fleet, client: Client
) -> None:
    dying = fleet.start(DIE_AT="4", VERSION="1")
    await dying.says("agent Researcher 1,")
    await dying.says("Connected")
    run = await start_run("Researcher", "go", session_id="s1", version="1")
    await dying.ended()
    fleet.start(VERSION="2")
    assert (await (await start_run("Researcher", "go", session_id="s2")).result()).final_output == ANSWER
    assert (await (await start_run("Researcher", "go", session_id="s3", version="2")).result()).final_output == ANSWER

    async def is_lost() -> bool:
        events = [event async for each in client.history(run.execution_id) for event in each["events"]]
        return bool(events[-1]["type"] == "LeaseExpired")

    await eventually(is_lost, "that its worker is missed")
    with pytest.raises(TimeoutError):
        await run.result(timeout=1)
    fleet.start(VERSION="1")
    assert (await run.result()).final_output == ANSWER
    again = await start_run("Researcher", "go", session_id="s1", version="1")
    assert again.execution_id == run.execution_id


async def test_a_run_needs_no_place_of_the_tools_that_it_waits_for(fleet: Fleet) -> None:
    fleet.start(CONCURRENCY="1")
    runs = [await start_run("Researcher", "go", session_id=f"s{n}") for n in range(3)]
    assert [(await run.result()).final_output for run in runs] == [ANSWER] * 3


async def test_a_run_of_a_stopped_session_is_not_started_and_one_that_runs_is_cut_short(client: Client) -> None:
    begun = asyncio.Event()

    async def turn(call: ModelCall) -> Any:
        begun.set()
        await asyncio.Event().wait()

    async with working(await researcher_of(turn)):
        run = await start_run("Researcher", "go", session_id="s1")
        await begun.wait()
        await stop_session("s1", reason="enough", by="anna")
        with pytest.raises(SessionStopped, match="enough"):
            await run.result()
        with pytest.raises(SessionStopped, match="enough"):
            await start_run("Researcher", "again", session_id="s1")


async def test_the_runs_of_an_agent_go_to_the_workers_that_serve_it(client: Client) -> None:
    other = Agent[Any](name="Other", model=ScriptedModel([]))
    agent = await researcher_of(says("here"))
    async with working(other), working(agent):
        run = await start_run("Researcher", "go", session_id="s1")
        assert (await run.result(timeout=30)).final_output == "here"
        nobody = await start_run("Nobody", "go", session_id="s2")
        with pytest.raises(TimeoutError, match=r"The run s2/.* has not ended within 0.1 s"):
            await nobody.result(timeout=0.1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_turns": "x"}, "max_turns is 'x'; it must be a whole number from 1 on"),
        ({"context": {1: "a"}}, "The context of a run that a worker executes must come back from JSON as it is"),
        ({"context": object()}, "The context of a run that a worker executes must be JSON"),
        ({"input": [object()]}, "The input of a run that a worker executes must be JSON"),
        ({"session_id": "a/b"}, "session_id is 'a/b'; it must be"),
        ({"version": "v 1"}, "version is 'v 1'; it must be up to 40 letters"),
    ],
)
async def test_what_cannot_travel_is_told_in_a_sentence(given: dict[str, Any], words: str, client: Client) -> None:
    how: dict[str, Any] = {"input": "go", "session_id": "s1"} | given
    with pytest.raises(DurableCallError, match=words):
        await start_run("Researcher", how.pop("input"), **how)


async def test_a_worker_of_agents_alone_leaves_calls_to_the_workers_that_have_their_tools(client: Client) -> None:
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    async with working(await researcher_of()):
        call = asyncio.create_task(submit_tool_call("add", {"a": 1, "b": 2}, "s1"))
        await eventually(lambda: client.executions("s1/"), "a call that waits")
        async with working(tools=[add]):
            assert await call == 3


async def test_a_worker_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="A worker needs tools, agents or workflows to serve"):
        Worker()


async def test_what_is_of_agents_is_refused_without_and_when_it_is_no_such_thing() -> None:
    agent = await researcher_of()
    for more in ({"version": "1"}, {"memory": lambda _: None}):
        with pytest.raises(ValueError, match="version and memory are of agents, and this worker serves none"):
            Worker([fetch], **more)
    with pytest.raises(TypeError, match="memory must be a function"):
        Worker(agents=[agent], memory="chats.db")  # type: ignore[arg-type]
    for version in ("v 1", 1):
        with pytest.raises(DurableCallError, match="version is"):
            Worker(agents=[agent], version=version)  # type: ignore[arg-type]


async def test_a_memory_that_cannot_be_had_ends_the_run_with_its_words(client: Client) -> None:
    async with working(await researcher_of(), memory=lambda session_id: {}[session_id]):
        run = await start_run("Researcher", "go", session_id="s1")
        with pytest.raises(RunFailed, match="KeyError"):
            await run.result(timeout=30)


async def test_an_mcp_server_of_several_agents_is_connected_once() -> None:
    server = MCPServerStdio({"command": "true", "args": []})
    agents = [Agent[Any](name=name, mcp_servers=[server]) for name in ("A", "B")]
    assert Worker(agents=agents).mcp_servers == [server]


async def test_two_agents_of_one_name_are_refused() -> None:
    agents = [await researcher_of() for _ in range(2)]
    with pytest.raises(ValueError, match="Two agents are called 'Researcher'"):
        Worker(agents=agents)


async def test_a_run_waits_for_a_persons_yes(client: Client) -> None:
    def pay(amount: int) -> str:
        """Pay."""
        return f"paid {amount}"

    calls = lambda _: [function_call("pay", '{"amount": 5}', call_id="1")]  # noqa: E731
    agent = await researcher_of(calls, says("done"), tools=[function_tool(pay, needs_approval=True)])
    async with working(agent):
        run = await start_run(agent, "go", session_id="s1")
        await eventually(client.approvals, "an approval that waits")
        (waiting,) = await client.approvals()
        await client.approve(waiting.execution_id, waiting.node_id, "anna")
        assert (await run.result()).final_output == "done"
