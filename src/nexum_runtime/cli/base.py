"""What the commands share: the options that all of them have, how they end, and how they print."""

import asyncio
import os
import re
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from nexum_runtime import wire
from nexum_runtime.telling.words import HASH_CHARS as HASH_CHARS
from nexum_runtime.telling.words import OPEN as OPEN
from nexum_runtime.telling.words import SHOWN_CHARS as SHOWN_CHARS
from nexum_runtime.telling.words import clock_time as clock_time
from nexum_runtime.telling.words import counted as counted
from nexum_runtime.telling.words import what_text as what_text
from nexum_runtime.text import error_line, printable, printable_line, shorten

if TYPE_CHECKING:
    from rich.console import Console

FAILED, USAGE, NO_SERVER = 1, 2, 3  # exit codes; typer makes it 130 after Ctrl-C
PIPED_CHARS = 300  # of a line that no terminal shows: the longest id, and the other columns
COMPLETED_LIMIT = 1_000  # executions that a shell's completion looks at
LOOK_SECONDS = 1.0  # between two looks at what goes on

COMMANDS = "nexum.commands"  # entry points: a Typer app of one command each


class Group(TyperGroup):
    """Our commands, and those that other packages bring: each of theirs is imported when it is used, not for --help."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if found := super().get_command(ctx, cmd_name):
            return found
        return next((typer.main.get_command(each.load()) for each in entry_points(group=COMMANDS, name=cmd_name)), None)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        super().format_commands(ctx, formatter)
        if brought := sorted((each.name, each.value.partition(".")[0]) for each in entry_points(group=COMMANDS)):
            with formatter.section("Commands of other packages"):
                formatter.write_dl(brought)


app = typer.Typer(
    cls=Group,
    help="Nexum: durable executions, recorded in SQLite.",
    epilog="Each command has --help with examples. It ends with 0 when it is done, 1 when it could not be done, 2 when "
    "the command line is wrong, 3 when no server answers or its database cannot be used now, 130 after Ctrl-C.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,  # a token may be among them, and older versions of typer show them
)

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        "--server",
        "-s",
        envvar="NEXUM_ADDRESS",
        help="Where the server is. Without it: the process that has this folder's database.",
        metavar="HOST:PORT",
        show_default=False,
    ),
]


@app.callback()
def nexum(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=lambda on: _tell_version(on), help="Show the version.")
    ] = False,
) -> None:
    pass


def _tell_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version

        print(f"nexum {version('openai-agents-nexum')}, speaking with nexum-py {version('nexum-py')}")
        raise typer.Exit


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


def names(incomplete: str) -> list[str]:
    """For the shell's completion: sessions that begin so, or with a "/" executions. Of no server there are none."""
    from nexum_runtime.engines import Use, near
    from nexum_runtime.errors import NexumError

    async def fetch() -> list[str]:
        async with near(use=Use.LOOK) as client:
            return [each.execution_id for each in await client.executions(incomplete, COMPLETED_LIMIT)]

    with suppress(NexumError):
        found = asyncio.run(fetch())
        return found if "/" in incomplete else list(dict.fromkeys(each.partition("/")[0] for each in found))
    return []


Name = Annotated[
    str,
    typer.Argument(
        metavar="EXECUTION_OR_SESSION", help="An id that `nexum ps` lists, or a session.", autocompletion=names
    ),
]
Execution = Annotated[
    str, typer.Argument(metavar="EXECUTION", help="Its id, as `nexum ps` shows it.", autocompletion=names)
]


def examples(*lines: str) -> str:
    """The end of a command's help, kept as it is."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def run(job: Coroutine[Any, Any, Any]) -> Any:
    from nexum_runtime.errors import NexumError, ServerUnavailable

    try:
        return asyncio.run(job)
    except ServerUnavailable as error:
        fail(str(error), NO_SERVER)
    except NexumError as error:
        fail(str(error))
    except UnicodeEncodeError as error:  # bytes that the shell passed on as they were
        fail(f"A word of this command is not Unicode text: {shorten(error.object, SHOWN_CHARS)!r}.")


def fail(message: str, code: int = FAILED) -> NoReturn:
    print(error_line(message), file=sys.stderr)
    raise typer.Exit(code)


def unknown_name(name: str) -> NoReturn:
    fail(f"No execution or session {name!r} is known. See what is there with: nexum ps")


def whole_number(option: str, low: int, high: int, envvar: str = "") -> Callable[[Any], int]:
    """What reads the value of an option, or of its environment variable, and ends the command for a wrong one."""

    def read(value: Any) -> int:  # a text, or the default
        text = str(value)
        if re.fullmatch("[0-9]{1,9}", text) and low <= int(text) <= high:
            return int(text)
        name = envvar if envvar and os.environ.get(envvar) == text else option
        fail(f"{name} is {shorten(text, SHOWN_CHARS)!r}; it must be a whole number from {low} to {high}.", USAGE)

    return read


def console() -> "Console":
    """Of the width of the terminal; where there is none, wide enough to fold nothing that a program reads."""
    from rich.console import Console

    found = Console(highlight=False, emoji=False)
    if not found.is_terminal:
        found.width = PIPED_CHARS
    return found


def shown(text: str) -> str:
    """On one line, nothing in it acted upon: neither by the terminal nor, as markup, by rich."""
    from rich.markup import escape

    return escape(printable_line(text))


def print_json(value: Any) -> None:
    print(printable(wire.canonical_json(value)), flush=True)  # JSON itself lets some control characters pass


def color(status: str) -> str:
    colors = {"COMPLETED": "green", "FAILED": "red", "UNKNOWN": "red", "CANCELLED": "yellow", "STOPPED": "yellow"}
    colors |= {"TAKEN_BACK": "yellow"}
    return colors.get(status, "cyan")


def clock_text(timestamp: str) -> str:
    """The server's own "2026-11-25T18:22:11.123Z" as people read it."""
    return timestamp[:19].replace("T", " ")
