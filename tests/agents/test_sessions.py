"""Durable sessions in this process: each kind of thing that a run does is recorded, and a replay does none of it."""

import asyncio
import contextvars
import gc
import itertools
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from agents import (
    Agent,
    AgentHooks,
    FunctionTool,
    GuardrailFunctionOutput,
    InputGuardrail,
    InputGuardrailTripwireTriggered,
    ModelBehaviorError,
    ModelResponse,
    OpenAIChatCompletionsModel,
    OutputGuardrail,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    RunContextWrapper,
    Runner,
    SQLiteSession,
    ToolOutputImage,
    UserError,
    function_tool,
    handoff,
)
from agents.models.interface import Model
from agents.sandbox import SandboxAgent
from agents.testing import ScriptedModel, assistant_message, function_call
from processes import PATIENCE_SECONDS, eventually
from pydantic import BaseModel

from nexum_agents import (
    DurableCallError,
    OutcomeUnknown,
    ToolError,
    ToolFailed,
    ask_person,
    durable_session,
    durable_step,
    stop_session,
    submit_tool_call,
    watching,
)
from nexum_agents.clients import nexum_client
from nexum_runtime import Client

happened: list[Any] = []
_ids = itertools.count()


@pytest.fixture
async def nexum(address: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setenv("NEXUM_ADDRESS", address)
    happened.clear()
    yield
    await nexum_client().close()


pytestmark = pytest.mark.usefixtures("nexum")


class Fake(Model):
    """A model whose turns are a text, a list of (tool, arguments), an error, or a function of the results so far.

    Which turn it is follows from the input, so it can be asked again.
    """

    def __init__(self, *turns: Any, delay: float = 0.0) -> None:
        self.turns, self.delay, self.asked = turns, delay, 0

    def _says(self, input: Any) -> list[Any]:
        self.asked += 1
        items = [] if isinstance(input, str) else input
        number = len({item["call_id"].split(":")[0] for item in items if item.get("type") == "function_call"})
        turn = self.turns[number]
        turn = turn(results(items)) if callable(turn) else turn
        if isinstance(turn, Exception):
            raise turn
        if isinstance(turn, str):
            return [assistant_message(turn, item_id=f"message_{next(_ids)}")]
        return [
            function_call(name, arguments, call_id=f"{number}:{nth}:{next(_ids)}")
            for nth, (name, arguments) in enumerate(turn)
        ]

    async def get_response(self, system_instructions: Any, input: Any, *more: Any, **named: Any) -> ModelResponse:
        await asyncio.sleep(self.delay)
        once = ScriptedModel([self._says(input)])
        return await once.get_response(system_instructions, input, *more, **named)

    async def stream_response(self, system_instructions: Any, input: Any, *more: Any, **named: Any) -> Any:
        await asyncio.sleep(self.delay)
        once = ScriptedModel([self._says(input)])
        async for event in once.stream_response(system_instructions, input, *more, **named):
            yield event


def results(items: list[Any]) -> list[Any]:
    return [item["output"] for item in items if item.get("type") == "function_call_output"]


def told(result: Any) -> list[Any]:
    """What the model was told of the calls of a run."""
    return results(result.to_input_list())


def tool(name: str, result: Any = "done", **options: Any) -> FunctionTool:
    """A tool that happens, and returns `result`, or what that returns."""

    async def function() -> Any:
        happened.append(name)
        return result() if callable(result) else result

    return function_tool(function, name_override=name, **options)


async def ask(agent: Agent[Any], session_id: str = "s", input: Any = "go", **options: Any) -> Any:
    """One run in a block of its own, as another process would have it."""
    with durable_session(session_id):
        return await Runner.run(agent, input, **options)


def asked(*models: Fake) -> int:
    return sum(model.asked for model in models)


# What the same question is, and what another one


async def test_agents_side_by_side_with_tools_of_one_name_get_each_its_own_results() -> None:
    def customer(name: str, amount: int, delay: float) -> Agent[Any]:
        model = Fake([("balance", {})], lambda results: results[0], delay=delay)
        return Agent(name=name, model=model, tools=[tool("balance", f"{name} has {amount}")])

    async def compare(ana_s: float, bob_s: float) -> tuple[str, int]:
        ana, bob = customer("ana", 100, ana_s), customer("bob", 2, bob_s)
        top = Fake([("ask_ana", {"input": "?"}), ("ask_bob", {"input": "?"})], " | ".join)
        tools: list[Any] = [ana.as_tool("ask_ana", "Ana"), bob.as_tool("ask_bob", "Bob")]
        result = await ask(Agent(name="top", model=top, tools=tools))
        return result.final_output, asked(top, ana.model, bob.model)  # type: ignore[arg-type]

    assert await compare(0.1, 0.0) == ("ana has 100 | bob has 2", 6)
    assert await compare(0.0, 0.1) == ("ana has 100 | bob has 2", 0)
    assert happened == ["balance", "balance"]


async def test_alike_runs_side_by_side_are_each_their_own_and_are_replayed_in_their_order() -> None:
    numbers = itertools.count()
    model = Fake([("draw", {})], lambda results: results[0])
    agent = Agent(name="A", model=model, tools=[tool("draw", lambda: f"number {next(numbers)}")])

    async def three() -> list[str]:
        with durable_session("s"):
            found = await asyncio.gather(*(Runner.run(agent, "Draw.") for _ in range(3)))
        return [result.final_output for result in found]

    first = await three()
    assert sorted(first) == ["number 0", "number 1", "number 2"]
    assert await three() == first
    assert model.asked == 6


async def test_alike_calls_of_one_turn_are_told_apart_by_their_order_in_it_not_by_who_begins_first() -> None:
    numbers = itertools.count()

    class Late(AgentHooks[Any]):
        """The call of this number goes on when the other one has ended."""

        def __init__(self, number: int) -> None:
            self.number, self.begun, self.other = number, 0, asyncio.Event()

        async def on_tool_start(self, *_: Any) -> None:
            self.begun += 1
            if self.begun == self.number:
                await self.other.wait()

        async def on_tool_end(self, *_: Any) -> None:
            self.other.set()

    model = Fake([("draw", {}), ("draw", {})], " ".join)
    draw = tool("draw", lambda: str(next(numbers)))
    first, second = [await ask(Agent(name="A", model=model, tools=[draw], hooks=Late(late))) for late in (1, 2)]
    assert first.final_output == second.final_output == "1 0"


async def test_a_second_run_in_the_same_block_is_another_one_if_the_first_ended_well() -> None:
    agent = Agent(name="A", model=Fake([("note", {})], "done"), tools=[tool("note")])
    with durable_session("s"):
        for _ in range(2):
            await Runner.run(agent, "go")
    assert happened == ["note", "note"]
    with durable_session("s") as session:
        for _ in range(2):
            await Runner.run(agent, "go")
    assert happened == ["note", "note"]
    assert (session.saved.turns, session.saved.calls) == (4, 2)


@pytest.mark.parametrize("error", [ConnectionError("away"), asyncio.CancelledError()])
async def test_a_run_that_is_tried_again_in_the_same_block_repeats_nothing(error: BaseException) -> None:
    failures = [error]

    def second(results: list[Any]) -> str:
        if failures:
            raise failures.pop()
        return "charged"

    agent = Agent(name="A", model=Fake([("charge", {})], second), tools=[tool("charge")])
    with durable_session("s", effects={"charge": "once"}):
        with pytest.raises(type(error)):
            await Runner.run(agent, "go")
        assert (await Runner.run(agent, "go")).final_output == "charged"
    assert happened == ["charge"]


async def test_a_chat_that_goes_on_with_the_last_agent_is_recorded_under_each_question() -> None:
    order = tool("order", "ordered")

    def shop_and_desk() -> tuple[Agent[Any], Agent[Any]]:
        shop = Agent(name="shop", model=Fake("what?", "ordered"), tools=[order])
        return shop, Agent(name="desk", model=Fake([("transfer_to_shop", {})]), handoffs=[shop])

    shop, desk = shop_and_desk()
    first = await ask(desk, "chat-0", "hello")
    assert first.last_agent is shop
    items = [*first.to_input_list(), {"role": "user", "content": "tea"}]
    model = shop.model = Fake("", [("order", {})], "ordered")
    await ask(first.last_agent, "chat-1", items)
    assert (happened, model.asked) == (["order"], 2)

    again, _ = shop_and_desk()
    again.model = Fake()
    assert (await ask(again, "chat-1", items)).final_output == "ordered"
    assert happened == ["order"]


async def test_what_an_agent_gets_during_the_run_is_recorded_as_well() -> None:
    charge = tool("charge")

    class AddsTools(AgentHooks[Any]):
        async def on_start(self, context: Any, agent: Agent[Any]) -> None:
            agent.tools.append(charge)

    def agent(*turns: Any) -> Agent[Any]:
        return Agent(name="A", hooks=AddsTools(), model=Fake(*turns)).clone()

    assert (await ask(agent([("charge", {})], "done"))).final_output == "done"
    assert (await ask(agent())).final_output == "done"
    assert happened == ["charge"]


async def test_an_edit_of_the_prompt_strands_no_call_and_is_named() -> None:
    details: list[str] = []

    def agent(instructions: str) -> Agent[Any]:
        model = Fake([("look", {"at": "sky"})], "done")

        @function_tool
        def look(at: str) -> str:
            happened.append(at)
            return "blue"

        return Agent(name="A", instructions=instructions, model=model, tools=[look])

    await ask(agent("Be brief."))
    with durable_session("s", on_event=lambda event: details.append(event.detail) if event.detail else None):
        await Runner.run(agent("Be long."), "go")
    assert details == ["instructions changed"]
    assert happened == ["sky"]


async def test_a_call_is_known_by_the_json_that_the_model_wrote() -> None:
    class Order(BaseModel):
        item: str
        id: str = ""

    def agent(**parameters: Any) -> Agent[Any]:
        def order(order: Order) -> str:
            happened.append(order.item)
            return "ordered"

        def order_since(order: Order, copy_to: str = "") -> str:
            happened.append(order.item)
            return "ordered"

        function = order_since if parameters else order
        made = function_tool(function, name_override="order", strict_mode=False)
        return Agent(name="A", model=Fake([("order", '{"order": {"item":  "tea"}}')], "done"), tools=[made])

    await ask(agent())
    await ask(agent(copy_to=True))
    assert happened == ["tea"]


# What ended a run in an error


async def test_a_turn_whose_answer_ended_the_run_is_asked_anew_by_the_next_run_which_says_so() -> None:
    answers: Any = iter([[("no_such_tool", {})], "done"])
    events: list[Any] = []
    model = Fake([("look", {})], lambda results: next(answers))
    agent = Agent(name="A", model=model, tools=[tool("look")])
    with pytest.raises(ModelBehaviorError):
        await ask(agent)
    with durable_session("s", on_event=events.append):
        assert (await Runner.run(agent, "go")).final_output == "done"
    assert (happened, model.asked) == (["look"], 3)
    (started,) = [event for event in events if event.kind == "started"]
    assert started.detail.startswith("asked anew, as its answer ended the run: ModelBehaviorError: ")
    assert (await ask(agent)).final_output == "done"
    assert model.asked == 3
    recorded = await nexum_client().executions("s/model-turn/")
    assert len(recorded) == 3, "what ended the run is there to be seen"


async def test_an_answer_that_does_not_fit_the_output_type_is_asked_anew() -> None:
    class City(BaseModel):
        name: str

    answers = iter(["Rome, I think", '{"name": "Rome"}'])
    agent = Agent(name="A", model=Fake(lambda results: next(answers)), output_type=City)
    with pytest.raises(ModelBehaviorError):
        await ask(agent)
    for _ in range(2):
        assert (await ask(agent)).final_output == City(name="Rome")


async def test_what_an_output_guardrail_refused_is_asked_anew_and_checked_anew() -> None:
    answers = iter(["rude", "polite", "polite"])

    async def polite(context: Any, agent: Any, output: str) -> GuardrailFunctionOutput:
        happened.append(output)
        return GuardrailFunctionOutput(output, tripwire_triggered=output == "rude")

    agent = Agent(name="A", model=Fake(lambda results: next(answers)), output_guardrails=[OutputGuardrail(polite)])
    with pytest.raises(OutputGuardrailTripwireTriggered):
        await ask(agent)
    for _ in range(2):
        assert (await ask(agent)).final_output == "polite"
    assert happened == ["rude", "polite"]


async def test_an_input_that_a_guardrail_refused_is_checked_anew_and_one_that_it_let_pass_is_not() -> None:
    verdicts = iter([True, False])

    async def check(context: Any, agent: Any, input: Any) -> GuardrailFunctionOutput:
        happened.append("checked")
        return GuardrailFunctionOutput(None, tripwire_triggered=next(verdicts))

    guardrail = InputGuardrail(check, run_in_parallel=False)
    agent = Agent(name="A", model=Fake("done"), input_guardrails=[guardrail])
    with pytest.raises(InputGuardrailTripwireTriggered):
        await ask(agent)
    for _ in range(2):
        assert (await ask(agent)).final_output == "done"
    assert happened == ["checked", "checked"]


async def test_an_error_inside_of_an_agents_tool_that_the_outer_model_was_told_of_is_replayed() -> None:
    inner = Agent(name="inner", model=Fake([("no_such_tool", {})]))
    outer = Agent(
        name="outer", model=Fake([("inner", {"input": "?"})], "went on"), tools=[inner.as_tool("inner", "Inner")]
    )
    first = await ask(outer)
    second = await ask(outer)
    assert told(first) == told(second)
    assert asked(inner.model, outer.model) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
async def test_numbers_that_are_no_json_reach_the_tool_as_they_do_without_a_session(number: str) -> None:
    def agent() -> Agent[Any]:
        @function_tool
        def locate(lat: float) -> str:
            happened.append("locate")
            return f"at {lat}"

        model = Fake([("locate", f'{{"lat": {number}}}')], lambda results: results[0])
        return Agent(name="A", model=model, tools=[locate])

    plain = await Runner.run(agent(), "go")
    for _ in range(2):
        assert (await ask(agent())).final_output == plain.final_output
    assert happened == ["locate", "locate"]


async def test_a_guardrail_that_trips_at_once_keeps_the_model_beside_it_from_being_asked() -> None:
    def check(context: Any, agent: Any, input: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(None, tripwire_triggered=True)

    model = Fake("done")
    agent = Agent(name="A", model=model, input_guardrails=[InputGuardrail(check)])
    with pytest.raises(InputGuardrailTripwireTriggered):
        await ask(agent)
    assert model.asked == 0


async def stream(agent: Agent[Any], session_id: str = "s") -> Any:
    """A streamed run, read to its end, in a block of its own."""
    with durable_session(session_id):
        result = Runner.run_streamed(agent, "go")
        async for _ in result.stream_events():
            pass
    return result


@pytest.mark.parametrize("in_parallel", [True, False])
async def test_a_streamed_run_that_a_guardrail_ended_is_checked_anew(in_parallel: bool) -> None:
    verdicts = iter([True, False])

    async def check(context: Any, agent: Any, input: Any) -> GuardrailFunctionOutput:
        happened.append("checked")
        return GuardrailFunctionOutput(None, tripwire_triggered=next(verdicts))

    guardrail = InputGuardrail(check, run_in_parallel=in_parallel)
    agent = Agent(name="A", model=Fake("done"), input_guardrails=[guardrail])
    with pytest.raises(InputGuardrailTripwireTriggered):
        await stream(agent)
    for _ in range(2):
        assert (await stream(agent)).final_output == "done"
    assert happened == ["checked", "checked"]


async def test_a_streamed_turn_whose_answer_ended_the_run_is_asked_anew() -> None:
    answers: Any = iter([[("no_such_tool", {})], "done"])
    agent = Agent(name="A", model=Fake(lambda results: next(answers)))
    with pytest.raises(ModelBehaviorError):
        await stream(agent)
    for _ in range(2):
        assert (await stream(agent)).final_output == "done"


async def test_what_a_run_inside_of_a_tool_is_to_blame_for_strands_no_turn_of_the_outer_run() -> None:
    answers: Any = iter([[("no_such_tool", {})], "found"])
    inner = Agent(name="inner", model=Fake(lambda results: next(answers)))
    outer_model = Fake([("charge", {}), ("inner", {"input": "?"})], "done")
    helper = inner.as_tool("inner", "Inner", failure_error_function=None)
    outer = Agent(name="outer", model=outer_model, tools=[tool("charge"), helper])
    with pytest.raises(ModelBehaviorError):
        await ask(outer)
    assert (await ask(outer)).final_output == "done"
    assert (outer_model.asked, happened) == (2, ["charge"])


# Values


class Weather(BaseModel):
    city: str


class Opaque:
    def __str__(self) -> str:
        return "42"


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (Weather(city="Rome"), Weather),
        ([Weather(city="Rome")], list[Weather]),
        (Weather(city="Rome"), None),
        (Opaque(), None),
        (Opaque(), Opaque),
        ((1, "two"), tuple[int, str]),
        ((1, "two"), None),
        ({"a": [1, None, True]}, None),
        (float("nan"), None),
        (["ok.txt", b"caf\xe9.txt".decode("utf-8", "surrogateescape")], None),
        (ToolOutputImage(image_url="data:image/png;base64,aaaa"), None),
        ((ToolOutputImage(image_url="data:image/png;base64,aaaa"),), None),
        (None, None),
        (2**70, None),
    ],
)
async def test_a_tools_result_is_the_same_kind_of_thing_in_every_run_and_told_as_without_a_session(
    value: Any, annotation: Any
) -> None:
    def agent() -> Agent[Any]:
        def look() -> Any:
            happened.append("look")
            return value

        if annotation is not None:
            look.__annotations__["return"] = annotation
        return Agent(name="A", model=Fake([("look", {})], "done"), tools=[function_tool(look)])

    plain = await Runner.run(agent(), "go")
    first, second = await ask(agent()), await ask(agent())
    assert told(first) == told(second) == told(plain)
    kinds = [type(result.new_items[1].output) for result in (first, second)]
    assert kinds[0] is kinds[1]
    if annotation in (Weather, list[Weather], tuple[int, str]):
        assert second.new_items[1].output == value
    assert happened == ["look", "look"]


