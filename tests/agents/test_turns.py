"""Turns of models in durable sessions: recorded, replayed, asked anew; whole and streamed, over a real server."""

import asyncio
import copy
import itertools
import json
import re
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    HostedMCPTool,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelBehaviorError,
    ModelProvider,
    ModelRetrySettings,
    ModelSettings,
    MultiProvider,
    OpenAIChatCompletionsModel,
    OpenAIProvider,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    Tool,
    function_tool,
    input_guardrail,
)
from agents.items import TResponseStreamEvent
from agents.models.interface import Model, ModelTracing
from agents.run import ModelInputData
from agents.sandbox import SandboxAgent
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message, function_call
from agents.usage import Usage
from model_server import Answer as Said
from model_server import Asked, Call, ModelServer
from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseErrorEvent,
    ResponseFailedEvent,
    ResponseIncompleteEvent,
)
from openai.types.responses.response import IncompleteDetails
from openai.types.responses.response_error import ResponseError
from processes import PATIENCE_SECONDS, eventually
from pydantic import BaseModel
from test_model_server import model_of

from nexum_agents import DurableCallError, TurnEvent, durable_session, durable_tool
from nexum_agents import turns as module
from nexum_agents.clients import nexum_client
from nexum_agents.recording import Unrecordable, from_recorded
from nexum_agents.turns import RecordedModel
from nexum_agents.workflows import MODEL_TURN
from nexum_runtime import Client
from nexum_runtime.server.app import Server, ServerConfig
from nexum_runtime.wire import NESTING_LIMIT

Answer = Callable[[ModelCall], Any]


@pytest.fixture(autouse=True)
def _address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", address)


class Provider(ModelProvider):
    """Gives one model for every name, and counts how often one was made."""

    def __init__(self, model: Model) -> None:
        self.model, self.made = model, 0

    def get_model(self, model_name: str | None) -> Model:
        self.made += 1
        return self.model


