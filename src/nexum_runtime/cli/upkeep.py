"""`nexum prune`: disk space back."""

from typing import Annotated

import typer

from nexum_runtime.cli.base import USAGE, Address, app, examples, fail, run
from nexum_runtime.telling.words import age_ms, pruned


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

    try:
        older_than_ms = age_ms(older_than)
    except ValueError as error:
        fail(f"--older-than is {error}", USAGE)
    if session == "":
        fail("--session is empty; leave it out to prune every session.", USAGE)
    prefix = f"{session.removesuffix('/')}/" if session else ""

    async def send() -> dict[str, int]:
        async with near(address, use=Use.CHANGE) as client:
            return await client.prune(prefix, older_than_ms, dry_run=dry_run)

    print(pruned(run(send()), dry_run=dry_run))
