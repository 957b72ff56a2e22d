"""Tools that need a yes: agents that wait for a person, by the durable tool itself and by the SDK's own approvals."""

import json
import re
import sys
from pathlib import Path

import pytest
from processes import Finished, Process, eventually
from test_demo import Stage, answer, ended_calls, ended_turns, no_traceback, stage
from test_once import say
from test_readme import transcript

from nexum_runtime import Client
from nexum_runtime.text import size_text

__all__ = ["stage"]

NEXUM = r"(?:NEXUM_ADDRESS=\S+ )?nexum"
ANSWERS = rf"\n +({NEXUM} approve \S+)\n +({NEXUM} reject \S+) --reason 'why not'$"
ASKS = r'(?m)^\[Nexum\] save_report\(name="([\w.-]+)", .+ waits for your yes' + ANSWERS
BOTH = pytest.mark.parametrize("way", [{}, {"SDK": "1"}], ids=["durable_tool", "the SDK"])


def saver(stage: Stage, way: dict[str, str]) -> Process:
    env = stage.environment(SESSION_ID="s1", OPENAI_AGENTS_DISABLE_TRACING="1", **way)
    command: list[str | Path] = [sys.executable, Path(__file__).with_name("approval_demo.py"), "go"]
    demo = Process(command, stage.folder / "saver.log", env=env, cwd=stage.folder)
    demo.start()
    return demo


async def asked(demo: Process) -> list[tuple[str, str]]:
    """The commands that say yes and no to the two reports, the first report's first, as soon as they are printed."""
    await eventually(lambda: len(re.findall(ASKS, demo.output)) == 2 or not demo.alive)
    assert demo.alive, demo.output
    found = sorted(re.findall(ASKS, demo.output))
    assert [name for name, _, _ in found] == ["a.md", "b.md"]
    return [(yes, no) for _, yes, no in found]


async def told(demo: Process) -> dict[str, str]:
    """What the model was told of each of its calls."""
    assert await demo.ended() == 0, demo.output
    assert "Traceback" not in demo.output
    found: dict[str, str] = json.loads(answer(demo.output))
    return found


def saved(stage: Stage) -> list[str]:
    """Each report that was really saved, as it was written outside of Nexum."""
    return [json.loads(line)[1]["name"] for line in stage.executions if "save_report" in line]


async def requests(stage: Stage) -> int:
    """How often an approval was asked for."""
    async with Client(stage.nexum.address) as client:
        histories = [history async for history in client.history("s1/")]
    return sum(event["type"] == "ApprovalRequested" for history in histories for event in history["events"])


@BOTH
async def test_of_two_approvals_in_one_turn_each_is_answered_and_other_calls_go_on_meanwhile(
    stage: Stage, way: dict[str, str]
) -> None:
    stage.worker()
    demo = saver(stage, way)
    (yes, _), (_, no) = await asked(demo)
    await demo.says(r"web_search\(.+stored ✓")
    assert saved(stage) == []
    assert (await say(stage, yes, "--as", "anna")).stdout == "Approved.\n"
    assert (await say(stage, no, "--as", "bob", "--reason", "it is too short")).stdout == "Rejected.\n"
    first = await told(demo)
    assert first["a"] == "Saved as reports/a.md, 9 B."
    assert first["b"] == "This call of save_report was not made. Rejected by bob: it is too short"
    assert [path.name for path in (stage.folder / "reports").iterdir()] == ["a.md"]
    assert "rejected ✗ Rejected by bob: it is too short" in demo.output

    again = saver(stage, way)
    assert await told(again) == first
    assert "waits for your yes" not in again.output
    assert "rejected ✗ Rejected by bob: it is too short" in again.output
    assert (ended_turns(again.output, "stored"), ended_calls(again.output, "stored")) == (0, 0)
    assert (saved(stage), await requests(stage)) == (["a.md"], 2)


@BOTH
async def test_a_run_killed_while_it_waits_for_a_person_goes_on_with_what_was_approved_meanwhile(
    stage: Stage, way: dict[str, str]
) -> None:
    stage.worker()
    demo = saver(stage, way)
    (first, _), (second, _) = await asked(demo)
    demo.kill()
    assert (await say(stage, first)).stdout == "Approved.\n"

    demo = saver(stage, way)
    await demo.says(r'save_report\(name="b.md".+ waits for your yes')
    assert 'save_report(name="a.md", text="the first") waits for your yes' not in demo.output
    demo.kill()
    assert (await say(stage, second)).stdout == "Approved.\n"
    if not way:  # the calls themselves were approved: they are made, whoever waits for them
        await eventually(lambda: len(saved(stage)) == 2)

    demo = saver(stage, way)
    results = await told(demo)
    assert [results["a"], results["b"]] == ["Saved as reports/a.md, 9 B.", "Saved as reports/b.md, 10 B."]
    assert "waits for your yes" not in demo.output
    assert (sorted(saved(stage)), await requests(stage)) == (["a.md", "b.md"], 2)


@BOTH
async def test_an_approval_outlives_the_server_that_was_asked_for_it(stage: Stage, way: dict[str, str]) -> None:
    stage.worker()
    demo = saver(stage, way)
    commands = await asked(demo)
    stage.nexum.kill()
    refused = await say(stage, commands[0][0])
    assert "No Nexum server answers" in refused.stderr
    await stage.nexum.restart()
    for yes, _ in commands:
        assert (await say(stage, yes)).stdout == "Approved.\n"
    assert sorted(await told(demo)) == ["a", "b", "search"]
    assert (sorted(saved(stage)), await requests(stage)) == (["a.md", "b.md"], 2)


async def test_the_demo_saves_its_answer_once_a_person_has_said_yes(stage: Stage) -> None:
    stage.worker()
    demo = stage.demo_process("--save-report", SESSION_ID="s6")
    await demo.says(ASKS)
    ((_, yes, _),) = re.findall(ASKS, demo.output)
    assert not (stage.folder / "reports").exists()
    demo.terminate()
    assert await demo.ended() == 130
    assert "Waits for your yes, now or later:\n  save_report(" in demo.output
    assert demo.output.count(yes) == 2
    assert "demo.py --save-report 'What is durable execution for AI agents?'" in demo.output
    seen = re.sub(r"NEXUM_ADDRESS=\S+ ", "", demo.output).splitlines()
    assert [line for line in transcript("approval") if line not in seen] == []
    assert (await say(stage, yes)).code == 0
    finished: Finished = await stage.demo("--save-report", SESSION_ID="s6")
    assert (finished.code, no_traceback(finished)) == (0, True)
    (report,) = (stage.folder / "reports").iterdir()
    text = report.read_text(encoding="utf-8")
    assert answer(finished.stdout) == f"{text}\n\nSaved as reports/{report.name}, {size_text(len(text.encode()))}."
