"""Tools whose calls go to a worker: agents with `durable_tool`s, a real server, a real worker in the test's loop."""

import asyncio
import contextlib
import datetime
import itertools
import json
import logging
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    FunctionTool,
    RunContextWrapper,
    Runner,
    ToolOutputImage,
    ToolOutputText,
    function_tool,
)
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from processes import PATIENCE_SECONDS, Process, environment, eventually
from processes import run as run_command
from pydantic import BaseModel, ConfigDict, Field, SecretStr, computed_field, field_serializer, field_validator

from nexum_agents import (
    CallEvent,
    DurableCallError,
    DurableEvent,
    OutcomeUnknown,
    ToolError,
    ToolFailed,
    Worker,
    durable_session,
    durable_tool,
    idempotency_key,
    submit_tool_call,
)
from nexum_agents.workflows import TOOL_CALL, Recorded, tool_call_workflow
from nexum_runtime import Client, wire

executed: list[tuple[str, Any]] = []
"""Every real execution of a tool, in order."""


class City(BaseModel):
    name: str
    inhabitants: int = 0


async def weather(city: str, days: int = 1) -> str:
    """Tell the weather.

    Args:
        city: Where.
        days: How many days ahead.
    """
    executed.append(("weather", (city, days)))
    return f"{city}: sunny for {days} days"


def add(a: int, b: int) -> int:
    """Add two numbers."""
    executed.append(("add", (a, b)))
    return a + b


def grow(city: City) -> City:
    """Let a city grow."""
    executed.append(("grow", city))
    return City(name=city.name, inhabitants=city.inhabitants + 1)


def roll_dice() -> int:
    """Roll the dice."""
    executed.append(("roll_dice", None))
    return len(executed)


def broken(why: str) -> str:
    """Break."""
    executed.append(("broken", why))
    raise ToolError(f"The tool broke because of {why}.", retryable=False)


