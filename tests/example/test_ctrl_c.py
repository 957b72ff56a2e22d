"""Ctrl-C at any moment of any script: one line, exit code 130, and nothing that only a programmer would read."""

import re
import signal
import sys
from pathlib import Path

import pytest
from processes import Finished, Process, Terminal, environment, eventually, run
from test_demo import ROOT, SHORT_LEASE_MS, Stage, children_of, stage

__all__ = ["stage"]

WORDS = {
    "demo.py": ["--offline", "What is a lease?"],
    "worker.py": ["--offline"],
    "submit_task.py": ["web_search", '{"query": "lease"}'],
    "workflow.py": ["What is a lease?"],
    "benchmark.py": ["--only", "agent"],
}

INTERRUPTING_ITSELF = """
import os, signal, sys

def interrupt(event, arguments):
    if event == "import" and arguments[0] == os.environ["INTERRUPTED_AT"]:
        signal.raise_signal(signal.SIGINT)

sys.addaudithook(interrupt)
"""


def script(name: str, *words: str) -> list[str | Path]:
    return [sys.executable, ROOT / name, *words]


def one_line(text: str) -> str:
    """The only line of a text, beside the empty one that the ^C of a terminal stands on."""
    lines = [line for line in text.splitlines() if line]
    assert len(lines) == 1, text
    return lines[0]


async def interrupted_at_the_import_of(module: str, stage: Stage, name: str) -> Finished:
    """A script that gets its SIGINT when it begins to import a module; every script imports each of these."""
    folder = stage.folder / "first"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(INTERRUPTING_ITSELF)
    path = f"{folder}:{stage.environment().get('PYTHONPATH', '')}"
    env = stage.environment(PYTHONPATH=path, INTERRUPTED_AT=module, SESSION_ID="s1", NEXUM_TEST_FORKS="0")
    return await run(*script(name, *WORDS[name]), env=env, cwd=stage.folder)


@pytest.mark.parametrize("module", ["asyncio", "pydantic", "grpc", "agents", "nexum_agents.seams"])
@pytest.mark.parametrize("name", WORDS)
async def test_while_it_is_imported_a_script_ends_at_ctrl_c_with_one_line(stage: Stage, name: str, module: str) -> None:
    finished = await interrupted_at_the_import_of(module, stage, name)
    assert finished.code == 130, finished
    assert one_line(finished.stderr).startswith("Interrupted.")
    header = finished.stdout
    assert header == "" or header.startswith("Question  What is a lease?\n")
    if header:
        assert one_line(finished.stderr).startswith("Interrupted. Go on with: SESSION_ID=s1 ")


async def test_a_demo_that_waits_for_a_call_says_what_is_stored_and_how_to_go_on(stage: Stage) -> None:
    stage.gate.unlink()
    stage.worker(HELD="visit_webpage")
    demo = stage.demo_process(SESSION_ID="s1")
    await eventually(lambda: len(stage.executions) == 5, "three pages being visited")
    demo.send(signal.SIGINT)
    assert await demo.ended() == 130
    last = demo.output.rstrip().splitlines()[-1]
    before = demo.output.replace(last, "")
    assert last.startswith("Interrupted; 2 turns and 2 calls stored. Go on with: SESSION_ID=s1 ")
    assert "Traceback" not in before
    assert "Interrupted" not in before
    stage.gate.touch()
    again = await run("bash", "-c", last.partition("Go on with: ")[2], env=stage.environment(), cwd=stage.folder)
    assert again.code == 0, again
    assert len(stage.executions) == 5, "nothing is executed again"


async def test_a_demo_that_waits_for_a_person_ends_with_one_line(stage: Stage) -> None:
    stage.worker()
    demo = stage.demo_process("--save-report", SESSION_ID="s1")
    await demo.says(r"nexum reject \S+ --reason 'why not'\n")
    before = demo.output
    demo.send(signal.SIGINT)
    assert await demo.ended() == 130
    said = one_line(demo.output.removeprefix(before))
    assert said.startswith("Interrupted; 3 turns and 5 calls stored. Go on with: SESSION_ID=s1 ")
    assert " --save-report " in said


async def test_a_demo_in_a_terminal_ends_with_one_line_as_well(stage: Stage) -> None:
    command = map(str, script("demo.py", "--worker", "--offline"))
    terminal = Terminal(*command, env=stage.environment(SESSION_ID="s1"), cwd=stage.folder)
    await terminal.says(r"\[Nexum\] turn 1")
    terminal.send(signal.SIGINT)
    assert await terminal.ended() == 130
    assert "Traceback" not in terminal.text
    assert terminal.text.count("Interrupted") == 1


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("moment", ["Nexum +this folder's", r"\[Nexum\]"])
async def test_the_worker_that_was_brought_is_gone_after_ctrl_c(stage: Stage, moment: str) -> None:
    folder = stage.folder / "empty"
    folder.mkdir()
    command = stage.demo_command("--worker", "--offline")
    demo = Process(command, stage.folder / "demo.log", env=environment(SESSION_ID="s1"), cwd=folder)
    demo.start()
    await demo.says(moment)
    demo.send(signal.SIGINT)
    assert await demo.ended() == 130
    assert "Traceback" not in demo.output
    assert re.search(r"^Interrupted.* Go on with: SESSION_ID=s1 .*\n\Z", demo.output, re.MULTILINE), demo.output
    await eventually(lambda: not children_of(folder), "the end of the worker")


