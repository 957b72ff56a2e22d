"""Runs that workers execute, consumed by code that was written for `run_streamed`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import Agent, ItemHelpers, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from openai.types.responses import ResponseTextDeltaEvent
from processes import eventually
from test_following import Speaking, Watching, says
from test_started_runs import working

from nexum_agents import DurableCallError, RunFailed, start_run
from nexum_agents.streaming import Streamed


@pytest.fixture(autouse=True)
def _address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", address)


async def consumed(events: AsyncIterator[Any], found: list[Any] | None = None) -> list[Any]:
    """As the SDK's examples stream_text.py and stream_items.py consume events."""
    found = [] if found is None else found
    async for event in events:
        if event.type == "raw_response_event":
            if isinstance(event.data, ResponseTextDeltaEvent):
                found.append(("word", event.data.delta))
        elif event.type == "agent_updated_stream_event":
            found.append(("agent", event.new_agent.name))
        elif event.item.type == "tool_call_output_item":
            found.append((event.name, event.item.agent.name, event.item.call_id, event.item.output))
        elif event.item.type == "message_output_item":
            found.append((event.name, event.item.agent.name, ItemHelpers.text_message_output(event.item)))
        else:
            found.append((event.name, event.item.agent.name, event.item.type))
    return found


def words_of(found: list[Any]) -> str:
    return "".join(each[1] for each in found if each[0] == "word")


@function_tool
async def search(what: str) -> str:
    return f"found {what}"


def scripted(*turns: Any) -> ScriptedModel:
    return ScriptedModel(list(turns) * 2)


def the_agents() -> Agent[Any]:
    """One that calls two tools, of which one is an agent, and hands over to another one."""
    helper = Agent[Any](name="Helper", model=scripted([assistant_message("not for the consumer")]))
    writer = Agent[Any](name="Writer", model=scripted([assistant_message("All is written.")]))
    help = function_call("help_me", '{"input": "y"}', call_id="2")
    first = [function_call("search", '{"what": "x"}', call_id="1"), help]
    model = scripted(first, [function_call("transfer_to_writer", "{}", call_id="3")])
    tools: list[Any] = [search, helper.as_tool("help_me", "Helps.")]
    return Agent(name="Researcher", model=model, tools=tools, handoffs=[writer])


async def test_code_for_run_streamed_is_told_the_same_of_a_run_that_is_elsewhere() -> None:
    expected = await consumed(Runner.run_streamed(the_agents(), "go").stream_events())
    agent = the_agents()
    run = await start_run(agent, "go", session_id="s1")
    async with working(agent):
        live = await asyncio.wait_for(consumed(run.stream_events()), 60)
    later = await asyncio.wait_for(consumed(run.stream_events()), 60)
    for found in (live, later):
        assert words_of(found) == words_of(expected) == "All is written."
        in_order = [each for each in expected if each[0] not in ("word", "tool_output")]
        assert [each for each in found if each[0] not in ("word", "tool_output")] == in_order
        outputs = sorted(each for each in expected if each[0] == "tool_output")
        assert sorted(each for each in found if each[0] == "tool_output") == outputs


async def test_words_are_told_as_they_are_said_and_once() -> None:
    model = Speaking()
    async with working(agent := Agent[Any](name="A", model=model)):
        run = await start_run(agent, "go", session_id="s1")
        told: list[Any] = []
        consuming = asyncio.create_task(consumed(run.stream_events(), told))
        model.go_on(2)
        await eventually(lambda: words_of(told) == "Durable execution")
        model.go_on()
        await asyncio.wait_for(consuming, 60)
    assert words_of(told) == model.text


async def test_words_of_an_agent_that_is_a_tool_are_not_told_but_those_after_it_are() -> None:
    inner, model = Speaking("between us"), Speaking("for all")
    helper = Agent[Any](name="Helper", model=inner)
    ask = [function_call("help_me", '{"input": "y"}', call_id="1")]
    hand_over = [function_call("transfer_to_last", "{}", call_id="2")]
    tool = helper.as_tool("help_me", "Helps.", on_stream=lambda _: None)  # so it is streamed
    last = Agent[Any](name="Last", model=model)
    front = Agent[Any](name="Front", model=scripted(ask, hand_over), tools=[tool], handoffs=[last])
    async with working(front):
        run = await start_run(front, "go", session_id="s1")
        told: list[Any] = []
        consuming = asyncio.create_task(consumed(run.stream_events(), told))
        inner.go_on(1)
        heard = Watching()
        await says(heard, "between")
        inner.go_on()
        model.go_on(1)
        await eventually(lambda: words_of(told) == "for")
        model.go_on()
        await asyncio.wait_for(consuming, 60)
        await heard.leave()
    assert words_of(told) == "for all"


async def test_a_run_that_fails_raises_in_its_stream() -> None:
    loop = [[function_call("search", '{"what": "x"}', call_id=str(number))] for number in range(3)]
    async with working(agent := Agent[Any](name="A", model=scripted(*loop), tools=[search])):
        run = await start_run(agent, "go", session_id="s1", max_turns=2)
        with pytest.raises(RunFailed, match="Max turns"):
            await asyncio.wait_for(consumed(run.stream_events()), 60)


async def test_two_runs_at_a_time_in_one_session_are_refused_in_a_sentence() -> None:
    first, second = Speaking(), Speaking()
    async with working(a := Agent[Any](name="A", model=first), b := Agent[Any](name="B", model=second), concurrency=2):
        runs = [await start_run(each, "go", session_id="s1") for each in (a, b)]
        await eventually(lambda: first.asked and second.asked)
        with pytest.raises(DurableCallError, match="Two runs are under way in session s1"):
            await asyncio.wait_for(consumed(runs[0].stream_events()), 60)
        first.go_on()
        second.go_on()
        assert [(await run.result()).final_output for run in runs] == [first.text, second.text]


def _words(text: str, *, anew: bool = False, skipped: int = 0) -> dict[str, Any]:
    return {"execution_id": "s1/t/0", "words": text, "anew": anew, "skipped": skipped}


def _told(*heard: dict[str, Any], recorded: Any = None) -> str:
    told = Streamed(Agent(name="A"))
    events: list[Any] = [event for each in heard for event in told.hear(each)]
    if recorded is not None:
        events += told.answered("s1/t/0", recorded)
    raw = [each.data for each in events if each.type == "raw_response_event"]
    return "".join(each.delta for each in raw if isinstance(each, ResponseTextDeltaEvent))


async def test_no_word_is_told_twice_or_left_out_when_a_turn_is_asked_again_or_words_are_skipped() -> None:
    recorded = [event async for event in _answer("one two three")]
    assert _told(_words("one two", anew=True), _words("one", anew=True), _words(" two three")) == "one two three"
    assert _told(_words("one", anew=True), _words("three", skipped=5), recorded=recorded) == "one two three"
    assert _told(_words("one", anew=True), _words("once", anew=True)) == "one", "another answer waits for its end"
    assert _told(_words("else", anew=True), recorded=recorded) == "elseone two three"
    assert _told(recorded=recorded) == "one two three"


async def _answer(text: str) -> AsyncIterator[Any]:
    async for event in Runner.run_streamed(
        Agent(name="A", model=scripted([assistant_message(text)])), "go"
    ).stream_events():
        if event.type == "raw_response_event":
            yield event.data