def crash() -> str:
    """Divide by zero."""
    executed.append(("crash", None))
    return str(1 // 0)


async def tell_key() -> str:
    """Tell the idempotency key."""
    executed.append(("tell_key", None))
    return idempotency_key()


async def hang() -> str:
    """Hang."""
    executed.append(("hang", None))
    await asyncio.Event().wait()
    return "never"


def lose_track() -> str:
    """Lose track."""
    executed.append(("lose_track", None))
    raise ToolError("The line went dead.", unknown=True)


_other_came = threading.Event()


def wait_for_the_other() -> bool:
    """Wait for the other tool."""
    return _other_came.wait(PATIENCE_SECONDS / 2)


async def let_the_other_go() -> str:
    """Let the other tool go on."""
    _other_came.set()
    return "go"


OWN_TOOLS: tuple[Callable[..., Any], ...] = (
    weather,
    add,
    grow,
    roll_dice,
    broken,
    crash,
    tell_key,
    hang,
    lose_track,
    wait_for_the_other,
    let_the_other_go,
)


@pytest.fixture(autouse=True)
def _address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", address)
    executed.clear()


@asynccontextmanager
async def working(*tools: Any) -> AsyncIterator[Worker]:
    """A worker for these tools, or for those of this file, at the server that NEXUM_ADDRESS names."""
    worker = Worker(tools or OWN_TOOLS)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await running


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    async with working() as worker:
        yield worker


def calls(*named: tuple[str, dict[str, Any]]) -> list[Any]:
    """One turn of a model that makes these calls in parallel."""
    return [function_call(name, json.dumps(args), call_id=f"call_{next(_ids)}") for name, args in named]


_ids = itertools.count()


def tool_outputs(result: Any) -> list[str]:
    return [str(item.output) for item in result.new_items if item.type == "tool_call_output_item"]


async def run(
    session_id: str, turns: list[Any], *agent_tools: FunctionTool, on_event: Any = None, durable_turns: bool = False
) -> Any:
    """A run that records its calls alone, unless it has `durable_turns`: the model says the same in every run."""
    agent = Agent(name="test", model=ScriptedModel([*turns, [assistant_message("done")]]), tools=list(agent_tools))
    with durable_session(session_id, turns=durable_turns, on_event=on_event or (lambda event: None)):
        return await Runner.run(agent, "go")


async def test_a_second_run_of_a_session_gets_every_result_from_the_store(worker: Worker) -> None:
    events: list[CallEvent] = []
    turns = [calls(("weather", {"city": "Rome"}), ("add", {"a": 1, "b": 2})), calls(("add", {"a": 3, "b": 4}))]

    first = await run("s1", turns, durable_tool(weather), durable_tool(add))
    second = await run("s1", turns, durable_tool(weather), durable_tool(add), on_event=events.append)

    assert tool_outputs(first) == tool_outputs(second) == ["Rome: sunny for 1 days", "3", "7"]
    assert len(executed) == 3
    assert [event.kind for event in events].count("cached") == 3


async def the_approval(client: Client) -> Any:
    (waiting,) = await eventually(client.approvals)
    return waiting


async def test_only_the_calls_that_need_a_yes_wait_for_it(worker: Worker, client: Client) -> None:
    events: list[CallEvent] = []
    big = durable_tool(add, needs_approval=lambda a, b: a > 10)
    turns = [calls(("add", {"a": 1, "b": 2}), ("add", {"a": 11, "b": 2}))]
    running = asyncio.create_task(run("s1", turns, big, on_event=events.append))
    waiting = await the_approval(client)
    await eventually(lambda: any(event.detail == "approval" for event in events))
    assert executed == [("add", (1, 2))]
    (asking,) = {(event.execution_id, str(event.tool_args)) for event in events if event.detail == "approval"}
    assert asking == (waiting.execution_id, "{'a': 11, 'b': 2}")
    await client.approve(waiting.execution_id, waiting.node_id, "Eva")
    assert tool_outputs(await running) == tool_outputs(await run("s1", turns, big)) == ["3", "13"]
    assert executed == [("add", (1, 2)), ("add", (11, 2))]


@pytest.mark.parametrize("effect", ["idempotent", "once"])
async def test_a_rejection_is_told_to_the_model_and_by_every_later_run(client: Client, effect: Any) -> None:
    """No worker is there: nobody has to begin what nobody may execute."""
    tool, turns = durable_tool(add, needs_approval=True, effect=effect), [calls(("add", {"a": 1, "b": 2}))]
    running = asyncio.create_task(run("s1", turns, tool))
    waiting = await the_approval(client)
    await client.reject(waiting.execution_id, waiting.node_id, "Eva", "add it yourself")
    kinds: list[str] = []
    for result in (await running, await run("s1", turns, tool, on_event=lambda event: kinds.append(event.kind))):
        assert tool_outputs(result) == ["This call of add was not made. Rejected by Eva: add it yourself"]
    assert kinds == ["started", "rejected"]
    assert await client.approvals() == []


async def approved(session_id: str, client: Client, tool: FunctionTool, call: Any, **yes: Any) -> list[Any]:
    """What the model is told of a call that Eva says yes to, and by a replay of it."""
    told = []
    for is_first in (True, False):
        running = asyncio.create_task(run(session_id, [calls(call)], tool))
        if is_first:
            waiting = await the_approval(client)
            await client.approve(waiting.execution_id, waiting.node_id, "Eva", **yes)
        told.append((await running).to_input_list()[-2]["output"])
    return told


ROME = ("weather", {"city": "Rome"})


async def test_a_comment_follows_the_result_that_the_model_reads_in_every_run(worker: Worker, client: Client) -> None:
    tool = durable_tool(weather, needs_approval=True)
    told = "Rome: sunny for 1 days\n(Approved by Eva: only this once)"
    assert await approved("s1", client, tool, ROME, comment=" only this once\n") == [told, told]
    alone = asyncio.create_task(submit_tool_call(*ROME, "s3", needs_approval=True))
    waiting = await the_approval(client)
    await client.approve(waiting.execution_id, waiting.node_id, "Eva", "fine")
    assert await alone == "Rome: sunny for 1 days", "no model reads it"
    assert await approved("s2", client, tool, ROME) == ["Rome: sunny for 1 days"] * 2, "without a comment"


async def test_a_comment_is_one_more_part_of_parts_and_no_part_of_any_other_result(client: Client) -> None:
    def draw() -> list[ToolOutputText | ToolOutputImage]:
        return [ToolOutputText(text="a cat"), ToolOutputImage(image_url="data:image/png;base64,AAAA")]

    def draw_one() -> ToolOutputImage:
        return ToolOutputImage(image_url="data:image/png;base64,AAAA")

    async with working(draw, draw_one, add):
        for session_id, function in (("s1", draw), ("s2", draw_one)):
            tool = durable_tool(function, needs_approval=True)
            for told in await approved(session_id, client, tool, (tool.name, {}), comment="fine"):
                assert told[-2]["type"] == "input_image"
                assert told[-1] == {"type": "input_text", "text": "(Approved by Eva: fine)"}
        tool = durable_tool(add, needs_approval=True)
        assert await approved("s3", client, tool, ("add", {"a": 1, "b": 2}), comment="fine") == ["3", "3"]


async def test_a_person_may_change_the_arguments_and_the_model_is_told_which_they_are(
    worker: Worker, client: Client
) -> None:
    tool = durable_tool(weather, needs_approval=True)
    args = {"city": "Bari", "days": 3}
    told = 'Bari: sunny for 3 days\n(Approved by Eva with the arguments {"city":"Bari","days":3}: it is nearer)'
    assert await approved("s1", client, tool, ROME, args=args, comment="it is nearer") == [told, told]
    assert executed == [("weather", ("Bari", 3))]


async def test_changed_arguments_that_do_not_fit_are_told_to_the_model(worker: Worker, client: Client) -> None:
    tool = durable_tool(weather, needs_approval=True)
    (first, _) = await approved("s1", client, tool, ROME, args={"town": "Bari"})
    assert first.startswith("The arguments of weather do not fit: city: Field required")
    assert "://" not in first, "the website of pydantic is nothing to the model"
    assert executed == []


async def test_a_call_that_needs_a_yes_from_now_on_is_another_call(worker: Worker, client: Client) -> None:
    turns = [calls(("add", {"a": 1, "b": 2}))]
    await run("s1", turns, durable_tool(add))
    running = asyncio.create_task(run("s1", turns, durable_tool(add, needs_approval=True)))
    waiting = await the_approval(client)
    assert executed == [("add", (1, 2))]
    await client.approve(waiting.execution_id, waiting.node_id, "Eva")
    assert tool_outputs(await running) == ["3"]


async def test_another_session_shares_nothing(worker: Worker) -> None:
    turns = [calls(("add", {"a": 1, "b": 2}))]
    await run("s1", turns, durable_tool(add))
    await run("s10", turns, durable_tool(add))
    assert len(executed) == 2


async def test_sixteen_parallel_calls_of_which_four_are_identical_are_sixteen_recorded_results(
    worker: Worker, client: Client
) -> None:
    sixteen = calls(*[("roll_dice", {})] * 4, *[("add", {"a": n, "b": n}) for n in range(12)])

    first = await run("s1", [sixteen], durable_tool(roll_dice), durable_tool(add))
    assert len(executed) == 16
    assert len(set(tool_outputs(first)[:4])) == 4, "each roll is a call of its own"
    second = await run("s1", [sixteen], durable_tool(roll_dice), durable_tool(add))

    assert len(executed) == 16
    assert sorted(tool_outputs(second)) == sorted(tool_outputs(first))
    recorded = [each for each in await client.listed("s1/", limit=100) if each["labels"]["kind"] == "call"]
    assert [execution["status"] for execution in recorded] == ["COMPLETED"] * 16


async def test_arguments_that_a_provider_formats_differently_are_the_same_call(worker: Worker) -> None:
    for text in ('{"city":"Zürich","days":2}', '{ "days": 2,\n "city": "Z\\u00fcrich" }'):
        await run("s1", [[function_call("weather", text, call_id="c1")]], durable_tool(weather))
    assert executed == [("weather", ("Zürich", 2))]


async def test_two_processes_that_run_one_session_at_once_execute_each_call_once(worker: Worker) -> None:
    async def other_process() -> str:
        with durable_session("s1"):
            return str(await submit_tool_call("roll_dice", {}, "s1"))

    results = await asyncio.gather(*(other_process() for _ in range(5)))
    assert len(set(results)) == 1
    assert len(executed) == 1


@pytest.mark.parametrize("function", [weather, add, grow, hang])
def test_a_durable_tool_looks_to_the_model_exactly_like_the_plain_one(function: Callable[..., Any]) -> None:
    plain, durable = function_tool(function), durable_tool(function)
    assert (durable.name, durable.description, durable.strict_json_schema) == (
        plain.name,
        plain.description,
        plain.strict_json_schema,
    )
    assert json.dumps(durable.params_json_schema) == json.dumps(plain.params_json_schema)


async def test_arguments_and_results_with_a_shape_travel_as_json(worker: Worker) -> None:
    turn = calls(("grow", {"city": {"name": "Ur", "inhabitants": 9}}))
    result = await run("s1", [turn], durable_tool(grow))
    assert executed == [("grow", City(name="Ur", inhabitants=9))]
    (item,) = [item for item in result.new_items if item.type == "tool_call_output_item"]
    assert item.output == City(name="Ur", inhabitants=10)


async def test_a_tool_that_fails_tells_the_model_in_its_own_words_and_the_run_goes_on(worker: Worker) -> None:
    result = await run("s1", [calls(("broken", {"why": "rain"}))], durable_tool(broken))
    assert tool_outputs(result) == ["The tool broke because of rain."]
    assert result.final_output == "done"
    assert len(executed) == 1, "a failure that cannot be mended is not retried"


async def test_a_call_that_failed_is_tried_again_in_the_next_run(worker: Worker) -> None:
    for _ in range(2):
        await run("s1", [calls(("broken", {"why": "rain"}))], durable_tool(broken))
    assert len(executed) == 2


class Crash(BaseException):
    """Ends a run as a crash would: nothing handles it."""


async def run_with_turns(turns: list[Any], instructions: str = "Help.", on_event: Any = None) -> Any:
    """A run whose turns are recorded as well, by an agent that has a tool which always fails."""
    model = ScriptedModel(turns)
    agent = Agent(name="test", instructions=instructions, model=model, tools=[durable_tool(broken)])
    with durable_session("s1", on_event=on_event):
        return await Runner.run(agent, "go")


async def test_a_failure_that_the_model_went_on_from_is_part_of_the_replay(worker: Worker) -> None:
    failing = calls(("broken", {"why": "rain"}))
    first = await run_with_turns([failing, [assistant_message("It broke.")]])
    kinds: list[str] = []
    again = await run_with_turns([], on_event=lambda event: kinds.append(event.kind))
    assert tool_outputs(again) == tool_outputs(first) == ["The tool broke because of rain."]
    assert again.final_output == "It broke."
    assert kinds == ["cached", "started", "failed", "cached"]
    assert len(executed) == 1


async def test_a_failure_that_the_model_was_not_told_of_is_tried_again(worker: Worker) -> None:
    def stop(event: Any) -> None:
        if event.kind == "failed":
            raise Crash

    failing = calls(("broken", {"why": "rain"}))
    with pytest.raises(Crash):
        await run_with_turns([failing], on_event=stop)
    assert len(executed) == 1
    again = await run_with_turns([[assistant_message("It broke.")]])
    assert again.final_output == "It broke."
    assert len(executed) == 2


async def test_a_failure_is_tried_again_by_a_run_that_has_left_the_recorded_turns(worker: Worker) -> None:
    failing = calls(("broken", {"why": "rain"}))
    for instructions in ("Help.", "Help kindly."):
        await run_with_turns([failing, [assistant_message("It broke.")]], instructions)
    assert len(executed) == 2


async def test_a_call_in_a_replay_that_is_not_recorded_yet_says_that_it_starts(worker: Worker) -> None:
    """The process died after the turn, before its calls were made."""

    def stop(event: Any) -> None:
        if event.kind == "stored":
            raise Crash

    with pytest.raises(Crash):
        await run_with_turns([calls(("broken", {"why": "rain"}))], on_event=stop)
    assert executed == []
    kinds: list[str] = []
    await run_with_turns([[assistant_message("It broke.")]], on_event=lambda event: kinds.append(event.kind))
    assert kinds == ["cached", "started", "failed", "started", "stored"]


async def test_an_unknown_tool_fails_at_once_and_names_the_known_ones(worker: Worker) -> None:
    with pytest.raises(ToolFailed, match=r"knows no tool 'fly'; it knows weather, add"):
        await submit_tool_call("fly", {}, "s1")


async def record(client: Client, output_json: str) -> None:
    """Be somebody else's worker, which records this."""
    claimed = await client.poll("stranger", TOOL_CALL, lease_ms=60_000, wait_ms=60_000)
    assert claimed is not None
    await client.complete(claimed.task_id, output_json)


async def test_a_record_without_a_duration_is_understood(client: Client) -> None:
    await client.register(TOOL_CALL)
    recording = asyncio.create_task(record(client, '{"result": "sunny"}'))
    assert await submit_tool_call("weather", {"city": "Bonn"}, "s1") == "sunny"
    await recording


@pytest.mark.parametrize(
    "output_json", ['{"text": "sunny"}', "[1]", "null", '{"result": {"$": "agents:Nothing", "x": 1}, "form": "typed"}']
)
async def test_a_record_that_cannot_be_read_ends_the_run_and_is_never_told_to_the_model(
    client: Client, output_json: str
) -> None:
    await client.register(TOOL_CALL)
    recording = asyncio.create_task(record(client, output_json))
    for run in ("the first", "a replay"):
        call = [function_call("weather", '{"city": "Bonn"}', call_id="1")]
        model = ScriptedModel([call, [assistant_message("It is sunny.")]])
        agent = Agent(name="A", model=model, tools=[durable_tool(weather)])
        with pytest.raises(DurableCallError, match=r"^What is recorded of weather "), durable_session("s1"):
            await Runner.run(agent, "q")
        assert len(model.calls) == (1 if run == "the first" else 0)
    await recording
    recording = asyncio.create_task(record(client, output_json))
    with pytest.raises(DurableCallError, match=r"^What is recorded of weather "):
        await submit_tool_call("weather", {"city": "Ulm"}, "s2")
    await recording


async def test_arguments_that_do_not_fit_fail_at_once(worker: Worker, client: Client) -> None:
    with pytest.raises(ToolFailed, match=r"The arguments of add do not fit"):
        await submit_tool_call("add", {"a": "x", "b": 2}, "s1")
    assert executed == []
    (execution,) = await client.executions("s1/add/")
    assert (await client.status(execution.execution_id)).attempts == 1


async def test_a_sync_tool_does_not_hold_up_the_others(worker: Worker) -> None:
    turn = calls(("wait_for_the_other", {}), ("let_the_other_go", {}))
    result = await run("s1", [turn], durable_tool(wait_for_the_other), durable_tool(let_the_other_go))
    assert tool_outputs(result) == ["True", "go"]


async def test_a_tool_can_ask_for_its_idempotency_key(worker: Worker) -> None:
    key = await submit_tool_call("tell_key", {}, "s1")
    assert key.startswith("s1/tell_key/")


async def test_a_call_with_no_result_in_time_stops_the_run_and_names_the_command_that_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nexum_agents.tools.PAUSE_SECONDS", 0)
    with pytest.raises(DurableCallError, match=r"nexum show s1/add/\w{16}/0"):
        await run("s1", [calls(("add", {"a": 1, "b": 2}))], durable_tool(add, timeout=0.05))


async def test_a_call_that_outlived_its_run_is_found_by_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = calls(("add", {"a": 1, "b": 2}))
    with monkeypatch.context() as patch:
        patch.setattr("nexum_agents.tools.PAUSE_SECONDS", 0)
        with pytest.raises(DurableCallError):
            await run("s1", [turn], durable_tool(add, timeout=0.05, max_attempts=1))
    async with working():
        result = await run("s1", [turn], durable_tool(add))
    assert tool_outputs(result) == ["3"]
    assert len(executed) == 1


async def test_a_waiting_call_says_that_no_worker_has_taken_it() -> None:
    events: list[CallEvent] = []
    agent_run = asyncio.create_task(
        run("s1", [calls(("add", {"a": 1, "b": 2}))], durable_tool(add), on_event=events.append)
    )
    await eventually(lambda: ("waiting", "worker") in [(event.kind, event.detail) for event in events])
    agent_run.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await agent_run


async def test_what_a_watcher_changes_in_an_event_changes_no_call(worker: Worker) -> None:
    def hide(event: DurableEvent) -> None:
        if isinstance(event, CallEvent):
            event.tool_args["a"] = 1000

    result = await run("s1", [calls(("add", {"a": 1, "b": 2}))], durable_tool(add), on_event=hide)
    assert tool_outputs(result) == ["3"]
    assert executed == [("add", (1, 2))]


async def test_a_log_that_cannot_be_written_fails_no_call_of_a_worker(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(record: logging.LogRecord) -> bool:
        raise OSError("no room for the log")

    monkeypatch.setattr(logging, "raiseExceptions", False)
    log = logging.getLogger("worker")
    monkeypatch.setattr(log, "filters", [raises])
    monkeypatch.setattr(log, "level", logging.INFO)
    result = await run("s1", [calls(("add", {"a": 1, "b": 2}))], durable_tool(add, effect="once"))
    assert tool_outputs(result) == ["3"]
    assert len(executed) == 1


async def test_a_nexum_that_cannot_be_reached_stops_the_run_instead_of_being_told_to_the_model(
    unused_tcp_port_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"localhost:{unused_tcp_port_factory()}"
    monkeypatch.setenv("NEXUM_ADDRESS", address)
    with pytest.raises(DurableCallError, match=rf"No Nexum server answers at {address}\. Start one with `nexum dev`"):
        await run("s1", [calls(("add", {"a": 1, "b": 2}))], durable_tool(add, timeout=0.2))


async def test_a_durable_tool_outside_of_a_session_says_what_to_write() -> None:
    agent = Agent(name="test", model=ScriptedModel([calls(("add", {"a": 1, "b": 2}))]), tools=[durable_tool(add)])
    with pytest.raises(DurableCallError, match=r"with durable_session\(session_id\)"):
        await Runner.run(agent, "go")


@pytest.mark.parametrize("text", ["{", "[1, 2]", "add 1 and 2", '{"a": 1}', "[" * 300 + "]" * 300])
async def test_arguments_that_are_no_json_or_do_not_fit_are_told_to_the_model_and_execute_nothing(
    worker: Worker, client: Client, text: str
) -> None:
    result = await run("s1", [[function_call("add", text, call_id="c1")]], durable_tool(add))
    (told,) = tool_outputs(result)
    assert told.startswith("The arguments of add do not fit: ")
    assert (executed, result.final_output) == ([], "done")
    (execution,) = await client.executions("s1/add/")
    assert (await client.status(execution.execution_id)).attempts == 1


async def test_a_failure_function_of_ones_own_words_what_is_not_the_tools_own_word(worker: Worker) -> None:
    def fails(a: int, b: int) -> bool:
        raise LookupError("nobody is there")

    tool = durable_tool(
        add, needs_approval=fails, failure_error_function=lambda context, error: f"my word: {type(error).__name__}"
    )
    result = await run("s1", [calls(("add", {"a": 1, "b": 2}))], tool)
    assert tool_outputs(result) == ["my word: LookupError"]


async def test_without_a_failure_function_a_tool_that_fails_ends_the_run(worker: Worker) -> None:
    with pytest.raises(Exception, match="because of rain"):
        await run("s1", [calls(("broken", {"why": "rain"}))], durable_tool(broken, failure_error_function=None))


def test_tools_whose_calls_cannot_travel_are_refused_by_name() -> None:
    def takes_context(context: RunContextWrapper[Any], city: str) -> str:
        return city

    for make in (durable_tool, lambda tool: Worker([tool])):
        for tool in (takes_context, function_tool(takes_context)):
            with pytest.raises(TypeError, match="takes_context takes the run context"):
                make(tool)
        with pytest.raises(TypeError, match="ask is an agent as a tool"):
            make(Agent(name="A").as_tool("ask", "Ask."))
    with pytest.raises(TypeError, match="add is a durable tool already"):
        durable_tool(durable_tool(add))
    with pytest.raises(TypeError, match=r"add is a FunctionTool already\. Give name_override to function_tool instead"):
        durable_tool(function_tool(add), name_override="plus")


@pytest.mark.parametrize("session_id", ["", "a/b", "a b", "é", "x" * 65, "s1\n"])
async def test_a_session_id_that_cannot_be_one_is_refused(session_id: str) -> None:
    with pytest.raises(DurableCallError, match=r"session_id is .*; it must be 1 to 64 characters of"):
        await submit_tool_call("add", {"a": 1, "b": 2}, session_id)


async def test_the_identity_of_a_call_never_changes(worker: Worker) -> None:
    events: list[CallEvent] = []
    arguments = {"city": "Rome", "days": 5}
    with durable_session("s1", on_event=events.append):  # type: ignore[arg-type]
        await submit_tool_call("weather", arguments, "s1")
        await submit_tool_call("weather", dict(reversed(arguments.items())), "s1")
    await run("s1", [calls(("weather", arguments))], durable_tool(weather), on_event=events.append)
    ids = [event.execution_id for event in events if event.kind == "stored"]
    assert ids == ["s1/weather/2331e356bc47c80b/0", "s1/weather/2331e356bc47c80b/1", "s1/weather/4eda0c9e5542c9ac/0"]


async def test_a_tool_that_raises_is_retried_and_what_it_raised_reaches_the_model(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.server.rules.attempts.RETRY_DELAY_MS_MIN", 1)
    result = await run("s1", [calls(("crash", {}))], durable_tool(crash))
    assert tool_outputs(result) == ["ZeroDivisionError: integer division or modulo by zero"]
    assert len(executed) == 4


# What may be done to a tool


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"effect": "write"}, "The effect of add is 'write'; it can be read, idempotent, once."),
        ({"effect": None}, "The effect of add is None; it can be read, idempotent, once."),
        ({"max_attempts": 0}, "max_attempts of add is 0; it can be 1 to 20."),
        ({"max_attempts": 21}, "max_attempts of add is 21; it can be 1 to 20."),
        ({"max_attempts": 0, "effect": "once"}, "max_attempts of add is 0; it can be only 1, as its effect is once."),
        ({"max_attempts": 2, "effect": "once"}, "max_attempts of add is 2; it can be only 1, as its effect is once."),
        ({"timeout": 0}, "The timeout of add is 0 s; it can be 1 ms to 24 hours."),
        ({"timeout": -1}, "The timeout of add is -1 s; it can be 1 ms to 24 hours."),
        ({"timeout": float("nan")}, "The timeout of add is nan s; it can be 1 ms to 24 hours."),
        ({"timeout": float("inf")}, "The timeout of add is inf s; it can be 1 ms to 24 hours."),
        ({"timeout": 86_401}, "The timeout of add is 86401 s; it can be 1 ms to 24 hours."),
    ],
    ids=str,
)
def test_a_declaration_that_makes_no_sense_is_refused_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        durable_tool(add, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"effect": "read", "max_attempts": 20, "timeout": 86_400},
        {"effect": "once", "max_attempts": 1, "timeout": 0.001},
        {"effect": "idempotent", "max_attempts": 1},
    ],
    ids=str,
)
def test_the_limits_themselves_are_allowed(options: dict[str, Any]) -> None:
    assert durable_tool(add, **options).name == "add"


