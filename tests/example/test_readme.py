"""What the README shows is what the programs print, and what it tells to type works."""

import asyncio
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from command import GATE, Text, claim, finish, nexum, start, unused
from nexum import workflow
from processes import Process, eventually, run
from test_demo import Stage, stage
from test_once import cut_short

from nexum_runtime import Client

__all__ = ["stage"]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LONELY = workflow("lonely").effect("run", Text, unused).build()


def transcript(name: str) -> list[str]:
    """The lines of the README's transcript of that name, without the command and what it leaves out."""
    block = README.split(f"<!-- transcript: {name} -->\n```console\n")[1].split("\n```")[0]
    return [line for line in block.splitlines()[1:] if line not in ("", "…")]


def comparable(lines: list[str]) -> Counter[str]:
    """Without what differs from run to run: times, workers' ids, the order of parallel calls."""
    return Counter(re.sub(r"\b\d+(\.\d+)? m?s\b", "N ms", re.sub(r"worker-\d+-\w+", "it", line)) for line in lines)


def bars(lines: list[str]) -> Counter[str]:
    """What has a bar in a timeline, without how long it took and when, and without digests of what a model is asked."""
    return Counter(line.partition("/")[0] for line in lines if re.search(r"[▏▎▍▌▋▊▉█]", line))


async def test_the_readmes_crash_and_second_run_are_what_one_sees(stage: Stage) -> None:
    stage.worker()
    for name, arguments in (("crash", ("--crash-after", "2")), ("again", ())):
        finished = await stage.demo(*arguments, SESSION_ID="s1", OFFLINE_WEB_DELAY_MS="1")
        printed = re.sub(
            r"SESSION_ID=s1 NEXUM_ADDRESS=\S+ \S+ \S+demo\.py", "SESSION_ID=s1 python demo.py", finished.stdout
        )
        missing = comparable(transcript(name)) - comparable(printed.splitlines())
        assert not missing, printed
    shown = (await nexum(stage.nexum.address, "show", "s1")).stdout
    assert bars(shown.splitlines()[1:]) == bars(transcript("show")[1:]), shown


async def test_the_readmes_unsettled_call_is_what_one_sees(stage: Stage) -> None:
    finished = await cut_short(stage)
    printed = re.sub(r"NEXUM_ADDRESS=\S+ ", "", finished.stdout).replace("s1/", "s5/")
    printed = re.sub(r"SESSION_ID=s1 \S+ \S+once_demo\.py", "SESSION_ID=s5 python demo.py", printed)
    missing = comparable(transcript("unknown")) - comparable(printed.splitlines())
    assert not missing, printed


# The nexum command


async def test_the_readme_lists_the_commands_as_their_help_does() -> None:
    listed = re.findall(r"(?m)^\| `nexum (\w+)` \| ([A-Z].+) \|$", README)
    helped = (await nexum("localhost:1", "--help")).stdout.partition("Commands:\n")[2].partition("\n\n")[0]
    assert listed == [tuple(line.strip().split(maxsplit=1)) for line in helped.splitlines()]


OF_ANY_KEYS = {"input", "executions", "output_bytes", "added", "removed", "changed"}


def shape(value: Any, key: str = "") -> str:
    """The keys of a JSON value and of what is in it, as the README writes them."""
    if isinstance(value, list):
        return f"[{shape(value[0])}]" if value and isinstance(value[0], dict) else "[…]"
    if key in OF_ANY_KEYS:
        return "{…}"
    more = ["…"] if "at_ms" in value else []  # each kind of event has its own besides
    inside = {name: f": {shape(part, name)}" for name, part in value.items() if isinstance(part, dict | list)}
    return "{" + ", ".join([f'"{name}"{inside.get(name, "")}' for name in value] + more) + "}"


async def test_the_json_of_every_command_has_the_shape_that_the_readme_shows(client: Client, address: str) -> None:
    await start(client, "s/lost")
    await claim(client, lease_ms=1_000)
    await finish(client, "s/done")
    for nodes in (["pay"], ["pay", "ship"]):
        built = workflow("checkout")
        for node in nodes:
            built = built.effect(node, Text, unused, depends_on=[])
        await client.register(built.build())
    await start(client, "s/runs")
    await claim(client)
    await start(client, "s/waits")
    executing = asyncio.create_task(client.execute(LONELY, {}, execution_id="s/unknown", effect="once"))
    await eventually(lambda: client.executions("s/unknown"))
    lonely = await client.poll("worker-2", LONELY, lease_ms=60_000, wait_ms=20_000)
    assert lonely is not None
    await client.fail(lonely.task_id, "Its worker was stopped.", interrupted=True)
    await executing

    async def expired() -> bool:
        return bool((await client.inspect())["expired"])

    await eventually(expired)

    await start(client, "s/asks", GATE)
    shapes = dict(re.findall(r"(?m)^\| `nexum (\w[^`]*)` \| `(\{.+\})` \|$", README))
    arguments = {
        "ps": ("ps",),
        "show": ("show", "s/done"),
        "show … --output": ("show", "s/done", "--output"),
        "approvals": ("approvals",),
        "versions": ("versions",),
        "diff": ("diff", "checkout"),
        "doctor": ("doctor",),
    }
    told = {
        name: json.loads((await nexum(address, *words, "--json")).stdout.splitlines()[0])
        for name, words in arguments.items()
    }
    assert told.pop("show … --output") == {"run": {"text": "é"}}
    assert shapes.pop("show … --output") == "{node: output}"
    assert shapes == {name: shape(value) for name, value in told.items()}


