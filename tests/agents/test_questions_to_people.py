"""`ask_person`: what a person answers is recorded, whatever is killed and started again meanwhile."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import RunContextWrapper, RunHooks, Runner, function_tool
from agents.testing import ModelCall, ModelStep
from command import nexum as nexum_command
from processes import PATIENCE_SECONDS, NexumDev, Process, environment, eventually
from test_tools_of_agents import agent_with, calls, nexum, outputs, says

from nexum_agents import (
    DurableCallError,
    DurableEvent,
    NoAnswer,
    NotRecorded,
    ask_person,
    durable_session,
    durable_step,
)
from nexum_agents.printing import EventPrinter
from nexum_runtime import Client

__all__ = ["nexum"]

ACCOUNTS = ["main", "savings"]

Ask = Callable[[], Awaitable[str]]


async def which() -> str:
    return await ask_person("Which account?", choices=ACCOUNTS)


async def in_session(ask: Ask = which, on_event: Any = None) -> str:
    effects: Any = {"choose": "replay"} if ask is _in_a_tool_that_a_replay_runs else {}
    with durable_session("s", effects=effects, on_event=on_event):
        return await ask()


async def the_question(client: Client) -> Any:
    (waiting,) = await eventually(client.approvals)
    return waiting


async def answered(client: Client, running: "asyncio.Task[Any]", answer: str, *, killed: bool = False) -> None:
    """Answer what it asks; when it is to be killed, while it is not there."""
    waiting = await the_question(client)
    if killed:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    await client.approve(waiting.execution_id, waiting.node_id, "Eva", answer)


async def requests(client: Client, prefix: str = "s/") -> int:
    """How often a person was asked."""
    histories = [history async for history in client.history(prefix)]
    return sum(event["type"] == "ApprovalRequested" for history in histories for event in history["events"])


# Where it is asked


async def _in_a_tool() -> str:
    @function_tool
    async def choose() -> str:
        return await which()

    def turn(call: ModelCall) -> Any:  # by what it is told: a replay asks for its last turn alone
        return calls(("choose", {})) if len(call.input) == 1 else says("done")

    agent = agent_with(choose, turns=[ModelStep.respond(turn)] * 2)
    return str(outputs(await Runner.run(agent, "go"))[0])


async def _in_a_tool_that_a_replay_runs() -> str:
    return await _in_a_tool()


async def _in_a_step() -> str:
    return str(await durable_step("choose", which))


async def _in_a_hook() -> str:
    heard: list[str] = []

    class Hooks(RunHooks[Any]):
        async def on_agent_start(self, context: RunContextWrapper[Any], agent: Any) -> None:
            heard.append(await which())

    await Runner.run(agent_with(turns=[says("done")]), "go", hooks=Hooks())
    return heard[0]


@pytest.mark.usefixtures("nexum")
@pytest.mark.parametrize("killed", [False, True], ids=["waiting", "killed"])
@pytest.mark.parametrize("ask", [which, _in_a_tool, _in_a_tool_that_a_replay_runs, _in_a_step, _in_a_hook])
async def test_an_answer_is_recorded_and_a_replay_gets_it_without_asking(
    client: Client, ask: Ask, killed: bool
) -> None:
    running = asyncio.create_task(in_session(ask))
    await answered(client, running, "savings", killed=killed)
    if not killed:
        assert await running == "savings"
    for _ in range(2):
        assert await in_session(ask) == "savings"
    assert await requests(client) == 1


@pytest.mark.usefixtures("nexum")
async def test_alike_questions_in_one_block_are_each_asked_and_answered_for_itself(client: Client) -> None:
    async def twice() -> str:
        return f"{await which()}, {await which()}"

    running = asyncio.create_task(in_session(twice))
    await answered(client, running, "savings")
    await eventually(lambda: _is_asked(client, 2))
    await answered(client, running, "main")
    assert await running == await in_session(twice) == "savings, main"


async def _is_asked(client: Client, times: int) -> bool:
    return await requests(client) == times


@pytest.mark.usefixtures("nexum")
async def test_a_question_that_its_caller_stopped_waiting_for_is_the_same_when_it_is_asked_again(
    client: Client,
) -> None:
    stopped = asyncio.Event()

    async def again() -> str:
        waiting = asyncio.create_task(which())
        await the_question(client)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        stopped.set()
        return await which()

    running = asyncio.create_task(in_session(again))
    await asyncio.wait_for(stopped.wait(), PATIENCE_SECONDS)
    await answered(client, running, "main")
    assert await running == "main"
    assert await requests(client) == 1


# Without an answer


@pytest.mark.usefixtures("nexum")
async def test_a_question_that_is_rejected_raises_the_reason_until_a_person_has_it_asked_again(client: Client) -> None:
    running = asyncio.create_task(in_session())
    waiting = await the_question(client)
    await client.reject(waiting.execution_id, waiting.node_id, "Eva", "neither of them")
    events: list[DurableEvent] = []
    for asking in (running, in_session(on_event=events.append)):
        with pytest.raises(NoAnswer, match=r"^Rejected by Eva: neither of them$"):
            await asking
    assert [(each.kind, each.detail) for each in events] == [("rejected", "Rejected by Eva: neither of them")]
    await client.resolve(waiting.execution_id, "retry")
    await answered(client, asyncio.create_task(in_session()), "main")
    assert await in_session() == "main"


@pytest.mark.usefixtures("nexum")
async def test_when_nobody_answers_in_time_the_answer_is_the_default_and_recorded_as_such(client: Client) -> None:
    async def ask(timeout: float = 0.01, default: str = "main") -> str:
        return await ask_person("Which account?", choices=ACCOUNTS, timeout=timeout, default=default)

    assert await in_session(ask) == "main"
    assert await in_session(lambda: ask(60.0, "savings")) == "main", "another default is none for what was asked"
    (execution,) = await client.executions("s/")
    assert (await client.status(execution.execution_id)).outputs["answer"]["by_default"] is True


@pytest.mark.usefixtures("nexum")
async def test_when_nobody_answers_in_time_and_there_is_no_default_it_raises_and_so_does_a_replay(
    client: Client,
) -> None:
    async def ask() -> str:
        return await ask_person("Why?", timeout=0.01)

    events: list[DurableEvent] = []
    for _ in range(2):
        with pytest.raises(NoAnswer, match=r"^Nobody answered within 10 ms\.$"):
            await in_session(ask, events.append)
    assert [each.kind for each in events] == ["failed", "failed"]
    assert await requests(client) == 1


@pytest.mark.usefixtures("nexum")
async def test_a_question_that_was_cancelled_is_asked_again_by_the_next_run(client: Client) -> None:
    running = asyncio.create_task(in_session())
    await client.cancel((await the_question(client)).execution_id)
    with pytest.raises(NoAnswer, match="cancelled"):
        await running
    running = asyncio.create_task(in_session())
    await answered(client, running, "main")
    assert await running == "main"


@pytest.mark.parametrize(
    ("words", "error", "why"),
    [
        ({"question": 1}, TypeError, "The question is 1; it must be a text."),
        ({"question": " "}, ValueError, "The question is empty."),
        ({"choices": "main"}, TypeError, "The choices are 'main'; they must be a list of texts."),
        ({"choices": [1]}, TypeError, r"The choices are \[1\]"),
        ({"choices": ["a", "a"]}, ValueError, "each must be a text of its own"),
        ({"choices": ["a", ""]}, ValueError, "each must be a text of its own"),
        ({"choices": [str(n) for n in range(101)]}, ValueError, "There are 101 choices; there can be 100."),
        ({"timeout": 0}, ValueError, "The timeout is 0 s; it can be 1 ms to 10 years."),
        ({"timeout": float("nan")}, ValueError, "The timeout is nan s"),
        ({"default": "main"}, ValueError, "A default needs a timeout"),
        ({"default": 1, "timeout": 1}, TypeError, "The default is 1; it must be a text."),
        ({"default": "x", "timeout": 1, "choices": ACCOUNTS}, ValueError, "it must be one of main, savings"),
        ({"default": "", "timeout": 1}, ValueError, "The default is 0 characters; it can be 1 to 1000."),
    ],
)
async def test_what_cannot_be_asked_is_refused_in_a_sentence(
    words: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why), durable_session("s"):
        await ask_person(**{"question": "Why?"} | words)


async def test_a_question_outside_of_a_session_is_refused() -> None:
    with pytest.raises(DurableCallError, match="ask_person was called outside of a session: put it inside"):
        await ask_person("Why?")


# What is told


@pytest.mark.usefixtures("nexum")
async def test_events_tell_that_it_waits_that_it_was_answered_and_that_it_came_from_the_store(client: Client) -> None:
    events: list[Any] = []
    running = asyncio.create_task(in_session(on_event=events.append))
    await eventually(lambda: events)
    await answered(client, running, "main")
    await running
    await in_session(on_event=events.append)
    told = list(dict.fromkeys((each.kind, each.detail) for each in events))
    assert told == [("waiting", "answer"), ("answered", "main"), ("cached", "")]
    assert {each.tool_name for each in events} == {"ask_person"}
    assert events[0].tool_args == {"question": "Which account?", "choices": ACCOUNTS}


@pytest.mark.usefixtures("nexum")
async def test_an_answer_by_default_is_told_and_printed_as_that(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[Any] = []

    def watch(event: DurableEvent) -> None:
        events.append(event)
        EventPrinter().on_event(event)

    await in_session(lambda: ask_person("Which account?", timeout=0.01, default="main"), watch)
    running = asyncio.create_task(in_session(on_event=watch))
    await answered(client, running, "savings")
    await running
    told = [(each.detail, each.by_default) for each in events if each.kind == "answered"]
    assert told == [("main", True), ("savings", False)]
    printed = [line for line in capsys.readouterr().out.splitlines() if "answered ✓" in line]
    assert [line.partition("✓ ")[2] for line in printed] == ["main (by default)", "savings"]


@pytest.mark.usefixtures("nexum")
async def test_in_a_session_that_is_cached_only_nothing_new_is_asked(client: Client) -> None:
    async def cached_only(ask: Ask = which) -> str:
        with durable_session("s", tools="cached-only", on_event=lambda event: events.append(event.kind)):
            return await asyncio.wait_for(ask(), PATIENCE_SECONDS)

    events: list[str] = []
    refused = (
        r'^ask_person\(\{"choices":\["main","savings"\],"question":"Which account\?"\}\) is not recorded in session s'
    )
    with pytest.raises(NotRecorded, match=refused):
        await cached_only()
    assert events == ["failed"]
    assert await client.approvals() == []
    running = asyncio.create_task(in_session())
    await the_question(client)
    with pytest.raises(NotRecorded, match=refused):  # nor is what another run asks waited for
        await cached_only()
    await answered(client, running, "main")
    assert await running == await cached_only() == "main"
    for _ in range(2):
        with pytest.raises(NoAnswer, match="Nobody answered"):
            await in_session(lambda: ask_person("Why?", timeout=0.01))
    with pytest.raises(NoAnswer, match="Nobody answered"):
        await cached_only(lambda: ask_person("Why?", timeout=0.01))
    assert await requests(client) == 2


@pytest.mark.usefixtures("nexum")
async def test_a_tool_that_asks_ends_the_run_of_a_session_that_is_cached_only() -> None:
    @function_tool
    async def choose() -> str:
        return await which()

    agent = agent_with(choose, turns=[calls(("choose", {})), says("done")])
    with durable_session("s", effects={"choose": "replay"}, tools="cached-only"), pytest.raises(NotRecorded):
        await Runner.run(agent, "go")


@pytest.mark.usefixtures("nexum")
async def test_without_on_event_the_question_is_logged_with_the_command_that_answers(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    running = asyncio.create_task(in_session())
    id = (await the_question(client)).execution_id
    await eventually(lambda: caplog.records)
    answers = f"nexum answer {id} 'your answer'   or: nexum reject {id} --reason 'why not'"
    assert caplog.record_tuples[0][1:] == (
        logging.WARNING,
        f"{id} asks: Which account? (main, savings) Answer with: {answers}",
    )
    await answered(client, running, "main")
    await running


# In processes of their own


ASKS = (
    r"(?m)^\[Nexum\] asks you: Which account\? \(main, savings\)"
    r"\n +NEXUM_ADDRESS=\S+ nexum answer (\S+) 'your answer'\n +NEXUM_ADDRESS=\S+ nexum reject \1 --reason 'why not'$"
)


class Desk:
    """A server in a process of its own, and runs of asking_agent.py."""

    def __init__(self, folder: Path, server: NexumDev) -> None:
        self.server, self.folder = server, folder
        self._started = 0

    def agent(self, *, beside: bool = False, **how: Any) -> Process:
        self._started += 1
        env = environment(
            NEXUM_ADDRESS=self.server.address,
            OPENAI_AGENTS_DISABLE_TRACING="1",
            HOW=json.dumps(how),
            LEDGER=str(self.folder / "ledger"),
            **{"BESIDE": "1"} if beside else {},
        )
        command: list[str | Path] = [sys.executable, Path(__file__).with_name("asking_agent.py")]
        agent = Process(command, self.folder / f"agent-{self._started}.log", env=env)
        agent.start()
        return agent

    async def say(self, *words: str) -> str:
        finished = await nexum_command(self.server.address, *words)
        return finished.stdout or finished.stderr

    async def event(self, type: str) -> dict[str, Any]:
        """The only event of this type at the question."""
        async with Client(self.server.address) as client:
            histories = [history async for history in client.history("s1/")]
        event: dict[str, Any]
        (event,) = [each for history in histories for each in history["events"] if each["type"] == type]
        return event

    @property
    def paid(self) -> list[str]:
        return (self.folder / "ledger").read_text().splitlines()


@asynccontextmanager
async def desk_of(folder: Path) -> AsyncIterator[Desk]:
    async with NexumDev(folder, database=folder / "own.db") as server:
        yield Desk(folder, server)


async def asked(agent: Process) -> str:
    return (await agent.says(ASKS))[1]


async def told(agent: Process) -> str:
    assert await agent.ended() == 0, agent.output
    assert "Traceback" not in agent.output
    return agent.output.partition("answer: ")[2].strip()


@pytest.mark.parametrize("dies", ["agent", "server", "both"])
async def test_a_question_outlives_whatever_is_killed_and_is_answered_while_nobody_waits(
    tmp_path: Path, dies: str
) -> None:
    async with desk_of(tmp_path) as desk:
        beside = dies == "both"
        agent = desk.agent(beside=beside)
        id = await asked(agent)
        if dies != "server":
            agent.kill()
        if dies != "agent":
            await desk.server.restart()
        assert "it can be one of: main, savings" in await desk.say("answer", id, "checking")
        assert await desk.say("answer", id, "savings") == "Answered.\n"
        if dies != "server":
            agent = desk.agent(beside=beside)
        assert await told(agent) == "5 from savings"
        again = desk.agent(beside=beside)
        assert await told(again) == "5 from savings"
        assert "asks you" not in again.output
        assert desk.paid == ["5 from savings"] * (1 + beside), "beside an agent nothing but the answer is recorded"
        await desk.event("ApprovalRequested")


async def test_an_agent_that_is_killed_and_run_again_before_the_answer_goes_on_waiting(tmp_path: Path) -> None:
    async with desk_of(tmp_path) as desk:
        first = desk.agent()
        id = await asked(first)
        first.kill()
        second = desk.agent()
        assert await asked(second) == id
        await desk.say("answer", id, "main")
        assert await told(second) == "5 from main"
        await desk.event("ApprovalRequested")


async def test_two_processes_that_ask_the_same_at_the_same_time_get_one_answer(tmp_path: Path) -> None:
    async with desk_of(tmp_path) as desk:
        both = [desk.agent(beside=True) for _ in range(2)]
        (id,) = {await asked(each) for each in both}
        assert await desk.say("answer", id, "main") == "Answered.\n"
        assert [await told(each) for each in both] == ["5 from main", "5 from main"]
        await desk.event("ApprovalRequested")


@pytest.mark.parametrize("default", ["main", None])
async def test_a_deadline_passes_while_everything_is_dead_and_does_not_begin_anew(
    tmp_path: Path, default: str | None
) -> None:
    async with desk_of(tmp_path) as desk:
        agent = desk.agent(beside=True, timeout=4.0, default=default)

        async def due() -> Any:
            async with Client(desk.server.address) as client:
                found = [each async for each in client.history("s1/")]
            events = [event for history in found for event in history["events"]]
            return next((event["due_at_ms"] for event in events if event["type"] == "ApprovalRequested"), None)

        due_ms = await eventually(due)
        agent.kill()
        desk.server.kill()
        await eventually(lambda: time.time_ns() // 1_000_000 > due_ms, "the deadline")
        await desk.server.restart()
        agent = desk.agent(beside=True, timeout=3_600.0, default=default)
        assert await told(agent) == ("5 from main" if default else "Nobody answered within 4.0 s.")
        assert (await desk.event("DeadlinePassed")).get("answer") == default
        assert (await desk.event("ApprovalRequested"))["due_at_ms"] == due_ms


async def test_a_rejected_question_is_told_to_the_model_by_the_tool_that_asked(tmp_path: Path) -> None:
    async with desk_of(tmp_path) as desk:
        agent = desk.agent()
        await desk.say("reject", await asked(agent), "--reason", "the bank is closed", "--as", "eva")
        assert await told(agent) == "Rejected by eva: the bank is closed"
