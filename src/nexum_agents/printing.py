"""What a durable session does, for a person to read: a line when a turn or a call begins, and one when it ends."""

import json
import os
import shlex
from collections.abc import Iterable
from functools import cache

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment, Segments

from nexum_agents.events import OUTCOMES, CallEvent, DurableEvent, TurnEvent, question_text
from nexum_runtime.text import (
    duration_text,
    error_line,
    printable,
    printable_line,
    shorten,
    spell_what_cannot_be_printed,
)

ARGUMENT_CHARS = 48  # shown of an argument
CALL_MARGIN = len("[Nexum]  stored ✓ 1234 ms")  # columns of a line that are not the call or the turn
PREFIX = f"[cyan]{escape('[Nexum]')}[/]"
STILL_RUNNING_MS = 5_000  # what takes longer is said, now and then, to be still running

WAITING = {
    "worker": "no worker has taken this call yet: is a worker running that has this tool?",
    "database": "the Nexum server cannot write to its database (is its disk full?); waiting until it can",
    "server": "the Nexum server does not answer; waiting for it to come back",
}


def print_events(event: DurableEvent, *, stderr: bool = False) -> None:
    """Print a line for each event of a durable session: `durable_session("s1", on_event=print_events)`.

    Coloured in a terminal, plain when piped. A call that waits for a person is printed with the commands that answer.
    With `stderr` it goes there, as a command needs it whose result is on stdout.
    """
    _printer(stderr).on_event(event)


@cache
def _printer(stderr: bool) -> "EventPrinter":
    return EventPrinter(stderr)


class _Console(Console):
    """Sends a terminal nothing to act upon but rich's own colours, and goes on when nobody reads any more."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):  # Markdown can spell any character: &#x202e; or %1b
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:  # `| head`: the run is worth more than its output
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())  # what is still buffered has nowhere to go


class EventPrinter:
    """Prints events as they come, and counts them."""

    def __init__(self, stderr: bool = False) -> None:
        spell_what_cannot_be_printed()
        self.console = _Console(highlight=False, emoji=False, soft_wrap=True, stderr=stderr)
        self.turns = 0  # stored or cached
        self.calls = 0  # likewise
        self.asked: dict[str, CallEvent] = {}  # what waits for a person's yes or answer, by execution id
        self.kinds: set[str] = set()  # of the events so far
        self._hints_given: set[str] = set()

    def note(self, text: str) -> None:
        self.console.print(f"{PREFIX} {shown(text)}")

    def on_event(self, event: DurableEvent) -> None:
        if event.kind == "waiting" and event.detail in ("approval", "answer") and isinstance(event, CallEvent):
            self._ask(event)
            return
        self.asked.pop(event.execution_id, None)
        if event.kind == "waiting":
            self._hint(event)
            return
        self._hints_given.clear()
        if isinstance(event, TurnEvent) and event.kind == "started" and event.detail:
            self.note(f"turn {event.number} is new: {event.detail}")
        by_default = " [yellow](by default)[/]" if isinstance(event, CallEvent) and event.by_default else ""
        text = {
            "started": "…",
            "approved": "[green]approved ✓[/]",
            "answered": f"[green]answered ✓[/] {escape(error_line(event.detail))}{by_default}",
            "rejected": f"[red]rejected ✗[/] {escape(error_line(event.detail))}",
            "stored": f"[green]stored ✓[/] {duration_text(event.elapsed_ms)}",
            "cached": "[yellow]cached ⚡[/]",
            "failed": f"[red]failed ✗[/] {escape(error_line(event.detail))}",
            "unknown": f"[red]unknown ?[/] {escape(error_line(event.detail))} It is not run again.",
            "unrecorded": f"[yellow]not recorded[/] {escape(error_line(event.detail))}",
        }[event.kind]
        self._line(event, text)
        self.kinds.add(event.kind)
        is_there = event.kind in ("stored", "cached", "answered")
        if isinstance(event, TurnEvent):
            self.turns += is_there
            return
        self.calls += is_there
        if event.kind == "unknown":
            self._is_unsettled(event)

    def _is_unsettled(self, event: CallEvent) -> None:
        """A call may or may not have happened, and only a person can find out."""
        self.as_it_is(f"{outcome_of(event)}, with for OUTCOME {OUTCOMES}")

    def as_it_is(self, text: str) -> None:
        """With its tabs: to be copied, or read by a program."""
        self.console.print(Segments([Segment(f"{text}\n")]))

    def _ask(self, event: CallEvent) -> None:
        if event.execution_id not in self.asked:
            self.asked[event.execution_id] = event
            if event.detail == "answer":
                self.console.print(f"{PREFIX} [yellow]asks you:[/] {escape(question_text(event.tool_args))}")
            else:
                self._line(event, "[yellow]waits for your yes[/]")
            self.as_it_is(answers_to(event))

    def _hint(self, event: DurableEvent) -> None:
        if event.detail == "result":
            if event.elapsed_ms >= STILL_RUNNING_MS:
                self._line(event, f"[yellow]still running[/] {duration_text(event.elapsed_ms)}")
        elif event.detail not in self._hints_given:
            self._hints_given.add(event.detail)
            self.note(WAITING[event.detail])

    def _line(self, event: DurableEvent, text: str) -> None:
        call = turn_text(event) if isinstance(event, TurnEvent) else call_text(event)
        if self.console.is_terminal:
            call = shorten(call, self.console.width - CALL_MARGIN)
        self.console.print(f"{PREFIX} {escape(call)} {text}")


def answers_to(event: CallEvent) -> str:
    """The commands that say yes and no to a call, or answer a question."""
    asks = event.detail == "answer"
    answer = f"{nexum_command('answer', event)} 'your answer'" if asks else nexum_command("approve", event)
    return f"    {answer}\n    {nexum_command('reject', event)} --reason 'why not'"


def outcome_of(event: CallEvent) -> str:
    """The command that settles a call of which nobody knows whether it happened. As it stands it settles nothing."""
    return f"    {nexum_command('resolve', event)} OUTCOME"


def nexum_command(command: str, event: CallEvent) -> str:
    """A `nexum` command about a call, to be copied into a shell."""
    name = "NEXUM_ADDRESS" if os.environ.get("NEXUM_ADDRESS") else "NEXUM_DATABASE_URL"
    where = [f"{name}={shlex.quote(os.environ[name])}"] if os.environ.get(name) else []
    return " ".join([*where, "nexum", command, shlex.quote(event.execution_id)])


def call_text(event: CallEvent) -> str:
    """`web_search(query="durable execution", max_results=5)`, long arguments cut."""
    arguments = []
    for name, value in event.tool_args.items():
        text = shorten(value if isinstance(value, str) else json.dumps(value), ARGUMENT_CHARS)
        arguments.append(f"{name}={json.dumps(text, ensure_ascii=False) if isinstance(value, str) else text}")
    return printable_line(f"{event.tool_name}({', '.join(arguments)})")


def turn_text(event: TurnEvent) -> str:
    """`turn 2: calls web_search, web_search`"""
    says = f": {event.says}" if event.says else ""
    return printable_line(f"turn {event.number}{says}")


def shown(text: str) -> str:
    """On one line, nothing in it acted upon: neither by the terminal nor, as markup, by rich."""
    return escape(printable_line(text))