@pytest.mark.parametrize(
    ("options", "attempts"),
    [({}, 4), ({"effect": "read"}, 4), ({"max_attempts": 2}, 2), ({"effect": "once"}, 1)],
    ids=str,
)
async def test_a_tool_that_raises_is_attempted_as_often_as_it_is_declared(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], attempts: int
) -> None:
    monkeypatch.setattr("nexum_runtime.server.rules.attempts.RETRY_DELAY_MS_MIN", 1)
    result = await run("s1", [calls(("crash", {}))], durable_tool(crash, **options))
    assert tool_outputs(result) == ["ZeroDivisionError: integer division or modulo by zero"]
    assert len(executed) == attempts


@pytest.mark.parametrize("function", [hang, lose_track])
async def test_the_model_is_told_by_every_run_that_a_tool_may_or_may_not_have_run(
    worker: Worker, function: Callable[..., Any]
) -> None:
    name, events = function.__name__, list[CallEvent]()
    for _ in range(2):
        tool = durable_tool(function, effect="once", timeout=0.2 if function is hang else 60)
        result = await run("s1", [calls((name, {}))], tool, on_event=events.append)
        (told,) = tool_outputs(result)
        assert told.startswith(
            f"This call of {name} may or may not have run. Assume neither, and do not make it again: "
            "a person has to find out first. What is known: "
        )
        assert told.endswith(": the effect may or may not have happened.")
        assert result.final_output == "done", "the run goes on"
    assert executed == [(name, None)]
    assert [event.kind for event in events] == ["started", "unknown"] * 2


