"""How nexum_runtime is built: which room may import from which, and what is done in one room alone."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
COMMON = "errors text logs signals tracing crash idempotency forking definition"

ROOMS = {  # a folder, or some modules → what it may import of this package, besides its own
    COMMON: "",
    "wire": COMMON,
    "client": f"{COMMON} wire",
    "worker": f"{COMMON} wire client",
    "server.model": f"{COMMON} wire",
    "server.store": f"{COMMON} wire server.model",
    "server.rules": f"{COMMON} wire server.model server.store",
    "server.engine": f"{COMMON} wire server.model server.store server.rules",
    "server.methods": f"{COMMON} wire server.model server.store server.rules server.engine",
    "server.rpc": f"{COMMON} wire server.model server.store server.rules server.engine server.methods",
    "server.web": f"{COMMON} wire telling server.model server.store server.rules server.engine server.methods",
    "server.door": f"{COMMON} wire server.engine server.methods server.rpc",
    "server.app": f"{COMMON} wire server",
    "telling": f"{COMMON} wire server.model",
    "engines": f"{COMMON} wire client server",
    "cli": f"{COMMON} wire telling client worker server engines",
    "__init__": f"{COMMON} wire client worker engines",
}
LIBRARIES = {"nexum", "grpc", "psycopg", "google", "pydantic_core", "rich", "typer", "opentelemetry"}
LIBRARIES |= {"starlette", "uvicorn", "jinja2", "markupsafe", "markdown_it"}  # of the page
OF_AGENTS = r"\b(nexum_agents|durable_\w+|function_tool|tool_call\w*|submit_task|Runner)\b"
SPEAKS_GRPC = "client.remote client.connection client.calls wire server.rpc server.app"
SETS_UP_GRPC = "__init__"
SQL = r"\s*(SELECT|INSERT (OR \w+ )?INTO|UPDATE \w+ SET|DELETE FROM|(CREATE|ALTER|DROP) (TABLE|INDEX|VIEW)|PRAGMA) "


@cache
def modules() -> dict[str, str]:
    """The source of each, by its name inside the package: `server.app`; a package's own is that of its folder."""
    paths = {path.relative_to(SRC / "nexum_runtime"): path for path in (SRC / "nexum_runtime").rglob("*.py")}
    return {
        ".".join(inside.with_suffix("").parts).removesuffix(".__init__"): path.read_text(encoding="utf-8")
        for inside, path in paths.items()
    }


def imports(name: str) -> Iterator[str]:
    """The full names of the modules that a module imports, wherever it does and for whatever."""
    for node in ast.walk(ast.parse(modules()[name])):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative name"
            for each in node.names:
                inside = f"{node.module}.{each.name}"
                yield inside if inside.removeprefix("nexum_runtime.") in modules() else str(node.module)


def own_imports(name: str) -> list[str]:
    return sorted(
        {
            imported.partition(".")[2] or "__init__"
            for imported in imports(name)
            if imported.partition(".")[0] == "nexum_runtime"
        }
    )


def is_in(name: str, rooms: str) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms.split())


def strings(name: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(modules()[name])):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_those_below_it(room: str) -> None:
    inside = [name for name in modules() if is_in(name, room)]
    assert inside
    assert [
        f"{name} imports {imported}"
        for name in inside
        for imported in own_imports(name)
        if not is_in(imported, f"{room} {ROOMS[room]}")
    ] == []


def test_every_module_is_in_a_room() -> None:
    rooms = " ".join(ROOMS)
    assert [name for name in modules() if not is_in(name, rooms) and modules()[name].strip()] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter({name: own_imports(name) for name in modules()}).prepare()  # raises CycleError


def test_nothing_is_imported_but_what_a_server_needs_and_nothing_of_agents() -> None:
    known = sys.stdlib_module_names | LIBRARIES | {"nexum_runtime"}
    assert [
        f"{name} imports {imported}"
        for name in modules()
        for imported in imports(name)
        if imported.partition(".")[0] not in known
    ] == []


def test_nothing_is_said_of_agents_or_their_tools() -> None:
    assert [
        f"{name}: {found[0]}" for name, source in modules().items() if (found := re.search(OF_AGENTS, source))
    ] == []


def test_sql_is_in_the_store_alone() -> None:
    elsewhere = [name for name in modules() if not is_in(name, "server.store")]
    assert [name for name in elsewhere if {"sqlite3", "psycopg"} & {i.partition(".")[0] for i in imports(name)}] == []
    assert [f"{name}: {text}" for name in elsewhere for text in strings(name) if re.match(SQL, text)] == []
    assert any(re.match(SQL, text) for text in strings("server.store.sql.reader")), "it would be seen"


def test_grpc_is_spoken_by_the_server_s_calls_the_client_and_the_worker_alone() -> None:
    assert [
        f"{name} imports {imported}"
        for name in modules()
        for imported in imports(name)
        if imported.startswith(("grpc", "google.protobuf", "nexum.proto"))
        and not is_in(name, f"{SPEAKS_GRPC} {SETS_UP_GRPC}")
    ] == []


def test_only_the_command_prints() -> None:
    elsewhere = [name for name in modules() if not is_in(name, "cli")]
    assert [name for name in elsewhere if {"rich", "typer"} & {i.partition(".")[0] for i in imports(name)}] == []
    assert [
        f"{name}, line {node.lineno}"
        for name in elsewhere
        for node in ast.walk(ast.parse(modules()[name]))
        if isinstance(node, ast.Name) and node.id == "print"
    ] == []
