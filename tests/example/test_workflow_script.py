"""workflow.py: four nodes on the example's server and worker, killed between them and in the middle of one."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import NEXUM, Finished, Process, eventually, run
from test_demo import ROOT, SHORT_LEASE_MS, Stage, no_traceback, stage

import workflow
from nexum_runtime import Client, Outcome

__all__ = ["stage"]

QUESTION = "What is a lease?"
WAITS = "The report waits for your yes: nexum approve s1/report/0\n"
LONG_SECONDS = 60.0  # a script that waits looks every eight seconds what for
SAVED = "Saved as reports/what-is-a-lease.md, "


def command() -> list[str | Path]:
    return [sys.executable, ROOT / "workflow.py", QUESTION]


async def report(stage: Stage, **changes: str) -> Finished:
    return await run(*command(), env=stage.environment(SESSION_ID="s1", **changes), cwd=stage.folder)


def reporting(stage: Stage) -> Process:
    log = stage.folder / f"workflow-{len(list(stage.folder.glob('workflow-*')))}.log"
    process = Process(command(), log, env=stage.environment(SESSION_ID="s1"), cwd=stage.folder)
    process.start()
    return process


async def answer(stage: Stage, *words: str) -> None:
    finished = await run(NEXUM, *words, env=stage.environment())
    assert finished.code == 0, finished


async def waits(stage: Stage) -> None:
    """Wait until the report waits for a person. (The script says so when it has waited for a while.)"""
    async with Client(stage.nexum.address) as client:

        async def is_asked_for() -> bool:
            stories = [story async for story in client.history("s1/report/")]
            return any(event["type"] == "ApprovalRequested" for story in stories for event in story["events"])

        await eventually(is_asked_for, "the report waiting for a yes")


async def text_of_the_page(stage: Stage) -> str:
    finished = await run(NEXUM, "show", "s1/report/0", "--output", "--json", env=stage.environment())
    return str(json.loads(finished.stdout)["read"]["text"])


def executed(stage: Stage) -> list[str]:
    return [json.loads(line)[0] for line in stage.executions]


async def test_killed_between_its_nodes_it_goes_on_when_it_is_run_again_and_saves_once(stage: Stage) -> None:
    worker = stage.worker()
    first = reporting(stage)
    await waits(stage)
    assert executed(stage) == ["web_search", "visit_webpage"]
    first.kill()
    worker.kill()
    await stage.nexum.restart()

    second = reporting(stage)
    await second.says(WAITS, seconds=LONG_SECONDS)
    stage.worker()
    await answer(stage, "approve", "s1/report/0")
    assert await second.ended() == 0, second.output
    assert second.output.startswith(f"{WAITS}{SAVED}")
    assert executed(stage) == ["web_search", "visit_webpage", "save_report"]
    (saved,) = (stage.folder / "reports").iterdir()
    text = saved.read_text()
    assert text.startswith("# ")
    assert text == await text_of_the_page(stage)

    third = await report(stage)
    assert third == Finished(0, second.output.removeprefix(WAITS), "")
    assert len(stage.executions) == 3


async def test_however_long_it_waits_it_says_once_what_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Server:
        """A client whose execution waits for three looks of it, and then ends."""

        def __init__(self) -> None: ...

        async def __aenter__(self) -> "Server":
            return self

        async def __aexit__(self, *_: object) -> None: ...

        async def check(self) -> None: ...

        async def execute(self, *_: Any, on_wait: Callable[[str], None], **__: Any) -> Outcome:
            for what in ("worker", "approval", "approval"):
                on_wait(what)
            return Outcome("s1/report/0", "COMPLETED", "NEW", {"save": {"where": "Saved."}}, None, None, 1)

    monkeypatch.setattr("workflow.near", Server)
    await workflow.main(QUESTION, "s1")
    assert capsys.readouterr() == ("Saved.\n", WAITS)


async def test_a_worker_killed_in_the_middle_of_a_node_costs_that_node_alone(stage: Stage) -> None:
    stage.gate.unlink()
    worker = stage.worker(HELD="visit_webpage", LEASE_MS=SHORT_LEASE_MS)
    process = reporting(stage)
    await eventually(lambda: len(stage.executions) == 2, "the page being read")
    worker.kill()
    process.kill()
    stage.gate.touch()
    stage.worker()
    reporting(stage)
    await waits(stage)
    assert executed(stage) == ["web_search", "visit_webpage", "visit_webpage"]


async def test_a_report_that_was_approved_while_nobody_waited_is_saved_without_its_script(stage: Stage) -> None:
    stage.worker()
    process = reporting(stage)
    await waits(stage)
    process.kill()
    await answer(stage, "approve", "s1/report/0")
    await eventually(lambda: list(stage.folder.glob("reports/*.md")), "the report")
    finished = await report(stage)
    assert (finished.code, finished.stderr) == (0, "")
    assert finished.stdout.startswith(SAVED)
    assert executed(stage).count("save_report") == 1


async def test_a_report_that_was_rejected_is_never_saved_and_says_why(stage: Stage) -> None:
    stage.worker()
    process = reporting(stage)
    await waits(stage)
    await answer(stage, "reject", "s1/report/0", "--reason", "too short")
    assert await process.ended() == 1
    again = await report(stage)
    assert again.code == 1
    for said in (process.output, again.stderr):
        assert "The report is FAILED: " in said
        assert "too short" in said
        assert "Traceback" not in said
    assert "save_report" not in executed(stage)


async def test_a_question_that_no_page_answers_ends_in_a_sentence(stage: Stage) -> None:
    stage.worker()
    words = (ROOT / "workflow.py", "pizza", "in", "Naples")
    finished = await run(sys.executable, *words, env=stage.environment(SESSION_ID="s1"), cwd=stage.folder)
    assert (finished.code, finished.stdout) == (1, "")
    assert "The report is FAILED: " in finished.stderr
    assert "Nothing was found. No results for “pizza in Naples”." in finished.stderr
    assert no_traceback(finished)
    assert executed(stage) == ["web_search"], "another attempt would find no more"


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("localhost:1", "No Nexum server answers at localhost:1. Start one with `nexum dev`"),
        ("nonsense", "The Nexum address is 'nonsense'; it must be host:port"),
    ],
)
async def test_without_a_server_it_ends_in_a_sentence(stage: Stage, address: str, sentence: str) -> None:
    finished = await report(stage, NEXUM_ADDRESS=address)
    assert (finished.code, finished.stdout) == (1, "")
    assert sentence in finished.stderr
    assert no_traceback(finished)