async def test_a_tool_that_raises_cancelled_error_is_told_alike_in_a_replay() -> None:
    @function_tool
    async def look() -> str:
        happened.append("look")
        raise asyncio.CancelledError

    agent = Agent(name="A", model=Fake([("look", {})], "done"), tools=[look])
    plain = await Runner.run(agent, "go")
    first, second = await ask(agent), await ask(agent)
    assert told(first) == told(second) == told(plain)
    assert happened == ["look", "look"]


# Like the SDK


async def test_the_agent_and_its_model_stay_the_objects_that_they_were() -> None:
    import agents.run_internal.run_loop as run_loop

    agent = Agent(name="A", model=Fake("done"))
    result = await ask(agent)
    assert result.last_agent is agent
    chat = OpenAIChatCompletionsModel("gpt-5", None)  # type: ignore[arg-type]
    with durable_session("s"):
        model = run_loop.get_model(Agent(name="B", model=chat), RunConfig())
    assert isinstance(model, OpenAIChatCompletionsModel)
    assert run_loop.get_model(Agent(name="B", model=chat), RunConfig()) is chat


async def test_a_model_is_asked_by_keyword_as_the_sdk_asks_it() -> None:
    class ByKeyword(Model):
        async def get_response(self, **asked: Any) -> ModelResponse:  # type: ignore[override]
            happened.append(sorted(asked))
            return await ScriptedModel([[assistant_message("done")]]).get_response(**asked)

        def stream_response(self, **asked: Any) -> Any:  # type: ignore[override]
            return ScriptedModel([[assistant_message("done")]]).stream_response(**asked)

    agent = Agent(name="A", model=ByKeyword())
    assert (await ask(agent)).final_output == "done"
    assert (await ask(agent)).final_output == "done"
    assert len(happened) == 1


