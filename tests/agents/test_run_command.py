"""`nexum run`, which this package brings to the `nexum` command."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from agents import Agent
from agents.testing import ModelCall, ModelStep, ScriptedModel, assistant_message
from command import nexum
from processes import NEXUM, Process, engine_at, environment

from nexum_agents import Worker, start_run


@pytest.fixture(autouse=True)
def _address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", address)


def fails_first(call: ModelCall) -> Any:
    if not asked:
        asked.append(1)
        raise RuntimeError("the model is away")
    return [assistant_message("here")]


asked: list[int] = []


@pytest.fixture
async def worker() -> AsyncIterator[None]:
    asked.clear()
    says = lambda _: [assistant_message("It is \x1b[31m here.")]  # noqa: E731
    desk = Agent[Any](name="Desk", model=ScriptedModel([ModelStep.respond(says)]))
    shaky = Agent[Any](name="Shaky", model=ScriptedModel([ModelStep.respond(fails_first)] * 2))
    worker = Worker(agents=[desk, shaky])
    running = asyncio.create_task(worker.run())
    yield
    worker.stop()
    await running


async def test_the_answer_alone_is_printed_and_the_same_command_finds_it_again(worker: None, address: str) -> None:
    for _ in range(2):
        done = await nexum(address, "run", "Desk", "Where", "is", "it?", "--session", "s1")
        assert (done.code, done.stdout) == (0, "It is \\u001b[31m here.\n"), done.stderr
    told = json.loads((await nexum(address, "run", "Desk", "Where is it?", "--session", "s1", "--json")).stdout)
    assert (told["last_agent"], told["usage"]["requests"]) == ("Desk", 1)
    run = await start_run("Desk", "Where is it?", session_id="s1")
    assert run.execution_id in done.stderr
    assert (await run.result()).final_output == told["final_output"]


async def test_a_run_that_failed_says_why_and_the_command_that_lets_it_go_on(worker: None, address: str) -> None:
    failed = await nexum(address, "run", "Shaky", "go on", "--session", "s1")
    assert failed.code == 1
    assert "the model is away" in failed.stderr
    assert failed.stderr.endswith("Let it go on with: nexum run Shaky 'go on' --session s1\n")
    assert (await nexum(address, "run", "Shaky", "go on", "--session", "s1")).stdout == "here\n"


async def test_a_run_goes_on_after_ctrl_c_and_one_that_nobody_serves_says_so(tmp_path: Path, address: str) -> None:
    process = Process(
        [NEXUM, "run", "Desk", "?", "--session", "s1"], tmp_path / "log", env=environment(**engine_at(address))
    )
    process.start()
    await process.says(r"No worker has taken it yet: serve\(agents=\[…\]\) serves Desk\.")
    process.send(signal.SIGINT)
    assert await process.ended() == 130
    assert "Ctrl-C leaves it running. Follow it: nexum follow s1" in process.output
    detached = await nexum(address, "run", "Desk", "?", "--session", "s1", "--detach")
    assert (detached.code, detached.stdout) == (0, "")


async def test_what_cannot_be_is_told_in_a_sentence_and_the_help_lists_the_command(address: str) -> None:
    refused = await nexum(address, "run", "Desk", "?", "--session", "a b")
    assert (refused.code, refused.stderr[:24]) == (1, "session_id is 'a b'; it ")
    assert "Commands of other packages:\n  run  nexum_agents\n" in (await nexum(address, "--help")).stdout
