"""`nexum versions` and `nexum diff`: what a workflow was and is."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexum_runtime.cli.base import (
    FAILED,
    HASH_CHARS,
    Address,
    Json,
    app,
    clock_text,
    console,
    examples,
    fail,
    print_json,
    run,
    shown,
)
from nexum_runtime.errors import InvalidRequest, NotFound
from nexum_runtime.telling.versions import difference, node_text

if TYPE_CHECKING:
    from nexum_runtime.client import Client


@app.command(epilog=examples("nexum versions", "nexum versions my-workflow --json"))
def versions(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="Only of this one.", show_default=False)] = "",
    as_json: Json = False,
    address: Address = None,
) -> None:
    """List the versions of workflows, the newest first."""
    from rich.table import Table

    from nexum_runtime.engines import Use, near

    async def fetch() -> list[Any]:
        async with near(address, use=Use.LOOK) as client:
            return await client.versions(workflow)

    found = run(fetch())
    if as_json:
        for version in found:
            print_json(
                {
                    "workflow_id": version.workflow_id,
                    "version_hash": version.version_hash,
                    "compatibility": version.compatibility,
                    "registered_at": version.registered_at,
                    "running": version.active_executions,
                }
            )
        return
    if not found and workflow:
        fail(f"No workflow {workflow!r} is registered. See which are with: nexum versions")
    if not found:
        print("No workflows yet.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("WORKFLOW", overflow="fold")
    table.add_column("VERSION", no_wrap=True)
    table.add_column("CHANGE", no_wrap=True)
    table.add_column("RUNNING", justify="right")
    table.add_column("REGISTERED (UTC)", no_wrap=True)
    for version in found:
        table.add_row(
            shown(version.workflow_id),
            shown(version.version_hash[:HASH_CHARS]),
            shown(version.compatibility),
            str(version.active_executions),
            shown(clock_text(version.registered_at)[:16]),
        )
    console().print(table)


@app.command(
    epilog=examples(
        "nexum diff checkout",
        "nexum diff checkout 3fa2",
        "nexum diff checkout 3fa2 91c0 --json",
    )
)
def diff(
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW")],
    old: Annotated[
        str, typer.Argument(metavar="A", help="A version's hash, or how it begins.", show_default=False)
    ] = "",
    new: Annotated[str, typer.Argument(metavar="B", help="Another one.", show_default=False)] = "",
    as_json: Json = False,
    address: Address = None,
) -> None:
    """Compare the nodes of two versions of a workflow.

    By default the newest with the one before it; when one version is named, that one with the newest. Ends with 1 when
    the change is BREAKING.
    """
    from nexum_runtime.engines import Use, near

    async def fetch() -> tuple[Any, Any]:
        async with near(address, use=Use.LOOK) as client:
            hashes = await _hashes(client, workflow, old, new)
            before, after = [await client.definition(workflow, version_hash) for version_hash in hashes]
            return before, after

    before, after = run(fetch())
    compared = difference(before, after)
    if as_json:
        print_json(compared)
    else:
        _print_compared(before, after, compared)
    if compared["compatibility"] == "BREAKING":
        raise typer.Exit(FAILED)


def _print_compared(before: Any, after: Any, compared: dict[str, Any]) -> None:
    hashes = f"{before.version_hash[:HASH_CHARS]} → {after.version_hash[:HASH_CHARS]}"
    out = console()
    out.print(f"{shown(after.workflow_id)}  {shown(hashes)}  {compared['compatibility']}", soft_wrap=True)
    for node, definition in compared["removed"].items():
        out.print(f"  [red]- {shown(node)}  {shown(node_text(definition))}[/]", soft_wrap=True)
    for node, definition in compared["added"].items():
        out.print(f"  [green]+ {shown(node)}  {shown(node_text(definition))}[/]", soft_wrap=True)
    for node, change in compared["changed"].items():
        was, now = node_text(change["from"]), node_text(change["to"])
        out.print(f"  [yellow]~ {shown(node)}  {shown(was)}  →  {shown(now)}[/]", soft_wrap=True)


async def _hashes(client: "Client", workflow: str, old: str, new: str) -> tuple[str, str]:
    """The two versions that are meant: without `new` the newest, without `old` the one before it."""
    known = [version.version_hash for version in await client.versions(workflow)]
    if not known:
        raise NotFound(f"No workflow {workflow!r} is registered. See which are with: nexum versions")
    if not old and len(known) < 2:
        raise InvalidRequest(f"Workflow {workflow!r} has one version only, {known[0][:HASH_CHARS]}.")
    return _meant(known, workflow, old) if old else known[1], _meant(known, workflow, new) if new else known[0]


def _meant(known: list[str], workflow: str, beginning: str) -> str:
    """The one version whose hash is `beginning`, or begins so, with or without its "sha256:"."""
    if beginning in known:
        return beginning
    found = [each for each in known if each.startswith(beginning) or each.partition(":")[2].startswith(beginning)]
    if len(found) != 1:
        which = f"Several versions of {workflow!r} begin" if found else f"No version of {workflow!r} begins"
        raise NotFound(f"{which} with {beginning!r}. See them with: nexum versions {workflow}")
    return found[0]
