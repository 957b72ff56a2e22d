"""What a person sees of a call, in a terminal and piped."""

import argparse
import asyncio
import io
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress

import pytest
from processes import PATIENCE_SECONDS
from test_demo import Stage, stage

from nexum_agents import CallEvent, DurableEvent, TurnEvent
from nexum_runtime.text import printable
from offline import screen
from offline.view import RunView

__all__ = ["stage"]

LONG = {"query": "a question that is longer than what is shown of an argument, by far"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEXUM_DATABASE_URL")


def shown(*events: DurableEvent, width: int | None = None) -> str:
    """What a view prints of these events: piped, or on a terminal of that width."""
    view = RunView("again")
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


def turn(kind: str, number: int = 1, **fields: object) -> TurnEvent:
    return TurnEvent(kind, "s1/model-turn/0/0", number, "gpt", **fields)  # type: ignore[arg-type]


def test_a_turn_says_when_it_starts_and_what_the_model_does() -> None:
    text = shown(
        turn("started"),
        turn("stored", elapsed_ms=2_310, says="calls web_search, add"),
        turn("cached", says="answers"),
        turn("failed", detail="no"),
        turn("unrecorded", detail="why"),
    )
    assert text.splitlines() == [
        "[Nexum] turn 1 …",
        "[Nexum] turn 1: calls web_search, add stored ✓ 2.3 s",
        "[Nexum] turn 1: answers cached ⚡",
        "[Nexum] turn 1 failed ✗ no",
        "[Nexum] turn 1 not recorded why",
    ]


def test_a_turn_that_is_not_the_recorded_one_says_so_before_it_starts() -> None:
    text = shown(turn("started", 2, detail="instructions changed, tools changed (add)"))
    assert text == "[Nexum] turn 2 is new: instructions changed, tools changed (add)\n[Nexum] turn 2 …\n"


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


def approval(kind: str, number: int = 0, **fields: object) -> CallEvent:
    return CallEvent(kind, f"s1/pay/0/{number}", "pay", {"amount": number}, **fields)  # type: ignore[arg-type]


def test_what_waits_for_a_person_is_said_once_with_the_commands_that_answer() -> None:
    waiting = [approval("waiting", number, detail="approval") for number in (1, 2)]
    assert shown(*waiting, turn("stored"), *waiting).splitlines() == [
        "[Nexum] pay(amount=1) waits for your yes",
        "    nexum approve s1/pay/0/1",
        "    nexum reject s1/pay/0/1 --reason 'why not'",
        "[Nexum] pay(amount=2) waits for your yes",
        "    nexum approve s1/pay/0/2",
        "    nexum reject s1/pay/0/2 --reason 'why not'",
        "[Nexum] turn 1 stored ✓ 0 ms",
    ]


def question(kind: str, **fields: object) -> CallEvent:
    asked = {"question": "Which [bold]account?\n", "choices": ["main", "savings"]}
    return CallEvent(kind, "s1/question/0/1", "ask_person", asked, **fields)  # type: ignore[arg-type]


def test_a_question_is_said_with_its_words_its_choices_and_the_commands_that_answer() -> None:
    waiting = question("waiting", detail="answer")
    assert shown(waiting, waiting, question("answered", detail="savings")).splitlines() == [
        r"[Nexum] asks you: Which [bold]account?\n (main, savings)",
        "    nexum answer s1/question/0/1 'your answer'",
        "    nexum reject s1/question/0/1 --reason 'why not'",
        r'[Nexum] ask_person(question="Which [bold]account?\n", choices=["main", "savings"]) answered ✓ savings',
    ]


def test_what_people_said_is_told() -> None:
    said = shown(approval("approved"), approval("rejected", detail="Rejected by eva: too\ndear"))
    assert said.splitlines() == [
        "[Nexum] pay(amount=0) approved ✓",
        "[Nexum] pay(amount=0) rejected ✗ Rejected by eva: too dear",
    ]


def test_a_run_that_was_stopped_says_what_waits_for_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", "nexum.example:50051")
    view, output = view_into()
    for number in (1, 2):
        view.on_event(approval("waiting", number, detail="approval"))
    view.on_event(approval("waiting", 1, detail="worker"))
    before = output.tell()
    view.stopped("The agent stopped.")
    assert output.getvalue()[before:].splitlines()[1:] == [
        "Waits for your yes, now or later:",
        "  pay(amount=2)",
        "    NEXUM_ADDRESS=nexum.example:50051 nexum approve s1/pay/0/2",
        "    NEXUM_ADDRESS=nexum.example:50051 nexum reject s1/pay/0/2 --reason 'why not'",
        "Try again with:",
        "  again",
    ]


def footer_of(*events: DurableEvent) -> list[str]:
    view = RunView("again")
    view.console.file = output = io.StringIO()
    for event in events:
        view.on_event(event)
    view.console.file = output = io.StringIO()
    view.footer()
    return output.getvalue().splitlines()


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([turn("stored"), call("cached")], "Run it again, and all of it is cached ⚡:"),
        ([call("stored")], "Run it again, and every call is cached ⚡:"),
        ([turn("cached"), call("cached")], "Run it again:"),
        ([turn("unrecorded"), call("stored")], "Run it again:"),
    ],
    ids=["turns", "calls alone", "all cached", "a turn that has no record"],
)
def test_the_footer_promises_of_the_next_run_what_holds(events: list[DurableEvent], words: str) -> None:
    assert footer_of(*events) == [words, "  again"]


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([turn("stored"), call("stored"), call("cached")], "Stored so far: 1 turn and 2 calls. Go on with:"),
        ([turn("cached"), turn("stored"), turn("failed")], "Stored so far: 2 turns. Go on with:"),
        ([turn("failed")], "Try again with:"),
    ],
    ids=["turns and calls", "turns", "nothing"],
)
def test_a_run_that_was_stopped_says_what_it_need_not_do_again(events: list[DurableEvent], words: str) -> None:
    view, output = view_into()
    for event in events:
        view.on_event(event)
    view.stopped("The agent stopped.")
    assert output.getvalue().splitlines()[-4:] == ["", "The agent stopped.", words, "  again"]


