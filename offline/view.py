"""What the demo prints around the events of its run: the answer, what was saved, how to go on, and what went wrong."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import openai
from agents.exceptions import AgentsException
from rich.markdown import Markdown
from rich.markup import escape

from nexum_agents import CallEvent, DurableCallError, DurableSession
from nexum_agents.events import OUTCOMES, DurableEvent, Saved, counted
from nexum_agents.printing import EventPrinter, answers_to, call_text, outcome_of
from nexum_runtime import NexumError
from nexum_runtime.text import error_line, printable


class RunView(EventPrinter):
    """Prints a run as it goes. `again` is the command that runs its session again."""

    def __init__(self, again: str) -> None:
        super().__init__()
        self.again = again
        self.saved = Saved()
        self.unsettled: list[CallEvent] = []  # calls that may or may not have run
        self.code = 0  # to exit with
        self.is_handed_over = False  # to workers, who go on with it
        self.session: DurableSession | None = None  # until it was said where it can be looked at
        self.has_own_worker: Callable[[], bool] = lambda: False  # that runs

    @property
    def stored(self) -> str:
        """`1 turn and 2 calls`, or "" before there are any."""
        return counted(self.turns, self.calls)

    @property
    def interrupted(self) -> str:
        """What Ctrl-C says."""
        if self.is_handed_over:
            return f"The workers go on with it. Follow it again with: {self.again}"
        return f"Interrupted{f'; {self.stored} stored' if self.stored else ''}. Go on with: {self.again}"

    def on_event(self, event: DurableEvent) -> None:
        if event.kind == "waiting" and event.detail == "worker" and self.has_own_worker():
            return  # it is about to take the call
        if self.session is not None and self.session.page_url:
            self.as_it_is(f"Look at it: {self.session.page_url}")
            self.session = None
        super().on_event(event)

    def answer(self, text: str) -> None:
        self.console.print()
        if self.console.is_terminal:
            self.console.print(Markdown(printable(text), hyperlinks=False), soft_wrap=False)
        else:
            self.as_it_is(text)
        self.console.print()

    def _is_unsettled(self, event: CallEvent) -> None:
        self.unsettled.append(event)

    def footer(self) -> None:
        if self.saved.turns or self.saved.calls:
            self.console.print(f"[yellow]⚡ {self.saved}.[/]")
        what = "Run it again"
        if self.is_handed_over:
            self.as_it_is(f"Follow it again, from its beginning:\n  {self.again}")
            return
        if "stored" in self.kinds and "unrecorded" not in self.kinds:
            what += f", and {'all of it' if self.turns else 'every call'} is cached ⚡"
        if self.unsettled:
            self._ask_to_settle()
            what = "Then run it again"
        self.as_it_is(f"{what}:\n  {self.again}")

    def stopped(self, why: str) -> None:
        """The run ended without an answer."""
        self.code = 1
        if self.kinds:
            self.console.print()
        self.console.print(f"[red]{escape(error_line(why))}[/]")
        if self.unsettled:
            self._ask_to_settle()
        if self.asked:
            self.console.print("[yellow]Waits for your yes, now or later:[/]")
            for event in self.asked.values():
                self.as_it_is(f"  {call_text(event)}\n{answers_to(event)}")
        what = f"Stored so far: {self.stored}. Go on with" if self.stored else "Try again with"
        self.as_it_is(f"{what}:\n  {self.again}")

    def _ask_to_settle(self) -> None:
        count = len(self.unsettled)
        calls = "1 call that" if count == 1 else f"{count} calls that"
        is_not = "is not" if count == 1 else "are not"
        self.console.print(f"[red]Unsettled: {calls} may or may not have run, and {is_not} run again.[/]")
        self.as_it_is(f"Find out what happened, and say it with one of these for OUTCOME:\n{OUTCOMES}")
        for event in self.unsettled:
            self.as_it_is(f"  {call_text(event)}\n{outcome_of(event)}")


class EngineNotes(logging.Handler):
    """Shows what the engine says that runs in this process, or is left to another one."""

    def __init__(self, view: RunView) -> None:
        super().__init__()
        self._view = view
        logger = logging.getLogger("nexum.engine")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._view.note(record.getMessage())


@contextmanager
def what_went_wrong(view: RunView) -> Iterator[None]:
    """Say in a sentence what ends a run."""
    try:
        yield
    except (DurableCallError, NexumError) as error:
        view.stopped(str(error))
    except AgentsException as error:
        view.stopped(f"The agent stopped: {error}")
    except openai.OpenAIError as error:  # litellm's errors are among them
        view.stopped(f"The model could not be asked: {error}")