async def test_a_persons_result_is_what_the_next_run_goes_on_with(worker: Worker, client: Client) -> None:
    turn, events = calls(("lose_track", {})), list[CallEvent]()
    tool = durable_tool(lose_track, effect="once")
    await run("s1", [turn], tool, on_event=events.append)
    await client.resolve(events[-1].execution_id, "result", json.dumps("sent, it's “17”"))
    result = await run("s1", [turn], tool, on_event=events.append)
    assert tool_outputs(result) == ["sent, it's “17”"]
    assert (events[-1].kind, events[-1].saved_ms) == ("cached", 0)
    assert len(executed) == 1


async def test_a_run_that_waits_gets_the_result_of_the_retry_that_a_person_asked_for(
    worker: Worker, client: Client
) -> None:
    with durable_session("s1"), pytest.raises(OutcomeUnknown):
        await submit_tool_call("lose_track", {}, "s1", effect="once")
    (execution,) = await client.executions("s1/")
    worker.stop()  # so that the run is there before the attempt is

    async def nobody_works() -> bool:
        return not any(each["waits_for_task"] for each in (await client.inspect())["workers"])

    await eventually(nobody_works)
    await client.resolve(execution.execution_id, "retry")
    running = asyncio.create_task(run("s1", [calls(("lose_track", {}))], durable_tool(lose_track, effect="once")))
    async with working(function_tool(let_the_other_go, name_override="lose_track")):
        assert tool_outputs(await running) == ["go"]
    assert len(executed) == 1, "the first attempt only: the second ran another tool of that name"


