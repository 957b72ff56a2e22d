"""`nexum ps` and `nexum show`: what a person sees of executions and sessions, and what a program reads."""

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from command import ECHO, EVIL, SPELLED, Text, assert_refused, claim, finish, nexum, start, unused
from nexum import workflow
from nexum.proto import nexum_pb2 as pb
from nexum.proto import nexum_pb2_grpc as pb_grpc
from processes import NEXUM, Finished, NexumDev, Process, Terminal, environment, remote, run
from test_demo import Stage, stage

from nexum_runtime import Client
from nexum_runtime.cli.base import FAILED, USAGE
from nexum_runtime.cli.timeline import Row, timeline
from nexum_runtime.telling.bars import Bar
from nexum_runtime.text import printable

__all__ = ["stage"]

FOREVER_MS = 60_000
INTERRUPTED = 130


async def test_ps_of_an_empty_server_says_so(address: str) -> None:
    assert await nexum(address, "ps") == Finished(0, "No executions yet.\n", "")
    assert await nexum(address, "ps", "s1/") == Finished(0, "No such executions.\n", "")
    assert await nexum(address, "ps", "--json") == Finished(0, "", "")


async def test_ps_lists_the_newest_first(client: Client, address: str) -> None:
    await finish(client, "s1/a")
    await start(client, "s10:smile:/b")
    await start(client, "s1/c")

    everything = await nexum(address, "ps")
    assert (everything.code, everything.stderr) == (0, "")
    head, *rows = everything.stdout.splitlines()
    assert head.split() == ["EXECUTION", "STATUS", "STARTED", "(UTC)", "WHAT"]
    assert [row.split()[:2] for row in rows] == [
        ["s1/c", "RUNNING"],
        ["s10:smile:/b", "RUNNING"],
        ["s1/a", "COMPLETED"],
    ]
    assert all(re.search(r" \d{4}-\d\d-\d\d \d\d:\d\d:\d\d *$", row) for row in rows)

    async def listed(*words: str) -> list[str]:
        return [
            json.loads(line)["execution_id"]
            for line in (await nexum(address, "ps", "--json", *words)).stdout.splitlines()
        ]

    assert await listed() == ["s1/c", "s10:smile:/b", "s1/a"]
    assert await listed("s1/") == ["s1/c", "s1/a"]
    assert await listed("--limit", "1") == ["s1/c"]
    (line,) = (await nexum(address, "ps", "--json", "s1/a")).stdout.splitlines()
    told = json.loads(line)
    assert told.pop("created_at").endswith("Z")
    assert told == {
        "execution_id": "s1/a",
        "workflow_id": "echo",
        "version_hash": ECHO.version_hash,
        "status": "COMPLETED",
        "labels": {},
    }


async def test_ps_folds_no_id_where_another_program_reads_it(client: Client, address: str) -> None:
    name = "s1/" + "x" * 197
    await start(client, name)
    assert (await nexum(address, "ps")).stdout.splitlines()[1].split()[0] == name


async def test_ps_takes_the_address_as_an_option_too(client: Client, address: str) -> None:
    await start(client, "e")
    finished = await run(NEXUM, "ps", "--address", address, "--json")
    assert json.loads(finished.stdout)["execution_id"] == "e"


async def test_a_prefix_of_other_characters_is_refused_in_a_sentence(address: str) -> None:
    assert_refused(await nexum(address, "ps", "a b"), "'a b' is not 1 to 200 of A-Z")
    assert_refused(await nexum(address, "ps", "ü"), "'ü'; it must be printable ASCII")


# nexum show


async def test_show_tells_the_story_of_an_execution(client: Client, address: str) -> None:
    await start(client, "s/a")
    await client.fail(await claim(client), "no luck [bold]at[/] all")
    await client.complete(await claim(client, wait_ms=FOREVER_MS), '{"text": "é"}')
    finished = await nexum(address, "show", "s/a")
    assert (finished.code, finished.stderr) == (0, "")
    head, sent, *told = finished.stdout.rstrip().splitlines()
    assert re.fullmatch(r"s/a COMPLETED in \S+ m?s", head)
    assert sent == '  input {"q":"página"}'
    patterns = [
        r"  run         [▏▎▍▌▋▊▉█]+ +\d+ ms failed",
        r"    attempt 2 {30,}[▏▎▍▌▋▊▉█]+ +\d+ ms",
        r"  \+ *\d+\.\d\d\d s  echo started at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC",
        r"  \+ *\d+\.\d\d\d s  run: attempt 1 by worker-1",
        r"  \+ *\d+\.\d\d\d s  run: attempt 1 failed after .+, next in .+: no luck \[bold\]at\[/\] all",
        r"  \+ *\d+\.\d\d\d s  run: attempt 2 by worker-1",
        r"  \+ *\d+\.\d\d\d s  run: attempt 2 done in .+, result of 14 B stored",
        r"  \+ *\d+\.\d\d\d s  completed",
    ]
    assert len(told) == len(patterns)
    for line, pattern in zip(told, patterns, strict=True):
        assert re.fullmatch(pattern, line), line