async def test_a_runs_own_model_and_provider_are_recorded() -> None:
    model = Fake("done")
    for _ in range(2):
        assert (await ask(Agent(name="A"), run_config=RunConfig(model=model))).final_output == "done"
    assert model.asked == 1


async def test_a_replay_needs_no_model_that_can_be_made() -> None:
    class Provider:
        def __init__(self, model: Model | None) -> None:
            self.model = model

        def get_model(self, name: str | None) -> Model:
            if self.model is None:
                raise RuntimeError("no key")
            return self.model

        async def aclose(self) -> None: ...

    def config(model: Model | None) -> RunConfig:
        return RunConfig(model_provider=Provider(model))  # type: ignore[arg-type]

    agent = Agent(name="A", model="some-model")
    await ask(agent, run_config=config(Fake("done")))
    assert (await ask(agent, run_config=config(None))).final_output == "done"
    with pytest.raises(RuntimeError, match="no key"):
        await ask(agent, input="something else", run_config=config(None))


async def test_a_conversation_is_read_with_the_context_and_added_to_once() -> None:
    class PerTenant:
        session_id, session_settings = "chat", None

        def __init__(self) -> None:
            self.rows: dict[str, list[Any]] = {}

        def _of(self, wrapper: Any) -> list[Any]:
            return self.rows.setdefault(wrapper.context if wrapper else "nobody", [])

        async def get_items(self, limit: int | None = None, *, wrapper: Any = None) -> list[Any]:
            return list(self._of(wrapper))

        async def add_items(self, items: list[Any], *, wrapper: Any = None) -> None:
            self._of(wrapper).extend(items)

        async def pop_item(self, *, wrapper: Any = None) -> Any:
            return self._of(wrapper).pop()

        async def clear_session(self, *, wrapper: Any = None) -> None:
            self._of(wrapper).clear()

    memory = PerTenant()
    models = {tenant: Fake(f"secret of {tenant}") for tenant in ("ana", "bob")}
    for _ in range(2):
        for tenant, model in models.items():
            await ask(Agent(name="A", model=model), tenant, "hi", context=tenant, session=memory)
    assert {tenant: len(rows) for tenant, rows in memory.rows.items()} == {"ana": 2, "bob": 2}
    assert asked(*models.values()) == 2


