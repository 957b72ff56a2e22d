"""`nexum sessions`, `stop`, `go`, `forget` and `fork`: what is done with whole sessions."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexum_runtime.cli.base import (
    USAGE,
    Address,
    Json,
    app,
    clock_time,
    color,
    console,
    counted,
    examples,
    fail,
    names,
    print_json,
    run,
    shown,
    whole_number,
)
from nexum_runtime.cli.people import Approver, user
from nexum_runtime.telling.words import counts, waits_for
from nexum_runtime.text import ago_text, number_text, printable_line

if TYPE_CHECKING:
    from rich.table import Table

Session = Annotated[
    str, typer.Argument(metavar="SESSION", help="Its id, as `nexum sessions` shows it.", autocompletion=names)
]


@app.command(epilog=examples("nexum sessions", "nexum sessions invoice-", "nexum sessions --json | jq -r .session_id"))
def sessions(
    prefix: Annotated[
        str, typer.Argument(metavar="PREFIX", help="Only sessions whose id begins with this.", show_default=False)
    ] = "",
    limit: Annotated[
        int,
        typer.Option(parser=whole_number("--limit", 1, 10_000), metavar="N", help="At most this many, the latest."),
    ] = 20,
    as_json: Json = False,
    address: Address = None,
) -> None:
    """List sessions, the most recently active first.

    For each: its runs, turns, calls and steps, the tokens that it used, and what it waits for.
    """
    from nexum_runtime.engines import Use, near

    async def fetch() -> list[dict[str, Any]]:
        async with near(address, use=Use.LOOK) as client:
            return await client.sessions(prefix, limit)

    found = run(fetch())
    if as_json:
        for each in found:
            print_json(each)
    elif found:
        out = console()
        longest = max(len(each["session_id"]) for each in found)
        if out.is_terminal and out.width < longest + OTHER_CELLS:
            for each in found:
                for line in _lines(each):
                    out.print(line, soft_wrap=True)
        else:
            out.print(_table(found))
        if len(found) == limit:
            print(f"Only the latest {limit} are shown. For more add: --limit {10 * limit}")
    else:
        print("No such sessions." if prefix else "No sessions yet.")


@app.command(epilog=examples("nexum stop my-session", 'nexum stop my-session --reason "wrong customer"'))
def stop(
    session: Session,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why. It is shown to whoever runs the session.", show_default=False)
    ] = "",
    by: Approver = "",
    address: Address = None,
) -> None:
    """Stop a session until `nexum go`.

    None of its turns and calls begins any more. What runs is cut short. Calls that happen once are let finish, and are
    recorded. A run of the session ends, and says who stopped it and why. What is recorded stays.
    """
    from nexum_runtime.engines import Use, near

    async def send() -> dict[str, list[str]]:
        async with near(address, use=Use.CHANGE) as client:
            return await client.stop_session(session.removesuffix("/"), by or user(), reason)

    told = run(send())
    cut = f", {counted(len(told['stopped']), 'attempt')} cut short" if told["stopped"] else ""
    print(printable_line(f"Session {session} is stopped{cut}. Let it go on with: nexum go {session}"))
    for execution_id in told["let_finish"]:
        print(printable_line(f"{execution_id} happens once, and is let finish."))


@app.command(epilog=examples("nexum go my-session"))
def go(session: Session, address: Address = None) -> None:
    """Let a stopped session go on.

    Calls on a worker begin at once. For the rest, run its program again.
    """
    from nexum_runtime.engines import Use, near

    async def send() -> bool:
        async with near(address, use=Use.CHANGE) as client:
            return await client.go_session(session.removesuffix("/"))

    was_stopped = run(send())
    print(printable_line(f"Session {session} {'goes on' if was_stopped else 'was not stopped'}."))


@app.command(
    epilog=examples(
        "nexum forget my-session --after 3",
        "nexum forget my-session --turn model-turn/5135a714c2536496/0",
        "nexum forget my-session --after 0 --even-once",
    )
)
def forget(
    session: Session,
    after: Annotated[
        int | None,
        typer.Option(
            parser=whole_number("--after", 0, 1_000_000),
            metavar="N",
            help="Keep the first N turns, and the calls before the next one.",
        ),
    ] = None,
    turn: Annotated[
        str, typer.Option(metavar="ID", help="Take back this turn, and all that began after it.", show_default=False)
    ] = "",
    even_once: Annotated[
        bool, typer.Option("--even-once", help="Take back once calls and approved calls too: they may happen again.")
    ] = False,
    by: Approver = "",
    address: Address = None,
) -> None:
    """Take back what a session recorded after a turn.

    The next run asks again from there. Turns are counted in the order in which they began. What is taken back can still
    be read: s1 becomes s1~1, the next time s1~2. If something has not ended, stop the session first.
    """
    from nexum_runtime.engines import Use, near

    if (after is None) == (not turn):
        fail("Add one of these: --after N, --turn ID.", USAGE)
    name = session.removesuffix("/")

    async def send() -> dict[str, Any]:
        async with near(address, use=Use.CHANGE) as client:
            return await client.forget_session(name, after=after, turn=turn, by=by or user(), even_once=even_once)

    told = run(send())
    kept = counted(told["turns"], "turn")
    taken = counted(told["executions"], "execution")
    verb = "was" if told["executions"] == 1 else "were"
    print(printable_line(f"{taken} of {name} {verb} taken back; {kept} stay{'s' if told['turns'] == 1 else ''}."))
    print(printable_line(f"See what was taken back with: nexum show {told['session_id']}"))


@app.command(epilog=examples("nexum fork my-session other-prompt", "nexum fork my-session other-prompt --before 3"))
def fork(
    session: Session,
    new: Annotated[str, typer.Argument(metavar="NEW", help="The id of the new session.")],
    before: Annotated[
        str,
        typer.Option(
            metavar="TURN", help="Only what began before this turn: its number, from 1, or its id.", show_default=False
        ),
    ] = "",
    by: Approver = "",
    address: Address = None,
) -> None:
    """Begin a new session with what another one has recorded.

    A run of the new session gets all of that from the store, and goes on from there. A call that happens once
    and was made is not made again, and a yes counts. What has not ended is left out. The old session does not change.
    """
    from nexum_runtime.engines import Use, near

    name, new_name = session.removesuffix("/"), new.removesuffix("/")

    async def send() -> dict[str, Any]:
        async with near(address, use=Use.CHANGE) as client:
            return await client.fork_session(name, new_name, before=before or None, by=by or user())

    told = run(send())
    has = f"{counted(told['executions'], 'execution')} of {name}, with {counted(told['turns'], 'turn')}"
    print(printable_line(f"Session {new_name} has {has}."))
    for execution_id in told["left_out"]:
        print(printable_line(f"{execution_id} has not ended, and is left out."))


OTHER_CELLS = 70  # of a line, beside the id; a terminal that is narrower gets some lines for a session


def _table(found: list[dict[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("SESSION", overflow="fold")
    table.add_column("STATE", no_wrap=True)
    table.add_column("BEGAN", no_wrap=True)
    table.add_column("HEARD", no_wrap=True)
    for name in ("RUNS", "TURNS", "CALLS", "TOKENS"):
        table.add_column(name, no_wrap=True, justify="right")
    table.add_column("WAITS FOR", overflow="fold")
    now_ms = time.time_ns() // 1_000_000
    for each in found:
        began, heard = (ago_text(now_ms - each[key]) for key in ("began_at_ms", "heard_at_ms"))
        table.add_row(
            shown(each["session_id"]),
            f"[{color(each['state'])}]{each['state']}[/]",
            began,
            heard,
            *(number_text(number) for number in counts(each)),
            shown(waits_for(each)),
        )
    return table


def _lines(each: dict[str, Any]) -> list[str]:
    runs, turns, calls, tokens = counts(each)
    waits = waits_for(each)
    return [
        f"[bold]{shown(each['session_id'])}[/] [{color(each['state'])}]{each['state']}[/]",
        f"  began {clock_time(each['began_at_ms'])}",
        f"  {counted(runs, 'run')}, {counted(turns, 'turn')}, {counted(calls, 'call')}, {number_text(tokens)} tokens",
        *([f"  waits for {shown(waits)}"] if waits else []),
    ]
