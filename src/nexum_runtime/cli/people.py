"""What people decide: approvals, outcomes that are unknown, what is to stop and what is to be tried again."""

import getpass
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexum_runtime import wire
from nexum_runtime.cli.base import (
    FAILED,
    SHOWN_CHARS,
    USAGE,
    Address,
    Execution,
    Json,
    Name,
    app,
    clock_text,
    clock_time,
    console,
    examples,
    fail,
    print_json,
    run,
    shown,
)
from nexum_runtime.errors import InvalidRequest, NotFound
from nexum_runtime.telling.asking import answers, asked_at, may_have_happened, requests
from nexum_runtime.text import printable, shorten

if TYPE_CHECKING:
    from rich.console import Console

    from nexum_runtime.client import Client

SESSION_LIMIT = 10_000  # executions of a session that one command takes on

Approver = Annotated[
    str,
    typer.Option(
        "--as",
        "--approver",
        metavar="NAME",
        help="Your name in the record.  [default: your user name]",
        show_default=False,
    ),
]


@app.command(
    epilog=examples(
        "nexum approvals",
        "nexum approvals my-session --json",
        "nexum approvals my-session/save_report/91c0/0",
    )
)
def approvals(
    name: Annotated[
        str,
        typer.Argument(
            metavar="EXECUTION_OR_SESSION", help="Only what waits in this execution or session.", show_default=False
        ),
    ] = "",
    as_json: Json = False,
    address: Address = None,
) -> None:
    """List what waits for a person's yes or answer.

    For each: what is asked, until when, and the commands that answer. Name one execution to see all of it.
    """
    from nexum_runtime.engines import Use, near

    async def fetch() -> list[tuple[Any, dict[str, Any]]]:
        async with near(address, use=Use.LOOK) as client:
            waiting = await _pending(client, name)
            return [(each, await _history(client, each.execution_id)) for each in waiting]

    found = run(fetch())
    out = console()
    if not found and not as_json:
        print("Nothing waits for an approval.")
    for each, history in found:
        asked = asked_at(history, each.node_id)
        if as_json:
            print_json(
                {
                    "execution_id": each.execution_id,
                    "node_id": each.node_id,
                    "workflow_id": each.workflow_id,
                    "started_at": each.started_at,
                    "input": history["input"],
                    **asked,
                }
            )
            continue
        since = clock_text(each.started_at)
        out.print(
            f"[bold]{shown(each.execution_id)}[/] {shown(each.node_id)} waits since {shown(since)} UTC", soft_wrap=True
        )
        _print_asked(out, history["input"], asked, is_whole=name == each.execution_id)
        for line in answers(each, history):
            out.print(f"  {shown(line)}", soft_wrap=True)


def _print_asked(out: "Console", told_input: Any, asked: dict[str, Any], *, is_whole: bool) -> None:
    from rich.markup import escape

    if (question := asked["question"]) is not None:
        words = escape(printable(question)) if is_whole else shown(shorten(question, SHOWN_CHARS))
        out.print(f"  asks {words}", soft_wrap=True)
        told_input = {name: value for name, value in told_input.items() if name not in ("question", "choices")}
    if asked["choices"]:
        out.print(f"  choices {shown(', '.join(asked['choices']))}", soft_wrap=True)
    if question is None or told_input:
        if is_whole:  # whoever asks for one wants to read the whole of it
            whole = json.dumps(told_input, ensure_ascii=False, indent=2)
            out.print(f"  input {escape(printable(whole))}", soft_wrap=True)
        else:
            out.print(f"  input {shown(shorten(wire.canonical_json(told_input), SHOWN_CHARS))}", style="dim")
    if (due_ms := asked["due_at_ms"]) is not None:
        default = asked["default"]
        then = "it fails" if default is None else f"the answer is {shorten(default, SHOWN_CHARS)}"
        out.print(f"  until {clock_time(due_ms)}, then {shown(then)}", soft_wrap=True)


Node = Annotated[str, typer.Argument(metavar="NODE", help="Which node, when several wait.", show_default=False)]


