"""What a person sees of a run: a line when a turn or a call starts, one when it ends, the answer, how to go on."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markdown import Markdown
from rich.markup import escape
from rich.segment import Segment, Segments

from nexum_agents.events import CallEvent, DurableEvent, Saved, TurnEvent, counted
from nexum_runtime.text import duration_text, error_line, printable, printable_line, shorten
from nexum_runtime.wire import DEFAULT_ADDRESS

ARGUMENT_CHARS = 48  # shown of an argument
CALL_MARGIN = len("[Nexum]  stored ✓ 1234 ms")  # columns of a line that are not the call or the turn
QUESTION_CHARS = 300
PREFIX = f"[cyan]{escape('[Nexum]')}[/]"
STILL_RUNNING_MS = 5_000  # what takes longer is said, now and then, to be still running

WAITING = {
    "worker": "no worker has taken this call yet: is `python worker.py` running?",
    "database": "the Nexum server cannot write to its database (is its disk full?); waiting until it can",
    "server": "the Nexum server does not answer; waiting for it to come back",
}


class _Console(Console):
    """Sends a terminal nothing to act upon but rich's own colours, and goes on when nobody reads any more."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):  # Markdown can spell any character: &#x202e; or %1b
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def on_broken_pipe(self) -> None:  # `| head`: the run is worth more than its output
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has nowhere to go


class RunView:
    """Prints a run as it goes, coloured in a terminal and plain when piped, and counts what came from the store."""

    def __init__(self) -> None:
        self.console = _Console(highlight=False, emoji=False, soft_wrap=True)
        self.turns = 0  # stored or cached
        self.calls = 0  # likewise
        self.saved = Saved()
        self.unsettled: list[CallEvent] = []  # calls that may or may not have run
        self.asked: dict[str, CallEvent] = {}  # calls that wait for a person's yes, by execution id
        self._kinds: set[str] = set()  # of the events so far
        self._hints_given: set[str] = set()

    def header(self, **fields: str) -> None:
        for name, value in fields.items():
            self.console.print(f"[dim]{name:<9}[/] {_shown(shorten(value, QUESTION_CHARS))}")
        self.console.print()

    def note(self, text: str) -> None:
        self.console.print(f"{PREFIX} {_shown(text)}")

    def on_event(self, event: DurableEvent) -> None:
        if event.detail == "approval" and isinstance(event, CallEvent):
            self._ask(event)
            return
        self.asked.pop(event.execution_id, None)
        if event.kind == "waiting":
            self._hint(event)
            return
        self._hints_given.clear()
        if isinstance(event, TurnEvent) and event.kind == "started" and event.detail:
            self.note(f"turn {event.number} is new: {event.detail}")
        text = {
            "started": "…",
            "approved": "[green]approved ✓[/]",
            "rejected": f"[red]rejected ✗[/] {escape(error_line(event.detail))}",
            "stored": f"[green]stored ✓[/] {duration_text(event.elapsed_ms)}",
            "cached": "[yellow]cached ⚡[/]",
            "failed": f"[red]failed ✗[/] {escape(error_line(event.detail))}",
            "unknown": f"[red]unknown ?[/] {escape(error_line(event.detail))} It is not run again.",
            "unrecorded": f"[yellow]not recorded[/] {escape(error_line(event.detail))}",
        }[event.kind]
        self._line(event, text)
        self._kinds.add(event.kind)
        is_there = event.kind in ("stored", "cached")
        if isinstance(event, TurnEvent):
            self.turns += is_there
            return
        self.calls += is_there
        if event.kind == "unknown":
            self.unsettled.append(event)

    def _ask(self, event: CallEvent) -> None:
        if event.execution_id not in self.asked:
            self.asked[event.execution_id] = event
            self._line(event, "[yellow]waits for your yes[/]")
            self._as_it_is(_answers(event))

    def _hint(self, event: DurableEvent) -> None:
        if event.detail == "result":
            if event.elapsed_ms >= STILL_RUNNING_MS:
                self._line(event, f"[yellow]still running[/] {duration_text(event.elapsed_ms)}")
        elif event.detail not in self._hints_given:
            self._hints_given.add(event.detail)
            self.note(WAITING[event.detail])

    def _line(self, event: DurableEvent, text: str) -> None:
        call = _turn(event) if isinstance(event, TurnEvent) else _call(event)
        if self.console.is_terminal:
            call = shorten(call, self.console.width - CALL_MARGIN)
        self.console.print(f"{PREFIX} {escape(call)} {text}")

    def answer(self, text: str) -> None:
        self.console.print()
        if self.console.is_terminal:
            self.console.print(Markdown(printable(text), hyperlinks=False), soft_wrap=False)
        else:
            self._as_it_is(text)
        self.console.print()

    def footer(self, again: str) -> None:
        if self.saved.turns or self.saved.calls:
            self.console.print(f"[yellow]⚡ {self.saved}.[/]")
        what = "Run it again"
        if "stored" in self._kinds and "unrecorded" not in self._kinds:
            what += f", and {'all of it' if self.turns else 'every call'} is cached ⚡"
        if self.unsettled:
            self._ask_to_settle()
            what = "Then run it again"
        self._as_it_is(f"{what}:\n  {again}")

    def stopped(self, why: str, again: str) -> None:
        """The run ended without an answer."""
        if self._kinds:
            self.console.print()
        self.console.print(f"[red]{escape(error_line(why))}[/]")
        if self.unsettled:
            self._ask_to_settle()
        if self.asked:
            self.console.print("[yellow]Waits for your yes, now or later:[/]")
            for event in self.asked.values():
                self._as_it_is(f"  {_call(event)}\n{_answers(event)}")
        stored = counted(self.turns, self.calls)
        what = f"Stored so far: {stored}. Go on with" if stored else "Try again with"
        self._as_it_is(f"{what}:\n  {again}")

    def _ask_to_settle(self) -> None:
        count = len(self.unsettled)
        calls = "1 call that" if count == 1 else f"{count} calls that"
        is_not = "is not" if count == 1 else "are not"
        self.console.print(f"[red]Unsettled: {calls} may or may not have run, and {is_not} run again.[/]")
        self._as_it_is(
            "Find out, and say it with the command and one of\n"
            "--result 'what it returned', --failed 'why', or --retry to have it attempted again:"
        )
        for event in self.unsettled:
            self._as_it_is(f"  {_call(event)}\n    {_nexum('resolve', event)}")

    def _as_it_is(self, text: str) -> None:
        """With its tabs: to be copied, or read by a program."""
        self.console.print(Segments([Segment(f"{text}\n")]))


