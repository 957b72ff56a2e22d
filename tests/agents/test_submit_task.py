"""What makes a tool durable: the calls of an agent through submit_task.py, a real server and a real worker."""

import asyncio
import contextlib
import itertools
import json
import re
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from agents import Agent, FunctionTool, ModelProvider, RunConfig, RunContextWrapper, Runner, function_tool
from agents.models.interface import Model
from agents.testing import ScriptedModel, assistant_message, function_call
from processes import PATIENCE_SECONDS, eventually
from pydantic import BaseModel

import tools
from durable_model import durable_models
from nexum_runtime import Client, Worker, idempotency_key, wire
from submit_task import (
    CallEvent,
    DurableCallError,
    DurableSession,
    OutcomeUnknown,
    ToolFailed,
    durable_session,
    durable_tool,
    submit_tool_call,
)
from worker import run_tool
from workflow import ToolError, approved_tool_call_workflow, tool_call_workflow

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


def unspeakable() -> object:
    """Return what has no JSON."""
    executed.append(("unspeakable", None))
    return object()


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
    unspeakable,
    hang,
    lose_track,
    wait_for_the_other,
    let_the_other_go,
)


@pytest.fixture(autouse=True)
def _own_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "TOOLS", {function.__name__: function for function in OWN_TOOLS})
    executed.clear()


@pytest.fixture(autouse=True)
def _address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", address)


@pytest.fixture
async def worker(address: str) -> AsyncIterator[Worker]:
    port = int(address.partition(":")[2])
    workflows = [tool_call_workflow(run_tool), approved_tool_call_workflow(run_tool)]
    worker = Worker(workflows, concurrency=8, port=port, drain_seconds=0)
    running = asyncio.create_task(worker.run())
    yield worker
    worker.stop()
    await running


def calls(*named: tuple[str, dict[str, Any]]) -> list[Any]:
    """One turn of a model that makes these calls in parallel."""
    return [function_call(name, json.dumps(args), call_id=f"call_{next(_ids)}") for name, args in named]


_ids = itertools.count()


def tool_outputs(result: Any) -> list[str]:
    return [str(item.output) for item in result.new_items if item.type == "tool_call_output_item"]


async def run(session_id: str, turns: list[Any], *agent_tools: FunctionTool, on_event: Any = None) -> Any:
    agent = Agent(name="test", model=ScriptedModel([*turns, [assistant_message("done")]]), tools=list(agent_tools))
    with durable_session(session_id, on_event or (lambda event: None)):
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
    recorded = await client.executions("s1/", limit=100)
    assert [execution.status for execution in recorded] == ["COMPLETED"] * 16


async def test_arguments_that_a_provider_formats_differently_are_the_same_call(worker: Worker) -> None:
    for text in ('{"city":"Zürich","days":2}', '{ "days": 2,\n "city": "Z\\u00fcrich" }'):
        await run("s1", [[function_call("weather", text, call_id="c1")]], durable_tool(weather))
    assert executed == [("weather", ("Zürich", 2))]


async def test_two_processes_that_run_one_session_at_once_execute_each_call_once(worker: Worker) -> None:
    async def other_process() -> str:
        with durable_session("s1"):
            return await submit_tool_call("roll_dice", {}, "s1")

    results = await asyncio.gather(*(other_process() for _ in range(5)))
    assert len(set(results)) == 1
    assert len(executed) == 1


@pytest.mark.parametrize("function", [weather, add, grow, tools.web_search, tools.visit_webpage])
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
    assert [json.loads(text) for text in tool_outputs(result)] == [{"name": "Ur", "inhabitants": 10}]


async def test_a_tool_that_fails_tells_the_model_in_its_own_words_and_the_run_goes_on(worker: Worker) -> None:
    result = await run("s1", [calls(("broken", {"why": "rain"}))], durable_tool(broken))
    assert tool_outputs(result) == ["The tool broke because of rain."]
    assert result.final_output == "done"
    assert len(executed) == 1, "a failure that cannot be mended is not retried"


async def test_a_call_that_failed_is_tried_again_in_the_next_run(worker: Worker) -> None:
    for _ in range(2):
        await run("s1", [calls(("broken", {"why": "rain"}))], durable_tool(broken))
    assert len(executed) == 2


