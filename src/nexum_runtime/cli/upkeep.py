"""`nexum prune`: disk space back."""

import re
from typing import Annotated

import typer

from nexum_runtime.cli.base import USAGE, Address, app, counted, examples, fail, run
from nexum_runtime.text import size_text


@app.command(
    epilog=examples("nexum prune --older-than 30d --dry-run", "nexum prune --older-than 12h --session my-session")
)
def prune(
    older_than: Annotated[str, typer.Option(metavar="AGE", help="What ended longer ago than that: 30d, 12h, 90m, 0s.")],
    session: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX", help="Only this session, such as s1 (not s10), or one tool of it: s1/web_search."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    address: Address = None,
) -> None:
    """Delete what ended long ago.

    Its disk space is given back. What runs stays, and so do unknown outcomes. A session that is run again after
    it was pruned executes its calls again.
    """
    from nexum_runtime.engines import Use, near

    match = re.fullmatch(r"([0-9]{1,6})([smhd])", older_than)
    if not match:
        fail(f"--older-than is {older_than!r}; it must be a whole number with s, m, h or d, such as 30d.", USAGE)
    if session == "":
        fail("--session is empty; leave it out to prune every session.", USAGE)
    prefix = f"{session.removesuffix('/')}/" if session else ""
    age_ms = int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] * 1000

    async def send() -> dict[str, int]:
        async with near(address, use=Use.CHANGE) as client:
            return await client.prune(prefix, age_ms, dry_run=dry_run)

    pruned = run(send())
    executions = counted(pruned["executions"], "execution")
    if dry_run:
        print(f"{executions} would be deleted.")
    else:
        print(f"{executions} deleted, {size_text(pruned['bytes'])} given back to the disk.")