def command_line(session_id: str, question: str, flags: list[str]) -> str:
    """The command that runs this session again from here, with the interpreter and the settings of now."""
    model = {"MODEL": os.environ["MODEL"]} if os.environ.get("MODEL") else {}
    words = [_python(), os.path.relpath(sys.argv[0]), *flags, question]
    return " ".join([*_assignments({"SESSION_ID": session_id} | _address() | model), *map(_quoted, words)])


def _address() -> dict[str, str]:
    """NEXUM_ADDRESS, when it has to be said."""
    address = os.environ.get("NEXUM_ADDRESS", DEFAULT_ADDRESS)
    return {} if address == DEFAULT_ADDRESS else {"NEXUM_ADDRESS": address}


def _answers(event: CallEvent) -> str:
    """The commands that say yes and no."""
    return f"    {_nexum('approve', event)}\n    {_nexum('reject', event)} --reason 'why not'"


def _nexum(command: str, event: CallEvent) -> str:
    return " ".join([*_assignments(_address()), "nexum", command, _quoted(event.execution_id)])


def _assignments(settings: dict[str, str]) -> list[str]:
    return [f"{name}={_quoted(value)}" for name, value in settings.items()]


def _quoted(word: str) -> str:
    """A word for the shell; in the form $'…' when it holds what a terminal would act upon."""
    if printable(word) == word:
        return shlex.quote(word)
    quoted = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b"\\'" else rf"\x{byte:02x}" for byte in os.fsencode(word)
    )
    return f"$'{quoted}'"


def _python() -> str:
    """As short as it can be and still be this very interpreter."""
    on_path = shutil.which("python")
    if on_path and Path(on_path).absolute() == Path(sys.executable).absolute():
        return "python"
    relative = os.path.relpath(sys.executable)
    return sys.executable if relative.startswith("..") else relative


def _call(event: CallEvent) -> str:
    """`web_search(query="durable execution", max_results=5)`, long arguments cut."""
    arguments = []
    for name, value in event.tool_args.items():
        shown = shorten(value if isinstance(value, str) else json.dumps(value), ARGUMENT_CHARS)
        arguments.append(f"{name}={json.dumps(shown, ensure_ascii=False) if isinstance(value, str) else shown}")
    return printable_line(f"{event.tool_name}({', '.join(arguments)})")


def _turn(event: TurnEvent) -> str:
    """`turn 2: calls web_search, web_search`"""
    says = f": {event.says}" if event.says else ""
    return printable_line(f"turn {event.number}{says}")


def _shown(text: str) -> str:
    """On one line, nothing in it acted upon: neither by the terminal nor, as markup, by rich."""
    return escape(printable_line(text))


def print_events(event: DurableEvent) -> None:
    """Print what a durable session does, a line an event: `durable_session("s1", on_event=print_events)`."""
    _view().on_event(event)


@cache
def _view() -> RunView:
    return RunView()