async def test_a_call_that_happens_once_and_failed_is_not_tried_again_by_the_next_run(worker: Worker) -> None:
    for _ in range(2):
        result = await run("s1", [calls(("broken", {"why": "rain"}))], durable_tool(broken, effect="once"))
        assert tool_outputs(result) == ["The tool broke because of rain."]
    assert len(executed) == 1


async def test_a_call_that_was_cancelled_before_it_began_is_begun_by_the_next_run(client: Client) -> None:
    turn, tool = calls(("add", {"a": 1, "b": 2})), durable_tool(add, effect="once")
    first = asyncio.create_task(run("s1", [turn], tool))
    (execution,) = await eventually(partial(client.executions, "s1/"))
    await client.cancel(execution.execution_id)
    assert tool_outputs(await first) == ["The execution was cancelled."]
    async with working():
        assert tool_outputs(await run("s1", [turn], tool)) == ["3"]
    assert len(executed) == 1


async def test_a_call_that_took_too_long_on_every_attempt_is_told_as_failed(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.server.rules.attempts.RETRY_DELAY_MS_MIN", 1)
    events: list[CallEvent] = []
    tool = durable_tool(hang, effect="read", max_attempts=3, timeout=0.05)
    result = await run("s1", [calls(("hang", {}))], tool, on_event=events.append)
    assert tool_outputs(result) == ["It took longer than its 50 ms."]
    assert (len(executed), events[-1].kind) == (3, "failed")


async def test_a_call_waits_for_all_of_its_attempts_and_the_pauses_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []

    async def submit(place: Any, name: str, asked: Any, timeout: float, **options: Any) -> Recorded:
        waited.append(timeout)
        return Recorded(result="", duration_ms=0)

    monkeypatch.setattr("nexum_agents.tools._submit", submit)
    for tool in (durable_tool(add), durable_tool(add, timeout=600, max_attempts=2), durable_tool(add, effect="once")):
        await run("s1", [calls(("add", {"a": 1, "b": 2}))], tool)
    assert waited == [4 * (60 + 30), 2 * (600 + 30), 60 + 30]


async def test_a_call_whose_workers_all_vanished_is_told_as_failed_and_tried_again_unless_it_happens_once(
    client: Client,
) -> None:
    """As its effect is harmless, nobody is asked what became of it."""
    turn, events, definition = calls(("add", {"a": 1, "b": 2})), list[CallEvent](), tool_call_workflow()
    tool = durable_tool(add, effect="read", max_attempts=1)
    first = asyncio.create_task(run("s1", [turn], tool, on_event=events.append))
    await eventually(partial(client.executions, "s1/"))
    claimed = await client.poll("gone", definition, lease_ms=60_000, wait_ms=9_000)
    assert claimed is not None
    await client.fail(claimed.task_id, "Its worker was stopped.", interrupted=True)
    (told,) = tool_outputs(await first)
    assert told.endswith("the last one: the effect may or may not have happened.")
    assert [event.kind for event in events if event.kind != "waiting"] == ["started", "failed"]

    once = durable_tool(add, effect="once")
    (told,) = tool_outputs(await run("s1", [turn], once, on_event=events.append))
    assert told.startswith("This call of add may or may not have run."), "what it is declared to be now is what counts"
    assert events[-1].kind == "unknown"

    async with working():
        assert tool_outputs(await run("s1", [turn], tool)) == ["3"]


async def test_a_calls_idempotency_key_is_the_same_for_every_attempt_and_fits_a_header(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nexum_runtime.server.rules.attempts.RETRY_DELAY_MS_MIN", 1)
    keys: list[str] = []

    def pay(to: str) -> str:
        keys.append(idempotency_key())
        if len(keys) < 3:
            raise ToolError("no luck")
        return "paid"

    async with working(pay):
        await submit_tool_call("pay", {"to": "Zoë & Søn\n"}, "s1")
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert wire.fits_header(keys[0])


# Like function_tool


class Login(BaseModel):
    user: str
    password: SecretStr


class Discount(BaseModel):
    percent: float

    @field_validator("percent")
    @classmethod
    def as_fraction(cls, value: float) -> float:
        return value / 100


class Line(BaseModel):
    model_config = ConfigDict(extra="forbid")
    price: float
    count: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> float:
        return self.price * self.count


class Amount(BaseModel):
    cents: int = Field(serialization_alias="amountCents")


class Day(BaseModel):
    day: datetime.date

    @field_serializer("day")
    def german(self, value: datetime.date) -> str:
        return value.strftime("%d.%m.%Y")


class Note(BaseModel):
    text: str
    internal: str = Field(exclude=True)


def log_in(login: Login) -> str:
    return login.password.get_secret_value()


def discount(by: Discount) -> str:
    return str(by.percent)


def line(line: Line) -> str:
    return str(line.total)


def amount(amount: Amount) -> str:
    return str(amount.cents)


def day(day: Day) -> str:
    return day.day.isoformat()


def note(note: Note) -> str:
    return note.internal


def locate(lat: float, *more: int, **named: str) -> str:
    return f"{lat} {more} {named}"


async def told(tool: FunctionTool, arguments: str, session_id: str) -> Any:
    """What the model is told of one call, and what the run's items have of it."""
    turn = [function_call(tool.name, arguments, call_id="c1")]
    result = await run(session_id, [turn], tool)
    item = next(item for item in result.new_items if item.type == "tool_call_output_item")
    return item.raw_item["output"], item.output


async def assert_told_as_by_function_tool(function: Callable[..., Any], arguments: str, **options: Any) -> None:
    """By a worker, in a first run and in a replay, which has no worker."""
    plain = await told(function_tool(function, **options), arguments, "plain")
    durable = durable_tool(function, **options)
    async with working(durable):
        assert await told(durable, arguments, "durable") == plain
    executed.append(("the replay", None))
    assert await told(durable, arguments, "durable") == plain
    assert executed[-1] == ("the replay", None), "nothing is executed again"


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (log_in, {"login": {"user": "ana", "password": "hunter2"}}),
        (discount, {"by": {"percent": 50}}),
        (line, {"line": {"price": 2.5, "count": 2}}),
        (amount, {"amount": {"cents": 5}}),
        (day, {"day": {"day": "2026-01-02"}}),
        (note, {"note": {"text": "a", "internal": "b"}}),
    ],
)
async def test_arguments_are_validated_once_where_they_are_executed(
    function: Callable[..., Any], arguments: dict[str, Any]
) -> None:
    await assert_told_as_by_function_tool(function, json.dumps(arguments))


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity", "-0.0"])
async def test_numbers_that_are_no_json_reach_a_worker_as_they_are(number: str) -> None:
    await assert_told_as_by_function_tool(locate, f'{{"lat": {number}, "more": [1], "named": {{}}}}', strict_mode=False)