@app.command(
    epilog=examples(
        "nexum answer my-session/question/91c0/0 savings",
        'nexum answer my-session/question/91c0/0 "Yes, but only until Friday."',
        "nexum answer my-session/question/91c0/0 -",
    )
)
def answer(
    execution: Execution,
    text: Annotated[str, typer.Argument(metavar="TEXT", help='The answer; "-" reads it from stdin.')],
    node: Annotated[str, typer.Option(help="Which node, when several wait.", show_default=False)] = "",
    approver: Approver = "",
    address: Address = None,
) -> None:
    """Answer a question that waits for you.

    If the question has choices, the answer must be one of them.
    """
    from nexum_runtime.engines import Use, near

    async def send() -> str:
        said = sys.stdin.read().removesuffix("\n") if text == "-" else text
        async with near(address, use=Use.CHANGE) as client:
            id, at = (execution, node) if node else await _the_pending(client, execution)
            history = await _history(client, id)
            if any(each["node_id"] == at and "choices" not in each for each in requests(history)):
                no = f"nexum reject {id} --reason 'why not'"
                raise InvalidRequest(f"{id} waits for a yes, not for an answer: nexum approve {id}, or {no}")
            return await client.approve(id, at, approver or user(), said)

    print(run(send()))


@app.command(
    epilog=examples(
        'nexum approve my-session/save_report/91c0/0 --comment "read it, it is fine"',
        'nexum approve my-session/transfer/3fa2/0 --args \'{"account": "main", "amount": 5}\'',
    )
)
def approve(
    execution: Execution,
    node: Node = "",
    comment: Annotated[
        str,
        typer.Option(metavar="TEXT", help="Recorded with the yes, and shown to the one who asked.", show_default=False),
    ] = "",
    args: Annotated[
        str | None, typer.Option(metavar="JSON", help="All arguments to use instead, as a JSON object.")
    ] = None,
    approver: Approver = "",
    address: Address = None,
) -> None:
    """Say yes to what waits for approval.

    With --args the call is made with other arguments, if it accepts them.
    """
    from nexum_runtime.engines import Use, near

    changed = None if args is None else _arguments(args)

    async def send() -> str:
        async with near(address, use=Use.CHANGE) as client:
            which = (execution, node) if node else await _the_pending(client, execution)
            return await client.approve(*which, approver or user(), comment, args=changed) or "Approved."

    print(run(send()))


@app.command(epilog=examples('nexum reject my-session/save_report/91c0/0 --reason "the second source is wrong"'))
def reject(
    execution: Execution,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why. It is shown to the one who asked.")],
    node: Node = "",
    approver: Approver = "",
    address: Address = None,
) -> None:
    """Say no to what waits for approval, and why."""
    from nexum_runtime.engines import Use, near

    if not reason.strip():
        fail("Say why: --reason is empty.", USAGE)

    async def send() -> str:
        async with near(address, use=Use.CHANGE) as client:
            which = (execution, node) if node else await _the_pending(client, execution)
            return await client.reject(*which, approver or user(), reason) or "Rejected."

    print(run(send()))


@app.command(epilog=examples("nexum cancel my-session/web_search/3fa2/0", "nexum cancel my-session"))
def cancel(name: Name, address: Address = None) -> None:
    """Cancel an execution, or all that run in a session.

    Tools that run are told to stop.
    A call that happens once and has begun is not cut short. Its outcome is unknown until it ends.
    """
    from nexum_runtime.engines import Use, near

    async def send() -> None:
        async with near(address, use=Use.CHANGE) as client:
            try:
                print(await client.cancel(name))
            except NotFound:
                running = await _of_session(client, name, "RUNNING")
                for each in running:
                    print(f"{each}: {await client.cancel(each)}")
                if not running:
                    print(f"Nothing of session {name} runs.")

    run(send())


@app.command(
    epilog=examples(
        'nexum resolve my-session/send_invoice/3fa2/0 --result "sent, number 17"',
        'nexum resolve my-session/send_invoice/3fa2/0 --failed "the bank never saw it"',
        "nexum resolve my-session/send_invoice/3fa2/0 --retry",
    )
)
def resolve(
    execution: Execution,
    result: Annotated[str | None, typer.Option(metavar="TEXT", help="It happened, and this is its result.")] = None,
    failed: Annotated[str | None, typer.Option(metavar="REASON", help="It failed, for this reason.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Attempt it again, whatever happened.")] = False,
    node: Annotated[str, typer.Option(help="Which node, when several are unknown.", show_default=False)] = "",
    address: Address = None,
) -> None:
    """Settle an unknown outcome.

    Say what happened, or have it attempted again.
    """
    from nexum_runtime.engines import Use, near

    if sum((result is not None, failed is not None, retry)) != 1:
        fail("Add one of these: --result TEXT, --failed REASON, --retry.", USAGE)

    async def send() -> str:
        async with near(address, use=Use.CHANGE) as client:
            if result is not None:
                return await client.resolve(execution, "result", wire.canonical_json(result), node_id=node)
            if failed is not None:
                return await client.resolve(execution, "failed", failed, node_id=node)
            return await client.resolve(execution, "retry", node_id=node)

    print(run(send()))


