"""`nexum run`: the command of this package, which an entry point of "nexum.commands" brings to `nexum`."""

import os
import secrets
import shlex
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from nexum_agents.errors import DurableCallError, RunFailed
from nexum_agents.starting import start_run
from nexum_runtime import ServerUnavailable
from nexum_runtime.cli.base import NO_SERVER, Address, Json, examples, fail, print_json
from nexum_runtime.cli.base import run as run_to_its_end
from nexum_runtime.text import printable

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(
    epilog=examples(
        "nexum run Researcher 'What is durable execution?'",
        "nexum run Researcher 'What is durable execution?' --session s1",
        "nexum run Researcher 'What is durable execution?' --session s1 --detach",
    )
)
def run(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="The name of an agent that a worker serves.")],
    question: Annotated[list[str], typer.Argument(metavar="QUESTION", help="What it is asked.")],
    session: Annotated[
        str, typer.Option("--session", help="Its session; without it a new one.", show_default=False)
    ] = "",
    pin: Annotated[
        str,
        typer.Option("--pin", metavar="VERSION", help="Only by a worker that serves this version.", show_default=False),
    ] = "",
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the answer.")] = False,
    as_json: Json = False,
    address: Address = None,
) -> None:
    """Have a worker run an agent, and print its answer.

    Ctrl-C leaves it running. The same command with the same session finds it again,
    and prints its answer, or lets it go on if it failed.
    """
    session_id = session or f"run-{secrets.token_hex(4)}"
    if address is not None:
        os.environ["NEXUM_ADDRESS"] = address

    def waits(what: str) -> None:
        if what == "worker" and not told:
            told.append(what)
            tell(f"No worker has taken it yet: serve(agents=[…]) serves {agent}.")

    async def job() -> None:
        started = await start_run(agent, " ".join(question), session_id=session_id, version=pin)
        tell(f"The workers have it: {started.execution_id}")
        tell(f"Ctrl-C leaves it running. Follow it: nexum follow {session_id}")
        if detach:
            return
        outcome = await started.result(on_wait=waits)
        if as_json:
            print_json(asdict(outcome))
        elif isinstance(outcome.final_output, str):
            print(printable(outcome.final_output))
        else:
            print_json(outcome.final_output)

    told: list[str] = []
    try:
        run_to_its_end(job())
    except RunFailed as error:
        again = shlex.join(
            ["nexum", "run", agent, *question, "--session", session_id, *(["--pin", pin] if pin else [])]
        )
        fail(f"{error} Let it go on with: {again}")
    except DurableCallError as error:
        fail(str(error), *([NO_SERVER] if isinstance(error.__context__, ServerUnavailable) else []))


def tell(text: str) -> None:
    """Beside the answer, which a program may read."""
    print(printable(text), file=sys.stderr, flush=True)
