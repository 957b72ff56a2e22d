"""What the README shows is what the programs print, and what it tells to type works."""

import ast
import asyncio
import json
import re
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from command import ECHO, GATE, Text, claim, finish, nexum, start, unused
from nexum import workflow
from processes import NEXUM, Process, environment, eventually, run
from test_demo import Stage, stage
from test_once import cut_short

import nexum_agents
from nexum_runtime import Client

__all__ = ["stage"]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
ALL = "\n".join([README, *DOCS.values()])
README_LINES, SCRIPT_LINES = 200, 20
LONELY = workflow("lonely").effect("run", Text, unused).build()


def transcript(name: str) -> list[str]:
    """The lines of the transcript of that name, without the command and what it leaves out."""
    block = ALL.split(f"<!-- transcript: {name} -->\n```console\n")[1].split("\n```")[0]
    return [line for line in block.splitlines()[1:] if line not in ("", "…")]


def comparable(lines: list[str]) -> Counter[str]:
    """Without what differs from run to run: times, workers' ids, the order of parallel calls."""
    return Counter(re.sub(r"\b\d+(\.\d+)? m?s\b", "N ms", re.sub(r"worker-\d+-\w+", "it", line)) for line in lines)


def bars(lines: list[str]) -> Counter[str]:
    """What has a bar in a timeline, by its name alone."""
    return Counter(line.partition("(")[0] for line in lines if re.search(r"[▏▎▍▌▋▊▉█]", line))


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
    listed = re.findall(r"(?m)^\| `nexum (\w+)` \| ([A-Z].+) \|$", DOCS["command.md"])
    helped = (await nexum("localhost:1", "--help")).stdout.partition("Commands:\n")[2].partition("\n\n")[0]
    assert listed == [tuple(line.strip().split(maxsplit=1)) for line in helped.splitlines()]


OF_ANY_KEYS = {
    "input",
    "labels",
    "kinds",
    "numbers",
    "recorded",
    "executions",
    "output_bytes",
    "added",
    "removed",
    "changed",
}


