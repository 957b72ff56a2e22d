"""What a person sees of a call, in a terminal and piped."""

import io

import pytest

from submit_task import CallEvent
from terminal import RunView

LONG = {"query": "a question that is longer than what is shown of an argument, by far"}


def shown(*events: CallEvent, width: int | None = None) -> str:
    """What a view prints of these events: piped, or on a terminal of that width."""
    view = RunView()
    view.console.file = io.StringIO()
    if width:
        view.console._force_terminal = True
        view.console.width = width
        view.console.no_color = True
    for event in events:
        view.on_event(event)
    return view.console.file.getvalue()


def call(kind: str, **fields: object) -> CallEvent:
    return CallEvent(kind, "s1/web_search/0/0", "web_search", LONG, **fields)  # type: ignore[arg-type]


def test_a_call_says_when_it_starts_and_how_it_ends() -> None:
    text = shown(
        call("started"), call("stored", elapsed_ms=412), call("cached", saved_ms=9), call("failed", detail="no")
    )
    start = '[Nexum] web_search(query="a question that is longer than what is shown of…")'
    assert text.splitlines() == [f"{start} …", f"{start} stored ✓ 412 ms", f"{start} cached ⚡", f"{start} failed ✗ no"]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_call_fits_the_line_of_a_terminal(width: int) -> None:
    line = shown(call("stored", elapsed_ms=1_200), width=width)
    plain = line.replace("\x1b[0m", "").replace("\x1b[1m", "").rstrip("\n")
    assert len(plain) <= width
    assert plain.endswith("stored ✓ 1.2 s")


def test_markup_in_what_a_tool_was_given_is_shown_and_not_obeyed() -> None:
    event = CallEvent("failed", "s1/web_search/0/0", "web_search", {"query": "[red]x[/]"}, detail="[bold]no[/]")
    assert shown(event) == '[Nexum] web_search(query="[red]x[/]") failed ✗ [bold]no[/]\n'


def test_only_a_call_that_takes_long_is_said_to_be_still_running() -> None:
    soon, later = (call("waiting", detail="result", elapsed_ms=ms) for ms in (1_500, 9_500))
    assert shown(soon) == ""
    assert shown(later).endswith("still running 9.5 s\n")


def test_what_is_waited_for_is_said_once_for_all_the_calls_that_wait() -> None:
    waiting = call("waiting", detail="worker", elapsed_ms=1_500)
    assert shown(waiting, waiting).count("no worker has taken this call yet") == 1
