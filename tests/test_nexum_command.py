"""The `nexum` command as a person runs it: real processes, real signals, what is printed and the exit code."""

import asyncio
import json
import os
import re
import resource
import signal
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from nexum import workflow
from nexum.proto import nexum_pb2 as pb
from nexum.proto import nexum_pb2_grpc as pb_grpc
from processes import NEXUM, Finished, NexumDev, Process, environment, eventually, run
from pydantic import BaseModel
from test_demo import Stage, stage

from nexum_runtime import Client, ServerUnavailable
from nexum_runtime.server.app import Server
from nexum_runtime.text import printable

__all__ = ["stage"]

FOREVER_MS = 60_000
SECONDS_TO_STOP = 10.0  # far less than the calls that wait would take


EVIL = "\x1b]0;title\x07\x1b[2J\u009b31m\u202egpj\rover\x08\x7f\u2028\nforged :smile:"
SPELLED = r"\u001b]0;title\u0007\u001b[2J\u009b31m\u202egpj\rover\b\u007f\u2028"


class Text(BaseModel):
    text: str


async def unused(_: Any) -> Text:
    raise AssertionError("no worker runs in these tests")


ECHO = workflow("echo").effect("run", Text, unused).build()


async def start(client: Client, execution_id: str) -> None:
    """Start an execution and do not wait for its end."""
    await client.register(ECHO)
    request = pb.StartRequest(workflow_id="echo", version_hash=ECHO.version_hash, input_json='{"q": "página"}')
    stub = pb_grpc.NexumServiceStub(client._channel)
    await stub.StartExecution(request, metadata=(("nexum-execution-id", execution_id),))


async def claim(client: Client, wait_ms: int = 0) -> str:
    claimed = await client.poll("worker-1", ECHO, lease_ms=60_000, wait_ms=wait_ms)
    assert claimed is not None
    return str(claimed.task_id)


async def finish(client: Client, execution_id: str, output_json: str = '{"text": "é"}') -> None:
    await start(client, execution_id)
    await client.complete(await claim(client), output_json)


def assert_refused(finished: Finished, sentence: str) -> None:
    """Exit code 1 and one line on stderr that holds `sentence`; nothing that only a programmer would read."""
    assert finished.code == 1
    assert finished.stdout == ""
    assert sentence in finished.stderr
    assert finished.stderr.count("\n") == 1, finished.stderr


# nexum dev: beginning and end


