"""The SDK's conversation memory in runs that are killed between what they did to it and the record of that."""

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from agents import OpenAIConversationsSession, OpenAIResponsesCompactionSession, SQLiteSession
from processes import Finished, environment, run

from durable_memory import durable_memory
from durable_session import DurableCallError

SCRIPT = Path(__file__).with_name("memory_process.py")


async def ask(folder: Path, address: str, session_id: str, question: str, **env: str) -> Finished:
    folder.mkdir(exist_ok=True)
    command = (sys.executable, SCRIPT, session_id, question)
    return await run(*command, env=environment(NEXUM_ADDRESS=address, **env), cwd=folder)


async def items(folder: Path) -> list[Any]:
    memory = SQLiteSession("chat", folder / "memory.db")
    try:
        return list(await memory.get_items())
    finally:
        memory.close()


def turns(folder: Path) -> int:
    return (folder / "asked").read_text().count("turn")


async def test_a_run_killed_before_any_record_of_its_memory_adds_nothing_twice(address: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    answer = await ask(whole, address, "whole", "one two")
    assert answer.stdout == "Heard: one two.\n", answer.stderr
    point = 0
    while True:
        point += 1
        folder, session = tmp_path / str(point), f"s{point}"
        killed = await ask(folder, address, session, "one two", NEXUM_CRASH_AT=f"effect-done:{point}")
        if killed.code == 0:  # it has fewer effects than that
            break
        assert killed.code == -signal.SIGKILL, killed.stderr
        again = await ask(folder, address, session, "one two")
        assert again.stdout == answer.stdout, again.stderr
        assert await items(folder) == await items(whole)
        assert turns(folder) == 2
    assert point > 3, "it reads its memory, adds to it, and calls a tool"


async def test_the_next_question_hears_of_the_ones_before_and_so_does_its_replay(address: str, tmp_path: Path) -> None:
    await ask(tmp_path, address, "first", "one")
    second = await ask(tmp_path, address, "second", "two")
    assert second.stdout == "Heard: one, two.\n", second.stderr
    remembered, asked = await items(tmp_path), turns(tmp_path)
    for session, question in (("first", "one"), ("second", "two")):
        replayed = await ask(tmp_path, address, session, question)
        assert replayed.stdout == ("Heard: one.\n" if session == "first" else second.stdout), replayed.stderr
    assert await items(tmp_path) == remembered
    assert turns(tmp_path) == asked


def test_a_memory_that_the_provider_keeps_or_condenses_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with pytest.raises(TypeError, match="OpenAIConversationsSession"):
        durable_memory(OpenAIConversationsSession(), "s")
    plain = SQLiteSession("chat")
    with pytest.raises(TypeError, match="OpenAIResponsesCompactionSession"):
        durable_memory(OpenAIResponsesCompactionSession("chat", plain), "s")
    with pytest.raises(DurableCallError, match="SESSION_ID"):
        durable_memory(plain, "no id")
    plain.close()
