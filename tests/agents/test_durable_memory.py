"""The SDK's conversation memory made durable: killed anywhere in a run, and used again by the next question."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from agents import OpenAIConversationsSession, SessionSettings, SQLiteSession
from agents.memory import OpenAIResponsesCompactionSession, Session
from openai import AsyncOpenAI
from test_durable_agent import KILLED, Desk, Desks, agents, desks, each

from durable_memory import durable_memory
from durable_session import DurableCallError, nexum_client

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


async def test_what_was_added_before_its_record_was_lost_is_not_added_again(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    await sqlite(file).add_items([said("hello")])
    for kind in (BreaksDown, BreaksDown, SQLiteSession):
        memory = durable_memory(sqlite(file, kind=kind), "s")
        try:
            await memory.add_items([said("one"), said("two")])
        except ConnectionError:
            assert kind is BreaksDown
    assert await items_in(file) == [said("hello"), said("one"), said("two")]


async def test_what_is_said_twice_is_remembered_twice(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    for session_id in ("first", "first", "second"):
        memory = durable_memory(sqlite(file), session_id)
        await memory.add_items([said("hello")])
        await memory.add_items([said("hello")])
    assert await items_in(file) == [said("hello")] * 4


async def test_what_was_taken_before_its_record_was_lost_is_not_taken_again(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    await sqlite(file).add_items([said("one"), said("two")])
    with pytest.raises(ConnectionError):
        await durable_memory(sqlite(file, kind=BreaksDown), "s").pop_item()
    for _ in range(2):
        assert await durable_memory(sqlite(file), "s").pop_item() == said("two")
    assert await items_in(file) == [said("one")]
    assert await durable_memory(sqlite(file, "nobody"), "s").pop_item() is None


async def test_a_memory_cleared_and_used_again_is_not_cleared_again(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    await sqlite(file).add_items([said("old")])
    for _ in range(2):
        memory = durable_memory(sqlite(file), "s")
        assert await memory.get_items() == [said("old")]
        await memory.clear_session()
        await memory.add_items([said("new"), said("newer")])
        assert await memory.get_items(limit=1) == [said("newer")]
    assert await items_in(file) == [said("new"), said("newer")]


def test_a_durable_memory_is_called_and_set_like_its_own() -> None:
    memory = durable_memory(sqlite(), "s")
    assert isinstance(memory, Session)
    assert (memory.session_id, memory.session_settings) == ("user-1", SessionSettings(limit=9))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda openai: OpenAIConversationsSession(openai_client=openai), "OpenAIConversationsSession"),
        (
            lambda openai: OpenAIResponsesCompactionSession("x", underlying_session=sqlite(), client=openai),
            "OpenAIResponsesCompactionSession",
        ),
    ],
)
def test_a_memory_that_the_provider_keeps_or_condenses_is_refused(
    make: Callable[[AsyncOpenAI], Any], words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        durable_memory(make(AsyncOpenAI(api_key="none")), "s")
    with pytest.raises(DurableCallError, match="SESSION_ID"):
        durable_memory(sqlite(), "no id")
