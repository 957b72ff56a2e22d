"""What is shown of a text: control characters spelled out, secrets by their names."""

import asyncio
import json
import logging
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from command import ECHO, claim, start
from processes import NexumDev, Process, environment
from test_demo import ROOT

from nexum_agents import submit_tool_call
from nexum_runtime import Client, NexumError, SessionStopped
from nexum_runtime.cli.events import LOST_LIMIT, EventLog
from nexum_runtime.logs import about_attempt, log_to_stderr
from nexum_runtime.text import GIB, duration_text, error_line, printable, printable_line, redact, size_text
from nexum_runtime.wire import canonical_json

HARMLESS = [
    "",
    "plain",
    "a\tb\nc",
    "página 🦊 日本語 עברית",
    r"a \u001b that is spelled out already",
    "non\u00a0breaking, and a family \U0001f468\u200d\U0001f469",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\u001b]0;title\u0007"),
        ("\x1b[2J", r"\u001b[2J"),
        ("\x9b31m", r"\u009b31m"),
        ("ab\x08\x08", r"ab\b\b"),
        ("good\rbad", r"good\rbad"),
        ("\x00\x0b\x0c\x7f\x80\x85\x9f", r"\u0000\u000b\f\u007f\u0080\u0085\u009f"),
        ("\u202egpj\u2066x\u2069", r"\u202egpj\u2066x\u2069"),
        ("\u061c\u200b\u200e\u200f\u2060\ufeff", r"\u061c\u200b\u200e\u200f\u2060\ufeff"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("half a fox \ud83e", r"half a fox \ud83e"),
        ("a line\r\nand another\r\n", "a line\nand another\n"),
    ],
    ids=ascii,
)
def test_what_a_terminal_would_act_upon_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_all_controls_but_newline_and_tab_are_spelled_out() -> None:
    controls = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
    assert [each for each in controls if printable(each) == each] == ["\t", "\n"]


def test_one_line_stays_one_line() -> None:
    assert printable_line("a\nb\r\nc\x1b\rd\u2028e") == r"a\nb\nc\u001b\rd\u2028e"


@pytest.mark.parametrize("value", ["\x1b\x7f\x9b\u202e\ud83e\r\n\t", {"\x9b": ["\u2028", "é🦊"]}], ids=ascii)
def test_printable_json_means_what_it_meant(value: object) -> None:
    shown = printable(canonical_json(value))
    assert json.loads(shown) == value
    assert printable_line(shown) == shown


# Secrets


@pytest.fixture
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-12345678")
    monkeypatch.setenv("my_password", "sk-12345678-and-more")
    monkeypatch.setenv("GITHUB_TOKEN", "  ghp_abcdefgh\n")  # as `$(cat file)` leaves it in other shells
    monkeypatch.setenv("SHORT_KEY", "1234567")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("EMPTY_SECRET", "")


@pytest.mark.usefixtures("_secrets")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "401 for url https://a.example/?api_key=sk-12345678",
            "401 for url https://a.example/?api_key=[OPENAI_API_KEY]",
        ),
        ("sk-12345678-and-more, sk-12345678", "[my_password], [OPENAI_API_KEY]"),
        ("Authorization: ghp_abcdefgh.", "Authorization: [GITHUB_TOKEN]."),
        ("1234567 in /home/somebody", "1234567 in /home/somebody"),
        ("", ""),
        ("https://user:pass@host/x and postgresql://me:p@ss@db", "https://***@host/x and postgresql://***@db"),
        ("https://ghp_other@github.com/x", "https://***@github.com/x"),
        ("https://medium.com/@me?to=a@b.c", "https://medium.com/@me?to=a@b.c"),
        ('{"mail":"a@b.c","url":"https://a.b","to":"x@y.z"}', '{"mail":"a@b.c","url":"https://a.b","to":"x@y.z"}'),
    ],
)
def test_secrets_are_told_by_their_names_only(text: str, told: str) -> None:
    assert redact(text) == told


@pytest.mark.usefixtures("_secrets")
def test_an_error_is_one_line_without_controls_and_secrets() -> None:
    error = ValueError("1 error\n  key:\tsk-12345678\r\n\x1b[2J  at https://a:b@c/")
    assert error_line(error) == r"1 error key: [OPENAI_API_KEY] \u001b[2J at https://***@c/"


