"""`nexum show`: what became of an execution, or of a whole session, and when."""

import json
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nexum_runtime import wire
from nexum_runtime.cli.base import (
    FAILED,
    OPEN,
    SHOWN_CHARS,
    USAGE,
    Address,
    Json,
    Name,
    app,
    clock_time,
    color,
    console,
    examples,
    fail,
    print_json,
    run,
    shown,
    unknown_name,
    what_text,
)
from nexum_runtime.cli.watch import redraw, repeat
from nexum_runtime.errors import NotFound
from nexum_runtime.telling import items
from nexum_runtime.telling.asking import answers, asked_at
from nexum_runtime.telling.bars import RUNNING, attempts
from nexum_runtime.telling.story import Story, offset, parked, short_values_first
from nexum_runtime.telling.words import question
from nexum_runtime.text import duration_text, error_line, printable, printable_line, shorten

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from nexum_runtime.client import Client

QUIET_SECONDS = 10.0  # without anything that runs, and the session that is followed has ended
SESSION_LIMIT = 10_000  # executions of a session that are shown


@app.command(
    epilog=examples(
        "nexum show my-session",
        "nexum show my-session --answer",
        "nexum show my-session --follow",
        "nexum show my-session/web_search/3fa2/0 --output",
        "nexum show my-session --json | jq .status",
    )
)
def show(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing while it runs.")] = False,
    events: Annotated[bool, typer.Option("--events", help="List every event of a session, or of a MAP, too.")] = False,
    output: Annotated[
        bool, typer.Option("--output", help="Print its whole result instead; with --json as JSON.")
    ] = False,
    answer: Annotated[
        bool, typer.Option("--answer", help="Print the answer of the session's last run instead.")
    ] = False,
    as_json: Json = False,
    address: Address = None,
) -> None:
    """Show what a session or an execution did, and when.

    A bar for each attempt, what came of it, and what waits for you. Of one execution, every event is told as well.

    --follow ends with what it follows: an execution when it has ended
    (with 1 unless it is COMPLETED), a session when nothing of it has run for 10 seconds.
    """
    from nexum_runtime.engines import Use, near

    if follow + output + answer > 1:
        fail("Say one of --follow, --output and --answer.", USAGE)

    async def tell() -> None:
        async with near(address, use=Use.LOOK) as client:
            if answer:
                await _print_answer(client, name.removesuffix("/"), as_json)
                return
            shown_now = await Look.at(client, name)
            if len(shown_now.histories) >= SESSION_LIMIT:
                print(
                    f"These are the latest {SESSION_LIMIT:,} executions of {error_line(name)}, and there may be more. "
                    "Name a longer prefix that ends in / to see the others.",
                    file=sys.stderr,
                )
            if output:
                await _print_output(client, shown_now, as_json)
            elif follow:
                await _follow(shown_now, out, as_json, events)
            elif as_json:
                for history in shown_now.histories.values():
                    print_json(history)
            else:
                for line in shown_now.lines(out.width if out.is_terminal else None, events):
                    out.print(line, soft_wrap=isinstance(line, str))

    out = console()
    run(tell())