async def test_show_tells_why_an_execution_failed(client: Client, address: str) -> None:
    await start(client, "s/a")
    await client.fail(await claim(client), "página 🦊 is not there", retryable=False)
    finished = await nexum(address, "show", "s/a")
    assert finished.stdout.startswith("s/a FAILED in ")
    assert finished.stdout.rstrip().endswith("s  failed (TOOL_ERROR): página 🦊 is not there")


async def test_show_cannot_be_made_to_move_the_terminal(client: Client, address: str) -> None:
    built = workflow(f"evil{EVIL}").effect(f"run{EVIL}", Text, unused).build()
    await client.register(built)
    sent = json.dumps({"q": EVIL}, ensure_ascii=False)
    request = pb.StartRequest(workflow_id=built.workflow_id, version_hash=built.version_hash, input_json=sent)
    stub = pb_grpc.NexumServiceStub(remote(client).connection.channel)
    await stub.StartExecution(request, metadata=(("nexum-execution-id", "e"),))
    claimed = await client.poll(f"worker{EVIL}", built, lease_ms=60_000, wait_ms=0)
    assert claimed is not None
    await client.fail(claimed.task_id, f"why{EVIL}", retryable=False)

    told = await nexum(address, "show", "e")
    assert (told.code, told.stderr) == (0, "")
    assert printable(told.stdout) == told.stdout
    node = rf"run{SPELLED}\nforged :smile:"
    bar, *events = told.stdout.rstrip().splitlines()[2:]
    assert bar.startswith(f"  {node} ")
    lines = [line[15:] for line in events]
    assert [re.sub(r"after \d+ ms", "after N ms", re.sub(r"at \d.+ UTC", "at T", line)) for line in lines] == [
        rf"evil{SPELLED}\nforged :smile: started at T",
        rf"{node}: attempt 1 by worker{SPELLED}\nforged :smile:",
        f"{node}: attempt 1 failed after N ms: why{SPELLED} forged :smile:",
        f"failed (TOOL_ERROR): why{SPELLED} forged :smile:",
    ]
    as_json = (await nexum(address, "show", "e", "--json")).stdout
    assert printable(as_json) == as_json
    (history,) = [each async for each in client.history("e")]
    assert json.loads(as_json) == history
    assert (history["input"], history["events"][-1]["error"]) == ({"q": EVIL}, f"why{EVIL}"), "stored as it was"


async def test_what_the_command_refuses_cannot_move_the_terminal(address: str) -> None:
    finished = await run(NEXUM, "show", "x", env=environment(NEXUM_ADDRESS=address, SOME_TOKEN="execution or"))
    assert_refused(finished, "No [SOME_TOKEN] session 'x' is known.")
    assert_refused(await nexum(EVIL, "ps"), "The Nexum address is '\\x1b]0;title")


async def test_show_tells_of_lost_and_late_attempts(client: Client, address: str) -> None:
    await start(client, "e")
    task_id = await claim(client)
    await client.fail(task_id, "Its worker was stopped.", interrupted=True)
    await client.complete(task_id, '"late"')
    told = (await nexum(address, "show", "e")).stdout
    assert "run: attempt 1 given up after" in told
    assert "Its worker was stopped." in told
    assert "result of 6 B stored, after it had been given up" in told