# Logs


@pytest.mark.usefixtures("_secrets")
def test_no_message_and_no_traceback_can_forge_a_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_stderr("12:00:00  %(message)s")
    evil = "sk-12345678 \x1b[2J\u202e\ud800\n12:00:00  forged"
    try:
        raise ValueError(evil)
    except ValueError:
        logging.getLogger("any").exception("%s failed", evil)
    logged = capsys.readouterr().err
    assert logged.startswith("12:00:00  [OPENAI_API_KEY] \\u001b[2J\\u202e\\ud800\n    12:00:00  forged failed\n")
    assert "    ValueError: [OPENAI_API_KEY] " in logged
    assert [line for line in logged.splitlines() if not line.startswith("    ")] == logged.splitlines()[:1]
    assert printable(logged) == logged


@pytest.mark.usefixtures("_secrets")
def test_a_log_in_json_has_an_object_a_line_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_stderr("%(message)s", as_json=True)
    evil = 'sk-12345678 \x1b[2J\u202e\ud800\n{"forged": "página"}'
    try:
        raise ValueError(evil)
    except ValueError:
        logging.getLogger("any").exception("%s failed", evil, extra={"tool": evil, "duration_ms": 12, "name_of": evil})
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    harmless = evil.replace("sk-12345678", "[OPENAI_API_KEY]")
    assert datetime.now(UTC) - datetime.fromisoformat(told.pop("time")) < timedelta(minutes=1)
    assert told.pop("error").endswith(f"ValueError: {harmless}")
    assert told == {
        "level": "ERROR",
        "logger": "any",
        "message": f"{harmless} failed",
        "tool": harmless,
        "duration_ms": 12,
        "name_of": harmless,
    }
    assert printable(line) == line
    assert "página" in line


async def test_the_server_and_the_worker_log_json_if_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with NexumDev(tmp_path, "--log-json") as nexum:
        monkeypatch.setenv("NEXUM_ADDRESS", nexum.address)
        command: list[str | Path] = [sys.executable, ROOT / "worker.py", "--offline", "--log-json"]
        env = environment(NEXUM_ADDRESS=nexum.address, OFFLINE_WEB_DELAY_MS="0")
        worker = Process(command, tmp_path / "worker.log", env=env)
        worker.start()
        await submit_tool_call("web_search", {"query": "sagas"}, "s1")
        worker.terminate()
        nexum.terminate()
        assert (await worker.ended(), await nexum.ended()) == (0, 0)
    for process, logger in ((nexum, "nexum.dev"), (worker, "worker")):
        told = [json.loads(line) for line in process.output.splitlines()]
        assert len(told) >= 2
        assert {each["logger"] for each in told} >= {logger}
        assert all(each.keys() >= {"time", "level", "logger", "message"} for each in told)
    done = next(each for each in told if each["message"].startswith("web_search done in "))
    assert (done["tool"], done["level"]) == ("web_search", "INFO")
    assert done["message"] == f"web_search done in {done['duration_ms']} ms"
    assert (done["session"], done["execution"].rpartition("/")[2], done["attempt"]) == ("s1", "0", 1)