async def test_dev_prints_one_line_when_it_is_ready(tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        await client.check()
        assert nexum.output == f"Nexum is ready at localhost:{nexum.port} · database {tmp_path}/nexum.db\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("with_parent", ["", "1"], ids=["on its own", "with its parent"])
async def test_a_signal_stops_dev_although_calls_wait(tmp_path: Path, number: signal.Signals, with_parent: str) -> None:
    nexum = NexumDev(tmp_path, env=environment(NEXUM_EXIT_WITH_PARENT=with_parent))
    async with nexum, Client(nexum.address) as client:
        await finish(client, "done")
        await start(client, "e")
        await claim(client)
        waiting: list[asyncio.Task[Any]] = [
            asyncio.create_task(client.status("e", wait_ms=FOREVER_MS)),
            asyncio.create_task(client.poll("worker-2", ECHO, lease_ms=1_000, wait_ms=FOREVER_MS)),
        ]
        await asyncio.sleep(0)  # they are on their way
        assert await client.executions()  # it went the same way as those that wait, after them
        nexum.send(number)
        assert await nexum.ended(SECONDS_TO_STOP) == 0
        assert nexum.output.endswith("Nexum has stopped. What it acknowledged is in the database.\n")
        assert "Traceback" not in nexum.output
        status, claimed = await asyncio.gather(*waiting)
        assert (status.status, claimed) == ("RUNNING", None), "each was answered with what there was"
        await nexum.restart()
        await client.check()
        assert (await client.status("done")).outputs == {"run": {"text": "é"}}
        assert (await client.status("e")).status == "RUNNING"


async def test_dev_stops_when_the_process_that_started_it_is_gone(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([{NEXUM!r}, 'dev', '--port', '0', '--db', {str(tmp_path / 'nexum.db')!r}])\n"
        "print('child', child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent = Process(
        [sys.executable, "-c", program], tmp_path / "parent.log", env=environment(NEXUM_EXIT_WITH_PARENT="1")
    )
    parent.start()
    child = int((await parent.says(r"child (\d+)"))[1])
    try:
        port = int((await parent.says(r"Nexum is ready at localhost:(\d+)"))[1])
        parent.kill()
        await eventually(lambda: not listens(port), "the end of a server whose parent is gone", SECONDS_TO_STOP)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


async def test_what_dev_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    started: list[str] = []
    completed: list[str] = []

    async def keep_busy(client: Client) -> None:
        with suppress(ServerUnavailable, grpc.aio.AioRpcError):  # until it is killed
            while True:
                name = f"e{len(started)}"
                await start(client, name)
                started.append(name)
                await client.complete(await claim(client), json.dumps({"text": name}))
                completed.append(name)

    async with NexumDev(tmp_path) as nexum:
        async with Client(nexum.address) as client:
            busy = asyncio.create_task(keep_busy(client))
            await eventually(lambda: len(completed) >= 50 or busy.done())
            nexum.kill()
            await busy
        await nexum.restart()
        async with Client(nexum.address) as client:
            listed = {each.execution_id: each.status for each in await client.executions(limit=10_000)}
            assert len(completed) >= 50
            assert set(started) <= set(listed)
            assert len(listed) <= len(started) + 1
            assert {listed[name] for name in completed} == {"COMPLETED"}
            assert (await client.status(completed[-1])).outputs == {"run": {"text": completed[-1]}}
            await finish(client, "afterwards")


async def test_a_full_disk_is_told_to_the_caller_and_is_over_when_there_is_space_again(tmp_path: Path) -> None:
    """A limit on the size of its files is what a full disk looks like to a process."""
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        await finish(client, "before")
        _, hard = resource.prlimit(nexum.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(nexum.pid, resource.RLIMIT_FSIZE, (400_000, hard))
        await start(client, "e")
        task_id = await claim(client)
        with pytest.raises(ServerUnavailable, match=f"Cannot use the database {re.escape(str(nexum.database))}: "):
            await client.complete(task_id, json.dumps({"text": "x" * 1_000_000}))
        assert (await client.status("e")).status == "RUNNING"
        assert (await client.status("before")).status == "COMPLETED"
        resource.prlimit(nexum.pid, resource.RLIMIT_FSIZE, (hard, hard))
        assert await client.complete(task_id, json.dumps({"text": "x" * 1_000_000})) == ""
        assert (await client.status("e")).status == "COMPLETED"


async def test_what_the_server_logs_cannot_move_the_terminal(tmp_path: Path) -> None:
    named = [workflow(f"{name}{EVIL}").effect("run", Text, unused).build() for name in ("one", "two")]
    async with NexumDev(tmp_path) as nexum, Client(f"127.0.0.1:{nexum.port}") as client:
        for each in named:
            await client.register(each)
        async with Client(nexum.address) as other:  # has registered neither, and both have the same hash
            await other.poll("worker-1", named[0], lease_ms=60_000, wait_ms=0)
        await nexum.says("may get a task of any")
    logged = nexum.log.read_bytes().decode()
    assert printable(logged) == logged
    assert f"one{SPELLED}\n    forged :smile:, two{SPELLED}\n    forged :smile: share" in logged


# nexum dev: what it refuses


async def test_a_port_in_use_is_told_in_a_sentence(server: Server, tmp_path: Path) -> None:
    finished = await run(NEXUM, "dev", "--port", str(server.port), "--db", tmp_path / "second.db")
    assert_refused(finished, f"Cannot listen on 127.0.0.1:{server.port}: the port is in use.")


async def test_a_database_in_use_is_told_in_a_sentence(server: Server) -> None:
    finished = await run(NEXUM, "dev", "--port", "0", "--db", server.store.path)
    assert_refused(finished, f"The database {server.store.path} is in use by another Nexum server")
    assert f"(process {os.getpid()})" in finished.stderr


async def test_a_file_that_is_no_database_is_told_in_a_sentence(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("Dear diary, " * 1_000)
    finished = await run(NEXUM, "dev", "--port", "0", "--db", notes)
    assert_refused(finished, f"Cannot use the database {notes}: file is not a database.")


@pytest.mark.parametrize("url", ["", "nexum.db", "sqlite:///", "postgresql://localhost/nexum", "sqlite://nexum.db"])
async def test_a_bad_database_url_is_told_in_a_sentence(tmp_path: Path, url: str) -> None:
    finished = await run(NEXUM, "dev", "--port", "0", env=environment(NEXUM_DATABASE_URL=url), cwd=tmp_path)
    assert_refused(finished, f"NEXUM_DATABASE_URL is {url!r}; it must be sqlite:///path")
    assert list(tmp_path.iterdir()) == []


async def test_a_database_url_in_a_home_that_nobody_has_is_told_in_a_sentence(tmp_path: Path) -> None:
    url = "sqlite:///~nobody-of-this-name/nexum.db"
    finished = await run(NEXUM, "dev", "--port", "0", env=environment(NEXUM_DATABASE_URL=url), cwd=tmp_path)
    assert_refused(finished, f"NEXUM_DATABASE_URL is {url!r}, and there is no such home directory.")


# nexum dev: where and with what


class Dev(Process):
    """`nexum dev` with nothing but its environment and its working directory."""

    def __init__(self, folder: Path, *options: str, **settings: str) -> None:
        log = folder.with_suffix(".log")
        super().__init__([NEXUM, "dev", *options], log, env=environment(**settings), cwd=folder)

    async def ready(self) -> tuple[str, Path]:
        match = await self.says(r"Nexum is ready at (\S+) · database (.+)\n")
        return match[1], Path(match[2])


async def test_dev_goes_by_its_environment(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    dev = Dev(folder, "--insecure", NEXUM_PORT=port, NEXUM_HOST="0.0.0.0", NEXUM_DATABASE_URL="sqlite:///sub/own.db")
    dev.start()
    assert await dev.ready() == (f"0.0.0.0:{port}", folder / "sub" / "own.db")
    async with Client(f"127.0.0.1:{port}") as client:
        await finish(client, "e")
    assert (folder / "sub" / "own.db").exists()


async def test_a_database_url_may_begin_at_the_root_and_options_win_over_the_environment(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    dev = Dev(folder, "--port", "0", NEXUM_PORT="1", NEXUM_DATABASE_URL=f"sqlite:///{tmp_path}/root.db")
    dev.start()
    assert (await dev.ready())[1] == tmp_path / "root.db"
    dev.kill()
    dev = Dev(folder, "--port", "0", "--db", "given.db", NEXUM_DATABASE_URL="sqlite:///other.db")
    dev.start()
    assert (await dev.ready())[1] == folder / "given.db"


async def test_the_database_is_a_hidden_folder_s_when_nothing_else_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    dev = Dev(folder, "--port", "0")
    dev.start()
    assert (await dev.ready())[1] == folder / ".nexum" / "local.db"
    assert stat.S_IMODE((folder / ".nexum").stat().st_mode) == 0o700


async def test_the_largest_message_is_the_one_it_was_told(tmp_path: Path) -> None:
    async with NexumDev(tmp_path, "--max-message-mib", "1") as nexum, Client(nexum.address) as client:
        await start(client, "e")
        result = pb.CompleteRequest(task_id=await claim(client), output_json=json.dumps({"text": "x" * 2_000_000}))
        await pb_grpc.NexumServiceStub(client._channel).CompleteTask(result)
        error = (await client.status("e")).error
        assert error == "The result is 1.9 MiB; the limit is 1.0 MiB (nexum dev --max-message-mib)."


# nexum ps


async def nexum(address: str, *words: str) -> Finished:
    return await run(NEXUM, *words, env=environment(NEXUM_ADDRESS=address))


async def test_ps_of_an_empty_server_says_so(address: str) -> None:
    assert await nexum(address, "ps") == Finished(0, "No executions yet.\n", "")
    assert await nexum(address, "ps", "s1/") == Finished(0, "No execution's id begins with 's1/'.\n", "")
    assert await nexum(address, "ps", "--json") == Finished(0, "", "")


async def test_ps_lists_the_newest_first(client: Client, address: str) -> None:
    await finish(client, "s1/a")
    await start(client, "s10:smile:/b")
    await start(client, "s1/c")

    everything = await nexum(address, "ps")
    assert (everything.code, everything.stderr) == (0, "")
    head, *rows = everything.stdout.splitlines()
    assert head.split() == ["EXECUTION", "STATUS", "STARTED", "(UTC)"]
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
        r"echo started at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC",
        r"run: attempt 1 by worker-1",
        r"run: attempt 1 failed after .+, next in .+: no luck \[bold\]at\[/\] all",
        r"run: attempt 2 by worker-1",
        r"run: attempt 2 done in .+, result of 14 B stored",
        r"completed",
    ]
    assert len(told) == len(patterns)
    for line, pattern in zip(told, patterns, strict=True):
        assert re.fullmatch(rf"  \+ *\d+\.\d\d\d s  {pattern}", line)


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
    stub = pb_grpc.NexumServiceStub(client._channel)
    await stub.StartExecution(request, metadata=(("nexum-execution-id", "e"),))
    claimed = await client.poll(f"worker{EVIL}", built, lease_ms=60_000, wait_ms=0)
    assert claimed is not None
    await client.fail(claimed.task_id, f"why{EVIL}", retryable=False)

    told = await nexum(address, "show", "e")
    assert (told.code, told.stderr) == (0, "")
    assert printable(told.stdout) == told.stdout
    node = rf"run{SPELLED}\nforged :smile:"
    lines = [line[15:] for line in told.stdout.rstrip().splitlines()[2:]]
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


# nexum resolve


async def unknown(client: Client, definition: Any = ECHO, nodes: int = 1) -> None:
    """The execution "e" of what happens once, whose worker stopped in the middle of each of its nodes."""
    await client.register(definition)
    executing = asyncio.create_task(client.execute(definition, {}, execution_id="e", effect="once"))
    claimed = [await client.poll("worker-1", definition, lease_ms=60_000, wait_ms=FOREVER_MS) for _ in range(nodes)]
    for attempt in claimed:
        assert attempt is not None
        await client.fail(attempt.task_id, "Its worker was stopped.", interrupted=True)
    assert (await executing).error_code == "OUTCOME_UNKNOWN"


async def test_resolve_records_a_result_as_text(client: Client, address: str) -> None:
    await unknown(client)
    finished = await nexum(address, "resolve", "e", "--result", 'It\'s sent,\n"17" é')
    assert finished == Finished(0, "Execution e is COMPLETED.\n", "")
    assert (await client.status("e")).outputs == {"run": 'It\'s sent,\n"17" é'}
    told = (await nexum(address, "show", "e")).stdout
    assert "run: a person said: it happened, and this is its result" in told
    again = await nexum(address, "resolve", "e", "--failed", "no")
    assert_refused(again, "Execution e is COMPLETED; no outcome of it is unknown.")


async def test_resolve_records_why_it_failed(client: Client, address: str) -> None:
    await unknown(client)
    finished = await nexum(address, "resolve", "e", "--failed", "the bank never saw it")
    assert finished == Finished(0, "Execution e is FAILED.\n", "")
    outcome = await client.status("e")
    assert (outcome.error_code, outcome.error) == ("TOOL_ERROR", "the bank never saw it")
    assert "run: a person said: it failed: the bank never saw it" in (await nexum(address, "show", "e")).stdout


async def test_resolve_has_it_tried_again(client: Client, address: str) -> None:
    await unknown(client)
    assert await nexum(address, "resolve", "e", "--retry") == Finished(0, "Execution e is tried again.\n", "")
    assert_refused(await nexum(address, "resolve", "e", "--retry"), "is RUNNING; there is nothing to try again.")
    await client.complete(await claim(client), '{"text": "sent"}')
    assert "a person said: try again" in (await nexum(address, "show", "e")).stdout


async def test_resolve_names_the_node_when_several_are_unknown(client: Client, address: str) -> None:
    pair = workflow("pair").effect("a", Text, unused, depends_on=[]).effect("b", Text, unused, depends_on=[]).build()
    await unknown(client, pair, nodes=2)
    finished = await nexum(address, "resolve", "e", "--result", "x")
    assert_refused(finished, "Say which node of e (--node); its outcome is unknown at a, b.")
    assert (await nexum(address, "resolve", "e", "--result", "x", "--node", "b")).stdout == "Execution e is FAILED.\n"
    assert_refused(await nexum(address, "resolve", "e", "--retry", "--node", "a"), "leave --node away.")
    settled = await nexum(address, "resolve", "e", "--result", "y")
    assert (settled.stderr, settled.stdout) == ("", "Execution e is COMPLETED.\n"), (
        "only one is left: no name is needed"
    )
    assert (await client.status("e")).outputs == {"b": "x", "a": "y"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("e",), "Say one of --result TEXT, --failed REASON and --retry."),
        (("e", "--retry", "--failed", "no"), "Say one of --result TEXT, --failed REASON and --retry."),
        (("e", "--failed", ""), "Say why e failed: the reason is empty."),
        (("ghost", "--retry"), "No execution 'ghost' is known."),
        (("gh ost", "--retry"), "'gh ost' is not 1 to 200 of A-Z"),
        (("e\udcff", "--retry"), "A word of this command is not Unicode text: 'e\\udcff'."),
        (("e", "--failed", "\udcff"), "A word of this command is not Unicode text: '\\udcff'."),
        (("e", "--result", "\udcff"), "Execution e is RUNNING; no outcome of it is unknown."),
        (("e", "--result", "x"), "Execution e is RUNNING; no outcome of it is unknown."),
    ],
)
async def test_resolve_refuses_in_a_sentence_what_makes_no_sense(
    client: Client, address: str, words: tuple[str, ...], sentence: str
) -> None:
    await start(client, "e")
    assert_refused(await nexum(address, "resolve", *words), sentence)


@pytest.mark.parametrize("name", ["s1", "s1/"])
async def test_show_of_a_session_tells_of_each_execution_in_it(client: Client, address: str, name: str) -> None:
    for execution_id in ("s1/b", "s10/x", "s1/a"):
        await finish(client, execution_id)
    finished = await nexum(address, "show", name)
    assert re.findall(r"(?m)^(\S+) COMPLETED", finished.stdout) == ["s1/b", "s1/a"]
    as_json = await nexum(address, "show", name, "--json")
    assert [json.loads(line)["execution_id"] for line in as_json.stdout.splitlines()] == ["s1/b", "s1/a"]


async def test_show_of_a_session_tells_of_turns_and_calls_in_the_order_they_began(stage: Stage) -> None:
    stage.worker()
    await stage.demo("--crash-after", "2", SESSION_ID="s1")
    assert (await stage.demo(SESSION_ID="s1")).code == 0
    finished = await nexum(stage.nexum.address, "show", "s1")
    stories = finished.stdout.rstrip().split("\n\n")
    names = [re.match(r"s1/([\w-]+)/\w{16}/0 COMPLETED in ", story)[1] for story in stories]  # type: ignore[index]
    assert names == ["model-turn", *["web_search"] * 2, "model-turn", *["visit_webpage"] * 3, "model-turn"]

    asked_by = []
    for story, name in zip(stories, names, strict=True):
        head, sent, *events = story.splitlines()
        told = "\n".join(line[15:] for line in events)
        if name == "model-turn":
            assert '"model":"offline agent"' in sent
            assert max(len(line) for line in (head, sent, *events)) <= 80
            pattern = (
                r"openai-agents-model-turn started at .+ UTC\n"
                r"model_turn: attempt 1 by process-(\d+)-\w{8}\n"
                r"model_turn: attempt 1 done in \S+ m?s, result of .+ stored\n"
                r"completed"
            )
            found = re.fullmatch(pattern, told)
            assert found, told
            asked_by.append(found[1])
        else:
            assert sent.startswith(f'  input {{"tool_name":"{name}","tool_args":{{')
            assert told.startswith("openai-agents-tool-call started at ")
            assert re.search(r"\ntool_call: attempt \d by worker-\d+-", told)
    assert asked_by[0] != asked_by[1] == asked_by[2], "the first turn was asked by the run that crashed"


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


# Without a server


@pytest.mark.parametrize("words", [("ps",), ("ps", "--json"), ("show", "e")], ids=" ".join)
async def test_without_a_server_it_says_how_to_start_one(words: tuple[str, ...]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        finished = await nexum(address, *words)
    assert_refused(finished, f"No Nexum server answers at {address}. Start one with `nexum dev`, or set NEXUM_ADDRESS")


async def test_an_address_that_is_none_is_told_in_a_sentence() -> None:
    finished = await nexum("localhost", "ps")
    assert_refused(finished, "The Nexum address is 'localhost'; it must be host:port, such as localhost:50051.")