class Look:
    """What is known of an execution, or of those of a session, by now."""

    def __init__(self, client: "Client", name: str, histories: list[dict[str, Any]], session: str) -> None:
        self._client = client
        self._name = name
        self.session = session  # "{name}/", or "" for one execution
        self.histories = {history["execution_id"]: history for history in histories}  # the oldest first
        self.approvals: list[Any] = []
        self.state = ""  # of a session
        self.taken_back: list[str] = []  # of a session, under which ids it can be read

    @classmethod
    async def at(cls, client: "Client", name: str) -> "Look":
        """The execution of this name, or else the session. Ends the command when there is neither."""
        session = ""
        try:
            histories = [history async for history in client.history(name)]
            session = name if name.endswith("/") else ""
        except NotFound:
            session = f"{name}/"
            histories = [history async for history in client.history(session)]
        if not histories:
            unknown_name(name)
        look = cls(client, name, histories, session)
        await look._look_at_the_rest()
        return look

    async def again(self) -> None:
        """Look again at what runs, and at what is new."""
        names = [self._name]
        if self.session:
            found = reversed(await self._client.listed(self.session, SESSION_LIMIT))
            names = [each["execution_id"] for each in found if self._may_differ(each["execution_id"], each["status"])]
        for name in names:
            async for history in self._client.history(name):
                self.histories[name] = history
        await self._look_at_the_rest()

    @property
    def running(self) -> list[str]:
        return [name for name, history in self.histories.items() if history["status"] in OPEN]

    def lines(self, width: int | None, events: bool) -> "list[RenderableType]":
        """As people read it: Text of one line, or markup. With `events` those of a session, too."""
        now_ms = time.time_ns() // 1_000_000
        if self.session:
            words = self._words()
            stories = [line for history in self.histories.values() for line in ("", *_story(history))] if events else []
            return [
                self._head(),
                *self._asked(),
                *self._origin(),
                "",
                *self._bars(width, now_ms),
                *stories,
                *(["", *words] if words else []),
            ]
        (history,) = self.histories.values()
        head, told_input, *told = _story(history, whole=events)
        return [head, told_input, *self._bars(width, now_ms), *told, *self._words()]

    def _may_differ(self, name: str, status: str) -> bool:
        return status in OPEN or name not in self.histories or self.histories[name]["status"] != status

    async def _look_at_the_rest(self) -> None:
        """The state of the session, and what waits for a person."""
        if self.session and (found := await self._client.session(self.session.removesuffix("/"))):
            self.state, self.taken_back = found["state"], found["taken_back"]
        waiting = await self._client.approvals() if self.running else []
        self.approvals = [each for each in waiting if each.execution_id in self.histories]

    def _head(self) -> str:
        counts = Counter(history["status"] for history in self.histories.values())
        told = [f"[{color(status)}]{counts[status]} {status.lower()}[/]" for status in sorted(counts)]
        began_ms = min(history["created_at_ms"] for history in self.histories.values())
        name = shown(self.session.removesuffix("/"))
        state = f" [{color(self.state)}]{self.state}[/] ·" if self.state else ""
        return f"[bold]{name}[/]{state} began {clock_time(began_ms)} · {', '.join(told)}"

    def _asked(self) -> list[str]:
        text = question(list(self.histories.values()))
        return [f"asked {shown(shorten(error_line(text), SHOWN_CHARS))}"] if text else []

    def _origin(self) -> list[str]:
        """Where the executions of a session came from, if they were not started in it, and what was taken back."""
        commands = ", ".join(f"nexum show {shown(each)}" for each in self.taken_back)
        taken = [f"taken back of it: {commands}"] if commands else []
        first = next(iter(self.histories.values()))
        moves = [event for event in first["events"] if event["type"] in ("ExecutionForked", "ExecutionTakenBack")]
        if not moves:
            return taken
        of, by = shown(moves[-1]["session_id"]), f" by {shown(moves[-1]['by'])}" if moves[-1]["by"] else ""
        what = "forked from" if moves[-1]["type"] == "ExecutionForked" else "taken back of"
        return [f"{what} {of}{by} at {clock_time(moves[-1]['at_ms'])}", *taken]

    def _bars(self, width: int | None, now_ms: int) -> "list[RenderableType]":
        """A line for each attempt; of one execution its nodes are the labels, of a session its executions."""
        from nexum_runtime.cli.timeline import Row, timeline

        rows = []
        for name, history in self.histories.items():
            label = _label(history, name.removeprefix(self.session)) if self.session else name
            bars, waits, hidden = attempts(history, now_ms), self._waits(history, now_ms), items.left_out(history)
            bars = [bar for bar in bars if bar.node_id not in hidden]
            several = not self.session or len({bar.node_id for bar in bars}) > 1
            if self.session and several:
                rows.append(Row(label, None))
            if self.session and not bars:
                rows.append(Row(label, None, waits or history["status"].lower()))
                continue
            for i, bar in enumerate(bars):
                rows.append(Row(f"  {bar.label}" if several else bar.label if i else label, bar))
            if hidden:
                rows.append(Row("", None, items.told(len(hidden))))
            if waits:
                rows.append(Row("  now", None, waits))
        return list(timeline(rows, width))

    def _waits(self, history: dict[str, Any], now_ms: int) -> str:
        """What an execution of which nothing runs waits for; "" when something does, or it is over."""
        if history["status"] == "STOPPED":
            return "its session is stopped"
        if history["status"] not in OPEN or any(bar.word == RUNNING[0] for bar in attempts(history, now_ms)):
            return ""
        for each in self.approvals:
            if each.execution_id == history["execution_id"]:
                is_yes = asked_at(history, each.node_id)["question"] is None
                return "waits for an approval" if is_yes else "waits for an answer"
        children = {
            each["node_id"]: each for each in history["events"] if each["type"] in ("ChildStarted", "TaskCompleted")
        }
        if told := [each["child"] for each in children.values() if each["type"] == "ChildStarted"]:
            return f"waits for {told[0]}"
        if any((event.get("worker") or "").startswith(wire.LOCAL_WORKER) for event in history["events"]):
            return "waits for its program to be run again"
        if history["status"] == "PARKED":
            return parked(history)
        timers = {each["node_id"]: each for each in history["events"] if each["type"] in ("TimerSet", "TimerFired")}
        if due_ms := [each["due_at_ms"] for each in timers.values() if each["type"] == "TimerSet"]:
            return f"waits for a timer, {duration_text(max(min(due_ms) - now_ms, 0))} more"
        pause_ms = history["events"][-1].get("retry_at_ms", 0) - now_ms
        return f"next attempt in {duration_text(pause_ms)}" if pause_ms > 0 else "waits for a worker"

    def _words(self) -> list[str]:
        """What went wrong, what waits for a person, and the commands that answer."""
        lines = []
        for name, history in self.histories.items():
            if self.session and history["error_code"] in ("TOOL_ERROR", "REJECTED", "OUTCOME_UNKNOWN"):
                error = shorten(error_line(history["error"] or ""), SHOWN_CHARS)
                lines.append(f"[red]{shown(name)}[/] failed ({history['error_code']}): {shown(error)}")
            if history["error_code"] == "OUTCOME_UNKNOWN":
                lines.append(f"  settle it with: {shown(f'nexum resolve {name} OUTCOME')}")
                lines.append("  OUTCOME is --result 'what it returned', --failed 'why', or --retry to attempt it again")
        for each in self.approvals:
            lines.append(f"[cyan]{shown(each.execution_id)}[/] {shown(each.node_id)} waits for your answer:")
            lines += [f"  {shown(line)}" for line in answers(each, self.histories[each.execution_id])]
        return lines