@pytest.mark.parametrize("name", ["s1", "s1/"])
async def test_show_of_a_session_has_a_bar_for_each_attempt_in_it(client: Client, address: str, name: str) -> None:
    for execution_id in ("s1/b", "s10/x", "s1/a"):
        await finish(client, execution_id)
    await start(client, "s1/c")
    await client.fail(await claim(client), "no luck", retryable=False)
    await start(client, "s1/d")
    finished = await nexum(address, "show", name)
    assert (finished.code, finished.stderr) == (0, "")
    lines = [re.sub(r"\d+ ms", "N ms", re.sub(r"[▏▎▍▌▋▊▉█]+", "█", line)) for line in finished.stdout.splitlines()]
    assert re.fullmatch(r"s1 RUNNING · began \d{4}-.+ UTC · 2 completed, 1 failed, 1 running", lines[0])
    assert [re.sub(r" +", " ", line) for line in lines[1:]] == [
        "",
        "b █ N ms",
        "a █ N ms",
        "c █ N ms failed",
        "d waits for a worker",
        "",
        "s1/c failed (TOOL_ERROR): no luck",
    ]
    starts = [line.index("█") for line in lines[2:5]]
    assert starts == sorted(starts), "one after another"
    told = (await nexum(address, "show", name, "--events")).stdout
    stories = re.findall(r"(?m)^(s1/\w) (\w+).*\n  input .+\n  \+   0\.000 s  echo started", told)
    assert stories == [("s1/b", "COMPLETED"), ("s1/a", "COMPLETED"), ("s1/c", "FAILED"), ("s1/d", "RUNNING")]
    as_json = await nexum(address, "show", name, "--json")
    listed = [json.loads(line)["execution_id"] for line in as_json.stdout.splitlines()]
    assert listed == ["s1/b", "s1/a", "s1/c", "s1/d"]


async def test_show_of_a_session_tells_of_turns_and_calls_in_the_order_they_began(stage: Stage) -> None:
    stage.worker()
    await stage.demo("--crash-after", "2", SESSION_ID="s1")
    assert (await stage.demo(SESSION_ID="s1")).code == 0
    finished = await nexum(stage.nexum.address, "show", "s1")
    names = re.findall(r"(?m)^([\w-]+)\(.+\) \w{16}/0 +(?:┊ *)?[▏▎▍▌▋▊▉█]", finished.stdout)
    assert names == ["model-turn", *["web_search"] * 2, "model-turn", *["visit_webpage"] * 3, "model-turn", "run-end"]

    as_json = (await nexum(stage.nexum.address, "show", "s1", "--json")).stdout
    asked_by = [
        story["events"][1]["worker"].rpartition("-")[0]
        for story in map(json.loads, as_json.splitlines())
        if story["workflow_id"] == "openai-agents-model-turn"
    ]
    assert asked_by[0] != asked_by[1] == asked_by[2], "the first turn was asked by the run that crashed"


async def test_the_time_in_which_a_session_did_not_run_is_left_out(client: Client, address: str) -> None:
    """A session that is run again a day later would be two dots on one line."""
    day_ms = 86_400_000
    bars = [Bar("run", "run", 0, 400, "", "green"), Bar("run", "run", day_ms, day_ms + 400, "", "green")]
    first, second, note = (line.plain for line in timeline([Row(str(bar.start_ms), bar) for bar in bars], 80))
    assert re.fullmatch(r"0 +█{14,}.? +┊ +400 ms", first)
    assert re.fullmatch(r"86400000 +┊ +█{14,}.? +400 ms", second)
    assert note == "┊ a time in which nothing ran: 24.0 h"


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_bar_fits_its_line_however_long_the_id(width: int) -> None:
    bars = [Bar("run", "run", 0, 1, "cancelled", "red"), Bar("run", "run", 0, 10**9, "", "green")]
    rows = [Row("s/" + "x" * 150 + "/1", bar) for bar in bars]
    lines = [line.plain for line in timeline(rows, width)]
    assert all(len(line) <= width for line in lines), lines
    assert all("/1 " in line for line in lines), "the end of an id tells it from another"


async def test_show_of_many_nodes_has_a_bar_for_each(client: Client, address: str) -> None:
    pair = workflow("pair").effect("a", Text, unused, depends_on=[]).effect("b", Text, unused, depends_on=["a"]).build()
    await client.register(pair)
    executing = asyncio.create_task(client.execute(pair, {}, execution_id="s/pair"))
    for output in ('{"text": "1"}', '{"text": "2"}'):
        claimed = await client.poll("w", pair, lease_ms=60_000, wait_ms=FOREVER_MS)
        assert claimed is not None
        await client.complete(claimed.task_id, output)
    await executing
    told = (await nexum(address, "show", "s")).stdout
    assert re.search(r"\npair *\n  a +[▏▎▍▌▋▊▉█]+ +\d+ ms\n  b +[▏▎▍▌▋▊▉█]+ +\d+ ms\n", told), told
    whole = await nexum(address, "show", "s/pair", "--output")
    assert whole == Finished(0, "a:\ntext: 1\nb:\ntext: 2\n", "")
    as_json = await nexum(address, "show", "s/pair", "--output", "--json")
    assert json.loads(as_json.stdout) == {"a": {"text": "1"}, "b": {"text": "2"}}