# What can go wrong, files and settings


def test_whatever_can_go_wrong_has_a_test_of_the_name_it_is_shown_with() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    table = README.partition("## What can go wrong")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .+ \| .+ \| `(test_\w+)` \|$", table, re.MULTILINE)
    assert len(rows) == table.count("\n| ") - 1 >= 30  # all but the head
    assert [name for name in rows if f"def {name}(" not in tests] == []


def test_every_file_and_setting_that_the_readme_names_exists() -> None:
    named = re.findall(r"^\| `([\w./]+)`(?:, `([\w./]+)`)? \|", README, re.MULTILINE)
    files = [name for pair in named for name in pair if "." in name or name.endswith("/")]
    assert len(files) >= 9
    assert [name for name in files if not (ROOT / name).exists()] == []
    source = "\n".join(path.read_text() for path in ROOT.rglob("*.py") if ".venv" not in path.parts)
    settings = re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", README)
    assert [name for name in settings if name not in source] == []


def copied_to(project: Path, files: str) -> None:
    """Copy those of our files into it that this part of the README names."""
    project.mkdir()
    for name in re.findall(r"`(\w+\.py)`", files):
        shutil.copy(ROOT / name, project)


OWN_TOOLS = """
def get_weather(city: str) -> dict[str, str]:
    return {"city": city, "sky": "clear"}

TOOLS = {"get_weather": get_weather}
"""
OWN_AGENT = """
import asyncio, json
from agents import Agent, Runner
from agents.testing import ScriptedModel, assistant_message, function_call
from submit_task import durable_session, durable_tool
from tools import get_weather

async def main():
    question = function_call("get_weather", {"city": "Rome"}, call_id="c")
    model = ScriptedModel([[question], [assistant_message("It is clear.")]])
    with durable_session("rome"):
        result = await Runner.run(Agent(name="Forecaster", tools=[durable_tool(get_weather)], model=model), "Rome?")
    print([item.output for item in result.new_items if item.type == "tool_call_output_item"], result.final_output)

asyncio.run(main())
"""


async def test_the_files_that_a_project_of_ones_own_copies_are_enough(stage: Stage, tmp_path: Path) -> None:
    files = re.search(r"In a project of your own: copy (.+) and a `tools\.py`", README)
    assert files
    project = tmp_path / "project"
    copied_to(project, files[1])
    (project / "tools.py").write_text(OWN_TOOLS)
    (project / "agent.py").write_text(OWN_AGENT)
    env = stage.environment()
    worker = Process([sys.executable, "worker.py"], tmp_path / "own-worker.log", env=env, cwd=project)
    worker.start()
    finished = await run(sys.executable, "agent.py", env=env, cwd=project)
    assert finished.stdout == """['{"city":"Rome","sky":"clear"}'] It is clear.\n""", finished.stderr + worker.output


OWN_DURABLE_AGENT = """
import asyncio
from agents import Agent, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from durable_agent import durable_agent

@function_tool
def get_weather(city: str) -> str:
    print("looks out of the window in", city)
    return "clear"

async def main():
    question = function_call("get_weather", {"city": "Rome"}, call_id="c")
    for turns in [[question], [assistant_message("It is clear.")]], []:
        agent = durable_agent(Agent(name="Forecaster", tools=[get_weather], model=ScriptedModel(turns)), "rome")
        print((await Runner.run(agent, "Rome?")).final_output)

asyncio.run(main())
"""


async def test_the_files_for_all_of_an_agent_are_enough_without_a_worker(stage: Stage, tmp_path: Path) -> None:
    files = re.search(r"In a project of your own: copy (.+?); that needs no worker", README, re.DOTALL)
    assert files
    project = tmp_path / "project"
    copied_to(project, files[1].replace("`worker.py` and a `tools.py`", ""))
    (project / "agent.py").write_text(OWN_DURABLE_AGENT)
    finished = await run(sys.executable, "agent.py", env=stage.environment(), cwd=project)
    assert finished.stdout == "looks out of the window in Rome\nIt is clear.\nIt is clear.\n", finished.stderr


async def test_the_worker_imports_neither_the_agent_nor_its_sdk_and_the_demo_no_network_library() -> None:
    def loaded(module: str, *names: str) -> str:
        return f"import sys, {module}; print([n for n in {names!r} if n in sys.modules])"

    worker = await run(sys.executable, "-c", loaded("worker", "agents", "openai", "demo"), cwd=ROOT)
    demo = await run(sys.executable, "-c", loaded("demo", "ddgs", "trafilatura", "litellm"), cwd=ROOT)
    assert (worker.stdout, demo.stdout) == ("[]\n", "[]\n"), (worker, demo)