async def test_positional_and_named_arguments_without_an_end_travel() -> None:
    arguments = {"lat": 1, "more": [2, 3], "named": {"name": "x"}}
    await assert_told_as_by_function_tool(locate, json.dumps(arguments), strict_mode=False)


class Int64:
    """As numpy's: no JSON, but a str()."""

    def __str__(self) -> str:
        return "42"


PICTURE = ToolOutputImage(image_url="data:image/png;base64,iVBORw0KGgo")


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (PICTURE, object),
        ([PICTURE, PICTURE], object),
        (City(name="Ur"), City),
        ([City(name="Ur")], list[City]),
        ({"a": [1, None, 2.5]}, object),
        (None, object),
        (True, bool),
    ],
)
async def test_a_workers_result_is_what_function_tool_would_have_told_and_given(value: Any, annotation: Any) -> None:
    def give() -> Any:
        executed.append(("give", None))
        return value

    give.__annotations__["return"] = annotation
    await assert_told_as_by_function_tool(give, "{}")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Int64(), "42"),
        ([Int64()], None),
        (City(name="Ur"), "name='Ur' inhabitants=0"),
        (["ok.txt", b"caf\xe9.txt".decode("utf-8", "surrogateescape")], "['ok.txt', 'caf\\udce9.txt']"),
        (float("nan"), "nan"),
    ],
)
async def test_what_json_does_not_carry_is_told_by_its_text_and_not_executed_again(
    value: Any, words: str | None
) -> None:
    def give() -> object:
        executed.append(("give", None))
        return value

    plain = await told(function_tool(give), "{}", "plain")
    executed.clear()
    async with working(give):
        for _ in range(2):
            assert (await told(durable_tool(give), "{}", "durable"))[0] == plain[0]
    assert words is None or plain[0] == words
    assert executed == [("give", None)]