async def test_a_chat_with_memory_in_one_block_asks_each_question_once() -> None:
    memory, model = SQLiteSession("chat"), Fake("one")
    agent = Agent(name="A", model=model)
    for _ in range(2):
        with durable_session("s"):
            for question in ("hello", "hello"):
                await Runner.run(agent, question, session=memory)
    assert model.asked == 2
    assert len(await memory.get_items()) == 4
    memory.close()


async def test_an_approval_that_is_given_for_always_holds_at_the_next_question() -> None:
    agent = Agent(name="A", model=Fake([("pay", {})], "done"), tools=[tool("pay", needs_approval=True)])
    for _ in range(2):
        with durable_session("s"):
            asks = await Runner.run(agent, "one")
            state = asks.to_state()
            state.approve(state.get_interruptions()[0], always_approve=True)
            first = await Runner.run(agent, state)
            second = await Runner.run(agent, "two", context=first.context_wrapper)
        assert (first.final_output, second.final_output, second.interruptions) == ("done", "done", [])
    assert happened == ["pay", "pay"]


async def test_null_total_tokens_end_no_run() -> None:
    from openai.types.responses import Response, ResponseCompletedEvent, ResponseUsage

    class NullTotals(Fake):
        async def stream_response(self, *_: Any, **__: Any) -> Any:
            self.asked += 1
            usage = ResponseUsage.construct(input_tokens=7, output_tokens=5, total_tokens=None)
            response = Response.construct(
                id="r", output=[assistant_message("Hello")], usage=usage, object="response", model="x"
            )
            yield ResponseCompletedEvent.construct(type="response.completed", response=response, sequence_number=0)

    model = NullTotals()
    for _ in range(2):
        with durable_session("s"):
            result = Runner.run_streamed(Agent(name="A", model=model), "hi")
            async for _event in result.stream_events():
                pass
        assert result.final_output == "Hello"
    assert model.asked == 1