def _label(history: dict[str, Any], name: str) -> str:
    """What it is, and the rest of its id, which two that are the same differ in."""
    what = what_text(history["labels"])
    return f"{what} {name.partition('/')[2]}" if what else name


def _story(history: dict[str, Any], *, whole: bool = True) -> "list[RenderableType]":
    """What an execution is and was given, and its events: the `whole` of them, or without those of alike items."""
    from rich.text import Text

    started_ms = history["created_at_ms"]
    took = f" in {duration_text(history['ended_at_ms'] - started_ms)}" if history["ended_at_ms"] else ""
    told_input = printable_line(shorten(short_values_first(history["input"]), SHOWN_CHARS))
    story, hidden = Story(history), set() if whole else items.left_out(history)
    more = [f"  {items.told(len(hidden))}; every event: nexum show {shown(history['execution_id'])} --events"]
    return [
        f"[bold]{shown(history['execution_id'])}[/] [{color(history['status'])}]{shown(history['status'])}[/]{took}",
        Text(f"  input {told_input}", "dim", no_wrap=True, overflow="ellipsis"),
        *(
            f"  {offset(e['at_ms'] - started_ms)}  {shown(story.tell(e))}"
            for e in history["events"]
            if e["node_id"] not in hidden
        ),
        *(more if hidden else []),
    ]


async def _follow(look: Look, out: "Console", as_json: bool, events: bool) -> None:
    quiet_since = time.monotonic()

    def is_over() -> bool:
        nonlocal quiet_since
        if look.running:
            quiet_since = time.monotonic()
        return not look.running and (not look.session or time.monotonic() - quiet_since >= QUIET_SECONDS)

    async def draw() -> "tuple[list[RenderableType], bool]":
        await look.again()
        return look.lines(out.width, events), is_over()

    told: dict[str, tuple[Story, int]] = {}

    async def tell() -> bool:
        await look.again()
        began_ms = min(history["created_at_ms"] for history in look.histories.values())
        for name, history in look.histories.items():
            story, count = told.get(name, (Story(history), 0))
            told[name] = (story, len(history["events"]))
            if as_json and count < len(history["events"]):
                print_json(history)
            elif not as_json:
                label = f"{name.removeprefix(look.session)}  " if look.session else ""
                for event in history["events"][count:]:
                    words = f"{offset(event['at_ms'] - began_ms)}  {label}{story.tell(event)}"
                    print(printable_line(words), flush=True)
        return is_over()

    if out.is_terminal and not as_json:
        await redraw(out, draw)
    else:
        await repeat(tell)
    if not look.session and [history["status"] for history in look.histories.values()] != ["COMPLETED"]:
        raise typer.Exit(FAILED)


async def _print_output(client: "Client", look: Look, as_json: bool) -> None:
    """The recorded outputs of one execution, in full."""
    if look.session:
        name = look.session.removesuffix("/")
        fail(f"{name} is a session, and --output is of one execution. See which there are with: nexum ps {name}/")
    (history,) = look.histories.values()
    outcome = await client.status(history["execution_id"])
    if as_json:
        print_json(outcome.outputs)
    elif not outcome.outputs:
        why = f": {outcome.error}" if outcome.error else "; follow it with --follow"
        fail(f"{outcome.execution_id} is {outcome.status}, without a result{why}")
    else:
        for node, value in outcome.outputs.items():
            if len(outcome.outputs) > 1:
                print(f"{printable_line(node)}:")
            print(printable(_output_text(value)))


async def _print_answer(client: "Client", session_id: str, as_json: bool) -> None:
    """What is recorded of the end of a session's last run: its result, or why it failed."""
    found = await client.session(session_id)
    if found is None:
        fail(f"No session {session_id!r} is known. See what is there with: nexum sessions")
    if not found["end"]:
        fail(f"No run of session {session_id} has ended; see what it does with: nexum show {session_id}")
    (recorded,) = (await client.status(found["end"])).outputs.values()
    if as_json:
        print_json(recorded)
    if error := recorded.get("error"):
        fail(f"The run ended in an error: {error}")
    if not as_json:
        print(printable(_output_text(recorded["result"])))


def _output_text(value: Any) -> str:
    """A text as it is, the fields of an object a line each, anything else as JSON."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {part if isinstance(part, str) else _json_text(part)}" for key, part in value.items())
    return value if isinstance(value, str) else _json_text(value)


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