def shape(value: Any, key: str = "") -> str:
    """The keys of a JSON value and of what is in it, as the README writes them."""
    if isinstance(value, list):
        return f"[{shape(value[0])}]" if value and isinstance(value[0], dict) else "[…]"
    if key in OF_ANY_KEYS:
        return "{…}"
    more = ["…"] if "type" in value else []  # each kind of event has its own besides
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
    await client.fork_session("s", "s-fork")

    async def end() -> dict[str, Any]:
        return {"result": "done", "agent": "A", "duration_ms": 0}

    await client.run_local(ECHO, {}, end, execution_id="answered/run-end/0", labels={"kind": "run"})
    await start(client, "gone/a")
    await client.stop_session("gone")
    shapes = dict(re.findall(r"(?m)^\| `nexum (\w[^`]*)` \| `(\{.+\})` \|$", DOCS["command.md"]))
    arguments = {
        "sessions": ("sessions", "s-fork"),
        "compare": ("compare", "s-fork", "s-fork"),
        "ps": ("ps",),
        "show": ("show", "s/done"),
        "show … --output": ("show", "s/done", "--output"),
        "show … --answer": ("show", "answered", "--answer"),
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
    table = DOCS["failures.md"]
    rows = re.findall(r"^\| .+ \| .+ \| `(test_\w+)` \|$", table, re.MULTILINE)
    assert len(rows) == table.count("\n| ") - 1 >= 30  # all but the head
    assert [name for name in rows if f"def {name}(" not in tests] == []


def test_every_file_and_setting_that_the_readme_names_exists() -> None:
    named = re.findall(r"^\| `([\w./]+)`(?:, `([\w./]+)`)*? \|", ALL, re.MULTILINE)
    files = [name for pair in named for name in pair if name.endswith((".py", "/"))]
    assert len(files) >= 9
    folders = (ROOT, ROOT / "src" / "nexum_agents", ROOT / "src" / "nexum_runtime")
    assert [name for name in files if not any((folder / name).exists() for folder in folders)] == []
    source = "\n".join(path.read_text() for path in ROOT.rglob("*.py") if ".venv" not in path.parts)
    settings = re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", ALL)
    assert [name for name in settings if name not in source] == []


def test_the_readme_is_short_and_every_link_in_it_and_in_the_docs_leads_somewhere() -> None:
    assert README.count("\n") <= README_LINES
    pages = {"README.md": README} | {f"docs/{name}": text for name, text in DOCS.items()}
    broken = []
    for page, text in pages.items():
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            path, _, heading = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            headings = re.findall(r"(?m)^#+ (.+)$", target.read_text()) if target.suffix == ".md" else []
            known = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
            if not target.exists() or (heading and heading not in known):
                broken.append(f"{page}: {link}")
    assert broken == []


def test_every_python_block_is_python_and_says_only_what_the_package_has() -> None:
    blocks = re.findall(r"```python\n(.+?)```", ALL, re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        compile(block, block[:60], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    named = set(re.findall(r"\b(durable_\w+|run_with_approvals|serve|submit_tool_call|print_events)\(", ALL))
    assert named <= set(nexum_agents.__all__)


class Provider(ThreadingHTTPServer):
    """Stands in for OpenAI: asks for each look-up in one turn, and answers in the next. Counts what it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        super().__init__(("127.0.0.1", 0), _Answers)


class _Answers(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        outputs = [item["output"] for item in asked["input"] if item.get("type") == "function_call_output"]
        if outputs:
            part = {"type": "output_text", "text": " ".join(outputs), "annotations": []}
            output = [{"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}]
        else:
            output = [
                {
                    "type": "function_call",
                    "call_id": topic,
                    "name": "look_up",
                    "arguments": json.dumps({"topic": topic}),
                }
                for topic in ("sagas", "leases")
            ]
        body = {"id": "r", "object": "response", "created_at": 0, "model": asked["model"], "output": output}
        body |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "status": "completed"}
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None: ...


async def test_the_first_script_of_the_readme_is_killed_and_goes_on_with_nothing_else_running(tmp_path: Path) -> None:
    script = re.search(r"```python\n(import asyncio.+?)```", README, re.DOTALL)
    assert script
    assert len([line for line in script[1].splitlines() if line.strip()]) < SCRIPT_LINES
    project = tmp_path / "project"
    project.mkdir()
    (project / "research.py").write_text(script[1])
    with Provider() as provider:
        threading.Thread(target=provider.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{provider.server_port}/v1"
        env = environment(OPENAI_API_KEY="a key", OPENAI_BASE_URL=url, OPENAI_AGENTS_DISABLE_TRACING="1")
        first = Process([sys.executable, "research.py"], tmp_path / "first.log", env=env, cwd=project)
        first.start()
        await first.says(r"look_up\(topic=.leases.\) stored ✓")
        listed = await run(NEXUM, "sessions", env=env, cwd=project)
        first.kill()
        assert "s1" in listed.stdout
        listed = await run(NEXUM, "sessions", env=env, cwd=project)
        assert "s1" in listed.stdout
        again = await run(sys.executable, "research.py", env=env, cwd=project)
        provider.shutdown()
    assert again.stdout.count("cached ⚡") >= 3, again
    answer = "sagas: a recorded result is never computed again. leases: a recorded result is never computed again."
    assert again.stdout.splitlines()[-1] == answer
    assert provider.asked <= 3, "the first turn, and the second one once or twice"


async def test_the_demo_imports_no_network_library_before_it_needs_one() -> None:
    code = "import sys, demo; print([n for n in ('agents', 'ddgs', 'trafilatura', 'litellm') if n in sys.modules])"
    demo = await run(sys.executable, "-c", code, cwd=ROOT)
    assert demo.stdout == "[]\n", demo