async def test_a_streamed_run_may_be_read_after_its_block_and_is_recorded_all_the_same() -> None:
    model = Fake([("look", {})], "done")
    agent = Agent(name="A", model=model, tools=[tool("look")])
    for _ in range(2):
        with durable_session("s"):
            result = Runner.run_streamed(agent, "go")
        events = [event async for event in result.stream_events()]
        assert events
        assert result.final_output == "done"
    assert (model.asked, happened) == (2, ["look"])


async def test_a_streams_reader_that_leaves_closes_the_models_stream_at_once() -> None:
    closed: list[Any] = []

    class Endless(Fake):
        async def stream_response(self, *args: Any, **named: Any) -> Any:
            self.opened_by = asyncio.current_task()
            try:
                async for event in super().stream_response(*args, **named):
                    yield event
                    await asyncio.Event().wait()
            finally:
                closed.append(asyncio.current_task() is self.opened_by)

    with durable_session("s"):
        result = Runner.run_streamed(Agent(name="A", model=Endless("Hello")), "hi")
        async for event in result.stream_events():
            if event.type == "raw_response_event":
                result.cancel()
    await asyncio.gather(result.run_loop_task, return_exceptions=True)  # type: ignore[arg-type]
    assert closed == [True]


# Watching, misuse and what is refused


