"""The stand-in for the model APIs, asked by the real clients: the Agents SDK with `openai`, and with litellm."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import openai
import pytest
from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    Tool,
    function_tool,
)
from agents.items import ToolCallItem, TResponseStreamEvent
from agents.result import RunResultBase
from model_server import Answer, Asked, Call, Failure, Hold, ModelServer, research
from openai.types.responses import ResponseFunctionToolCall
from processes import eventually

import tools

APIS = ("responses", "chat")
TEXT = "So long a text comes in many pieces."


@function_tool
def roll_dice(sides: int) -> str:
    """Roll a die."""
    return f"{sides} of {sides}"


def roll_twice(asked: Asked) -> Answer:
    if not asked.outputs:
        return ["Rolling. ", Call("roll_dice", {"sides": 6}), Call("roll_dice", {"sides": 20})]
    return f"You rolled {' and '.join(asked.outputs)}, says {asked.token} 🎲"


@asynccontextmanager
async def model_of(api: str, server: ModelServer, patch: pytest.MonkeyPatch) -> AsyncIterator[Model]:
    for name, value in server.environment.items():
        patch.setenv(name, value)
    if api == "gemini":
        from agents.extensions.models.litellm_model import LitellmModel

        yield LitellmModel("gemini/gemini-3.8-flash")
        return
    async with openai.AsyncOpenAI(max_retries=1) as client:
        kind = OpenAIResponsesModel if api == "responses" else OpenAIChatCompletionsModel
        yield kind("gpt-stand-in", client)


async def ask(model: Model, events: list[TResponseStreamEvent] | None = None, *others: Tool) -> RunResultBase:
    """One run of an agent, streamed into `events` if they are given."""
    settings = ModelSettings(include_usage=True)
    agent = Agent("Roller", instructions="Roll.", tools=[roll_dice, *others], model=model, model_settings=settings)
    if events is None:
        return await Runner.run(agent, "Roll two dice.")
    streaming = Runner.run_streamed(agent, "Roll two dice.")
    async for event in streaming.stream_events():
        if event.type == "raw_response_event":
            events.append(event.data)
    return streaming


def deltas(events: list[TResponseStreamEvent], of: str) -> str:
    return "".join(getattr(event, "delta", "") for event in events if event.type == f"response.{of}.delta")


def calls(result: RunResultBase) -> list[ResponseFunctionToolCall]:
    items = [item.raw_item for item in result.new_items if isinstance(item, ToolCallItem)]
    return [item for item in items if isinstance(item, ResponseFunctionToolCall)]


@pytest.mark.parametrize("api", [*APIS, "gemini"])
async def test_every_run_of_an_agent_ends_well_and_no_answer_comes_twice(
    api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[TResponseStreamEvent] = []
    with ModelServer(roll_twice) as server:
        async with model_of(api, server, monkeypatch) as model:
            results = [await ask(model), await ask(model), await ask(model, events)]

    requests = server.requests
    assert [(asked.number, asked.api) for asked in requests] == [(number, api) for number in range(6)]
    assert [asked.streamed for asked in requests] == [False] * 4 + [True] * 2
    assert [asked.outputs for asked in requests] == [[], ["6 of 6", "20 of 20"]] * 3
    assert {(asked.user, *asked.tools) for asked in requests} == {("Roll two dice.", "roll_dice")}
    if api != "gemini":
        assert {(asked.model, asked.instructions) for asked in requests} == {("gpt-stand-in", "Roll.")}
    for result, asked in zip(results, requests[1::2], strict=True):
        assert result.final_output == f"You rolled 6 of 6 and 20 of 20, says {asked.token} 🎲"
        assert [call.arguments for call in calls(result)] == ['{"sides": 6}', '{"sides": 20}']
        assert result.context_wrapper.usage.requests == 2
        assert all(response.usage.total_tokens > 100 for response in result.raw_responses)
    assert len({call.call_id for result in results for call in calls(result)}) == 6

    assert deltas(events, "output_text") == f"Rolling. {results[2].final_output}"
    assert deltas(events, "function_call_arguments") == '{"sides": 6}{"sides": 20}'


@pytest.mark.parametrize("api", APIS)
async def test_the_outputs_of_an_earlier_question_are_not_seen(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ModelServer(roll_twice) as server:
        async with model_of(api, server, monkeypatch) as model:
            first = await ask(model)
            agent = Agent("Roller", tools=[roll_dice], model=model)
            await Runner.run(agent, [*first.to_input_list(), {"role": "user", "content": "Again."}])
    assert [asked.user for asked in server.requests] == ["Roll two dice."] * 2 + ["Again."] * 2
    assert [len(asked.outputs) for asked in server.requests] == [0, 2] * 2


async def test_a_responses_stream_numbers_its_events_and_keeps_its_reasoning_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[TResponseStreamEvent] = []
    with ModelServer(roll_twice) as server:
        async with model_of("responses", server, monkeypatch) as model:
            result = await ask(model, events)
    numbers = [event.sequence_number for event in events]
    assert all(after == before + 1 or after == 0 for before, after in pairwise(numbers))
    assert numbers.count(0) == 2
    reasoning = result.raw_responses[0].output[0].model_dump()
    assert reasoning["encrypted_content"]
    assert server.requests[1].body["input"][1]["encrypted_content"] == reasoning["encrypted_content"]


@pytest.mark.parametrize("events", [None, []], ids=["whole", "streamed"])
@pytest.mark.parametrize("api", APIS)
async def test_a_failure_is_the_clients_error(
    api: str, events: list[TResponseStreamEvent] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ModelServer(lambda _: Failure(401, "That key is not known.")) as server:
        async with model_of(api, server, monkeypatch) as model:
            with pytest.raises(openai.AuthenticationError, match=r"That key is not known\."):
                await ask(model, events)
    assert len(server.requests) == 1


async def test_a_failure_can_say_when_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Failure(429, "Busy.", retry_after=0.01)
    with ModelServer(lambda asked: "Now." if asked.number else busy) as server:
        async with model_of("responses", server, monkeypatch) as model:
            assert (await ask(model)).final_output == "Now."
    assert len(server.requests) == 2


async def test_a_script_that_fails_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with ModelServer(lambda asked: asked.outputs[0]) as server:
        async with model_of("chat", server, monkeypatch) as model:
            with pytest.raises(openai.BadRequestError, match="list index out of range"):
                await ask(model)
    assert len(server.requests) == 1


@pytest.mark.parametrize("api", APIS)
async def test_an_answer_is_held_until_it_is_released(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Hold(TEXT)
    with ModelServer(lambda asked: "Not held." if asked.number else hold) as server:
        async with model_of(api, server, monkeypatch) as model:
            asking = asyncio.create_task(ask(model))
            await eventually(hold.reached.is_set, "a held answer")
            assert len(server.requests) == 1
            assert (await ask(model)).final_output == "Not held."
            assert not asking.done()
            hold.released.set()
            assert (await asking).final_output == TEXT


@pytest.mark.parametrize("api", APIS)
async def test_a_stream_is_held_after_some_deltas(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, events = Hold(TEXT, deltas=2), list[TResponseStreamEvent]()
    with ModelServer(lambda _: hold) as server:
        async with model_of(api, server, monkeypatch) as model:
            asking = asyncio.create_task(ask(model, events))
            await eventually(lambda: hold.reached.is_set() and len(deltas(events, "output_text")) >= 24, "two deltas")
            assert deltas(events, "output_text") == TEXT[:24]
            assert not asking.done()
            hold.released.set()
            assert (await asking).final_output == TEXT


async def test_a_client_that_goes_in_mid_stream_takes_nothing_with_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hold = Hold(TEXT * 100, deltas=1)
    with ModelServer(lambda asked: TEXT if asked.number else hold) as server:
        async with model_of("responses", server, monkeypatch) as model:
            asking = asyncio.create_task(ask(model, []))
            await eventually(hold.reached.is_set, "a held answer")
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
            hold.released.set()
            assert (await ask(model)).final_output == TEXT
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("deltas", [0, 1])
async def test_a_server_that_closes_breaks_off_what_it_holds(
    deltas: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hold = Hold(TEXT, deltas)
    server = ModelServer(lambda _: hold)
    async with model_of("responses", server, monkeypatch) as model:
        asking = asyncio.create_task(ask(model, []))
        await eventually(hold.reached.is_set, "a held answer")
        server.close()
        with pytest.raises(openai.APIConnectionError):
            await asking
    assert capfd.readouterr().err == ""


async def test_the_research_script_searches_reads_and_answers_in_new_words_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OFFLINE_WEB_DELAY_MS", "0")
    web = [function_tool(tools.web_search), function_tool(tools.visit_webpage)]
    with ModelServer(research) as server:
        async with model_of("responses", server, monkeypatch) as model:
            first, second = await ask(model, None, *web), await ask(model, None, *web)
    assert [len(asked.outputs) for asked in server.requests] == [0, 2, 4] * 2
    assert [call.name for call in calls(first)] == ["web_search"] * 2 + ["visit_webpage"] * 2
    pages = server.requests[2].outputs[2:]
    assert pages[0] != pages[1]
    assert all(page.startswith("# ") for page in pages)
    assert {call.arguments for call in calls(first)[:2]}.isdisjoint(call.arguments for call in calls(second)[:2])
    assert first.final_output != second.final_output
