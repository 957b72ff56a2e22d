"""`nexum versions` and `nexum diff`: what a workflow was and is."""

import json
from typing import Any

import pytest
from command import Text, assert_refused, nexum, unused
from nexum import workflow
from processes import Finished

from nexum_runtime import Client
from nexum_runtime.cli.base import FAILED


def checkout(*nodes: tuple[str, list[str]]) -> Any:
    built = workflow("checkout")
    for node, depends_on in nodes:
        built = built.effect(node, Text, unused, depends_on=depends_on)
    return built.build()


OLD = checkout(("pay", []), ("ship", ["pay"]), ("gift", []))
NEW = checkout(("pay", []), ("ship", ["pay", "check"]), ("check", []))


async def test_versions_lists_all_there_are_the_newest_first(client: Client, address: str) -> None:
    assert await nexum(address, "versions") == Finished(0, "No workflows yet.\n", "")
    for each in (OLD, workflow("other").effect("run", Text, unused).build(), NEW):
        await client.register(each)
    head, *rows = (await nexum(address, "versions")).stdout.splitlines()
    assert head.split() == ["WORKFLOW", "VERSION", "CHANGE", "RUNNING", "REGISTERED", "(UTC)"]
    assert [row.split()[0] for row in rows] == ["checkout", "other", "checkout"]
    assert rows[0].split()[1:4] == [NEW.version_hash[:19], "BREAKING", "0"]
    told = [json.loads(line) for line in (await nexum(address, "versions", "checkout", "--json")).stdout.splitlines()]
    assert [each["version_hash"] for each in told] == [NEW.version_hash, OLD.version_hash]
    assert told[0].pop("registered_at").endswith("Z")
    assert told[0] == {
        "workflow_id": "checkout",
        "version_hash": NEW.version_hash,
        "compatibility": "BREAKING",
        "running": 0,
    }
    assert_refused(await nexum(address, "versions", "ghost"), "No workflow 'ghost' is registered.")


async def test_diff_tells_which_nodes_came_went_and_changed(client: Client, address: str) -> None:
    await client.register(OLD)
    assert_refused(await nexum(address, "diff", "checkout"), "Workflow 'checkout' has one version only")
    await client.register(NEW)
    finished = await nexum(address, "diff", "checkout")
    assert finished.code == FAILED
    told = finished.stdout.splitlines()
    old, new = OLD.version_hash, NEW.version_hash
    assert told == [
        f"checkout  {old[:19]} → {new[:19]}  BREAKING",
        "  - gift  EFFECT",
        "  + check  EFFECT",
        "  ~ ship  EFFECT after pay  →  EFFECT after pay, check",
    ]
    finished = await nexum(address, "diff", "checkout", "--json")
    assert finished.code == FAILED
    assert json.loads(finished.stdout) == {
        "workflow_id": "checkout",
        "from": old,
        "to": new,
        "compatibility": "BREAKING",
        "added": {"check": {"type": "EFFECT", "dependencies": []}},
        "removed": {"gift": {"type": "EFFECT", "dependencies": []}},
        "changed": {
            "ship": {
                "from": {"type": "EFFECT", "dependencies": ["pay"]},
                "to": {"type": "EFFECT", "dependencies": ["pay", "check"]},
            }
        },
    }


@pytest.mark.parametrize("short", [lambda name: name, lambda name: name[:12], lambda name: name[7:12]])
async def test_a_version_may_be_named_by_how_its_hash_begins(client: Client, address: str, short: Any) -> None:
    for each in (OLD, NEW):
        await client.register(each)
    old, new = short(OLD.version_hash), short(NEW.version_hash)
    first = f"checkout  {OLD.version_hash[:19]} → {NEW.version_hash[:19]}"
    assert (await nexum(address, "diff", "checkout", old)).stdout.startswith(first)
    assert (await nexum(address, "diff", "checkout", old, new)).stdout.startswith(first)
    turned = f"checkout  {NEW.version_hash[:19]} → {OLD.version_hash[:19]}"
    assert (await nexum(address, "diff", "checkout", new, old)).stdout.startswith(turned)
    same = await nexum(address, "diff", "checkout", new, new)
    assert same.code == 0
    assert same.stdout == f"checkout  {NEW.version_hash[:19]} → {NEW.version_hash[:19]}  IDENTICAL\n"


async def test_diff_refuses_in_a_sentence_what_it_does_not_find(client: Client, address: str) -> None:
    for each in (OLD, NEW):
        await client.register(each)
    assert_refused(await nexum(address, "diff", "ghost"), "No workflow 'ghost' is registered.")
    assert_refused(await nexum(address, "diff", "checkout", "zz"), "No version of 'checkout' begins with 'zz'.")
    assert_refused(await nexum(address, "diff", "checkout", "sha"), "Several versions of 'checkout' begin with 'sha'.")