async def test_what_a_watcher_raises_is_logged_once_and_is_nobodys_result(caplog: pytest.LogCaptureFixture) -> None:
    def raises(event: Any) -> None:
        raise ConnectionError("the browser has gone")

    agent = Agent(name="A", model=Fake([("charge", {})], "done"), tools=[tool("charge", "charged")])
    with durable_session("s", on_event=raises):
        result = await Runner.run(agent, "go")
    assert told(result) == ["charged"]
    assert happened == ["charge"]
    assert caplog.text.count("the browser has gone") >= 1
    assert len([record for record in caplog.records if record.name == "nexum_agents"]) == 1


async def test_a_slow_watcher_holds_up_no_run_and_hears_of_everything_in_order(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "HELD_SECONDS", 0.05)
    looks, heard = threading.Event(), list[str]()
    asks = contextvars.ContextVar("asks", default="")

    def watch(event: Any) -> None:
        looks.wait(PATIENCE_SECONDS)
        heard.append(f"{asks.get()} {event.kind}")

    asks.set("ann")
    with durable_session("s", on_event=watch):
        result = await Runner.run(Agent(name="A", model=Fake([("look", {})], "done"), tools=[tool("look")]), "go")
    assert (result.final_output, heard) == ("done", [])
    looks.set()
    expected = [f"ann {kind}" for kind in ("started", "stored", "started", "stored", "started", "stored")]
    await eventually(lambda: heard == expected)
    assert caplog.text.count("on_event is slow") == 1


async def test_a_quick_watcher_hears_of_each_event_before_the_run_goes_on() -> None:
    order: list[str] = []

    async def look() -> str:
        order.append("the tool runs")
        return "seen"

    agent = Agent(name="A", model=Fake([("look", {})], "done"), tools=[function_tool(look)])
    with durable_session("s", on_event=lambda event: order.append(f"{type(event).__name__} {event.kind}")):
        await Runner.run(agent, "go")
        order.append("the run has ended")
    turn, call = ["TurnEvent started", "TurnEvent stored"], ["CallEvent started", "the tool runs", "CallEvent stored"]
    assert order == [*turn, *call, *turn, "the run has ended"]


async def test_a_watcher_that_looks_for_an_event_loop_is_told_how_to_reach_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def watch(event: Any) -> None:
        asyncio.get_running_loop()

    with durable_session("s", on_event=watch):
        await durable_step("look", asyncio.sleep, 0)
    assert "asyncio.run_coroutine_threadsafe" in caplog.text


async def test_a_watcher_with_too_much_to_hear_loses_what_comes_then_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "HELD_SECONDS", 0.05)
    monkeypatch.setattr(watching, "MAX_WAITING", 3)
    looks = threading.Event()
    heard: list[str] = []

    def watch(event: Any) -> None:
        looks.wait(PATIENCE_SECONDS)
        heard.append(event.kind)

    with durable_session("s", on_event=watch):
        for number in range(4):
            await durable_step(f"step {number}", asyncio.sleep, 0)
        looks.set()
        await eventually(lambda: len(heard) == 4)  # the one that it heard, and three
        await durable_step("the last", asyncio.sleep, 0)
        await eventually(lambda: len(heard) == 6)
    assert caplog.text.count("loses those that come now") == 1


async def test_what_a_slow_watcher_has_still_to_hear_is_told_before_the_process_ends(address: str) -> None:
    code = """
        import asyncio, time
        from nexum_agents import durable_session, durable_step

        def watch(event):
            time.sleep(0.1)
            print(event.kind, flush=True)

        async def look() -> str:
            return "seen"

        async def main() -> None:
            with durable_session("s", on_event=watch):
                for number in range(4):
                    await durable_step(f"step {number}", look)
                print("the session has ended", flush=True)

        asyncio.run(main())
    """
    environment = os.environ | ({"NEXUM_ADDRESS": address} if address else {})
    run = partial(subprocess.run, env=environment, capture_output=True, text=True, check=True)
    ran = await asyncio.to_thread(run, [sys.executable, "-c", textwrap.dedent(code)])
    lines = ran.stdout.split("\n")[:-1]
    assert sorted(lines) == sorted(["the session has ended", *["started", "stored"] * 4])
    assert lines[-1] != "the session has ended"