async def test_a_tool_with_an_output_type_gives_its_type_back() -> None:
    def give() -> City:
        return City(name="Ur", inhabitants=9)

    await assert_told_as_by_function_tool(give, "{}", output_type=City)


class Order(BaseModel):
    item: str
    id: str = Field(default_factory=lambda: str(next(_ids)))


async def test_a_generated_or_a_new_default_strands_no_call() -> None:
    async def order(order: Order) -> str:
        executed.append(("order", order.item))
        return "ordered"

    async def invoice(customer: str) -> str:
        executed.append(("invoice", customer))
        return "sent"

    async def since(customer: str, copy_to: str = "") -> str:
        executed.append(("since", customer))
        return "sent"

    turns = [calls(("order", {"order": {"item": "tea"}}), ("invoice", {"customer": "ana"}))]
    for later in (invoice, invoice, function_tool(since, name_override="invoice")):
        tools = [
            durable_tool(order, effect="once", strict_mode=False),
            durable_tool(later, effect="once"),
        ]
        async with working(*tools):
            assert tool_outputs(await run("s1", turns, *tools)) == ["ordered", "sent"]
    assert executed == [("order", "tea"), ("invoice", "ana")]


# What can be a tool


class Account:
    def __init__(self, owner: str) -> None:
        self.owner = owner

    def balance(self, currency: str) -> str:
        executed.append((self.owner, currency))
        return f"{self.owner} has 1 {currency}"

    async def __call__(self, currency: str) -> str:
        return self.balance(currency)


def transfer(amount: int, to: str, *, by: str = "nobody") -> str:
    executed.append(("transfer", (amount, to, by)))
    return f"{amount} to {to} by {by}"


async def wire_money(amount: int, to: str) -> str:
    executed.append(("wire_money", (amount, to)))
    return f"{amount} to {to}"


def closure(prefix: str) -> Callable[[str], str]:
    def greet(name: str) -> str:
        executed.append((prefix, name))
        return f"{prefix} {name}"

    return greet


@pytest.mark.parametrize(
    ("make", "name", "arguments", "result"),
    [
        (lambda: durable_tool(Account("ana").balance), "balance", {"currency": "€"}, "ana has 1 €"),
        (lambda: durable_tool(Account("ana"), name_override="ask"), "ask", {"currency": "€"}, "ana has 1 €"),
        (lambda: durable_tool(closure("Hello")), "greet", {"name": "Eva"}, "Hello Eva"),
        (
            lambda: durable_tool(partial(transfer, 5), strict_mode=False),
            "transfer",
            {"to": "Eva"},
            "5 to Eva by nobody",
        ),
        (
            lambda: durable_tool(partial(transfer, to="Eva", by="Ana"), strict_mode=False),
            "transfer",
            {"amount": 7},
            "7 to Eva by Ana",
        ),
        (lambda: durable_tool(partial(wire_money, 5)), "wire_money", {"to": "Eva"}, "5 to Eva"),
        (lambda: durable_tool(add, name_override="plus"), "plus", {"a": 1, "b": 2}, "3"),
        (lambda: durable_tool(function_tool(add, name_override="sum")), "sum", {"a": 1, "b": 2}, "3"),
        (lambda: durable_tool(_handmade()), "handmade", {"a": 1}, '{"a": 1}'),
    ],
)
async def test_whatever_can_be_called_can_be_a_durable_tool(
    make: Callable[[], FunctionTool], name: str, arguments: dict[str, Any], result: str
) -> None:
    tool = make()
    assert tool.name == name
    async with working(make()):
        for _ in range(2):
            assert tool_outputs(await run("s1", [calls((name, arguments))], tool)) == [result]
    assert len(executed) == 1