@pytest.mark.parametrize("as_json", [False, True])
async def test_what_is_logged_in_an_attempt_says_which_one_it_is_also_in_threads(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log_to_stderr("%(message)s", as_json=as_json)
    log = logging.getLogger("a tool's own")
    log.warning("before")
    with about_attempt("s1/web_search/3fa2/0", 2):
        await asyncio.to_thread(log.warning, "slow\nvery slow")
    log.warning("after")
    lines = capsys.readouterr().err.splitlines()
    if as_json:
        about = [{key: json.loads(line).get(key) for key in ("session", "execution", "attempt")} for line in lines]
        nothing = {"session": None, "execution": None, "attempt": None}
        assert about == [nothing, {"session": "s1", "execution": "s1/web_search/3fa2/0", "attempt": 2}, nothing]
    else:
        assert lines == ["before", "slow  · s1/web_search/3fa2/0 attempt 2", "    very slow", "after"]


async def test_a_verbose_server_logs_what_becomes_of_executions_and_no_other_does(tmp_path: Path) -> None:
    for options in (("--verbose",), ("--verbose", "--log-json"), ()):
        folder = tmp_path / "-".join(("server", *options))
        folder.mkdir()
        async with NexumDev(folder, *options) as nexum, Client(nexum.address) as client:
            await start(client, "s1/echo/0")
            await client.fail(await claim(client), "no luck", retryable=True)
            await client.complete(await claim(client, wait_ms=5_000, lease_ms=1_000), '{"text": "é"}')
            nexum.terminate()
            await nexum.ended()
        told = [line for line in nexum.output.splitlines() if "s1/echo/0" in line]
        if "--log-json" in options:
            entries = [json.loads(line) for line in told]
            assert [entry["event"] for entry in entries] == STORY
            assert {(entry["session"], entry["execution"]) for entry in entries} == {("s1", "s1/echo/0")}
            assert [entry.get("attempt") for entry in entries] == [None, 1, 1, 2, 2, None]
        elif options:
            words = [line.partition("INFO s1/echo/0 ")[2] for line in told]
            assert words[0] == "started"
            assert words[1] == "run: attempt 1 by worker-1"
            assert re.fullmatch(r"run: attempt 1 failed after .+, next in .+: no luck", words[2])
            assert words[3] == "run: attempt 2 by worker-1"
            assert re.fullmatch(r"run: attempt 2 done in .+, result of 14 B stored", words[4])
            assert words[5:] == ["completed"]
        else:
            assert told == []


async def test_what_an_operator_must_know_is_logged_by_every_server(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-of-ours")
    async with NexumDev(tmp_path, "--token-file", str(tmp_path / "token")) as nexum:
        for _ in range(3):
            async with Client(nexum.address) as stranger:
                with pytest.raises(NexumError, match="demands a token and got none"):
                    await stranger.sessions()
        async with Client(nexum.address, token="secret-of-ours") as client:
            executing = asyncio.create_task(client.execute(ECHO, {}, execution_id="s1/echo/0"))
            await client.register(ECHO)
            await claim(client, wait_ms=20_000, lease_ms=1_000)
            await nexum.says(r"WARNING s1/echo/0 run: attempt 1 given up after .+: .*worker-1")
            await client.stop_session("s1", "ann", "too dear")
            await client.go_session("s1")
            with pytest.raises(SessionStopped):
                await executing
        nexum.terminate()
        assert await nexum.ended() == 0
    told = re.sub(r"(?m)^\S+ \S+ (?=INFO|WARNING)", "", nexum.output)
    assert "Nexum is ready at" in told
    assert (
        len(re.findall(r"(?m)^WARNING Calls of \S+ are refused: this server demands a token, and got none\.$", told))
        == 1
    )
    assert (
        "INFO Session s1 was stopped by ann: too dear. Let it go on with: nexum go s1\nINFO Session s1 goes on.\n"
        in told
    )
    assert "INFO s1/echo/0" not in told
    assert told.endswith("Nexum has stopped. What it acknowledged is in the database.\n")


def test_of_many_attempts_lost_at_once_a_few_are_named(caplog: pytest.LogCaptureFixture) -> None:
    lost = ("run", 1, json.dumps({"worker": "w", "error": "w has gone."}))
    events = [(f"s/{n}", 5, "LeaseExpired", *lost) for n in range(LOST_LIMIT + 2)]
    EventLog()([("s/0", 0, "AttemptStarted", "run", 1, "{}"), *events])
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "s/0 run: attempt 1 given up after 5 ms: w has gone."
    assert len(said) == LOST_LIMIT + 1
    assert said[-1] == "2 more attempts were lost at the same moment."


STORY = [
    "ExecutionStarted",
    "AttemptStarted",
    "AttemptFailed",
    "AttemptStarted",
    "TaskCompleted",
    "ExecutionCompleted",
]


def test_sizes_and_durations_are_told_in_units_that_a_person_can_picture() -> None:
    sizes = (812, 4_301, 20_000_000, 3 * GIB)
    assert [size_text(size) for size in sizes] == ["812 B", "4.2 KiB", "19.1 MiB", "3.0 GiB"]
    spans_ms = (412, 1_234, 119_000, 204_000, 20_160_000, 673_920_000)
    told = ["412 ms", "1.2 s", "119.0 s", "3.4 min", "5.6 h", "7.8 days"]
    assert [duration_text(ms) for ms in spans_ms] == told