async def test_a_name_in_effects_that_no_tool_has_is_said(caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent(name="A", model=Fake([("charge", {})], "done"), tools=[tool("charge")])
    with durable_session("s", effects={"chargee": "once", "refund": "once"}):
        await Runner.run(agent, "go")
    said = [record.getMessage() for record in caplog.records if record.name == "nexum_agents"]
    assert said == [
        "effects names 'chargee', but no tool has that name. Did you mean 'charge'?",
        "effects names 'refund', but no tool with that name was there. The tools were charge.",
    ]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: durable_session("a b"), DurableCallError, "must be 1 to 64 characters of"),
        (lambda: durable_session(None), DurableCallError, "must be 1 to 64 characters of"),  # type: ignore[arg-type]
        (lambda: durable_session("s", effects={"x": "twice"}), ValueError, "it can be read, idempotent, once, replay"),  # type: ignore[dict-item]
        (lambda: durable_session("s", on_event=_watches), TypeError, "a plain function"),  # type: ignore[arg-type]
        (lambda: durable_session("s", on_event="print"), TypeError, "a plain function"),  # type: ignore[arg-type]
        (lambda: durable_session("s", effects=["x"]), TypeError, "it must name tools"),  # type: ignore[arg-type]
        (lambda: durable_step("book", _watches(None)), TypeError, "the function and its arguments"),  # type: ignore[call-overload]
        (lambda: durable_step("book", len, [], effect="twice"), ValueError, "it can be read, idempotent, once"),  # type: ignore[call-overload]
        (lambda: durable_step(len, [1]), TypeError, "A step has a name before its function"),  # type: ignore[call-overload]
    ],
)
async def test_misuse_is_said_before_anything_runs(make: Callable[[], Any], error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        make()


async def _watches(event: Any) -> None: ...


def test_a_session_that_is_made_and_never_entered_is_said_as_a_coroutine_that_is_never_awaited() -> None:
    def forget() -> None:
        durable_session("s")
        gc.collect()

    with pytest.warns(RuntimeWarning, match=r"durable_session\('s'\) was never entered") as warned:
        forget()
    assert warned[0].filename == __file__
    assert warned[0].lineno == forget.__code__.co_firstlineno + 1


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("submit_tool_call", lambda: submit_tool_call("look_up", {}, "s")),
        ("durable_step", lambda: durable_step("look up", len, [])),
        ("ask_person", lambda: ask_person("Which account?")),
        ("stop_session", lambda: stop_session("s")),
    ],
)
def test_a_call_that_is_never_awaited_is_said_under_its_own_name(name: str, call: Callable[[], object]) -> None:
    def forget() -> None:
        call()
        gc.collect()

    with pytest.warns(RuntimeWarning, match=f"coroutine '{name}' was never awaited"):
        forget()


async def test_a_tool_that_returns_what_it_should_await_ends_the_run_and_is_not_recorded() -> None:
    def look(result: Any) -> FunctionTool:
        return tool("look", result)

    async def found() -> str:
        return "found"

    model = Fake([("look", {})], lambda results: results[0])
    for forgotten in (lambda: submit_tool_call("look_up", {}, "s"), found):
        with pytest.raises((UserError, ToolError), match=r"It returned a coroutine\. Write `await` before .*\(…\)\."):
            await ask(Agent(name="A", model=model, tools=[look(forgotten)]))
    with pytest.raises(ToolError, match=r"before submit_tool_call\(…\)"), durable_session("s"):
        await durable_step("look", look_without_awaiting)
    assert (await ask(Agent(name="A", model=model, tools=[look("found")]))).final_output == "found"


async def look_without_awaiting() -> Any:
    return submit_tool_call("look_up", {}, "s")


async def test_what_cannot_be_recorded_is_refused_by_name_before_it_does_anything() -> None:
    from agents.realtime import RealtimeAgent

    model = Fake("done")
    sandbox = SandboxAgent(name="box", model=model)
    for agent in (
        sandbox,
        Agent(name="A", model=model, handoffs=[sandbox]),
        Agent(name="A", model=model, handoffs=[handoff(sandbox)]),
    ):
        with pytest.raises(DurableCallError, match=r"'box' cannot run in a durable session: it is a SandboxAgent"):
            await ask(agent)
    with pytest.raises(DurableCallError, match=r"A RealtimeAgent cannot run in a durable session"):
        await ask(RealtimeAgent(name="R"))  # type: ignore[arg-type]
    assert model.asked == 0


async def test_a_kind_of_run_that_goes_both_ways_at_once_is_refused() -> None:
    from agents.realtime import RealtimeAgent, RealtimeRunner

    with durable_session("s"), pytest.raises(DurableCallError, match="A RealtimeRunner cannot run in a durable sess"):
        await RealtimeRunner(RealtimeAgent(name="R")).run()


async def test_a_session_with_no_server_says_so_and_asks_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    await nexum_client().close()
    monkeypatch.setattr("nexum_agents.clients._clients", type(__import__("weakref").WeakKeyDictionary())())
    monkeypatch.setenv("NEXUM_ADDRESS", "localhost:1")
    model = Fake("done")
    with pytest.raises(DurableCallError, match="No Nexum server answers at localhost:1"):
        await ask(Agent(name="A", model=model))
    assert model.asked == 0


async def test_a_block_may_be_left_in_another_context_than_it_was_entered_in() -> None:
    async def entered() -> Any:
        with durable_session("s"):
            yield

    block = entered()
    await contextvars.copy_context().run(asyncio.ensure_future, anext(block))
    await block.aclose()
    model = Fake("done")
    await Runner.run(Agent(name="A", model=model), "go")
    await Runner.run(Agent(name="A", model=model), "go")
    assert model.asked == 2


async def test_outside_of_a_session_nothing_is_recorded(client: Client) -> None:
    agent = Agent(name="A", model=Fake([("look", {})], "done"), tools=[tool("look")])
    await ask(agent)
    before = await client.executions("", limit=100)
    await Runner.run(agent, "go")
    assert len(await client.executions("", limit=100)) == len(before)


# Steps, and tools that run again