def test_a_call_that_is_unknown_is_said_in_a_sentence_and_asked_about_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NEXUM_ADDRESS", raising=False)
    unknown = call("unknown", detail="Its worker was stopped: the effect may or may not have happened.")
    start = 'web_search(query="a question that is longer than what is shown of…")'
    assert shown(unknown) == (
        f"[Nexum] {start} unknown ? Its worker was stopped: the effect may or may not have happened. "
        "It is not run again.\n"
    )
    assert footer_of(unknown) == [
        "Unsettled: 1 call that may or may not have run, and is not run again.",
        "Find out what happened, and say it with one of these for OUTCOME:",
        "--result 'what it returned', --failed 'why', or --retry to attempt it again",
        f"  {start}",
        "    nexum resolve s1/web_search/0/0 OUTCOME",
        "Then run it again:",
        "  again",
    ]


def test_the_command_that_settles_a_call_says_where_its_server_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", "[::1]:5001")
    assert "    NEXUM_ADDRESS='[::1]:5001' nexum resolve s1/web_search/0/0 OUTCOME" in footer_of(
        call("unknown", detail="no")
    )


def test_a_run_that_was_stopped_says_what_is_unsettled_too() -> None:
    view = RunView("again")
    view.console.file = output = io.StringIO()
    view.on_event(call("unknown", detail="no"))
    view.stopped("The agent stopped.")
    lines = output.getvalue().splitlines()
    assert lines[2:4] == ["The agent stopped.", "Unsettled: 1 call that may or may not have run, and is not run again."]
    assert lines[-2:] == ["Try again with:", "  again"]


EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egpj\rover\x08\x7f\u2028\nforged :smile:"
SPELLED = r"\u001b]0;title\u0007\u001b[2J\u009b31m\u202egpj\rover\b\u007f\u2028"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def assert_moves_nothing(output: str) -> None:
    """Nothing is in it that a terminal acts upon, but newlines and colours."""
    rest = COLOURS.sub("", output)
    assert printable(rest) == rest


@pytest.mark.parametrize("width", [None, 2_000], ids=["piped", "in a terminal"])
def test_what_a_call_brings_along_cannot_move_the_terminal(width: int | None) -> None:
    text = shown(
        CallEvent("started", "s1/tool/0/0", f"tool{EVIL}", {f"name{EVIL}": f"value{EVIL[:30]}", "numbers": [EVIL]}),
        call("failed", detail=f"why{EVIL}"),
        width=width,
    )
    assert_moves_nothing(text)
    assert len(text.splitlines()) == 2, "no text can forge a line"
    started, failed = COLOURS.sub("", text).splitlines()
    assert started.startswith(rf"[Nexum] tool{SPELLED}\nforged :smile:(name{SPELLED}\nforged :smile:=")
    assert failed.endswith(rf"failed ✗ why{SPELLED} forged :smile:")


def view_into(again: str = "again") -> tuple[RunView, io.StringIO]:
    view = RunView(again)
    view.console.file = output = io.StringIO()
    return view, output


@pytest.mark.parametrize("has_own_worker", [True, False])
def test_a_worker_is_missed_unless_the_demos_own_runs(has_own_worker: bool) -> None:
    view, output = view_into()
    view.has_own_worker = lambda: has_own_worker
    view.on_event(call("waiting", detail="worker"))
    assert ("no worker has taken this call yet" in output.getvalue()) is not has_own_worker


def test_the_header_stays_on_its_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_ADDRESS", f"localhost:1{EVIL}")
    screen.header(f"what? {EVIL}", f"s1{EVIL}", f"gpt{EVIL}", "live")
    header = capsys.readouterr().out
    assert_moves_nothing(header)
    names = [line.partition(" ")[0] for line in header.splitlines()]
    assert names == ["Question", "Session", "Model", "Mode", "Nexum", ""]
    assert header.startswith(r"Question  what? \x1b]0;title\x07\x1b[2J\x9b31m\u202egpj\rover\x08\x7f\u2028\nforged ")


