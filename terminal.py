"""What a person sees of a run: one line when a call starts, one when it ends, the answer, and how to go on."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape

from submit_task import CallEvent

ARGUMENT_CHARS = 48  # shown of an argument

WAITING = {
    "worker": "no worker has taken this call yet: is `python worker.py` running?",
    "server": "the Nexum server does not answer; waiting for it to come back",
}


class RunView:
    """Prints a run as it goes, coloured in a terminal and plain when piped, and counts what came from the store."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.completed = self.cached = self.saved_ms = 0
        self._hints_given: set[str] = set()

    def header(self, **fields: str) -> None:
        for name, value in fields.items():
            self.console.print(f"[dim]{name:<9}[/] {escape(value)}")
        self.console.print()

    def on_event(self, event: CallEvent) -> None:
        if event.kind == "waiting":
            self._hint(event.detail)
            return
        self._hints_given.clear()
        text = {
            "started": "…",
            "stored": f"[green]stored ✓[/] {duration(event.elapsed_ms)}",
            "cached": "[yellow]cached ⚡[/]",
            "failed": f"[red]failed ✗[/] {escape(event.detail)}",
        }[event.kind]
        self.console.print(f"[cyan]{escape('[Nexum]')}[/] {escape(_call(event))} {text}")
        if event.kind in ("stored", "cached"):
            self.completed += 1
        if event.kind == "cached":
            self.cached += 1
            self.saved_ms += event.saved_ms

    def _hint(self, waiting: str) -> None:
        if waiting in WAITING and waiting not in self._hints_given:
            self._hints_given.add(waiting)
            self.console.print(f"[cyan]{escape('[Nexum]')}[/] [yellow]{WAITING[waiting]}[/]")

    def answer(self, text: str) -> None:
        self.console.print()
        if self.console.is_terminal:
            self.console.print(Markdown(text), soft_wrap=False)
        else:
            self.console.print(text, markup=False)
        self.console.print()

    def footer(self, again: str) -> None:
        if self.cached:
            saved = f", which saved {duration(self.saved_ms)}" if self.saved_ms else ""
            self.console.print(f"[yellow]⚡ {self.cached} of {self.completed} calls came from the store{saved}.[/]")
        what = "Run it again" if self.cached == self.completed else "Run it again, and every call is cached ⚡"
        self.console.print(f"{what}:\n  {escape(again)}")

    def stopped(self, why: str, again: str) -> None:
        """The run ended without an answer."""
        if self.completed:
            self.console.print()
        self.console.print(f"[red]{escape(why)}[/]")
        what = f"{self.completed} completed calls are stored. Go on with" if self.completed else "Try again with"
        self.console.print(f"{what}:\n  {escape(again)}")


def command_line(session_id: str, question: str, flags: list[str]) -> str:
    """The command that runs this session again from here, with the interpreter that runs now."""
    script = os.path.relpath(sys.argv[0])
    return shlex.join(["env", f"SESSION_ID={session_id}", _python(), script, *flags, question]).removeprefix("env ")


def _python() -> str:
    """As short as it can be and still be this very interpreter."""
    on_path = shutil.which("python")
    if on_path and Path(on_path).absolute() == Path(sys.executable).absolute():
        return "python"
    relative = os.path.relpath(sys.executable)
    return sys.executable if relative.startswith("..") else relative


def duration(ms: int) -> str:
    return f"{ms} ms" if ms < 1_000 else f"{ms / 1000:.1f} s"


def _call(event: CallEvent) -> str:
    """`web_search(query="durable execution", max_results=5)`, long arguments cut."""
    arguments = []
    for name, value in event.tool_args.items():
        text = value if isinstance(value, str) else json.dumps(value)
        shown = text if len(text) <= ARGUMENT_CHARS else f"{text[: ARGUMENT_CHARS - 1]}…"
        arguments.append(f"{name}={json.dumps(shown, ensure_ascii=False) if isinstance(value, str) else shown}")
    return f"{event.tool_name}({', '.join(arguments)})"
