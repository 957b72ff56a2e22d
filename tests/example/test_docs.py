"""What the pages in docs/ say is so: their code, their commands, and the lists that the code has, too."""

import ast
import asyncio
import builtins
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from html import unescape
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import agents
import agents.realtime
import agents.sandbox
import pytest
import typer
from agents import Agent, Runner, SQLiteSession
from agents.testing import ScriptedModel, assistant_message
from processes import LOOK_SECONDS, NEXUM, PATIENCE_SECONDS, NexumDev, environment, eventually, run
from pydantic import BaseModel

import nexum_agents
import nexum_runtime
from nexum_agents import durable_session, refusals, runs, seams
from nexum_agents.errors import DurableCallError
from nexum_runtime import wire
from nexum_runtime.cli import app
from nexum_runtime.engines import host, near
from nexum_runtime.server.rpc.service import Services
from nexum_runtime.wire import methods as wire_methods

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8") for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
}
PAGE_LINES, README_LINES, SCRIPT_LINES, EXAMPLE_LINES = 150, 200, 150, 80


def test_every_page_and_script_is_short() -> None:
    limits = dict.fromkeys(DOCS.glob("*.md"), PAGE_LINES) | {ROOT / "README.md": README_LINES}
    limits |= dict.fromkeys(ROOT.glob("*.py"), SCRIPT_LINES) | dict.fromkeys(
        (ROOT / "examples").glob("*.py"), EXAMPLE_LINES
    )
    assert [str(path) for path, limit in limits.items() if path.read_text("utf-8").count("\n") > limit] == []


def test_every_page_is_listed_in_the_documentations_own_readme() -> None:
    listed = set(re.findall(r"\]\((\w[\w-]*\.md)\)", PAGES["docs/README.md"]))
    assert listed == {path.name for path in DOCS.glob("*.md")} - {"README.md"}


# Blocks of Python


class Forecast(BaseModel):
    rain: bool = True
    searches: list[str] = ["Rome", "rain"]


def stand_in(output_type: type[BaseModel] | None = None, name: str = "Guide") -> Agent[Any]:
    """An agent whose model always answers at once, in the same words."""
    text = "It rains." if output_type is None else output_type().model_dump_json()
    answers = [[assistant_message(text, item_id=f"m{n}")] for n in range(9)]
    return Agent(name=name, model=ScriptedModel(answers), output_type=output_type)


def book(what: str, city: str = "") -> str:
    return f"{what} {city}"


def tool(name: str) -> Callable[..., str]:
    def call(what: str, city: str = "") -> str:
        return book(what, city)

    call.__name__ = name
    return call


def asks(questions: Iterator[str]) -> Callable[[], str]:
    def ask() -> str:
        for question in questions:
            return question
        raise EOFError("The person has gone.")

    return ask


def readers_own() -> dict[str, Any]:
    """What a page speaks of and its reader has: it stands in no import of a block."""
    tools = ("book_room", "cancel", "get_weather", "send_invoice", "transfer", "web_search")
    agents = ("agent", "agent_with_another_prompt", "searcher", "writer")
    return {
        **{name: tool(name) for name in tools},
        **{name: stand_in() for name in agents},
        "Forecast": Forecast,
        "ask_the_person": asks(iter(["Will it rain?", "And tomorrow?"])),
        "book": book,
        "chat_id": "chat",
        "city": "Rome",
        "memory": SQLiteSession("chat"),
        "planner": stand_in(Forecast),
        "question": "Will it rain?",
        "researcher": stand_in(name="Researcher"),
    }


OF_MODULES = vars(builtins) | {name: getattr(nexum_agents, name) for name in nexum_agents.__all__}
OF_MODULES |= {name: getattr(agents, name) for name in agents.__all__}
OF_MODULES |= {name: importlib.import_module(name) for name in ("asyncio", "itertools")}


def python_blocks() -> Iterator[Any]:
    for page, text in PAGES.items():
        for number, block in enumerate(re.findall(r"```python\n(.+?)```", text, re.DOTALL), 1):
            yield pytest.param(block, id=f"{page}-{number}")


