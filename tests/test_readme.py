"""What the README shows is what the programs print, and what it tells to type works."""

import re
import sys
from collections import Counter
from pathlib import Path

from test_demo import Stage, stage

__all__ = ["stage"]

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def transcript(name: str) -> list[str]:
    """The lines of the README's transcript of that name, without the command and what it leaves out."""
    block = README.split(f"<!-- transcript: {name} -->\n```console\n")[1].split("\n```")[0]
    return [line for line in block.splitlines()[1:] if line not in ("", "…")]


def comparable(lines: list[str]) -> Counter[str]:
    """Without what differs from run to run: times, the order of parallel calls, and where the interpreter is."""
    return Counter(re.sub(r"\b\d+(\.\d+)? m?s\b", "N ms", line) for line in lines)


async def test_the_readmes_crash_and_second_run_are_what_one_sees(stage: Stage) -> None:
    stage.worker()
    for name, arguments in (("crash", ("--crash-after", "2")), ("again", ())):
        finished = await stage.demo(*arguments, SESSION_ID="s1", OFFLINE_WEB_DELAY_MS="1")
        printed = re.sub(
            r"SESSION_ID=s1 NEXUM_ADDRESS=\S+ \S+ \S+demo\.py", "SESSION_ID=s1 python demo.py", finished.stdout
        )
        missing = comparable(transcript(name)) - comparable(printed.splitlines())
        assert not missing, printed


def test_every_file_and_setting_that_the_readme_names_exists() -> None:
    named = re.findall(r"^\| `([\w./]+)`(?:, `([\w./]+)`)? \|", README, re.MULTILINE)
    files = [name for pair in named for name in pair if "." in name or name.endswith("/")]
    assert len(files) >= 9
    assert [name for name in files if not (ROOT / name).exists()] == []
    source = "\n".join(path.read_text() for path in ROOT.rglob("*.py") if ".venv" not in path.parts)
    settings = re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", README)
    assert [name for name in settings if name not in source] == []


def test_the_agents_modules_keep_to_their_side() -> None:
    """Nothing in runtime/ knows of agents, and the worker imports neither the agent nor its SDK."""
    runtime = "\n".join(path.read_text() for path in (ROOT / "runtime").rglob("*.py"))
    assert not re.search(r"^\s*(from|import) (agents|openai|tools|submit_task)\b", runtime, re.MULTILINE)


async def test_the_worker_imports_neither_the_agent_nor_its_sdk_and_the_demo_no_network_library() -> None:
    from processes import run

    def loaded(module: str, *names: str) -> str:
        return f"import sys, {module}; print([n for n in {names!r} if n in sys.modules])"

    worker = await run(sys.executable, "-c", loaded("worker", "agents", "openai", "demo"), cwd=ROOT)
    demo = await run(sys.executable, "-c", loaded("demo", "ddgs", "trafilatura", "litellm"), cwd=ROOT)
    assert (worker.stdout, demo.stdout) == ("[]\n", "[]\n"), (worker, demo)