class Live(ScriptedModel):
    """A model as the live ones are: no two of its answers are the same. It answers as `answer` says, for ever."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(itertools.repeat(ModelStep.respond(self._answer), 50))
        self._how = answer

    async def _answer(self, call: ModelCall) -> Any:
        found = self._how(call)
        output = await found if hasattr(found, "__await__") else found
        tokens = Usage(requests=1, input_tokens=7, output_tokens=next(NUMBERS), total_tokens=1234)
        return output if isinstance(output, Exception | ModelStep) else ModelStep(output=output, usage=tokens)


NUMBERS = itertools.count(1)


def says(text: str = "Done") -> list[Any]:
    """An answer that is never the same twice."""
    n = next(NUMBERS)
    return [assistant_message(f"{text} {n}", item_id=f"msg_{n}")]


def calls(name: str, *arguments: dict[str, Any]) -> list[Any]:
    """Calls of a tool, whose ids are never the same twice."""
    return [function_call(name, each, call_id=f"call_{next(NUMBERS)}") for each in arguments]


def outputs(call: ModelCall) -> list[str]:
    """What the tools have told so far."""
    return [item["output"] for item in call.input if item.get("type") == "function_call_output"]


def adds_twice(call: ModelCall) -> list[Any]:
    """Three turns: an addition, another one of what came of it, an answer."""
    found = outputs(call)
    return calls("add", {"a": int((found or ["1"])[-1]), "b": 2}) if len(found) < 2 else says(f"It is {found[-1]}.")


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def adder(**changes: Any) -> Agent[Any]:
    return Agent(**{"name": "Adder", "instructions": "Add.", "tools": [function_tool(add)], "model": "m"} | changes)


def subtract(a: int, b: int) -> int:
    """Subtract a number from another."""
    return a - b


@dataclass
class Run:
    """One run of a session."""

    model: Live
    events: list[TurnEvent] = field(default_factory=list)
    stream: list[TResponseStreamEvent] = field(default_factory=list)
    result: Any = None
    error: Exception | None = None

    @property
    def answer(self) -> str:
        assert self.error is None, self.error
        return str(self.result.final_output)

    @property
    def asked(self) -> int:
        """How often the model was asked."""
        return len(self.model.calls)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    @property
    def notes(self) -> list[str]:
        """Why a turn is new, as far as it was said."""
        return [
            f"turn {event.number} is new: {event.detail}"
            for event in self.events
            if event.kind == "started" and event.detail
        ]


async def run(
    agent: Agent[Any],
    answer: Answer = adds_twice,
    question: Any = "1 + 2 + 2?",
    *,
    session_id: str = "s1",
    streamed: bool = False,
    on_event: Callable[[TurnEvent], None] = lambda event: None,
    max_turns: int = 10,
    session: Any = None,
    effects: Any = None,
    **config: Any,
) -> Run:
    """Run the agent in a block of its own; an error that ends the run is kept."""
    this = Run(Live(answer))

    def hear(event: Any) -> None:
        if isinstance(event, TurnEvent):
            this.events.append(event)
            on_event(event)

    with durable_session(session_id, effects=effects, on_event=hear):
        run_config = RunConfig(model_provider=Provider(this.model), **config)
        options: dict[str, Any] = {"run_config": run_config, "max_turns": max_turns, "session": session}
        try:
            if streamed:
                this.result = Runner.run_streamed(agent, question, **options)
                async for event in this.result.stream_events():
                    if event.type == "raw_response_event":
                        this.stream.append(event.data)
            else:
                this.result = await Runner.run(agent, question, **options)
        except Exception as error:
            this.error = error
    return this


async def turns(client: Client, session_id: str = "s1") -> list[dict[str, Any]]:
    """What is recorded of each turn, oldest first."""
    return [turn async for turn in client.history(f"{session_id}/model-turn/")]


# Replay


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_second_run_gets_every_turn_from_the_store_and_asks_no_model(streamed: bool) -> None:
    first = await run(adder(), streamed=streamed)
    second = await run(adder(), streamed=streamed)
    assert (first.asked, second.asked) == (3, 0)
    assert first.kinds == ["started", "stored"] * 3
    assert second.kinds == ["cached"] * 3
    assert second.answer == first.answer
    assert second.result.raw_responses == first.result.raw_responses
    assert second.result.to_input_list() == first.result.to_input_list()
    assert second.stream == first.stream
    assert second.result.context_wrapper.usage == first.result.context_wrapper.usage
    assert [event.says for event in second.events] == ["calls add", "calls add", "answers"]
    assert [event.tokens for event in second.events] == [1234] * 3
    assert [event.number for event in second.events] == [1, 2, 3]
    assert [event.execution_id for event in second.events] == [event.execution_id for event in first.events[::2]]


async def test_a_missing_key_is_said_when_a_model_has_to_be_asked_and_a_replay_needs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = await run(adder())
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for question, answer in (("1 + 2 + 2?", first.answer), ("1 + 2?", None)):
        with durable_session("s1"):
            running = Runner.run(adder(), question, run_config=RunConfig(model_provider=MultiProvider()))
            if answer is not None:
                assert (await running).final_output == answer
            else:
                with pytest.raises(openai.OpenAIError, match="api_key"):
                    await running


# Identity


@function_tool(name_override="add", description_override="Add two numbers, quickly.")
def add_quickly(a: int, b: int) -> int:
    return a + b


@function_tool(name_override="add")
def add_three(a: int, b: int, c: int = 0) -> int:
    """Add two numbers."""
    return a + b + c


class Sum(BaseModel):
    sum: int


def hosted(**changes: Any) -> list[Tool]:
    configs: list[Any] = [
        {"type": "mcp", "server_label": "one", "server_url": "http://127.0.0.1/1", "require_approval": "never"},
        {"type": "mcp", "server_label": "two", "server_url": "http://127.0.0.1/2", "require_approval": "never"},
    ]
    configs[0].update(changes)
    return [HostedMCPTool(tool_config=config) for config in configs]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"extra_headers": {"X-Trace": "2"}}),
        ({}, {"metadata": {"run": "2"}}),
        ({}, {"timeout": 300.0}),
        ({}, {"retry": ModelRetrySettings(max_retries=1)}),
        ({}, {"store": False}),
        ({}, {"include_usage": True}),
        ({}, {"prompt_cache_retention": "24h"}),
        (
            {"extra_args": {"prompt_cache_key": "agents-sdk:run:1"}},
            {"extra_args": {"prompt_cache_key": "agents-sdk:run:2"}},
        ),
        ({"extra_args": {"prompt_cache_key": "agents-sdk:run:1"}}, {}),
        ({"extra_args": {}}, {"extra_args": None}),
    ],
    ids=lambda settings: "-".join(settings) or "none",
)
async def test_settings_that_do_not_change_the_answer_do_not_change_the_turn(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    first = await run(adder(model_settings=ModelSettings(**before)))
    second = await run(adder(model_settings=ModelSettings(**after)))
    assert (first.asked, second.asked) == (3, 0)


async def test_tracing_and_tokens_of_hosted_tools_do_not_change_the_turn() -> None:
    await run(adder(tools=[function_tool(add), *hosted(authorization="1", headers={"X": "1"})]))
    changed = adder(tools=[function_tool(add), *hosted(authorization="2", headers={"X": "2"})])
    second = await run(changed, tracing_disabled=True, workflow_name="another", group_id="2", trace_metadata={"a": "b"})
    assert second.asked == 0


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"instructions": "Add well."}, "instructions changed"),
        ({"instructions": None}, "instructions changed"),
        ({"model": "m2"}, "model changed"),
        ({"tools": [add_quickly]}, "tools changed (add)"),
        ({"tools": [add_three]}, "tools changed (add)"),
        ({"tools": [function_tool(add), function_tool(subtract)]}, "tools changed (subtract)"),
        ({"tools": [function_tool(add), *hosted()]}, "tools changed (hosted_mcp, hosted_mcp#2)"),
        ({"handoffs": [Agent(name="Other")]}, "handoffs changed (transfer_to_other)"),
        ({"output_type": Sum}, "output schema changed"),
        ({"prompt": {"id": "p1"}}, "prompt changed"),
        ({"model_settings": ModelSettings(temperature=0.5)}, "settings changed (temperature)"),
        ({"model_settings": ModelSettings(extra_body={"seed": 1})}, "settings changed (extra_body)"),
        ({"model_settings": ModelSettings(extra_args={"prompt_cache_key": "mine"})}, "settings changed (extra_args)"),
        ({"model_settings": ModelSettings(top_p=0.5), "model": "x"}, "model changed, settings changed (top_p)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
async def test_what_changes_the_question_makes_the_turn_a_new_one_and_is_named(
    changes: dict[str, Any], note: str
) -> None:
    await run(adder())
    answer = (lambda call: [assistant_message('{"sum": 5}')]) if "output_type" in changes else adds_twice
    second = await run(adder(**changes), answer)
    assert second.asked == len(second.result.raw_responses) > 0
    assert second.notes == [f"turn 1 is new: {note}"]


async def test_a_change_in_one_of_two_hosted_servers_makes_the_turn_a_new_one() -> None:
    await run(adder(tools=[function_tool(add), *hosted()]))
    second = await run(adder(tools=[function_tool(add), *hosted(server_url="http://127.0.0.1/3")]))
    assert second.asked == 3
    assert second.notes == ["turn 1 is new: tools changed (hosted_mcp)"]


async def test_each_item_of_the_input_is_part_of_the_run() -> None:
    items = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
    ]
    assert (await run(adder(), lambda call: says(), items)).asked == 1
    for at, content in enumerate(["Ein?", "eins", "Zwei?"]):
        changed = copy.deepcopy(items)
        changed[at]["content"] = content
        again = await run(adder(), lambda call: says(), changed)
        assert again.asked == 1
        assert again.notes == [f"turn 1 is new: input changed (item {at + 1}, {items[at]['role']})"]
    assert (await run(adder(), lambda call: says(), items[:2])).notes == [
        "turn 1 is new: input changed (2 items, not 3)"
    ]
    assert (await run(adder(), lambda call: says(), items)).asked == 0


async def test_a_streamed_turn_is_another_than_a_whole_one() -> None:
    await run(adder())
    second = await run(adder(), streamed=True)
    assert second.asked == 3
    assert second.notes == ["turn 1 is new: streamed changed"]


async def test_previous_responses_and_conversations_are_part_of_the_turn() -> None:
    model = Live(lambda call: says())

    async def ask(**before: Any) -> int:
        with durable_session("s1"):
            await Runner.run(adder(), "?", run_config=RunConfig(model_provider=Provider(model)), **before)
        return len(model.calls)

    for previous, asked in ((None, 1), ("resp_1", 2), ("resp_2", 3), ("resp_1", 3)):
        assert await ask(previous_response_id=previous) == asked
    for conversation, asked in (("conv_1", 4), ("conv_2", 5), ("conv_1", 5)):
        assert await ask(conversation_id=conversation) == asked


# Which of the identical turns it is


async def test_a_model_that_is_asked_the_same_twice_in_a_run_has_two_turns(client: Client) -> None:
    def forgets(data: Any) -> ModelInputData:
        return ModelInputData(input=data.model_data.input[:1], instructions=data.model_data.instructions)

    numbers = itertools.count(1)

    def answer(call: ModelCall) -> Any:
        return calls("add", {"a": 1, "b": 2}) if next(numbers) < 3 else says()

    first = await run(adder(), answer, call_model_input_filter=forgets)
    assert [turn["execution_id"][-2:] for turn in await turns(client)] == ["/0", "/1", "/2"]
    assert len({turn["execution_id"][:-2] for turn in await turns(client)}) == 1
    second = await run(adder(), call_model_input_filter=forgets)
    assert (second.asked, second.answer) == (0, first.answer)


def fails_at(*numbers: int, error: Exception | None = None) -> Answer:
    """Adds twice, but for the requests with these numbers, from 1, which fail."""
    count = itertools.count(1)

    def answer(call: ModelCall) -> Any:
        return error or openai.APIConnectionError(request=REQUEST) if next(count) in numbers else adds_twice(call)

    return answer


REQUEST: Any = httpx.Request("POST", "http://127.0.0.1/v1/responses")
RETRY = ModelRetrySettings(max_retries=3, backoff={"initial_delay": 0.0}, policy=lambda context: True)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_retries_of_a_failed_request_are_one_turn(client: Client, streamed: bool) -> None:
    retrying = adder(model_settings=ModelSettings(retry=RETRY))
    first = await run(retrying, fails_at(2, 3), streamed=streamed)
    assert first.answer
    assert first.asked == 5
    assert first.kinds == ["started", "stored", "started", "failed", "started", "failed", *["started", "stored"] * 2]
    assert [event.number for event in first.events] == [1, 1, 2, 2, 2, 2, 2, 2, 3, 3]
    recorded = await turns(client)
    assert [turn["status"] for turn in recorded] == ["COMPLETED"] * 3
    assert {turn["execution_id"][-2:] for turn in recorded} == {"/0"}

    second = await run(retrying, streamed=streamed)
    assert second.asked == 0
    assert second.answer == first.answer


async def test_turns_that_fail_side_by_side_keep_their_numbers() -> None:
    """Two identical ones at once: one is asked again while the other is under way, which then fails as well."""
    count, asked_again = itertools.count(1), asyncio.Event()

    async def answer(call: ModelCall) -> Any:
        number = next(count)
        if number == 2:
            await asked_again.wait()
        elif number == 3:
            asked_again.set()
        return ValueError("busy") if number <= 2 else says()

    async def both() -> list[str]:
        config = RunConfig(model_provider=Provider(model))
        with durable_session("s1", on_event=events.append):
            results = await asyncio.gather(*(Runner.run(agent, "?", run_config=config) for _ in range(2)))
        return [str(result.final_output) for result in results]

    events: list[Any] = []
    model, agent = Live(answer), adder(model_settings=ModelSettings(retry=RETRY))
    first = await both()
    numbers = {(event.execution_id, event.number) for event in events}
    assert sorted(number for _, number in numbers) == [1, 2]
    assert len({which for which, _ in numbers}) == 2
    assert await both() == first
    assert len(model.calls) == 4


async def test_a_failed_request_is_recorded_in_its_own_words_and_made_again_by_the_next_run(client: Client) -> None:
    first = await run(adder(), fails_at(2, error=ValueError("The model is on holiday.")))
    assert isinstance(first.error, ValueError)
    assert first.kinds == ["started", "stored", "started", "failed"]
    assert first.events[-1].detail == "ValueError: The model is on holiday."
    failed = (await turns(client))[-1]
    assert (failed["status"], failed["error"]) == ("FAILED", "ValueError: The model is on holiday.")

    second = await run(adder())
    assert second.asked == 2
    assert second.kinds == ["cached", *["started", "stored"] * 2]
    assert second.notes == []
    assert second.answer
    assert (await run(adder())).asked == 0


# The note at the point where a run leaves the recorded one


class Crash(BaseException):
    """Ends a run as a crash would: nothing handles it."""


async def crashes(agent: Agent[Any], kind: str, number: int, **options: Any) -> Run:
    """A run that ends with the event of this kind and turn, as a crash would have it."""

    def on_event(event: TurnEvent) -> None:
        if (event.kind, event.number) == (kind, number):
            raise Crash

    heard: list[TurnEvent] = []
    with pytest.raises(Crash):
        await run(agent, on_event=lambda event: (heard.append(event), on_event(event))[0], **options)  # type: ignore[func-returns-value]
    return Run(Live(adds_twice), heard)


async def test_a_cold_run_and_one_that_is_resumed_say_nothing_of_a_change() -> None:
    for crashed in (await crashes(adder(), "stored", 1), await crashes(adder(), "started", 2)):
        assert crashed.notes == []
    second = await crashes(adder(), "stored", 2)
    third = await run(adder())
    assert second.notes == third.notes == []
    assert third.asked == 1


async def test_a_change_in_the_middle_is_said_once_where_the_runs_part() -> None:
    again: Any = {"add": "replay"}  # else a replay would not call the tool that has changed
    await run(adder(), effects=again)
    changed = {"n": 0}

    @function_tool(name_override="add")
    def add_wrongly(a: int, b: int) -> int:
        """Add two numbers."""
        changed["n"] += 1
        return a + b + (changed["n"] == 2)

    second = await run(adder(tools=[add_wrongly]), effects=again)
    assert second.kinds == ["cached", "cached", "started", "stored"]
    assert second.notes == ["turn 3 is new: input changed (item 5, function_call_output)"]


async def test_after_an_edit_and_a_crash_the_next_run_says_nothing_again() -> None:
    await run(adder())
    edited = adder(instructions="Add well.")
    second = await crashes(edited, "started", 1)
    assert second.notes == ["turn 1 is new: instructions changed"]
    third = await crashes(edited, "stored", 1)
    fourth = await crashes(edited, "started", 2)
    fifth = await run(edited)
    assert third.notes == fourth.notes == fifth.notes == []
    assert fifth.kinds == ["cached", *["started", "stored"] * 2]
    sixth = await run(adder())
    assert (sixth.asked, sixth.notes) == (0, [])


@pytest.mark.parametrize("questions", [("One?", "Two?"), ("Both?", "Both?")])
async def test_a_resumed_run_of_agents_side_by_side_says_nothing_of_a_change(
    client: Client, questions: tuple[str, str]
) -> None:
    """Where it goes on, what the other agent has recorded is still to come, and no sign of an edit."""
    returns = {"One": asyncio.Event(), "Two": asyncio.Event()}  # when the agent's own tool does

    def thinker(name: str) -> Tool:
        async def add(a: int, b: int) -> int:
            await returns[name].wait()
            return a + b

        agent = Agent(name=name, instructions=f"Think as {name}.", tools=[function_tool(add)], model="m")
        return agent.as_tool(name.lower(), "Thinks.")

    def answer(call: ModelCall) -> Any:
        found = outputs(call)
        if "Think" in str(call.system_instructions):
            return says("I think") if found else calls("add", {"a": 1, "b": 1})
        return says("Both") if found else calls("one", {"input": questions[0]}) + calls("two", {"input": questions[1]})

    async def all_but_one() -> bool:
        return [turn["status"] for turn in await turns(client)] == ["COMPLETED"] * 4

    both = adder(tools=[thinker("One"), thinker("Two")])
    returns["Two"].set()
    first = asyncio.create_task(run(both, answer))
    await eventually(all_but_one)
    while not first.done():
        first.cancel()
        await asyncio.wait([first], timeout=0.1)

    returns["One"].set()
    returns["Two"].clear()

    def on_event(event: TurnEvent) -> None:
        if event.kind == "started":
            returns["Two"].set()

    second = await run(both, answer, on_event=on_event)
    assert second.kinds.count("cached") == 4
    assert second.asked == 2
    assert second.notes == []


# Streams


def ask_streamed(model: Model) -> Any:
    """The stream of one turn."""
    tracing, nothing = ModelTracing.DISABLED, {"previous_response_id": None, "conversation_id": None, "prompt": None}
    return model.stream_response("Add.", "?", ModelSettings(), [], None, [], tracing, **nothing)


def recorded(model: Model) -> Any:
    return RecordedModel(model, "m")


async def events_of(output: list[Any]) -> list[Any]:
    """The events of a stream with this output."""
    return [event async for event in ask_streamed(ScriptedModel([ModelStep(output=output)]))]


def streams(*events: Any) -> Answer:
    """Answers with these events; an exception among them breaks off the stream, and an awaitable is waited for."""

    async def stream(call: ModelCall) -> AsyncIterator[Any]:
        for event in events:
            if isinstance(event, Exception):
                raise event
            if isinstance(event, asyncio.Event):
                await event.wait()
            else:
                yield copy.deepcopy(event)

    return lambda call: ModelStep.stream(stream)


async def test_a_live_stream_passes_as_it_comes_and_the_end_of_it_once_it_is_recorded(client: Client) -> None:
    go_on = asyncio.Event()
    events = await events_of(says())
    model = Live(streams(*events[:3], go_on, *events[3:]))
    passed, states = [], []
    with durable_session("s1"):
        async for event in ask_streamed(recorded(model)):
            passed.append(event)
            states.append((await turns(client))[0]["status"])
            if len(passed) == 3:
                go_on.set()
    assert passed == events
    assert passed[-1].type == "response.completed"
    assert states == ["RUNNING"] * (len(events) - 1) + ["COMPLETED"]

    with durable_session("s1"):
        assert [event async for event in ask_streamed(recorded(model))] == events
    assert len(model.calls) == 1


async def ended(*events: Any) -> list[Any]:
    """Events of a stream that ends as the last one says: "failed", "incomplete" or "error"."""
    live = await events_of(says())
    response = live[-1].response
    for event in events:
        if event == "failed":
            error = ResponseError(code="server_error", message="Out of order.")
            changed = response.model_copy(update={"status": "failed", "error": error})
            live[-1] = ResponseFailedEvent(type="response.failed", sequence_number=9, response=changed)
        elif event == "incomplete":
            details = IncompleteDetails(reason="max_output_tokens")
            changed = response.model_copy(update={"status": "incomplete", "incomplete_details": details})
            live[-1] = ResponseIncompleteEvent(type="response.incomplete", sequence_number=9, response=changed)
        elif event == "error":
            live[-1] = ResponseErrorEvent(type="error", sequence_number=9, message="Overloaded.", code="x")
        elif event == "broken":
            live[3:] = [ConnectionError("The line went dead.")]
        else:
            del live[-1]
    return live


@pytest.mark.parametrize(
    ("how", "error", "detail"),
    [
        ("failed", ModelBehaviorError, "The model's answer ended in response.failed: Out of order."),
        ("incomplete", ModelBehaviorError, "The model's answer ended in response.incomplete: max_output_tokens"),
        ("error", ModelBehaviorError, "The model's answer ended in error: Overloaded."),
        ("broken", ConnectionError, "ConnectionError: The line went dead."),
        ("cut", ModelBehaviorError, "The model's answer broke off."),
    ],
)
async def test_a_stream_that_does_not_end_well_is_no_recorded_turn(
    client: Client, how: str, error: type[Exception], detail: str
) -> None:
    first = await run(adder(), streams(*await ended(how)), streamed=True)
    assert isinstance(first.error, error)
    assert first.kinds == ["started", "failed"]
    assert first.events[-1].detail == detail
    assert [(turn["status"], turn["error"]) for turn in await turns(client)] == [("FAILED", detail)]

    second = await run(adder(), streamed=True)
    assert second.asked == 3
    assert second.notes == []
    third = await run(adder(), streamed=True)
    assert (third.asked, third.answer) == (0, second.answer)


async def test_a_stream_that_is_closed_is_no_recorded_turn() -> None:
    model = Live(streams(*await events_of(says())))
    for _ in range(2):
        with durable_session("s1"):
            stream = ask_streamed(recorded(model))
            await anext(stream)
            await stream.aclose()
    for _ in range(2):
        with durable_session("s1"):
            events = [event async for event in ask_streamed(recorded(model))]
        assert events[-1].type == "response.completed"
        assert len(model.calls) == 3


async def test_a_stream_that_is_closed_after_its_end_is_recorded() -> None:
    model = Live(streams(*await events_of(says())))
    with durable_session("s1"):
        stream = ask_streamed(recorded(model))
        async for event in stream:
            if isinstance(event, ResponseCompletedEvent):
                break
        await stream.aclose()
    with durable_session("s1"):
        assert [event async for event in ask_streamed(recorded(model))][-1] == event
    assert len(model.calls) == 1


async def test_a_streamed_run_that_is_cancelled_goes_on_with_the_next_one() -> None:
    model, once = Live(streams(*(await events_of(says()))[:3], asyncio.Event())), ModelStep(output=says("Once"))
    with durable_session("s1"):
        result = Runner.run_streamed(adder(), "?", run_config=RunConfig(model_provider=Provider(model)))
        async for _ in result.stream_events():
            result.cancel()
    second = await run(adder(), lambda call: once, "?", streamed=True)
    assert second.asked == 1
    assert second.answer.startswith("Once")


# What is recorded is what the model answered


async def test_an_answer_is_not_made_again_from_its_own_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "from_recorded", lambda recorded: pytest.fail("it was"))
    assert (await run(adder())).kinds == ["started", "stored"] * 3


async def test_what_a_turn_is_not_asked_with_is_recorded_as_nothing(client: Client) -> None:
    await run(adder(instructions=None), lambda call: says())
    (turn,) = await turns(client)
    parts = ("instructions", "output_schema", "prompt", "previous_response", "conversation")
    assert [turn["input"][part] for part in parts] == [None] * 5


async def test_what_the_sdk_makes_of_an_answer_afterwards_is_not_recorded() -> None:
    retrying = adder(model_settings=ModelSettings(retry=RETRY))
    first = await run(retrying, fails_at(1))
    assert first.result.raw_responses[0].usage.requests == 2  # the SDK counts the failed request in, in place
    for response in first.result.raw_responses:
        response.output.clear()
    second = await run(retrying)
    assert second.answer == first.answer
    assert second.result.raw_responses[0].usage.requests == 1
    assert all(response.output for response in second.result.raw_responses)


async def test_a_stream_that_ends_without_its_output_is_replayed_as_it_was() -> None:
    """The SDK then puts the output in place, into the event that we have let pass."""
    events = await events_of(says("Empty"))
    end = events[-1]
    events[-1] = end.model_copy(update={"response": end.response.model_copy(update={"output": []})})
    first = await run(adder(), streams(*events), streamed=True)
    assert first.answer.startswith("Empty")
    assert _ends(first.stream).response.output
    second = await run(adder(), streamed=True)
    assert (second.asked, second.answer) == (0, first.answer)
    raw = (await turns_recorded())[0]
    assert _ends(raw).response.output == []


async def turns_recorded() -> list[Any]:
    """What the recorded turns of s1 come back as."""
    histories = [turn async for turn in nexum_client().history("s1/model-turn/")]
    outcomes = [await nexum_client().status(turn["execution_id"]) for turn in histories]
    return [from_recorded(outcome.outputs[MODEL_TURN.nodes[0].id]["result"]) for outcome in outcomes]


def _ends(events: Any) -> Any:
    return next(event for event in events if isinstance(event, ResponseCompletedEvent))


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_what_cannot_be_recorded_passes_and_is_asked_again(
    client: Client, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(value: Any) -> Any:
        raise Unrecordable("It holds a Mystery.")

    with monkeypatch.context() as patch:
        patch.setattr(module, "to_recorded", refuse)
        first = await run(adder(), streamed=streamed)
    assert first.answer
    assert first.kinds == ["started", "unrecorded"] * 3
    assert "It holds a Mystery." in first.events[1].detail
    assert {turn["status"] for turn in await turns(client)} == {"FAILED"}

    second = await run(adder(), streamed=streamed)
    assert second.asked == 3
    assert second.notes == []
    assert (await run(adder(), streamed=streamed)).asked == 0


async def test_an_answer_that_is_too_large_passes_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(ServerConfig(tmp_path / "small.db", port=0, max_message_mib=1))
    await server.start()
    try:
        monkeypatch.setenv("NEXUM_ADDRESS", f"localhost:{server.port}")
        large = "x" * 2**20
        first = await run(adder(), lambda call: says(large))
        assert first.answer.startswith(large)
        assert first.kinds == ["started", "unrecorded"]
        assert "MiB" in first.events[1].detail
        second = await run(adder(), lambda call: says())
        assert second.kinds == ["started", "stored"]
    finally:
        await server.stop()


@pytest.mark.parametrize("record", ["a person wrote this", {"no": "result"}, {"result": [1], "duration_ms": 1}])
async def test_a_record_that_cannot_be_read_is_asked_again_and_said(client: Client, record: Any) -> None:
    await run(adder(), fails_at(1))
    (turn,) = await turns(client)

    async def write() -> Any:
        return record

    await client.run_local(MODEL_TURN, turn["input"], write, execution_id=turn["execution_id"], restart="failed")
    for _ in range(2):
        again = await run(adder(), lambda call: says())
        assert again.error is None
        assert again.asked == 1
        assert again.kinds == ["unrecorded"]
        assert "cannot be read" in again.events[0].detail


# Nexum itself


async def test_without_a_server_the_run_stops_at_once_and_no_model_is_asked(
    unused_tcp_port_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", f"localhost:{unused_tcp_port_factory()}")
    for streamed in (False, True):
        async with asyncio.timeout(PATIENCE_SECONDS):
            this = await run(adder(model_settings=ModelSettings(retry=RETRY)), streamed=streamed)
        assert isinstance(this.error, DurableCallError)
        assert "No Nexum server answers at" in str(this.error)
        assert (this.asked, this.kinds) == (0, [])


async def test_a_streamed_run_that_is_refused_says_so_to_who_reads_it() -> None:
    refused = adder(handoffs=[SandboxAgent(name="Boxed")])
    async with asyncio.timeout(PATIENCE_SECONDS):
        this = await run(refused, streamed=True)
    assert isinstance(this.error, DurableCallError)
    assert "'Boxed'" in str(this.error)


async def test_a_server_that_goes_away_while_the_model_answers_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Server(ServerConfig(tmp_path / "own.db", port=0))
    await first.start()
    monkeypatch.setenv("NEXUM_ADDRESS", f"localhost:{first.port}")

    async def answer(call: ModelCall) -> Any:
        await first.stop()
        return says()

    def on_event(event: TurnEvent) -> None:
        if event.kind == "waiting" and not again:
            again.append(Server(ServerConfig(tmp_path / "own.db", port=first.port)))
            starting.append(asyncio.run_coroutine_threadsafe(again[0].start(), loop))

    loop = asyncio.get_running_loop()
    again: list[Server] = []
    starting: list[Future[None]] = []
    try:
        this = await run(adder(), answer, on_event=on_event)
        assert this.answer
        assert this.asked == 1
        assert this.events[1].detail == "server"
        assert this.events[-1].kind == "stored"
        assert (await run(adder(), answer)).asked == 0
    finally:
        await asyncio.gather(*map(asyncio.wrap_future, starting))
        await again[0].stop()


async def test_a_turn_that_is_cancelled_stops_the_run_and_is_asked_again_by_the_next_one(client: Client) -> None:
    async def answer(call: ModelCall) -> Any:
        (turn,) = await turns(client)
        await client.cancel(turn["execution_id"])
        return says()

    first = await run(adder(model_settings=ModelSettings(retry=RETRY)), answer)
    assert isinstance(first.error, DurableCallError)
    assert str(first.error) == "Turn 1 of the model was cancelled."
    assert first.kinds == ["started", "failed"]
    second = await run(adder())
    assert second.asked == 3
    assert second.notes == []


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_turn_that_cannot_be_carried_in_an_agent_tool_stops_the_outer_agent_too(
    client: Client, streamed: bool
) -> None:
    """The SDK tells the outer model of it as of any failure, so that one must not be asked."""
    inner = adder(name="Inner", instructions="Add, inside.")
    outer = Agent(name="Outer", tools=[inner.as_tool("inner", "Adds.")], model="m")

    async def answer(call: ModelCall) -> Any:
        if not call.system_instructions:
            return calls("inner", {"input": "?"})
        await client.cancel((await turns(client))[-1]["execution_id"])
        return says()

    this = await run(outer, answer, streamed=streamed)
    assert isinstance(this.error, DurableCallError)
    assert str(this.error) == "Turn 2 of the model was cancelled."
    assert this.asked == 2


@pytest.mark.parametrize("make", [durable_tool, function_tool])
async def test_a_call_that_cannot_be_carried_in_an_agent_tool_stops_the_outer_agent_too(
    make: Callable[[Any], Tool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weigh(what: str) -> str:
        pytest.fail("it was called")

    def answer(call: ModelCall) -> Any:
        return calls("weigh", {"what": "x" * 2**21}) if call.system_instructions else calls("inner", {"input": "?"})

    inner = adder(name="Inner", instructions="Weigh.", tools=[make(weigh)])
    outer = Agent(name="Outer", tools=[inner.as_tool("inner", "Weighs.")], model="m")
    server = Server(ServerConfig(tmp_path / "small.db", port=0, max_message_mib=1))
    await server.start()
    try:
        monkeypatch.setenv("NEXUM_ADDRESS", f"localhost:{server.port}")
        this = await run(outer, answer)
    finally:
        await server.stop()
    assert isinstance(this.error, DurableCallError)
    assert "MiB" in str(this.error)
    assert this.asked == 2


async def test_arguments_that_are_nested_too_deeply_to_be_carried_as_json_reach_the_tool_as_they_are() -> None:
    weighed: list[Any] = []

    def weigh(what: Any) -> str:
        weighed.append(what)
        return "heavy"

    nested = json.loads("[" * (NESTING_LIMIT + 1) + "]" * (NESTING_LIMIT + 1))
    agent = adder(tools=[function_tool(weigh, strict_mode=False)])
    for asked in (2, 0):
        this = await run(agent, lambda call: says() if outputs(call) else calls("weigh", {"what": nested}))
        assert this.error is None
        assert this.asked == asked
    assert weighed == [nested]


async def test_two_tasks_on_one_session_share_each_turn() -> None:
    first, second = await asyncio.gather(run(adder()), run(adder()))
    assert first.asked + second.asked == 3
    assert first.answer == second.answer


async def test_two_processes_on_one_session_share_each_turn() -> None:
    """Two event loops in two threads: each has a client of its own, as a process has."""
    under_way, go_on = threading.Event(), threading.Event()

    async def answer(call: ModelCall) -> Any:
        under_way.set()
        await asyncio.to_thread(go_on.wait, PATIENCE_SECONDS)
        return adds_twice(call)

    def waiting(event: TurnEvent) -> None:
        if event.kind == "waiting":
            go_on.set()

    first = asyncio.create_task(asyncio.to_thread(asyncio.run, run(adder(), answer)))
    await asyncio.to_thread(under_way.wait, PATIENCE_SECONDS)
    second = await asyncio.to_thread(asyncio.run, run(adder(), on_event=waiting))
    whole = await first
    assert whole.asked + second.asked == 3
    assert whole.answer == second.answer


async def test_a_turn_that_fails_in_another_process_is_asked_for_by_the_one_that_waits_for_it(client: Client) -> None:
    under_way, go_on = threading.Event(), threading.Event()

    async def fails(call: ModelCall) -> Any:
        under_way.set()
        await asyncio.to_thread(go_on.wait, PATIENCE_SECONDS)
        return ValueError("The model is on holiday.")

    def waiting(event: TurnEvent) -> None:
        if event.kind == "waiting":
            go_on.set()

    first = asyncio.create_task(asyncio.to_thread(asyncio.run, run(adder(), fails)))
    await asyncio.to_thread(under_way.wait, PATIENCE_SECONDS)
    second = await asyncio.to_thread(asyncio.run, run(adder(), on_event=waiting))
    assert str((await first).error) == "The model is on holiday."
    assert second.answer
    assert (second.asked, second.notes) == (3, [])
    assert [turn["status"] for turn in await turns(client)] == ["COMPLETED"] * 3


async def test_a_turn_that_times_out_is_asked_again_as_the_same_turn(client: Client) -> None:
    count = itertools.count(1)

    def answer(call: ModelCall) -> Any:
        return asyncio.Event().wait() if next(count) == 1 else adds_twice(call)

    settings = ModelSettings(timeout=0.3, retry=RETRY)
    first = await run(adder(model_settings=settings), answer)
    assert first.asked == 4
    assert [turn["status"] for turn in await turns(client)] == ["COMPLETED"] * 3
    second = await run(adder(model_settings=settings))
    assert (second.asked, second.answer) == (0, first.answer)


# Whole agents


async def test_every_agent_that_is_handed_off_to_is_durable() -> None:
    second = adder(name="Second", instructions="Add, second.")
    first = Agent(name="First", handoffs=[second], model="m1")

    def answer(call: ModelCall) -> Any:
        return calls("transfer_to_second", {}) if call.handoffs else says()

    once = await run(first, answer)
    again = await run(first, answer)
    assert (once.asked, again.asked) == (2, 0)
    assert again.answer == once.answer
    assert again.result.last_agent.name == "Second"
    assert [event.model for event in again.events] == ["m1", "m"]


async def test_agents_as_tools_are_durable_also_side_by_side() -> None:
    inner = adder(name="Inner", instructions="Add, inside.")
    outer = Agent(name="Outer", tools=[inner.as_tool("inner", "Adds.")], model="m")

    def answer(call: ModelCall) -> Any:
        if call.system_instructions:
            return adds_twice(call)
        return (
            says(" and ".join(outputs(call)))
            if outputs(call)
            else calls("inner", *({"input": f"{n}?"} for n in "1223"))
        )

    first = await run(outer, answer)
    assert first.asked == 2 + 4 * 3
    second = await run(outer, answer)
    assert (second.asked, second.answer) == (0, first.answer)
    assert sorted(event.number for event in second.events) == list(range(1, 15))


async def test_a_guardrail_that_trips_leaves_the_turn_to_the_next_run() -> None:
    trips = True

    @input_guardrail
    async def careful(context: Any, agent: Any, input: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=trips)

    guarded = adder(input_guardrails=[careful])
    first = await run(guarded, lambda call: asyncio.Event().wait())
    assert isinstance(first.error, InputGuardrailTripwireTriggered)
    trips = False
    second = await run(guarded)
    assert (second.asked, second.notes) == (3, [])
    assert (await run(guarded)).asked == 0


async def test_structured_output_is_replayed() -> None:
    structured = adder(output_type=Sum)
    first = await run(structured, lambda call: [assistant_message(f'{{"sum": {next(NUMBERS)}}}')])
    second = await run(structured)
    assert second.asked == 0
    assert isinstance(second.result.final_output, Sum)
    assert second.result.final_output == first.result.final_output


async def test_a_run_with_too_few_turns_goes_on_with_more() -> None:
    first = await run(adder(), max_turns=2)
    assert isinstance(first.error, MaxTurnsExceeded)
    second = await run(adder(), max_turns=3)
    assert (first.asked, second.asked) == (2, 1)
    assert second.notes == []


# Requests


class Wire:
    """The client of an API that has nothing to say, and the bodies of the requests to it."""

    def __init__(self, url: str) -> None:
        self.bodies: list[dict[str, Any]] = []
        transport = httpx.MockTransport(self._answer)
        http: Any = httpx.AsyncClient(transport=transport)
        self.client = openai.AsyncOpenAI(api_key="sk-test", base_url=url, http_client=http, max_retries=0)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if (key := body.get("prompt_cache_key", "")).startswith("agents-sdk:run:"):
            body["prompt_cache_key"] = key[: len("agents-sdk:run:")]  # the rest is random
        self.bodies.append(body | {"path": request.url.path})
        return httpx.Response(400, json={"error": {"message": "No."}})


OPENAI, OTHER = "https://api.openai.com/v1", "http://127.0.0.1:1/v1"


@pytest.mark.parametrize("url", [OPENAI, OTHER], ids=["openai", "another"])
@pytest.mark.parametrize("responses", [True, False], ids=["responses", "chat"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_the_model_is_asked_the_same_with_and_without(url: str, responses: bool, streamed: bool) -> None:
    wire = Wire(url)
    provider = OpenAIProvider(openai_client=wire.client, use_responses=responses)
    kind: Any = OpenAIResponsesModel if responses else OpenAIChatCompletionsModel

    async def ask(agent: Agent[Any], **config: Any) -> dict[str, Any]:
        run_config = RunConfig(**config)
        with suppress(openai.BadRequestError):
            if streamed:
                async for _ in Runner.run_streamed(agent, "?", run_config=run_config).stream_events():
                    pass
            else:
                await Runner.run(agent, "?", run_config=run_config)
        return wire.bodies.pop()

    everything = {"handoffs": [Agent(name="Other")], "output_type": Sum}
    agents: list[dict[str, Any]] = [
        {"model": None},
        {"model": "gpt-5"},
        {"model": "gpt-4o", "model_settings": ModelSettings(temperature=0.5, metadata={"a": "b"}, store=False)}
        | everything,
        {"model": "gpt-4o", "model_settings": ModelSettings(extra_args={"prompt_cache_key": "mine"})},
        {"model": "gpt-4o", "model_settings": ModelSettings(extra_body={"prompt_cache_key": "mine"})},
    ]
    for each in agents:
        plain = await ask(adder(**each), model_provider=provider)
        with durable_session("s1"):
            durable = await ask(adder(**each), model_provider=provider)
        assert durable == plain
        assert plain["path"].endswith("responses" if responses else "chat/completions")
        has_key = url == OPENAI or "mine" in str(each)
        assert ("prompt_cache_key" in plain) == has_key
    for name in ("gpt-5", "gpt-4o"):
        instance = kind(name, wire.client)
        plain = await ask(adder(model=instance))
        with durable_session("s2"):
            assert await ask(adder(model=instance)) == plain
    await wire.client.close()


def three_turns(asked: Asked) -> Said:
    if len(asked.outputs) < 3:
        calls = [Call("add", {"a": 1, "b": number}) for number in range(2 - len(asked.outputs) // 2)]
        return ["Let me see. ", *calls]
    return f"They are {', '.join(asked.outputs)} ({asked.token})."


LITELLMS_IDS = re.compile(rb"call_[0-9a-f]{28}")  # of Gemini's calls, which it makes up


@pytest.mark.parametrize("api", ["responses", "chat", "gemini"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_each_byte_that_is_sent_is_the_same_with_and_without(
    api: str, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP, in three turns, with what the model has called, said and reasoned among them."""

    async def sent(session_id: str = "") -> list[bytes]:
        numbers = itertools.count()
        numbered = SimpleNamespace(token_hex=lambda _: f"{next(numbers):08x}")
        monkeypatch.setattr("model_server.secrets", numbered)  # the server's alone: litellm uses that module too
        with ModelServer(three_turns) as server, durable_session(session_id) if session_id else nullcontext():
            async with model_of(api, server, monkeypatch) as model:
                config = RunConfig(model_provider=Provider(model))
                agent = adder(model_settings=ModelSettings(max_tokens=500, metadata={"a": "b"}))
                if streamed:
                    async for _ in Runner.run_streamed(agent, "1 + 0, 1 + 1?", run_config=config).stream_events():
                        pass
                else:
                    await Runner.run(agent, "1 + 0, 1 + 1?", run_config=config)
        return [LITELLMS_IDS.sub(b"call_", asked.sent) for asked in server.requests]

    plain = await sent()
    assert len(plain) == 3
    assert b"Let me see." in plain[2]
    assert (b"encrypted_content" in plain[2].partition(b"reasoning")[2]) == (api == "responses")
    assert await sent("s1") == plain
    assert await sent("s1") == [], "a replay sends nothing"