async def test_a_worker_ends_at_ctrl_c_when_its_calls_are_done_with_one_line(stage: Stage) -> None:
    stage.gate.unlink()
    worker = stage.worker(LEASE_MS=SHORT_LEASE_MS)
    demo = stage.demo_process(SESSION_ID="s1")
    await eventually(lambda: len(stage.executions) == 2, "two tools running")
    before = worker.output
    worker.send(signal.SIGINT)
    await worker.says("Ctrl-C again stops at once")
    assert worker.alive, "its calls run still"
    stage.gate.touch()
    assert await worker.ended() == 130
    said = [line for line in worker.output.removeprefix(before).splitlines() if "web_search" not in line]
    assert "Stopping; running tools have" in one_line("\n".join(said))
    stage.worker()
    assert await demo.ended() == 0, demo.output
    assert len(stage.executions) == 5


async def test_a_worker_ends_well_at_sigterm(stage: Stage) -> None:
    worker = stage.worker()
    await worker.says("Connected to Nexum")
    worker.terminate()
    assert await worker.ended() == 0


async def test_a_submitted_call_goes_on_after_ctrl_c_and_its_result_is_there_later(stage: Stage) -> None:
    stage.gate.unlink()
    stage.worker()
    command = script("submit_task.py", *WORDS["submit_task.py"])
    submitting = Process(command, stage.folder / "submit.log", env=stage.environment(), cwd=stage.folder)
    submitting.start()
    await eventually(lambda: len(stage.executions) == 1, "the search")
    before = submitting.output
    submitting.send(signal.SIGINT)
    assert await submitting.ended() == 130
    said = one_line(submitting.output.removeprefix(before))
    session = re.fullmatch(r"Interrupted\. For its result ask again with (--session call-\w+)", said)
    assert session, said
    stage.gate.touch()
    again = await run(*command, *session[1].split(), env=stage.environment(), cwd=stage.folder)
    assert again.code == 0, again
    assert again.stdout.startswith("1. ")
    assert len(stage.executions) == 1


async def test_a_workflow_waits_on_without_its_script_after_ctrl_c(stage: Stage) -> None:
    stage.worker()
    process = Process(script("workflow.py"), stage.folder / "workflow.log", env=stage.environment(), cwd=stage.folder)
    process.start()
    await process.says("The report waits for your yes: nexum approve report/report/0\n", seconds=60.0)
    before = process.output
    process.send(signal.SIGINT)
    assert await process.ended() == 130
    assert one_line(process.output.removeprefix(before)) == "Interrupted. Run it again, and it goes on."


WAITS_IN_A_THREAD = """
import asyncio, pathlib, time
from agents import Agent, Runner, function_tool
from agents.testing import ScriptedModel, function_call
from nexum_agents import durable_session, print_events

@function_tool
def look_up() -> str:
    while not pathlib.Path("gate").exists():
        time.sleep(0.01)
    print("looked up")
    return "It is there."

async def main():
    model = ScriptedModel([[function_call("look_up", {}, call_id="c")]])
    with durable_session("s1", on_event=print_events):
        await Runner.run(Agent("A", tools=[look_up], model=model), "?")

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("the end of asyncio.run")
"""
WAITED_FOR = "look_up is a sync function, which cannot be cut short. This process ends when it has returned; "


@pytest.mark.parametrize("is_patient", [True, False])
async def test_ctrl_c_in_a_sync_tool_says_what_is_waited_for_and_the_second_one_ends_it(
    tmp_path: Path, is_patient: bool
) -> None:
    agent = Process([sys.executable, "-c", WAITS_IN_A_THREAD], tmp_path / "agent.log", env=environment(), cwd=tmp_path)
    agent.start()
    await agent.says(r"look_up\(\) …")
    agent.send(signal.SIGINT)
    await agent.says(re.escape(WAITED_FOR + "Ctrl-C again ends it at once.\n"))
    if is_patient:
        (tmp_path / "gate").touch()
        assert await agent.ended() == 0
        assert agent.output.endswith("looked up\nthe end of asyncio.run\n")
    else:
        agent.send(signal.SIGINT)
        assert await agent.ended() == -signal.SIGINT
        assert agent.output.endswith("at once.\n")