async def test_output_is_the_whole_result(client: Client, address: str) -> None:
    await finish(client, "s/e", json.dumps({"result": "line 1\nline 2 " + "x" * 10_000, "duration_ms": 3, "n": [1]}))
    finished = await nexum(address, "show", "s/e", "--output")
    assert finished.stdout == "result: line 1\nline 2 " + "x" * 10_000 + "\nduration_ms: 3\nn: [\n  1\n]\n"
    assert_refused(await nexum(address, "show", "s", "--output"), "s is a session, and --output is of one execution.")
    assert_refused(await nexum(address, "show", "s/e", "--output", "--follow"), "Say one of", USAGE)
    await start(client, "s/f")
    assert_refused(await nexum(address, "show", "s/f", "--output"), "s/f is RUNNING, without a result; follow it with")
    await client.fail(await claim(client), "no luck", retryable=False)
    assert_refused(await nexum(address, "show", "s/f", "--output"), "s/f is FAILED, without a result: no luck")


# The answer


async def end_run(client: Client, execution_id: str, **recorded: Any) -> None:
    async def end() -> dict[str, Any]:
        return recorded

    await client.run_local(ECHO, {}, end, execution_id=execution_id, labels={"kind": "run"})


@pytest.mark.parametrize(
    ("result", "text"),
    [("line 1\nline 2", "line 1\nline 2\n"), ({"name": "Ulm", "n": 7}, "name: Ulm\nn: 7\n"), (None, "null\n")],
)
async def test_the_answer_is_that_of_the_run_that_ended_last(
    client: Client, address: str, result: Any, text: str
) -> None:
    await end_run(client, "s/run-end/a/0", result="the first")
    await end_run(client, "s/run-end/b/0", result=result)
    await end_run(client, "other/run-end/a/0", result="of another session")
    assert await nexum(address, "show", "s", "--answer") == Finished(0, text, "")
    assert await nexum(address, "show", "s/", "--answer") == Finished(0, text, "")
    as_json = await nexum(address, "show", "s", "--answer", "--json")
    assert (as_json.code, json.loads(as_json.stdout)) == (0, {"result": result})


async def test_the_answer_of_a_run_that_failed_is_how_it_failed(client: Client, address: str) -> None:
    await end_run(client, "s/run-end/a/0", result=None, error="ValueError: no luck")
    assert_refused(await nexum(address, "show", "s", "--answer"), "The run ended in an error: ValueError: no luck")
    as_json = await nexum(address, "show", "s", "--answer", "--json")
    assert json.loads(as_json.stdout) == {"result": None, "error": "ValueError: no luck"}
    assert as_json.code == FAILED
    await end_run(client, "s/run-end/a/1", result="better")
    assert (await nexum(address, "show", "s", "--answer")).stdout == "better\n"


async def test_an_end_that_was_not_recorded_whole_is_no_answer(client: Client, address: str) -> None:
    none = "No run of session s has ended; see what it does with: nexum show s"
    async with client.local_effect(ECHO, {}, execution_id="s/run-end/a/0", labels={"kind": "run"}) as cut_off:
        assert_refused(await nexum(address, "show", "s", "--answer"), none)
        await cut_off.give_up("its process was killed", retryable=False)
    assert_refused(await nexum(address, "show", "s", "--answer"), none)
    await end_run(client, "s/run-end/b/0", result="whole")
    async with client.local_effect(ECHO, {}, execution_id="s/run-end/c/0", labels={"kind": "run"}) as cut_off:
        assert (await nexum(address, "show", "s", "--answer")).stdout == "whole\n"
        await cut_off.give_up("its process was killed", retryable=False)


