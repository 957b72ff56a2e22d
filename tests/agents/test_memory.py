"""The SDK's conversation memory in durable sessions: killed anywhere in a run, and used again by the next question."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, OpenAIConversationsSession, Runner, SessionSettings, SQLiteSession
from agents.memory import Session
from agents.run_internal import session_persistence
from agents.testing import ScriptedModel, assistant_message
from openai import AsyncOpenAI
from test_agent_processes import KILLED, Desk, Desks, agents, desks, each

from nexum_agents import DurableCallError, durable_session
from nexum_agents.clients import nexum_client

__all__ = ["agents", "desks"]

# A run uses the memory four times and a tool once, and its model has two turns.
POINTS = {"effect-done": range(1, 6), "task-claimed": range(1, 8, 2)}


@pytest.fixture(autouse=True)
async def _nexum(address: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setenv("NEXUM_ADDRESS", address)
    yield
    await nexum_client().close()
    while OPENED:
        OPENED.pop().close()


OPENED: list[SQLiteSession] = []


def sqlite(file: str | Path = ":memory:", name: str = "user-1", kind: type[SQLiteSession] = SQLiteSession) -> Session:
    """What the SDK keeps in this file; closed at the end of the test."""
    OPENED.append(kind(name, file, session_settings=SessionSettings(limit=9)))
    return OPENED[-1]


def told(output: str) -> list[Any]:
    """The conversation as the run has it."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def said(text: str) -> Any:
    return {"role": "user", "content": text}


async def items_in(file: str | Path) -> list[Any]:
    return list(await sqlite(file).get_items())


@pytest.mark.parametrize(("case", "point"), [("memory", "effect-done"), ("memory-streamed", "task-claimed")])
async def test_a_run_killed_anywhere_leaves_the_memory_as_an_uninterrupted_one_does(
    case: str, point: str, desks: Desks, tmp_path: Path
) -> None:
    async def kill(number: int) -> None:
        memory = str(tmp_path / f"{number}.db")
        desk = desks.open(case, f"s{number}", MEMORY=memory)
        assert (await desk.run(NEXUM_CRASH_AT=f"{point}:{number}")).code == KILLED
        again = await desk.run()
        assert [item.get("type") for item in told(again.answer)] == FOUR_ITEMS
        assert await items_in(memory) == told(again.output)
        assert desk.repeated in ([], [["send"]]), "no turn is asked for twice"

        effects = desk.ledger
        assert (await desk.run()).answer == again.answer
        assert (desk.ledger, await items_in(memory)) == (effects, told(again.output)), "a third run does nothing"
        if number == 1:
            await the_next_question_knows_of_it(desk, memory)

    async def the_next_question_knows_of_it(desk: Desk, memory: str) -> None:
        before = await items_in(memory)
        second = desks.open(case, "second", MEMORY=memory, QUESTION="And now?")
        answer = told((await second.run()).answer)
        assert answer[: len(before) + 1] == [*before, said("And now?")]
        assert (await second.run()).answer == (await second.run()).answer
        assert second.ledger == [["model", "sender", 1]]
        assert await items_in(memory) == answer
        assert told((await desk.run()).answer) == before, (
            "and the first one, run once more, does not know of the second"
        )

    await each(POINTS[point], kill)


FOUR_ITEMS = [None, "function_call", "function_call_output", "message"]


class BreaksDown(SQLiteSession):
    """Does what it is asked to, and then loses its connection."""

    async def add_items(self, items: Any) -> None:
        await super().add_items(items)
        raise ConnectionError("The line went dead.")

    async def pop_item(self) -> Any:
        await super().pop_item()
        raise ConnectionError("The line went dead.")


async def ask(memory: Session, question: str, session_id: str = "s") -> Any:
    """One run in a block of its own, by an agent that says the same in every run."""
    agent = Agent(name="A", model=ScriptedModel([[assistant_message(f"to {question}")]]))
    with durable_session(session_id):
        return await Runner.run(agent, question, session=memory)


def texts(items: list[Any]) -> list[str]:
    return [item["content"] if item["role"] == "user" else item["content"][0]["text"] for item in items]


async def test_what_was_added_before_its_record_was_lost_is_not_added_again(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    await sqlite(file).add_items([said("hello")])
    for kind in (BreaksDown, BreaksDown, SQLiteSession):
        try:
            await ask(sqlite(file, kind=kind), "one")
        except ConnectionError:
            assert kind is BreaksDown
        else:
            assert kind is SQLiteSession
    assert texts(await items_in(file)) == ["hello", "one", "to one"]


async def test_what_is_asked_in_two_sessions_is_remembered_twice_and_in_two_runs_of_one_once(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    for session_id in ("first", "first", "second"):
        await ask(sqlite(file), "hello", session_id)
    assert texts(await items_in(file)) == ["hello", "to hello"] * 2


async def pop(memory: Session) -> Any:
    """What the SDK does when it takes back what it has added, in a block of its own."""
    with durable_session("s"):
        return await session_persistence._session_pop_item(memory, wrapper=None)


async def test_what_was_taken_before_its_record_was_lost_is_not_taken_again(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    await sqlite(file).add_items([said("one"), said("two")])
    with pytest.raises(ConnectionError):
        await pop(sqlite(file, kind=BreaksDown))
    for _ in range(2):
        assert await pop(sqlite(file)) == said("two")
    assert await items_in(file) == [said("one")]
    assert await pop(sqlite(file, "nobody")) is None


async def test_a_limit_of_what_is_remembered_is_heeded(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    await sqlite(file).add_items([said(str(number)) for number in range(12)])
    for _ in range(2):
        items = (await ask(sqlite(file), "now")).to_input_list()
        assert texts(items) == [*map(str, range(3, 12)), "now", "to now"]


async def test_a_memory_that_the_provider_keeps_is_refused_by_name_before_anything_runs() -> None:
    memory = OpenAIConversationsSession(openai_client=AsyncOpenAI(api_key="none"))

    async def ask_streamed(memory: Session) -> None:
        with durable_session("s"):
            streamed = Runner.run_streamed(Agent(name="A"), "hello", session=memory)
        async for _ in streamed.stream_events():
            pass

    for run in (ask(memory, "hello"), ask_streamed(memory)):
        with pytest.raises(DurableCallError, match="An OpenAIConversationsSession cannot be used in a durable session"):
            await run