@app.command(epilog=examples("nexum retry my-session/web_search/3fa2/0", "nexum retry my-session"))
def retry(
    name: Name,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Try also once calls that may have happened already.")
    ] = False,
    address: Address = None,
) -> None:
    """Try again what failed: one execution, or a session's.

    A cancelled execution is tried again only if you name it. What is recorded stays. A call that happens once, and may
    have happened, is left alone, unless you add --unknown.
    """
    from nexum_runtime.engines import Use, near

    async def send() -> list[str]:
        async with near(address, use=Use.CHANGE) as client:
            try:
                histories = [await _history(client, name)]
            except NotFound:
                histories = [await _history(client, each) for each in await _of_session(client, name, "FAILED")]
            left = [each["execution_id"] for each in histories if not unknown and may_have_happened(each)]
            for each in histories:
                if each["execution_id"] not in left:
                    print(await client.resolve(each["execution_id"], "retry"))
            if not histories:
                print(f"Nothing of session {name} has failed.")
            return left

    left = run(send())
    for each in left:
        print(
            f"{each} happens once, and may have happened. Say what happened: nexum resolve {each} --result 'what it "
            f"returned'; or attempt it again: nexum retry {each} --unknown",
            file=sys.stderr,
        )
    if left:
        raise typer.Exit(FAILED)


async def _history(client: "Client", execution_id: str) -> dict[str, Any]:
    if execution_id.endswith("/"):  # which would tell of a whole session
        raise NotFound(f"No execution {execution_id!r} is known.")
    (history,) = [history async for history in client.history(execution_id)]
    return history


async def _of_session(client: "Client", name: str, status: str) -> list[str]:
    """Those of a session that have this status, the oldest first. Raises NotFound when it has no execution at all."""
    prefix = f"{name.removesuffix('/')}/"
    found = await client.executions(prefix, SESSION_LIMIT, status=status)
    if not found and not await client.executions(prefix, 1):
        raise NotFound(f"No execution or session {name!r} is known. See what is there with: nexum ps")
    return [each.execution_id for each in reversed(found)]


async def _pending(client: "Client", name: str) -> list[Any]:
    """What waits for an approval in an execution or a session, or anywhere."""
    session = f"{name.removesuffix('/')}/"
    waiting = await client.approvals()
    return [each for each in waiting if not name or each.execution_id == name or each.execution_id.startswith(session)]


async def _the_pending(client: "Client", execution: str) -> tuple[str, str]:
    """This very execution, or EXECUTION:NODE, and its node that waits: what a person has not seen must not be answered
    by accident."""
    waiting = await _pending(client, execution)
    own = [each for each in waiting if each.execution_id == execution]
    if len(own) == 1:
        return execution, str(own[0].node_id)
    alone, colon, node = execution.rpartition(":")
    if not waiting and len(nodes := await _asked_before(client, execution)) == 1:
        return execution, nodes.pop()  # the server says who has answered
    if colon and not waiting:
        return alone, node
    if own:
        raise InvalidRequest(f"Say which node of {execution}: {', '.join(each.node_id for each in own)}.")
    if waiting:
        raise InvalidRequest(f"{execution} is a session; answer each with its own command: nexum approvals {execution}")
    raise NotFound(f"{execution} waits for no approval. See what does with: nexum approvals")


async def _asked_before(client: "Client", execution: str) -> set[str]:
    """The nodes of an execution at which a person was ever asked."""
    try:
        return {each["node_id"] for each in requests(await _history(client, execution))}
    except NotFound:
        return set()


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = wire.parse_json(text)
    except ValueError as error:
        fail(f"--args is not JSON: {error}.", USAGE)
    if not isinstance(found, dict):
        fail(f"--args is {shorten(text, SHOWN_CHARS)}; it must be a JSON object, with all the arguments.", USAGE)
    return found


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in many containers
        return "somebody"