def _handmade() -> FunctionTool:
    async def invoke(context: Any, arguments: str) -> str:
        executed.append(("handmade", arguments))
        return arguments

    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    return FunctionTool("handmade", "Made by hand.", schema, invoke, strict_json_schema=False)


@pytest.mark.parametrize("given", [add, function_tool(add), durable_tool(add)], ids=["a function", "a tool", "durable"])
async def test_a_worker_takes_functions_and_tools_and_durable_tools(given: Any) -> None:
    async with working(given) as worker:
        assert worker.tool_names == ["add"]
        assert await submit_tool_call("add", {"a": 1, "b": 2}, "s1") == 3


@pytest.mark.parametrize(
    "tools",
    [
        [Account("ana").balance, Account("bob").balance],
        [add, function_tool(transfer, name_override="add")],
        [durable_tool(add), add],
    ],
)
def test_a_worker_refuses_two_tools_of_one_name(tools: list[Any]) -> None:
    name = "balance" if callable(tools[0]) and tools[0] is not add else "add"
    with pytest.raises(ValueError, match=rf"Two tools are called '{name}'"):
        Worker(tools)


def test_a_worker_works_on_one_call_at_least() -> None:
    with pytest.raises(ValueError, match="concurrency is 0; it must be at least 1"):
        Worker([add], concurrency=0)


async def test_two_objects_methods_of_one_name_are_two_tools_under_names_of_their_own() -> None:
    both = [durable_tool(Account(name).balance, name_override=f"balance_of_{name}") for name in ("ana", "bob")]
    turn = calls(("balance_of_ana", {"currency": "€"}), ("balance_of_bob", {"currency": "€"}))
    async with working(*both):
        result = await run("s1", [turn], *both)
    assert tool_outputs(result) == ["ana has 1 €", "bob has 1 €"]


# Where a call is


async def test_agents_side_by_side_that_share_a_durable_tool_get_each_its_own_results(worker: Worker) -> None:
    roll = durable_tool(roll_dice)

    async def one(name: str, late: asyncio.Event | None, early: asyncio.Event | None) -> str:
        async def answer(call: Any) -> Any:
            if late:
                await late.wait()
            return calls(("roll_dice", {}))

        steps: list[Any] = [ModelStep.respond(answer), [assistant_message("done")]]
        result = await Runner.run(Agent(name=name, model=ScriptedModel(steps), tools=[roll]), "go")
        if early:
            early.set()
        (output,) = tool_outputs(result)
        return output

    async def both(first: str) -> list[str]:
        go = asyncio.Event()
        waits = {name: (None, go) if name == first else (go, None) for name in ("ana", "bob")}
        with durable_session("s1", turns=False):
            return list(await asyncio.gather(*(one(name, *waits[name]) for name in waits)))

    first = await both("ana")
    assert len(executed) == 2
    assert await both("bob") == first
    assert len(executed) == 2


async def test_a_run_that_is_tried_again_in_one_block_makes_no_call_twice(worker: Worker) -> None:
    failures = [ConnectionError("the provider is away")]

    async def second(call: Any) -> Any:
        if failures:
            raise failures.pop()
        return [assistant_message("done")]

    model = ScriptedModel([calls(("add", {"a": 1, "b": 2})), ModelStep.respond(second), ModelStep.respond(second)])
    agent = Agent(name="A", model=model, tools=[durable_tool(add, effect="once")])
    with durable_session("s1"):
        with pytest.raises(ConnectionError):
            await Runner.run(agent, "go")
        assert (await Runner.run(agent, "go")).final_output == "done"
    assert executed == [("add", (1, 2))]


async def test_each_call_of_submit_tool_call_in_a_block_is_one_more_and_outside_the_first(worker: Worker) -> None:
    async def roll() -> int:
        return int(await submit_tool_call("roll_dice", {}, "s1"))

    with durable_session("s1"):
        inside = [await roll(), await roll()]
    assert inside == [1, 2]
    assert [await roll(), await roll()] == [1, 1]
    with durable_session("other"):
        assert [await roll(), await roll()] == [1, 1], "which is another session"


# The process of a worker


WORKER = """
import sys
from nexum_agents import ToolError, serve

def add(a: int, b: int) -> int:
    return a + b

if sys.argv[1:] == ["twice"]:
    serve(tools=[add, add])
serve(tools=[add])
"""


async def test_serve_executes_until_it_is_told_to_stop(tmp_path: Path, address: str) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        worker = Process([sys.executable, script], tmp_path / "log", env=environment(NEXUM_ADDRESS=address))
        worker.start()
        await worker.says("Worker for add, 8 at once")
        assert await submit_tool_call("add", {"a": int(number), "b": 2}, "s1") == number + 2
        worker.send(number)
        assert await worker.ended() == code
        assert "Stopping; running tools have" in worker.output
        assert "Traceback" not in worker.output


WITH_A_SILENT_MCP_SERVER = """
import sys
from agents import Agent
from agents.mcp import MCPServerStdio
from nexum_agents import serve, worker

worker.CONNECT_SECONDS = float(sys.argv[1])
silent = MCPServerStdio({"command": "sleep", "args": ["1000"]}, name="books", client_session_timeout_seconds=1000)
serve(agents=[Agent("Desk", mcp_servers=[silent])])
"""


async def test_serve_whose_mcp_server_does_not_answer_says_so_and_can_be_stopped_meanwhile(
    tmp_path: Path, address: str
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WITH_A_SILENT_MCP_SERVER)
    env = environment(NEXUM_ADDRESS=address)
    ended = await run_command(sys.executable, script, "0.1", env=env)
    assert ended.code == 1
    told = "Cannot connect to the MCP server 'books': no answer within 0.1 s. Start it, and this worker again.\n"
    assert ended.stderr.endswith(told)
    worker = Process([sys.executable, script, str(10 * PATIENCE_SECONDS)], tmp_path / "log", env=env)
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        worker.start()
        await worker.says("Worker for agent Desk")
        worker.send(number)
        assert await worker.ended() == code
        assert "Traceback" not in worker.output


async def test_serve_says_in_a_sentence_what_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    ended = await run_command(sys.executable, script, "twice")
    assert ended.code == 1
    assert ended.stderr == "Two tools are called 'add': a worker could not tell whose a call is. Rename one.\n"