async def test_an_answer_that_cannot_be_given_is_refused_in_a_sentence(client: Client, address: str) -> None:
    assert_refused(await nexum(address, "show", "ghost", "--answer"), "No session 'ghost' is known.")
    assert_refused(await nexum(address, "show", "s", "--answer", "--output"), "Say one of", USAGE)


async def test_an_answer_cannot_move_the_terminal(client: Client, address: str) -> None:
    await end_run(client, "s/run-end/a/0", result="\x1b[2Jgone")
    assert "\x1b" not in (await nexum(address, "show", "s", "--answer")).stdout
    await end_run(client, "t/run-end/a/0", result=None, error="\x1b[2Jgone\nline 2")
    refused = await nexum(address, "show", "t", "--answer")
    assert "\x1b" not in refused.stderr
    assert refused.stderr.count("\n") == 1


# Following and watching


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexum_runtime.cli.watch.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("nexum_runtime.cli.show.QUIET_SECONDS", 0.2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("ends", ["COMPLETED", "FAILED"])
async def test_an_execution_is_followed_to_its_end_event_by_event(client: Client, address: str, ends: str) -> None:
    await start(client, "s/e")
    following = asyncio.create_task(nexum(address, "show", "s/e", "--follow"))
    task_id = await claim(client)
    assert not following.done()
    if ends == "COMPLETED":
        await client.complete(task_id, '{"text": "é"}')
    else:
        await client.fail(task_id, "no luck", retryable=False)
    finished = await following
    assert (finished.code, finished.stderr) == (0 if ends == "COMPLETED" else FAILED, "")
    told = [re.sub(r"^\+ +\S+ s  ", "", line) for line in finished.stdout.splitlines()]
    assert told[1] == "run: attempt 1 by worker-1"
    assert told[-1] == ("completed" if ends == "COMPLETED" else "failed (TOOL_ERROR): no luck")
    assert len(told) == 4, "each event once"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("as_json", [False, True])
async def test_a_session_is_followed_until_nothing_of_it_runs(client: Client, address: str, as_json: bool) -> None:
    await start(client, "s/a")
    following = asyncio.create_task(nexum(address, "show", "s", "--follow", *(["--json"] if as_json else [])))
    await start(client, "s/b")
    await client.fail(await claim(client), "no luck", retryable=False)
    await client.complete(await claim(client), '{"text": "é"}')
    finished = await following
    assert finished.code == 0, "what failed in a session is not its end"
    if as_json:
        stories = [json.loads(line) for line in finished.stdout.splitlines()]
        assert {story["execution_id"]: story["status"] for story in stories} == {"s/a": "FAILED", "s/b": "COMPLETED"}
        return
    told = [re.sub(r"^\+ +\S+ s  ", "", line) for line in finished.stdout.splitlines()]
    first, second = ([line for line in told if line.startswith(name)] for name in ("a  ", "b  "))
    assert (len(first), len(second), len(told)) == (4, 4, 8), "each event once"
    assert (first[1], first[3]) == ("a  run: attempt 1 by worker-1", "a  failed (TOOL_ERROR): no luck")
    assert second[3] == "b  completed"


async def test_a_server_that_is_restarted_meanwhile_is_waited_for(tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as dev:
        env = environment(NEXUM_ADDRESS=dev.address)
        following = Process([NEXUM, "show", "e", "--follow"], tmp_path / "follow.log", env=env)
        async with Client(dev.address) as client:
            await start(client, "e")
            following.start()
            task_id = await claim(client)
            await following.says("attempt 1 by worker-1")
        dev.kill()
        said = await following.says("No Nexum server answers .+\n")
        await dev.restart()
        async with Client(dev.address) as client:
            await client.check(20)
            await client.complete(task_id, '{"text": "é"}')
        assert await following.ended() == 0
        assert following.output.rstrip().endswith("completed")
        assert following.output.replace(said[0], "", 1).count("\n") == 4, "each event once, and the trouble once"


async def test_watching_on_a_pipe_prints_a_line_for_each_change_until_it_is_interrupted(
    client: Client, address: str, tmp_path: Path
) -> None:
    await finish(client, "s/a")
    await start(client, "s/b")
    watching = Process(
        [NEXUM, "ps", "s/", "--watch", "--limit", "2"], tmp_path / "watch.log", env=environment(NEXUM_ADDRESS=address)
    )
    watching.start()
    await watching.says("s/b  RUNNING")
    for name in ("s/c", "s/d"):  # now s/b is not among the two newest any more
        await start(client, name)
    await watching.says("s/d  RUNNING")
    await client.complete(await claim(client), '{"text": "é"}')
    await watching.says("s/b  COMPLETED")
    watching.send(signal.SIGINT)
    assert await watching.ended() == INTERRUPTED
    lines = [line.split("  ")[:2] for line in watching.output.splitlines()]
    assert lines == [
        ["s/a", "COMPLETED"],
        ["s/b", "RUNNING"],
        ["s/c", "RUNNING"],
        ["s/d", "RUNNING"],
        ["s/b", "COMPLETED"],
    ]


async def test_on_a_terminal_of_80_columns_ps_is_redrawn_and_show_follows(client: Client, address: str) -> None:
    for n in range(30):
        await finish(client, f"my-session/visit_webpage/f38ffdc6be81daf0/{n}")
    await start(client, "my-session/visit_webpage/f38ffdc6be81daf0/30")
    for words in (("ps", "--watch"), ("show", "my-session", "--follow")):
        terminal = Terminal(NEXUM, *words, env=environment(NEXUM_ADDRESS=address, TERM="xterm-256color"))
        await terminal.says(r"f38ffdc6be81daf0/30 .*(RUNNING|waits for a worker)")
        if words[0] == "show":
            await client.complete(await claim(client), '{"text": "é"}')
            await terminal.says(r"f38ffdc6be81daf0/30 +\S+ +\d+ ms")
        terminal.send(signal.SIGINT)
        assert await terminal.ended() == INTERRUPTED
        assert "Traceback" not in terminal.text
        assert "\x1b[32m" in terminal.raw, "in colors"
        lines = terminal.text.splitlines()
        assert max(map(len, lines)) <= 80
        assert not any(re.match(r"^(f0|\d+)? *(COMPLETED|\d+ ms)", line) for line in lines), "no row is broken in two"
        drawn = terminal.raw.count("\x1b[1A") or terminal.raw.count("\x1b[2K")
        assert drawn, "redrawn in place"
        last = terminal.text.rpartition(" · began " if words[0] == "show" else "EXECUTION")[2]
        assert last.count("visit_webpage/") == (31 if words[0] == "show" else 20), "what was there at last stays"


async def test_show_as_json_tells_everything(client: Client, address: str) -> None:
    await finish(client, "e")
    (told,) = [each async for each in client.history("e")]
    finished = await nexum(address, "show", "e", "--json")
    assert finished == Finished(0, finished.stdout, "")
    assert json.loads(finished.stdout) == told


async def test_show_of_an_unknown_name_says_so(address: str) -> None:
    sentence = "No execution or session 'ghost' is known. See what is there with: nexum ps"
    assert await nexum(address, "show", "ghost") == Finished(1, "", sentence + "\n")
    assert_refused(await nexum(address, "show", "ghost/"), "No execution or session 'ghost/' is known.")
    assert_refused(await nexum(address, "show", "a b"), "'a b' is not 1 to 200 of A-Z")


async def test_all_of_it_can_be_read_where_the_output_has_no_sign_but_ascii(tmp_path: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    async with NexumDev(tmp_path, env=environment(**ascii_only)) as server:
        stage = Stage(tmp_path, server)
        stage.worker(**ascii_only)
        finished = await stage.demo(SESSION_ID="s1", **ascii_only)
        assert (finished.code, finished.stderr) == (0, "")
        assert "stored +" in finished.stdout
        env = environment(NEXUM_ADDRESS=server.address, **ascii_only)
        for words in (
            ["ps"],
            ["sessions"],
            ["show", "s1"],
            ["show", "s1", "--json"],
            ["doctor"],
            ["compare", "s1", "s1"],
        ):
            told = await run(NEXUM, *words, env=env)
            assert (told.code, told.stderr, told.stdout.isascii()) == (0, "", True), words
            assert told.stdout


async def test_a_session_of_which_only_the_latest_are_shown_is_said_to_be_one(
    client: Client, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await start(client, f"s/{number}")
    monkeypatch.setattr("nexum_runtime.cli.show.SESSION_LIMIT", 3)
    finished = await nexum(address, "show", "s")
    assert finished.stderr.startswith("These are the latest 3 executions of s, and there may be more.")
    monkeypatch.setattr("nexum_runtime.cli.show.SESSION_LIMIT", 4)
    assert (await nexum(address, "show", "s")).stderr == ""
