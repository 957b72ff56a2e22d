"""Tests like those of the SDK, for the harness itself: their names say what it is to find. See test_harness.py."""

import itertools
from typing import Any

import agents.tool
import pytest
from agents import Agent, Runner, function_tool
from agents.run_internal import run_loop, tool_execution, turn_preparation
from agents.testing import ScriptedModel, assistant_message, function_call

answers, passes = itertools.count(1), itertools.count(1)


def agent(answer: str = "Sunny.") -> Agent[Any]:
    @function_tool
    def weather(city: str) -> str:
        """The weather in a city."""
        return f"The sun shines in {city}."

    steps = [[function_call("weather", {"city": "Rome"}, call_id="c1")], [assistant_message(answer)]]
    return Agent(name="forecaster", tools=[weather], model=ScriptedModel(steps))


async def test_sound() -> None:
    result = await Runner.run(agent(), "How is Rome?")
    assert result.final_output == "Sunny."


async def test_sound_streamed() -> None:
    result = Runner.run_streamed(agent(), "How is Rome?")
    assert [event async for event in result.stream_events()]


def test_sound_sync() -> None:
    assert Runner.run_sync(agent(), "How is Rome?").final_output == "Sunny."


async def test_replay_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_loop, "get_model", turn_preparation.get_model)
    await Runner.run(agent(), "How is Rome?")


async def test_replay_executes(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_invoke = agents.tool._invoke_function_tool_with_metadata
    monkeypatch.setattr(tool_execution, "_invoke_function_tool_with_metadata", plain_invoke)
    await Runner.run(agent(), "How is Rome?")


async def test_differs() -> None:
    await Runner.run(agent(f"Sunny, says number {next(answers)}."), "How is Rome?")


def test_fails_in_a_session() -> None:
    from nexum_agents.sessions import current_scope

    assert current_scope() is None


def test_passes_only_once() -> None:
    assert next(passes) == 1


def test_fails_plain() -> None:
    pytest.fail("as it is")
