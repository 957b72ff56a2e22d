"""How a run ended is recorded and can be read anywhere, and what a session may use is counted over all its runs."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
from agents import (
    Agent,
    MaxTurnsExceeded,
    ModelResponse,
    Runner,
    ToolsToFinalOutputResult,
    Usage,
    UserError,
    function_tool,
)
from command import nexum as command
from pydantic import BaseModel, ConfigDict, ValidationError
from test_sessions import Fake, ask, asked, happened, told, tool

from nexum_agents import (
    DurableCallError,
    LimitReached,
    RunFailed,
    ToolError,
    Worker,
    durable_session,
    durable_tool,
    final_output,
    stop_session,
)
from nexum_agents.clients import nexum_client
from nexum_agents.errors import SessionStopped
from nexum_agents.sessions import DurableSession
from nexum_runtime import Client


class City(BaseModel):
    name: str
    inhabitants: int = 0


@pytest.fixture(autouse=True)
async def nexum(address: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setenv("NEXUM_ADDRESS", address)
    happened.clear()
    yield
    await nexum_client().close()


async def streamed(agent: Agent[Any], session_id: str = "s") -> Any:
    with durable_session(session_id):
        result = Runner.run_streamed(agent, "go")
        async for _ in result.stream_events():
            pass
        return result


async def ends(client: Client) -> int:
    found = await client.session("s")
    return found["recorded"].get("run", 0) if found else 0


async def state(client: Client) -> str:
    found = await client.session("s")
    return str(found and found["state"])


@pytest.mark.parametrize("run", [ask, streamed])
async def test_what_a_run_came_to_is_there_for_every_process_and_recorded_once(
    client: Client, address: str, run: Any
) -> None:
    agent = Agent(name="A", model=Fake([("search", {})], "answer"), tools=[tool("search")])
    for _ in range(3):
        assert (await run(agent)).final_output == "answer"
        assert await final_output("s") == "answer"
    assert await ends(client) == 1
    assert await state(client) == "COMPLETED"
    shown = await command(address, "show", "s", "--answer")
    assert (shown.code, shown.stdout) == (0, "answer\n")


async def test_a_run_with_another_prompt_that_comes_to_the_same_has_ended_too_and_is_not_waited_for(
    client: Client,
) -> None:
    for number, instructions in enumerate(("Be kind.", "Be brief.", "Be brief.")):
        model = Fake([("look", {})], "Milk is ordered.")
        await ask(Agent(name="A", instructions=instructions, model=model, tools=[tool("look")]))
        assert await final_output("s", timeout=5) == "Milk is ordered."
        assert await ends(client) == min(number + 1, 2)


async def test_a_run_that_was_killed_before_it_said_how_it_ended_says_so_when_it_is_run_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: Any) -> None:
        pass

    await ask(Agent(name="A", instructions="Be kind.", model=Fake("Milk is ordered.")))
    with monkeypatch.context() as killed:
        killed.setattr(DurableSession, "note_end", dies)
        await ask(Agent(name="A", instructions="Be brief.", model=Fake("Milk is ordered.")))
    assert await ends(client) == 1
    await ask(Agent(name="A", instructions="Be brief.", model=Fake()))
    assert await final_output("s", timeout=5) == "Milk is ordered."


async def test_an_output_type_is_had_again() -> None:
    await ask(Agent(name="A", model=Fake('{"name": "Ulm", "inhabitants": 7}'), output_type=City))
    assert await final_output("s") == {"name": "Ulm", "inhabitants": 7}
    assert await final_output("s", City) == City(name="Ulm", inhabitants=7)


async def test_a_run_that_failed_says_how_and_one_that_went_on_from_there_what_it_came_to(
    client: Client, address: str
) -> None:
    agent = Agent(name="A", model=Fake([("search", {})], "answer"), tools=[tool("search")])
    for count in (1, 2):
        with pytest.raises(MaxTurnsExceeded):
            await ask(agent, max_turns=1)
        with pytest.raises(RunFailed, match=r"The run of session s ended in an error: MaxTurnsExceeded: Max turns"):
            await final_output("s")
        assert await ends(client) == count
    shown = await command(address, "show", "s", "--answer")
    assert (shown.code, shown.stderr.count("\n")) == (1, 1)
    assert "The run ended in an error: MaxTurnsExceeded: Max turns" in shown.stderr
    assert await state(client) == "FAILED"
    await ask(agent)
    assert await final_output("s") == "answer"
    await ask(agent)
    assert await ends(client) == 3


async def test_an_agent_as_a_tool_has_no_end_of_its_own(client: Client) -> None:
    inner = Agent(name="Inner", model=Fake("found")).as_tool("search", "Search.")
    await ask(Agent(name="A", model=Fake([("search", {"input": "x"})], "answer"), tools=[inner]))
    assert await ends(client) == 1
    assert await final_output("s") == "answer"


async def test_a_run_that_goes_on_is_waited_for_and_one_that_is_cut_off_has_no_end(client: Client) -> None:
    agent = Agent(name="A", model=Fake("answer", delay=60.0))
    cut = asyncio.create_task(ask(agent))
    while not await client.executions("s/"):
        await asyncio.sleep(0)
    cut.cancel()
    await asyncio.wait([cut])
    assert await ends(client) == 0
    with pytest.raises(TimeoutError, match=r"No run of session s has ended\."):
        await final_output("s", wait=False)
    with pytest.raises(TimeoutError, match=r"The latest run of session s has not ended within 0\.2 s\."):
        await final_output("s", timeout=0.2)
    waiting = asyncio.create_task(final_output("s"))
    agent.model = Fake("answer")
    await ask(agent)
    assert await waiting == "answer"
    await ask(Agent(name="A", model=Fake("more")), input="another question")
    assert await final_output("s") == "more"


async def test_the_end_of_a_stopped_session_is_not_waited_for() -> None:
    agent = Agent(name="A", model=Fake([("search", {})], "answer"), tools=[tool("search")])
    await ask(agent)
    await stop_session("s")
    with pytest.raises(SessionStopped):
        await final_output("s")


async def test_show_answer_of_what_has_none_says_so(address: str, client: Client) -> None:
    await client.check()
    assert "No session 's' is known" in (await command(address, "show", "s", "--answer")).stderr


class Wordless:
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_an_output_that_cannot_be_recorded_is_the_runs_all_the_same(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    output = Wordless()
    agent = Agent(
        name="A",
        model=Fake([("search", {})]),
        tools=[tool("search")],
        output_type=City,
        tool_use_behavior=lambda context, results: ToolsToFinalOutputResult(is_final_output=True, final_output=output),
    )
    assert (await ask(agent)).final_output is output
    assert "How the run of A ended could not be recorded: " in caplog.text
    assert await ends(client) == 0


class Visit(BaseModel):
    model_config = ConfigDict(strict=True)
    at: datetime
    seen: tuple[str, ...]


async def test_a_strict_output_type_is_had_again_and_another_one_refused() -> None:
    answer = '{"at": "2026-01-02T03:04:05", "seen": ["Ulm"]}'
    visit = (await ask(Agent(name="A", model=Fake(answer), output_type=Visit))).final_output
    assert await final_output("s", Visit) == visit
    with pytest.raises(ValidationError):
        await final_output("s", City)


async def test_without_waiting_the_latest_run_that_ended_counts_though_another_one_was_cut_off(client: Client) -> None:
    await ask(Agent(name="A", model=Fake("answer")))
    cut = asyncio.create_task(ask(Agent(name="A", model=Fake("more", delay=60.0)), input="another question"))
    while len(await client.executions("s/")) < 3:
        await asyncio.sleep(0)
    cut.cancel()
    await asyncio.wait([cut])
    assert await final_output("s", wait=False) == "answer"
    with pytest.raises(TimeoutError, match=r"The latest run of session s has not ended within 0\.1 s\."):
        await final_output("s", timeout=0.1)


# Limits


def working() -> tuple[Agent[Any], Fake]:
    model = Fake(*([("search", {"n": n})] for n in range(3)), "answer")
    return Agent(name="A", model=model, tools=[tool("search")]), model


@pytest.mark.parametrize(
    ("limit", "words", "turns", "calls"),
    [
        ({"max_turns": 2}, "Session s has used 2 of 2 turns. Raise max_turns and run it again to go on.", 2, 2),
        ({"max_calls": 1}, "Session s has used 1 of 1 calls. Raise max_calls and run it again to go on.", 2, 1),
    ],
)
async def test_a_session_that_has_used_up_its_limit_ends_its_run_until_the_limit_is_raised(
    limit: dict[str, Any], words: str, turns: int, calls: int
) -> None:
    agent, model = working()
    for _ in range(3):
        with pytest.raises(LimitReached) as reached, durable_session("s", **limit):
            await Runner.run(agent, "go")
        assert str(reached.value) == words
        assert (asked(model), len(happened)) == (turns, calls)
    more: dict[str, Any] = dict.fromkeys(limit, 10)
    with durable_session("s", **more):
        assert len(told(await Runner.run(agent, "go"))) == 3
    assert (asked(model), len(happened)) == (4, 3)
    with durable_session("s", **limit):  # a replay uses nothing
        await Runner.run(agent, "go")


class Counting(Fake):
    """Each of its turns takes ten tokens."""

    async def get_response(self, *args: Any, **named: Any) -> ModelResponse:
        response = await super().get_response(*args, **named)
        response.usage = Usage(requests=1, total_tokens=10)
        return response


async def test_tokens_are_counted_over_all_runs() -> None:
    with durable_session("s", max_tokens=20):
        for n in range(2):
            await Runner.run(Agent(name="A", model=Counting("answer")), f"question {n}")
    with durable_session("s", max_tokens=20):
        await Runner.run(Agent(name="A", model=Counting()), "question 1")
        with pytest.raises(LimitReached, match="Session s has used 20 of 20 tokens"):
            await Runner.run(Agent(name="A", model=Counting()), "question 2")


async def test_a_limit_ends_the_run_also_inside_of_an_agent_as_a_tool() -> None:
    inner = Agent(name="Inner", model=Fake("found")).as_tool("search", "Search.")
    agent = Agent(name="A", model=Fake([("search", {"input": "x"})], "answer"), tools=[inner])
    with pytest.raises(LimitReached), durable_session("s", max_turns=1):
        await Runner.run(agent, "go")
    with durable_session("s", max_turns=3):
        assert (await Runner.run(agent, "go")).final_output == "answer"


def slow_calls(count: int) -> tuple[Agent[Any], Fake]:
    """An agent that makes so many calls at a time; each goes on after the others have begun."""

    async def look(n: int) -> str:
        happened.append(n)
        await asyncio.sleep(0.05)
        happened.append(f"{n} done")
        return f"seen {n}"

    model = Fake([("look", {"n": n}) for n in range(count)], "answer")
    return Agent(name="A", model=model, tools=[function_tool(look)]), model


async def test_calls_side_by_side_use_no_more_than_the_limit_and_none_of_them_is_made_twice() -> None:
    agent, model = slow_calls(5)
    for limit, made in ((2, 2), (2, 2), (4, 4)):
        with (
            pytest.raises(LimitReached, match=f"has used {limit} of {limit} calls"),
            durable_session("s", max_calls=limit),
        ):
            await Runner.run(agent, "go")
        assert len(happened) == 2 * made, "what has begun is let finish"
    with durable_session("s", max_calls=5):
        assert sorted(told(await Runner.run(agent, "go"))) == [f"seen {n}" for n in range(5)]
    assert (len(happened), asked(model)) == (10, 2)


async def test_a_call_that_is_not_recorded_uses_nothing() -> None:
    async def fail() -> str:
        raise ValueError("no luck")

    failing = Agent(name="A", model=Fake([("fail", {})]), tools=[function_tool(fail, failure_error_function=None)])
    searching = Agent(name="B", model=Fake([("search", {})], "answer"), tools=[tool("search")])
    with durable_session("s", max_calls=1):
        with pytest.raises(UserError, match="no luck"):
            await Runner.run(failing, "go")
        assert (await Runner.run(searching, "go")).final_output == "answer"


async def test_agents_side_by_side_that_reach_a_limit_end_their_run_when_what_they_do_is_recorded() -> None:
    models = [Fake([("look", {"n": n})], "found", delay=0.02 * n) for n in range(3)]

    async def look(n: int) -> str:
        happened.append(n)
        await asyncio.sleep(0.05)
        return "seen"

    inner = [Agent(name=f"I{n}", model=model, tools=[function_tool(look)]) for n, model in enumerate(models)]
    model = Fake([(f"ask_{n}", {"input": "x"}) for n in range(3)], "answer")
    agent = Agent(name="A", model=model, tools=[each.as_tool(f"ask_{n}", "Ask.") for n, each in enumerate(inner)])
    for limit in range(1, 8):
        with pytest.raises(LimitReached), durable_session("s", max_turns=limit):
            await asyncio.wait_for(Runner.run(agent, "go"), 30)
        assert asked(model, *models) == limit, "nothing is asked twice, and nothing too much"
    with durable_session("s", max_turns=8):
        assert (await Runner.run(agent, "go")).final_output == "answer"
    assert sorted(happened) == [0, 1, 2]


async def test_two_tools_side_by_side_that_reach_a_limit_inside_do_not_wait_for_each_other() -> None:
    async def ask_inside(n: int) -> str:
        happened.append(n)
        return str((await Runner.run(Agent(name=f"I{n}", model=Fake("found")), "x")).final_output)

    model = Fake([("ask_inside", {"n": n}) for n in range(2)], "answer")
    agent = Agent(name="A", model=model, tools=[function_tool(ask_inside)])
    with pytest.raises(LimitReached), durable_session("s", max_turns=1):
        await asyncio.wait_for(Runner.run(agent, "go"), 30)
    with durable_session("s", max_turns=4):
        assert (await Runner.run(agent, "go")).final_output == "answer"


async def test_a_call_inside_of_a_call_counts_as_one_more_and_is_not_waited_for_by_itself() -> None:
    inner = Agent(name="Inner", model=Fake([("look", {})], "found"), tools=[tool("look")])

    async def search() -> str:
        return str((await Runner.run(inner, "x")).final_output)

    agent = Agent(name="A", model=Fake([("search", {})], lambda results: results[0]), tools=[function_tool(search)])
    with pytest.raises(LimitReached, match="has used 1 of 1 calls"), durable_session("s", max_calls=1):
        await asyncio.wait_for(Runner.run(agent, "go"), 30)
    with durable_session("s", max_calls=2):
        assert (await Runner.run(agent, "go")).final_output == "found"
    assert happened == ["look"]


async def test_a_call_that_failed_is_replayed_also_where_the_limit_is_reached() -> None:
    async def fail() -> str:
        happened.append("fail")
        raise ToolError("it broke", retryable=False)

    tools: list[Any] = [durable_tool(fail), durable_tool(tool("search"))]
    worker = Worker(tools)
    working = asyncio.create_task(worker.run())
    try:
        for _ in range(2):
            model = Fake([("fail", {})], [("search", {})], "answer")
            with durable_session("s", max_calls=1):
                result = await Runner.run(Agent(name="A", model=model, tools=tools), "go")
            assert told(result) == ["it broke", "done"]
        assert happened == ["fail", "search"]
    finally:
        worker.stop()
        await working


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "3"])
def test_a_limit_that_is_none_is_refused_at_once(limit: Any) -> None:
    with pytest.raises(ValueError, match=r"max_turns is .+; it must be a whole number from 1 on\."):
        durable_session("s", max_turns=limit)


def asking_inside(effect: str, **options: Any) -> tuple[Agent[Any], dict[str, Any]]:
    """An agent whose tool runs another one, and what `durable_session` is told of that tool."""
    inner = Agent(name="Inner", model=Fake("found"))

    async def search() -> str:
        happened.append("search")
        return str((await Runner.run(inner, "x")).final_output)

    model = Fake([("search", {})], lambda results: results[0])
    return Agent(name="A", model=model, tools=[function_tool(search, **options)]), {"effects": {"search": effect}}


async def streamed_once(agent: Agent[Any]) -> Any:
    result = Runner.run_streamed(agent, "go")
    async for _ in result.stream_events():
        pass
    return result


@pytest.mark.parametrize("run", [lambda agent: Runner.run(agent, "go"), streamed_once])
@pytest.mark.parametrize("options", [{}, {"failure_error_function": None}])
async def test_a_limit_that_is_reached_inside_of_a_tool_is_not_recorded_as_its_result(
    run: Any, options: dict[str, Any]
) -> None:
    agent, effects = asking_inside("idempotent", **options)
    for _ in range(2):
        with pytest.raises(LimitReached), durable_session("s", max_turns=1, **effects):
            await run(agent)
    with durable_session("s", max_turns=3, **effects):
        assert (await run(agent)).final_output == "found"


async def test_a_tool_that_happens_once_is_not_called_again_after_a_limit_inside_of_it() -> None:
    agent, effects = asking_inside("once")
    with pytest.raises(LimitReached), durable_session("s", max_turns=1, **effects):
        await Runner.run(agent, "go")
    with durable_session("s", max_turns=3, **effects):
        answer = (await Runner.run(agent, "go")).final_output
    assert happened == ["search"]
    assert "may or may not have run" in answer
    assert "It was cut short: Session s has used 1 of 1 turns" in answer


async def test_what_a_tool_makes_of_the_end_of_its_run_is_no_result_of_it_either() -> None:
    inner = Agent(name="Inner", model=Fake("found"))

    async def search() -> str:
        try:
            return str((await Runner.run(inner, "x")).final_output)
        except DurableCallError:
            return "nothing"

    model = Fake([("search", {})], lambda results: results[0])
    agent = Agent(name="A", model=model, tools=[function_tool(search)])
    with pytest.raises(LimitReached), durable_session("s", max_turns=1):
        await Runner.run(agent, "go")
    with durable_session("s", max_turns=3):
        assert (await Runner.run(agent, "go")).final_output == "found"