def free_names(tree: ast.AST) -> set[str]:
    """The names that a block uses and does not make."""
    nodes = list(ast.walk(tree))
    made = {each.id for each in nodes if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    made |= {each.arg for each in nodes if isinstance(each, ast.arg)}
    made |= {each.name for each in nodes if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    made |= {
        name.asname or name.name
        for each in nodes
        if isinstance(each, ast.Import | ast.ImportFrom)
        for name in each.names
    }
    used = {each.id for each in nodes if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)}
    return used - made


@pytest.mark.parametrize("block", list(python_blocks()))
def test_a_block_of_python_names_only_what_there_is(block: str) -> None:
    code = compile(block, "a block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
    assert isinstance(code, ast.AST)
    for each in ast.walk(code):
        if isinstance(each, ast.ImportFrom):
            module = importlib.import_module(each.module or "")
            assert [name.name for name in each.names if not hasattr(module, name.name)] == []
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Name) and each.func.id in nexum_agents.__all__:
            taken = inspect.signature(getattr(nexum_agents, each.func.id)).parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
                assert [named.arg for named in each.keywords if named.arg not in taken] == []
    assert free_names(code) - OF_MODULES.keys() <= readers_own().keys()


@pytest.fixture
async def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """An engine in this process, with sessions that the pages speak of, and a person who answers."""
    monkeypatch.setenv("NEXUM_DATABASE_URL", f"sqlite:///{tmp_path / 'nexum.db'}")
    for session_id, agent in (("s1", stand_in(Forecast)), ("yesterday", stand_in())):
        with durable_session(session_id):
            await Runner.run(agent, "Will it rain in Rome?")

    async def answer() -> None:
        async with near() as client:
            while True:
                for each in await client.approvals():
                    await client.approve(each.execution_id, each.node_id, "anna", "savings")
                await asyncio.sleep(LOOK_SECONDS)

    answering = asyncio.create_task(answer())
    yield
    answering.cancel()
    await asyncio.wait([answering])
    host.close_all()


@asynccontextmanager
async def working(agent: Agent[Any]) -> AsyncIterator[None]:
    worker = nexum_agents.Worker(agents=[agent])
    running = asyncio.create_task(worker.run())
    yield
    worker.stop()
    await running


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("block", [each for each in python_blocks() if "asyncio.run(" not in each.values[0]])
async def test_a_block_of_python_runs_with_what_its_reader_has(block: str) -> None:
    """All but the whole script, which test_readme.py runs. `serve`, which never returns, only makes its worker."""
    code = compile(block, "a block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names = {"__name__": "block"} | OF_MODULES | readers_own()
    async with AsyncExitStack() as others:
        stack = others.enter_context(ExitStack())
        stack.enter_context(patch.object(nexum_agents, "serve", nexum_agents.Worker))
        names["serve"] = nexum_agents.serve
        if "durable_step(" in block or "ask_person(" in block:
            stack.enter_context(durable_session("around"))
        if "start_run(" in block:
            await others.enter_async_context(working(names["researcher"]))
        stack.enter_context(suppress(EOFError))  # a chat ends when its person goes
        running = eval(code, names)
        if inspect.isawaitable(running):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await running


def test_no_name_of_the_readers_own_is_left_over() -> None:
    blocks = [
        compile(each.values[0], "a block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
        for each in python_blocks()
    ]
    assert set().union(*(free_names(block) for block in blocks)) >= readers_own().keys()


# Commands

LEFT_OUT = (
    "MissingParameter",
    "BadOptionUsage",
)  # what a command in a sentence may be without: an id, an option's value
OF_ALL = ("--install-completion", "--version", "--help")  # options of `nexum` itself
OF_OTHERS = {"curl", "openssl", "docker", "pip", "export", "umask", "mkdir", "cp", "mv", "chmod", "useradd"}
OF_OTHERS |= {"pg_dump", "pg_restore", "psql", "docker", "kubectl", "printf", "openssl"}


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a page, without the settings in front of it."""
    for kind, block in re.findall(r"```(bash|console)\n(.+?)\n```", text, re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        if kind == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        for line in lines:
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, "&&"]:
                if word == "&&":
                    while words and re.match(r"[A-Z_]+=", words[0]):
                        del words[0]
                    if words:
                        yield words
                    words = []
                else:
                    words.append(word)


def parse_nexum(words: list[str]) -> None:
    """Raise click's UsageError for what the command does not take."""
    group: Any = typer.main.get_command(app)
    if words[1] in OF_ALL:
        return
    with group.make_context("nexum", list(words[1:]), resilient_parsing=True) as context:
        command = group.get_command(context, words[1])
        assert command is not None, f"there is no command {words[1]}"
        command.make_context(words[1], list(words[2:]), parent=context)


def parse_python(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    match words[1:]:
        case ["-c", code]:
            compile(code, "-c", "exec")
        case ["-m", "venv" | "pytest", *_]:
            pass
        case [script, *arguments]:
            assert (ROOT / script).is_file(), script
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            module = importlib.import_module(Path(script).stem)
            if script == "worker.py":
                monkeypatch.setattr(module, "serve", Mock())
                module.main()
            elif hasattr(module, "parse_arguments"):
                module.parse_arguments()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_one_that_its_program_takes(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"))
    for words in commands(PAGES[page]):
        program = words[0].rpartition("/")[2]
        if program == "nexum":
            parse_nexum(words)
        elif program == "python":
            parse_python(words, monkeypatch)
        elif program == "make":
            assert words[1] in targets
        else:
            assert program in OF_OTHERS, words


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_a_sentence_has_a_name_and_options_that_there_are(page: str) -> None:
    for said in re.findall(r"`(nexum [^`]+)`", PAGES[page]):
        try:
            parse_nexum(shlex.split(said.partition(" < ")[0]))
        except Exception as error:  # typer's copy of click has its own classes
            if type(error).__name__ not in LEFT_OUT:
                raise


WANTED = {"resolve": r"OUTCOME|--result|--failed|--retry", "reject": "--reason", "answer": "'your answer'|TEXT"}


@pytest.mark.parametrize("command", WANTED)
def test_a_command_that_is_printed_has_all_that_it_needs(command: str) -> None:
    """Or else a placeholder for it, as nobody knows what to type after half of a command."""
    printed = []
    for path in [
        *ROOT.glob("*.py"),
        *ROOT.glob("src/**/*.py"),
        *ROOT.glob("offline/*.py"),
        *ROOT.glob("examples/*.py"),
    ]:
        for each in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(each, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "%s" for part in each.values)
            else:
                text = each.value if isinstance(each, ast.Constant) and isinstance(each.value, str) else ""
            printed += re.findall(rf"nexum {command} '?%s.*", text)
    assert printed
    assert [said for said in printed if not re.search(rf"nexum {command} '?%s.*?({WANTED[command]})", said)] == []


def test_the_service_starts_what_the_command_takes_and_so_does_the_container() -> None:
    page = PAGES["docs/production.md"]
    (unit,) = re.findall(r"(?m)^ExecStart=(.+)$", page)
    parse_nexum(shlex.split(unit))
    (container,) = re.findall(r"(?m)^CMD (\[.+\])$", page)
    parse_nexum(ast.literal_eval(container))


# Lists that the code has, too


def rows(page: str) -> list[list[str]]:
    """The cells of all rows of all tables, without the heads."""
    lines = PAGES[page].splitlines()
    found = [
        line
        for line, after in zip(lines, [*lines[1:], ""], strict=True)
        if line.startswith("|") and not after.startswith("|--")
    ]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in found if not line.startswith("|--")]


def test_the_protocol_page_has_every_method_with_its_messages() -> None:
    services = Services(Mock(), Mock(), Mock())
    served = {path.rpartition("/")[2] for each in services.handlers() for path in each._method_handlers}
    told = {
        cells[0].strip("`"): cells[1] for cells in rows("docs/protocol.md") if re.fullmatch(r"`[A-Z]\w+`", cells[0])
    }
    assert told.keys() == served
    for name, (asked, answer) in (wire_methods.EXTENSIONS | wire_methods.STREAMS).items():
        more = " …" if name in wire_methods.STREAMS else ""
        assert told[name] == f"{asked.DESCRIPTOR.name} → {answer.DESCRIPTOR.name}{more}", name


def test_the_protocol_page_has_every_metadata_key() -> None:
    told = [cells[0].strip("`") for cells in rows("docs/protocol.md") if re.fullmatch(r"`[a-z-]+`", cells[0])]
    known = {value for name, value in vars(wire).items() if name.isupper() and isinstance(value, str)}
    keys = {value for value in known if value.startswith("nexum-") or value in (wire.TRACEPARENT, wire.AUTHORIZATION)}
    assert sorted(told) == sorted(keys)


def test_the_page_of_the_sdks_features_has_every_seam() -> None:
    named = {cells[3].strip("`") for cells in rows("docs/sdk.md") if cells[1] == "yes"}
    assert named == seams.SEAMS.keys()
    assert seams.TRIED_WITH in PAGES["docs/sdk.md"]


def test_the_features_that_the_page_says_are_refused_are_refused() -> None:
    refusals.refuse()
    plain = agents.Agent(name="A")
    refused: dict[str, Callable[[], None]] = {
        "OpenAIConversationsSession": lambda: runs.check_that_it_can_be_recorded(
            plain, object.__new__(agents.OpenAIConversationsSession)
        ),
        "SandboxAgent": lambda: runs.check_that_it_can_be_recorded(agents.sandbox.SandboxAgent(name="S")),
    }
    named = {cells[0].strip("`") for cells in rows("docs/sdk.md") if cells[1] == "no" and "refused" in cells[2]}
    assert named == {*refused, "RealtimeRunner", "VoicePipeline"}
    for attempt in refused.values():
        with pytest.raises(DurableCallError):
            attempt()
    source = inspect.getsource(refusals.refuse)
    assert '"RealtimeRunner"' in source
    assert '"VoicePipeline"' in source
    assert hasattr(agents.realtime.RealtimeRunner.run, "_nexum_plain")


def script(name: str) -> Any:
    """A module of docs/scripts."""
    sys.path.insert(0, str(DOCS / "scripts"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS / "scripts"))


def test_the_api_page_is_what_its_script_makes_of_the_docstrings() -> None:
    api = script("api")
    assert PAGES["docs/api.md"] == api.page(), "run: python docs/scripts/api.py"
    for name in (*nexum_agents.__all__, *nexum_runtime.__all__):
        assert f"`{name}`" in PAGES["docs/api.md"], name


# Backup and restore

ONE_STEP = """
import asyncio, sys
from nexum_agents import durable_session, durable_step

async def main():
    with durable_session(sys.argv[1]):
        await durable_step("step", str, "done")

asyncio.run(main())
"""


async def test_the_backup_of_a_live_database_is_restored_by_the_commands_of_the_page(tmp_path: Path) -> None:
    page = PAGES["docs/production.md"]
    blocks = dict(re.findall(r"<!-- run: (\w+) -->\n```bash\n(.+?)```", page, re.DOTALL))
    (tmp_path / ".nexum").mkdir()
    bin = str(Path(sys.executable).parent)
    own = {"NEXUM_DATABASE_URL": "sqlite:///.nexum/local.db", "PATH": f"{bin}:{environment()['PATH']}"}
    env = environment(**own)

    async def in_bash(name: str) -> str:
        finished = await run("bash", "-euc", blocks[name], env=env, cwd=tmp_path)
        assert finished.code == 0, finished
        return finished.stdout

    async with NexumDev(tmp_path, database=tmp_path / ".nexum/local.db") as nexum:
        for session_id in ("before", "after"):
            step = (sys.executable, "-c", ONE_STEP, session_id)
            finished = await run(*step, env=env | {"NEXUM_ADDRESS": nexum.address}, cwd=tmp_path)
            assert finished.code == 0, finished
            if session_id == "before":
                await in_bash("backup")
                assert (tmp_path / "backup.db").stat().st_mode & 0o077 == 0, "it is for its owner alone"
        nexum.terminate()
        await eventually(lambda: not nexum.alive)
    assert "All is well." in await in_bash("restore")
    listed = await run(NEXUM, "sessions", env=env, cwd=tmp_path)
    assert "before" in listed.stdout
    assert "after" not in listed.stdout


# The site


def test_the_site_has_every_page_and_the_readme() -> None:
    named = re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(["first.md", *(path.name for path in DOCS.glob("*.md"))])


def test_the_sites_pages_lead_to_each_other() -> None:
    site = script("site_pages")
    first = site.first_page()
    assert [link for link in re.findall(r"\]\((?!https?:)([^)#]+)", first) if not (DOCS / link).exists()] == []
    api = site.with_docstrings(PAGES["docs/api.md"])
    assert [name for name in nexum_agents.__all__ if f"::: nexum_agents.{name}\n" not in api] == []


# Pictures


def test_every_picture_is_there_in_light_and_dark_and_asks_no_other_server() -> None:
    named = re.findall(r'(?:src|srcset)="(?:docs/)?(pictures/[^"]+)"', PAGES["README.md"] + PAGES["docs/api-http.md"])
    assert sorted(named) == sorted(f"pictures/{path.name}" for path in (DOCS / "pictures").iterdir())
    for name in [each for each in named if each.endswith(".svg")]:
        assert re.findall(r"""url\(["']?http|(?:href|src)=""", (DOCS / name).read_text("utf-8")) == [], name


def test_the_picture_of_the_parts_is_what_its_script_draws() -> None:
    pictures = script("pictures")
    for mode, colors in pictures.MODES.items():
        drawn = (DOCS / "pictures" / f"parts-{mode}.svg").read_text("utf-8")
        assert drawn == pictures.parts(colors), "run: make pictures"


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_the_picture_of_the_crash_shows_what_the_transcripts_show(mode: str) -> None:
    drawn = (DOCS / "pictures" / f"crash-{mode}.svg").read_text("utf-8")
    shown = "".join(unescape("".join(re.findall(r"<text [^>]*>([^<]*)</text>", drawn))).split())
    for name in ("crash", "again"):
        told = PAGES["README.md"].split(f"<!-- transcript: {name} -->")[1].split("\n```\n")[0]
        for line in re.findall(r"(?m)^\[Nexum\] (.+?)(?: [\d.]+ m?s)?$", told):
            assert "".join(line.split()) in shown, line
