"""Where the package leans on private names of the SDK: in one module, and each of them is looked for at import."""

import ast
import builtins
import importlib.metadata
from pathlib import Path
from typing import Any

import agents
import pytest

import nexum_agents
from nexum_agents import seams

PACKAGE = Path(nexum_agents.__file__).parent


def without(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what is at a dotted path, as a version of the SDK would that calls it otherwise."""
    *parts, last = path.removeprefix("agents.").split(".")
    owner: Any = agents
    for part in parts:
        owner = getattr(owner, part)
    if last in getattr(owner, "__dataclass_fields__", {}):
        monkeypatch.delitem(owner.__dataclass_fields__, last)
    if hasattr(owner, last):
        monkeypatch.delattr(owner, last)


@pytest.mark.parametrize("path", [*seams.SEAMS.values(), *seams.USED])
def test_a_version_of_the_sdk_without_a_name_is_refused_with_both_versions(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.check()
    without(path, monkeypatch)
    with pytest.raises(ImportError) as refused:
        seams.check()
    installed = importlib.metadata.version("openai-agents")
    assert f"openai-agents {installed} has no {path}, which durable sessions need." in str(refused.value)
    assert f"works with openai-agents {seams.TRIED_WITH}" in str(refused.value)


def test_private_names_of_the_sdk_stand_in_one_module_alone() -> None:
    sources = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    own = {"_asyncgens_shutdown_called"}  # of asyncio
    for tree in sources.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("_nexum"):
                own.add(node.value)
    found = [
        f"{path.name}: {name}"
        for path, tree in sources.items()
        for node in ast.walk(tree)
        for name in _names(node)
        if path.name != "seams.py" and name.startswith("_") and not name.startswith("__") and name not in own
    ]
    assert found == []


def _names(node: ast.AST) -> list[str]:
    """What a piece of code asks of something else, or imports from it."""
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in dir(builtins):
        return [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("agents"):
        return [*node.module.split("."), *(each.name for each in node.names)]
    return []


def test_every_seam_is_in_place_and_passes_through_outside_of_a_session() -> None:
    for name in seams.SEAMS:
        there = seams.plain(name)
        there = getattr(there, "__func__", there)
        assert there.__module__.startswith("nexum_agents."), name