def test_a_question_that_is_longer_than_a_header_is_cut_there(capsys: pytest.CaptureFixture[str]) -> None:
    screen.header("long " * 200, "s1", "gpt", "live")
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert len(first) == len("Question  ") + screen.QUESTION_CHARS
    assert first.endswith("…")
    assert rest.startswith("Session   s1\n")


def test_a_note_stays_on_its_line() -> None:
    view, output = view_into()
    view.note(EVIL)
    assert output.getvalue() == rf"[Nexum] {SPELLED}\nforged :smile:" + "\n"


@pytest.fixture
def _in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "400"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_in_a_terminal")
@pytest.mark.parametrize(
    ("markdown", "seen"),
    [
        (EVIL, SPELLED),
        (f"`{EVIL}`", SPELLED),
        (f"```\n{EVIL}\n```", SPELLED),
        (f"[link](https://a.example/{EVIL})", r"\u001b[2J"),
        ("<https://a.example/%1b%5d0;title%07%c2%9b31m>", r"\u001b]0;title"),
        ("![picture %1b](https://a.example/%1b%5b2J)", "picture"),
        ("&#x202e;&#8232;&#13;&#27;&#x9b;.", r"\u202e\u2028"),
    ],
    ids=["text", "code", "block", "link", "percent", "picture", "entities"],
)
def test_no_answer_can_move_the_terminal_however_its_markdown_spells_it(markdown: str, seen: str) -> None:
    view, output = view_into()
    view.answer(f"Before.\n\n{markdown}\n\n**After.**")
    assert_moves_nothing(output.getvalue())
    assert "\x1b[1mAfter.\x1b[0m" in output.getvalue(), "it is Markdown still"
    assert seen in COLOURS.sub("", output.getvalue())


@pytest.mark.usefixtures("_in_a_terminal")
def test_a_link_in_an_answer_shows_where_it_leads() -> None:
    view, output = view_into()
    view.answer("See [the bank](https://not-the-bank.example/).")
    assert "the bank (https://not-the-bank.example/)" in COLOURS.sub("", output.getvalue())


def test_a_piped_answer_is_what_the_agent_said_but_for_control_characters() -> None:
    view, output = view_into()
    view.answer(f"a\tb [red]c[/] :smile:\r\n\n\nd {EVIL}")
    assert output.getvalue() == f"\na\tb [red]c[/] :smile:\n\n\nd {SPELLED}\nforged :smile:\n\n"


def test_why_a_run_stopped_is_told_on_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "AIza-not-for-you")
    view, output = view_into()
    view.stopped(f"401 for ?key=AIza-not-for-you {EVIL}\nGo on with:\n  rm -rf")
    assert output.getvalue() == (
        f"401 for ?key=[GEMINI_API_KEY] {SPELLED} forged :smile: Go on with: rm -rf\nTry again with:\n  again\n"
    )
    assert shown(call("failed", detail="AIza-not-for-you")).endswith(" failed ✗ [GEMINI_API_KEY]\n")


@pytest.mark.parametrize(
    "question",
    [
        'What\'s  a "lease", in\n\n one `word`? $HOME \\ \tpágina 🦊',
        f"{EVIL}'s \\ $HOME página 🦊",
        os.fsdecode(b"no UTF-8: \xff\xfe"),
    ],
    ids=ascii,
)
def test_the_command_that_resumes_asks_the_same_question(question: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    monkeypatch.setattr(screen, "_python", lambda: "printf")
    flags = {
        "worker": True,
        "offline": False,
        "detach": False,
        "save_report": False,
        "durable_model": True,
        "tools": "run",
    }
    arguments = argparse.Namespace(question=question, **flags)
    view, output = view_into(screen.command_line("s1", arguments))
    view.footer()
    assert_moves_nothing(output.getvalue())
    command = output.getvalue().partition(":\n  ")[2].replace("demo.py --worker", r"'%s\0'")
    printed = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, check=True).stdout
    assert printed == os.fsencode(f"{question}\0")


async def test_a_hostile_question_moves_no_real_terminal(stage: Stage) -> None:
    """From the shell through the agent, a tool's arguments and a page, to the terminal and to the workers' log."""
    worker = stage.worker()
    question = f"What is durable execution? {EVIL}"
    ours, theirs = pty.openpty()
    received = b""

    def read() -> None:
        nonlocal received
        with suppress(OSError):  # what a terminal says when nobody has it open any more
            while chunk := os.read(ours, 65_536):
                received += chunk

    reading = asyncio.create_task(asyncio.to_thread(read))
    demo = await asyncio.create_subprocess_exec(
        *map(str, stage.demo_command(question)),
        env=stage.environment(TERM="xterm-256color", SESSION_ID="s1"),
        cwd=stage.folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            code = await demo.wait()
            await reading
    finally:
        if demo.returncode is None:
            demo.kill()
            await demo.wait()
        os.close(ours)
    output = received.decode().replace("\r\n", "\n")
    assert code == 0, output
    assert "stored ✓" in output
    assert COLOURS.search(output), "it took this for a terminal"
    assert "title" in output
    assert_moves_nothing(output)
    assert "web_search {" in worker.output
    assert_moves_nothing(worker.log.read_bytes().decode())