class _Only(ModelProvider):
    """Gives one model, whatever the name."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def get_model(self, model_name: str | None) -> Model:
        return self.model


async def run_with_turns(turns: list[Any], instructions: str = "Help.", on_event: Any = None) -> Any:
    """A run whose turns are recorded as well, by an agent that has a tool which always fails."""
    agent = Agent(name="test", instructions=instructions, model="scripted", tools=[durable_tool(broken)])
    with durable_session("s1", on_event or (lambda event: None)):
        models = durable_models("s1", _Only(ScriptedModel(turns)))
        return await Runner.run(agent, "go", run_config=RunConfig(model_provider=models))


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
            raise DurableCallError("The process dies here.")

    failing = calls(("broken", {"why": "rain"}))
    with pytest.raises(DurableCallError, match="dies here"):
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
            raise DurableCallError("The process dies here.")

    with pytest.raises(DurableCallError, match="dies here"):
        await run_with_turns([calls(("broken", {"why": "rain"}))], on_event=stop)
    assert executed == []
    kinds: list[str] = []
    await run_with_turns([[assistant_message("It broke.")]], on_event=lambda event: kinds.append(event.kind))
    assert kinds == ["cached", "started", "failed", "started", "stored"]


async def test_an_unknown_tool_fails_at_once_and_names_the_known_ones(worker: Worker) -> None:
    with pytest.raises(ToolFailed, match=r"knows no tool 'fly'; it knows weather, add"):
        await submit_tool_call("fly", {}, "s1")


async def test_arguments_that_do_not_fit_fail_at_once(worker: Worker, client: Client) -> None:
    with pytest.raises(ToolFailed, match=r"The arguments of add do not fit"):
        await submit_tool_call("add", {"a": "x", "b": 2}, "s1")
    assert executed == []
    (execution,) = await client.executions("s1/")
    assert (await client.status(execution.execution_id)).attempts == 1


async def test_a_result_that_json_cannot_carry_fails_without_running_the_tool_again(worker: Worker) -> None:
    with pytest.raises(ToolFailed, match=r"unspeakable returned what JSON cannot carry"):
        await submit_tool_call("unspeakable", {}, "s1")
    assert executed == [("unspeakable", None)]


async def test_a_sync_tool_does_not_hold_up_the_others(worker: Worker) -> None:
    turn = calls(("wait_for_the_other", {}), ("let_the_other_go", {}))
    result = await run("s1", [turn], durable_tool(wait_for_the_other), durable_tool(let_the_other_go))
    assert tool_outputs(result) == ["true", "go"]


async def test_a_tool_can_ask_for_its_idempotency_key(worker: Worker) -> None:
    key = await submit_tool_call("tell_key", {}, "s1")
    assert key.startswith("s1/tell_key/")


async def test_a_call_with_no_result_in_time_stops_the_run_and_names_the_command_that_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("submit_task.PAUSE_SECONDS", 0)
    with pytest.raises(DurableCallError, match=r"nexum show s1/add/\w{16}/0"):
        await run("s1", [calls(("add", {"a": 1, "b": 2}))], durable_tool(add, timeout=0.05))


async def test_a_call_that_outlived_its_run_is_found_by_the_next_one(address: str) -> None:
    turn = calls(("add", {"a": 1, "b": 2}))
    with durable_session("s1"), contextlib.suppress(DurableCallError):
        await submit_tool_call("add", {"a": 1, "b": 2}, "s1", timeout=0.2)
    worker = Worker([tool_call_workflow(run_tool)], port=int(address.partition(":")[2]))
    running = asyncio.create_task(worker.run())
    result = await run("s1", [turn], durable_tool(add))
    worker.stop()
    await running
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


async def test_a_nexum_that_cannot_be_reached_stops_the_run_instead_of_being_told_to_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("submit_task.nexum_client", lambda: Client("localhost:1"))
    monkeypatch.setattr("submit_task.PAUSE_SECONDS", 0)
    with pytest.raises(DurableCallError, match=r"No Nexum server answers at localhost:1\. Start one with `nexum dev`"):
        await run("s1", [calls(("add", {"a": 1, "b": 2}))], durable_tool(add, timeout=0.2))


async def test_a_durable_tool_outside_of_a_session_says_what_to_write() -> None:
    agent = Agent(name="test", model=ScriptedModel([calls(("add", {"a": 1, "b": 2}))]), tools=[durable_tool(add)])
    with pytest.raises(DurableCallError, match=r"with durable_session\(session_id\)"):
        await Runner.run(agent, "go")


async def test_the_models_malformed_arguments_are_answered_as_for_any_tool(worker: Worker) -> None:
    plain = await run("s1", [[function_call("add", "{", call_id="c1")]], function_tool(add))
    durable = await run("s1", [[function_call("add", "{", call_id="c1")]], durable_tool(add))
    assert tool_outputs(durable) == tool_outputs(plain)


async def test_a_failure_function_of_ones_own_still_words_what_is_not_the_tools_own_word(worker: Worker) -> None:
    tool = durable_tool(add, failure_error_function=lambda context, error: f"my word: {type(error).__name__}")
    result = await run("s1", [[function_call("add", "{", call_id="c1")]], tool)
    assert tool_outputs(result) == ["my word: ModelBehaviorError"]


def test_functions_whose_calls_cannot_travel_are_refused_by_name() -> None:
    def takes_context(context: RunContextWrapper[Any], city: str) -> str:
        return city

    def takes_anything(*cities: str) -> str:
        return str(cities)

    with pytest.raises(TypeError, match="takes_context takes the run context"):
        durable_tool(takes_context)
    with pytest.raises(TypeError, match="takes_anything takes"):
        durable_tool(takes_anything)
    with pytest.raises(TypeError, match="takes the place of function_tool"):
        durable_tool(function_tool(add))  # type: ignore[arg-type]


@pytest.mark.parametrize("session_id", ["", "a/b", "a b", "é", "x" * 65, "s1\n"])
def test_a_session_id_that_cannot_be_one_is_refused(session_id: str) -> None:
    with pytest.raises(DurableCallError, match="SESSION_ID is"):
        DurableSession(session_id)


def test_the_identity_of_a_call_never_changes() -> None:
    session = DurableSession("s1")
    arguments = {"query": "durable execution", "max_results": 5}
    assert session.next_execution_id("web_search", arguments) == "s1/web_search/abcd5f47a4d3bf63/0"
    assert session.next_execution_id("web_search", dict(reversed(arguments.items()))).endswith("/1")


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


@pytest.mark.parametrize("function", [hang, lose_track, unspeakable])
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
    tools.TOOLS["lose_track"] = let_the_other_go
    worker.stop()  # so that the run is there before the attempt is
    await client.resolve(execution.execution_id, "retry")
    running = asyncio.create_task(run("s1", [calls(("lose_track", {}))], durable_tool(lose_track, effect="once")))
    another = Worker([tool_call_workflow(run_tool)], port=int(client.address.partition(":")[2]))
    working = asyncio.create_task(another.run())
    assert tool_outputs(await running) == ["go"]
    another.stop()
    await working
    assert len(executed) == 1, "the first attempt only: the second ran another tool of that name"


async def test_a_call_that_happens_once_and_failed_is_not_tried_again_by_the_next_run(worker: Worker) -> None:
    for _ in range(2):
        result = await run("s1", [calls(("broken", {"why": "rain"}))], durable_tool(broken, effect="once"))
        assert tool_outputs(result) == ["The tool broke because of rain."]
    assert len(executed) == 1


async def test_a_call_that_was_cancelled_before_it_began_is_begun_by_the_next_run(address: str, client: Client) -> None:
    turn, tool = calls(("add", {"a": 1, "b": 2})), durable_tool(add, effect="once")
    first = asyncio.create_task(run("s1", [turn], tool))
    (execution,) = await eventually(partial(client.executions, "s1/"))
    await client.cancel(execution.execution_id)
    assert tool_outputs(await first) == ["The execution was cancelled."]
    worker = Worker([tool_call_workflow(run_tool)], port=int(address.partition(":")[2]))
    running = asyncio.create_task(worker.run())
    assert tool_outputs(await run("s1", [turn], tool)) == ["3"]
    worker.stop()
    await running
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

    async def submit(*_: Any, timeout: float, **options: Any) -> str:
        waited.append(timeout)
        return ""

    monkeypatch.setattr("submit_task.submit_tool_call", submit)
    for tool in (durable_tool(add), durable_tool(add, timeout=600, max_attempts=2), durable_tool(add, effect="once")):
        await run("s1", [calls(("add", {"a": 1, "b": 2}))], tool)
    assert waited == [4 * (60 + 30), 2 * (600 + 30), 60 + 30]


async def test_a_call_whose_workers_all_vanished_is_told_as_failed_and_tried_again_unless_it_happens_once(
    address: str, client: Client
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

    worker = Worker([tool_call_workflow(run_tool)], port=int(address.partition(":")[2]))
    running = asyncio.create_task(worker.run())
    assert tool_outputs(await run("s1", [turn], tool)) == ["3"]
    worker.stop()
    await running


async def test_a_calls_idempotency_key_is_the_same_for_every_attempt_and_fits_a_header(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.server.rules.attempts.RETRY_DELAY_MS_MIN", 1)
    keys: list[str] = []

    def pay(to: str) -> str:
        keys.append(idempotency_key())
        if len(keys) < 3:
            raise ToolError("no luck")
        return "paid"

    tools.TOOLS["pay"] = pay
    await submit_tool_call("pay", {"to": "Zoë & Søn\n"}, "s1")
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert wire.fits_header(keys[0])