async def test_a_step_is_run_once_wherever_it_is_made_and_keeps_its_type() -> None:
    @durable_step
    async def book(city: str) -> Weather:
        happened.append(city)
        return Weather(city=city)

    @function_tool
    async def travel(city: str) -> str:
        booked = await book(city)
        assert isinstance(booked, Weather)
        drawn = await durable_step("draw", happened.__len__)
        return f"{booked.city} {drawn}"

    agent = Agent(name="A", model=Fake([("travel", {"city": "Rome"})], lambda results: results[0]), tools=[travel])
    for _ in range(2):
        with durable_session("s", effects={"travel": "replay"}):
            beside = await durable_step("beside", book, "Oslo")
            assert (await Runner.run(agent, "go")).final_output == "Rome 2"
        assert beside == Weather(city="Oslo")
    assert happened == ["Oslo", "Rome"]


async def test_a_tool_with_replay_runs_in_every_run_for_what_it_does_to_the_context() -> None:
    @function_tool
    def update_seat(context: RunContextWrapper[dict[str, str]], seat: str) -> str:
        context.context["seat"] = seat
        return "updated"

    agent = Agent[dict[str, str]](name="A", model=Fake([("update_seat", {"seat": "12A"})], "done"), tools=[update_seat])
    for _ in range(2):
        context: dict[str, str] = {}
        with durable_session("s", effects={"update_seat": "replay"}):
            await Runner.run(agent, "go", context=context)
        assert context == {"seat": "12A"}


async def test_a_step_that_happens_once_and_failed_is_not_run_again(client: Client) -> None:
    async def charge() -> None:
        happened.append("charge")
        raise ValueError("declined")

    with durable_session("s"), pytest.raises(ValueError, match="declined"):
        await durable_step("charge", charge, effect="once")
    with durable_session("s"), pytest.raises(ToolFailed, match="declined"):
        await durable_step("charge", charge, effect="once")
    assert happened == ["charge"]
    assert issubclass(OutcomeUnknown, ToolFailed)


async def test_what_a_step_raises_ends_the_run_when_its_tool_tells_the_model_of_no_failure() -> None:
    async def charge() -> None:
        happened.append("charge")
        raise ValueError("declined")

    @function_tool(failure_error_function=None)
    async def pay() -> str:
        await durable_step("charge", charge, effect="once")
        return "paid"

    model = Fake([("pay", {})], "done")
    for _ in range(2):
        with pytest.raises((UserError, ToolFailed), match="declined"):
            await ask(Agent(name="A", model=model, tools=[pay]))
    assert (happened, model.asked) == (["charge"], 1)


async def test_a_step_inside_of_a_tool_that_may_have_happened_is_told_as_that_and_is_not_recorded(
    client: Client,
) -> None:
    async def charge() -> str:
        happened.append("charge")
        raise ToolError("No answer came.", unknown=True)

    @function_tool
    async def pay() -> str:
        return await durable_step("charge", charge, effect="once")

    model = Fake([("pay", {})], lambda results: results[0])
    agent = Agent(name="A", model=model, tools=[pay])
    for _ in range(3):
        with durable_session("s") as session:
            answer = (await Runner.run(agent, "go")).final_output
        assert answer.startswith(
            "This call of charge may or may not have run. Assume neither, and do not make it again"
        )
    assert session.saved.calls == 0
    (step,) = await client.executions("s/charge/")
    await client.resolve(step.execution_id, "result", json.dumps("paid"))
    assert (await ask(agent)).final_output == "paid"
    assert happened == ["charge"]


async def test_without_durable_turns_the_calls_alone_are_recorded() -> None:
    model = Fake([("look", {})], "done")
    agent = Agent(name="A", model=model, tools=[tool("look")])
    for _ in range(2):
        with durable_session("s", turns=False):
            await Runner.run(agent, "go")
    assert (model.asked, happened) == (4, ["look"])


# Threads and loops


async def test_two_blocks_of_one_session_at_a_time_share_what_is_recorded() -> None:
    model = Fake([("look", {})], "done", delay=0.05)
    agent = Agent(name="A", model=model, tools=[tool("look")])
    first, second = await asyncio.gather(ask(agent), ask(agent))
    assert first.final_output == second.final_output == "done"
    assert (model.asked, happened) == (2, ["look"])


async def test_a_run_in_a_thread_that_has_no_session_is_said_to_be_in_none(caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent(name="A", model=Fake("done"))
    with durable_session("s"):
        thread = threading.Thread(target=lambda: asyncio.run(Runner.run(agent, "go")), name="Elsewhere")
        thread.start()
        thread.join()
        await asyncio.to_thread(lambda: asyncio.run(Runner.run(agent, "go")))
    (said,) = [record.getMessage() for record in caplog.records if record.name == "nexum_agents"]
    assert said.startswith("A run in thread Elsewhere is recorded in no session, while session 's' is open in another")


async def test_runs_in_threads_and_with_run_sync_are_recorded() -> None:
    model = Fake([("look", {})], "done")
    agent = Agent(name="A", model=model, tools=[tool("look")])
    answers: list[str] = []

    def run(session_id: str) -> None:
        with durable_session(session_id):
            answers.append(Runner.run_sync(agent, "go").final_output)
        asyncio.get_event_loop_policy().get_event_loop().close()  # which `run_sync` has left open

    for _ in range(2):
        threads = [threading.Thread(target=run, args=(f"s{n}",)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
    assert answers == ["done"] * 6
    assert (model.asked, happened) == (6, ["look"] * 3)
