"""The `nexum` command as a person runs it: real processes, real signals, what is printed and the exit code."""

import asyncio
import json
import os
import re
import resource
import shlex
import signal
import socket
import stat
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
from backends import sqlite_of
from command import ECHO, EVIL, SPELLED, Text, assert_refused, claim, finish, nexum, start, unused
from nexum import workflow
from nexum.proto import nexum_pb2 as pb
from nexum.proto import nexum_pb2_grpc as pb_grpc
from processes import NEXUM, Finished, NexumDev, Process, environment, eventually, remote, run
from test_demo import stage

from nexum_runtime import Client, ServerUnavailable
from nexum_runtime.cli import app
from nexum_runtime.cli.base import NO_SERVER, USAGE
from nexum_runtime.server.app import Server
from nexum_runtime.text import printable

__all__ = ["stage"]

FOREVER_MS = 60_000
SECONDS_TO_STOP = 10.0  # far less than the calls that wait would take


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
    finished = await run(NEXUM, "dev", "--port", "0", "--db", sqlite_of(server).path)
    assert_refused(finished, f"The database {sqlite_of(server).path} is in use by process {os.getpid()}, which")


async def test_a_file_that_is_no_database_is_told_in_a_sentence(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("Dear diary, " * 1_000)
    finished = await run(NEXUM, "dev", "--port", "0", "--db", notes)
    assert_refused(finished, f"Cannot use the database {notes}: file is not a database.")


@pytest.mark.parametrize("url", ["", "nexum.db", "sqlite:///", "mysql://localhost/nexum", "sqlite://nexum.db"])
async def test_a_bad_database_url_is_told_in_a_sentence(tmp_path: Path, url: str) -> None:
    finished = await run(NEXUM, "dev", "--port", "0", env=environment(NEXUM_DATABASE_URL=url), cwd=tmp_path)
    assert_refused(finished, f"NEXUM_DATABASE_URL is {url!r}; it must be sqlite:///path")
    assert list(tmp_path.iterdir()) == []


async def test_a_database_url_in_a_home_that_nobody_has_is_told_in_a_sentence(tmp_path: Path) -> None:
    url = "sqlite:///~nobody-of-this-name/nexum.db"
    finished = await run(NEXUM, "dev", "--port", "0", env=environment(NEXUM_DATABASE_URL=url), cwd=tmp_path)
    assert_refused(finished, f"NEXUM_DATABASE_URL is {url!r}, and there is no such home directory.")


@pytest.mark.parametrize("value", ["abc", "65536"])
@pytest.mark.parametrize("name", ["NEXUM_PORT", "NEXUM_METRICS_PORT", "--port", "--metrics-port"])
async def test_a_port_that_is_none_is_told_in_a_sentence_by_the_name_it_was_given(
    tmp_path: Path, name: str, value: str
) -> None:
    is_option = name.startswith("--")
    options, settings = ([name, value], {}) if is_option else ([], {name: value})
    finished = await run(NEXUM, "dev", *options, env=environment(**settings), cwd=tmp_path)
    said = f"{name} is '{value}'; it must be a whole number from 0 to 65535.\n"
    assert finished == Finished(USAGE, "", said)


# nexum dev: where and with what


class Dev(Process):
    """`nexum dev` with nothing but its environment and its working directory."""

    def __init__(self, folder: Path, *options: str, **settings: str) -> None:
        log = folder.with_suffix(".log")
        super().__init__([NEXUM, "dev", *options], log, env=environment(**settings), cwd=folder)

    async def ready(self) -> tuple[str, Path]:
        match = await self.says(r"Nexum is ready at (\S+) · database (.+?)( · page at \S+)?\n")
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


async def test_a_database_url_that_is_not_nexum_s_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    dev = Dev(folder, "--port", "0", DATABASE_URL="postgresql://localhost/shop")
    dev.start()
    await dev.says("DATABASE_URL is set, but Nexum reads NEXUM_DATABASE_URL")
    assert (await dev.ready())[1] == folder / ".nexum" / "local.db"


async def test_the_command_says_which_it_is() -> None:
    finished = await run(NEXUM, "--version")
    assert finished.code == 0
    assert finished.stdout == f"nexum {version('openai-agents-nexum')}, speaking with nexum-py {version('nexum-py')}\n"


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
        await pb_grpc.NexumServiceStub(remote(client).connection.channel).CompleteTask(result)
        error = (await client.status("e")).error
        assert error == "The result is 1.9 MiB; the limit is 1.0 MiB (nexum dev --max-message-mib)."


# Without a server


@pytest.mark.parametrize(
    "words",
    [
        ("ps",),
        ("ps", "--json"),
        ("ps", "--watch"),
        ("show", "e"),
        ("show", "e", "--follow"),
        ("approvals",),
        ("answer", "e", "main"),
        ("approve", "e"),
        ("reject", "e", "--reason", "no"),
        ("cancel", "e"),
        ("resolve", "e", "--retry"),
        ("retry", "e"),
        ("prune", "--older-than", "0s"),
        ("versions",),
        ("diff", "w"),
    ],
    ids=" ".join,
)
async def test_without_a_server_it_says_how_to_start_one(words: tuple[str, ...]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        finished = await nexum(address, *words)
    said = f"No Nexum server answers at {address}. Start one with `nexum dev`, or set NEXUM_ADDRESS"
    assert_refused(finished, said, NO_SERVER)


async def test_an_address_that_is_none_is_told_in_a_sentence() -> None:
    finished = await nexum("localhost", "ps")
    assert_refused(finished, "The Nexum address is 'localhost'; it must be host:port, such as localhost:50051.")


# Help


COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
async def test_every_command_has_help_with_examples_that_it_understands(name: str) -> None:
    finished = await nexum("localhost:1", name, "--help")
    assert finished.code == 0
    assert max(map(len, finished.stdout.splitlines())) <= 90
    _, _, examples = finished.stdout.partition("\n  Examples:\n")
    lines = [line.strip() for line in examples.splitlines()]
    assert lines
    for line in lines:
        words = shlex.split(line.partition(" | ")[0])
        assert words[:2] == ["nexum", name]
        COMMANDS[name].make_context(name, words[2:])  # raises for an option or a number of words that it does not take


async def test_a_wrong_word_is_told_with_the_right_ones_and_exit_code_2() -> None:
    for words, said in (
        (("shwo", "e"), "No such command 'shwo'"),
        (("show",), "EXECUTION_OR_SESSION"),
        (("ps", "--stauts", "failed"), "--status"),
        (
            ("ps", "--status", "lost"),
            "--status is 'lost'; it must be one of stopped, unknown, waiting, parked, running, ",
        ),
        (("ps", "--limit", "0"), "--limit is '0'; it must be a whole number from 1 to 10000.\n"),
    ):
        finished = await nexum("localhost:1", *words)
        assert (finished.code, finished.stdout) == (USAGE, "")
        assert said in finished.stderr


async def test_the_help_imports_neither_a_server_nor_what_prints_tables() -> None:
    program = (
        "import sys\n"
        "from nexum_runtime.cli import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print([name for name in ('rich', 'nexum_runtime.server.engine.engine', 'sqlite3') if name in sys.modules])"
    )
    finished = await run(sys.executable, "-c", program)
    assert finished.stdout.endswith("Ctrl-C.\n[]\n"), finished


@pytest.mark.parametrize("own", [None, "", "-event_engine_dns"])
async def test_grpc_runs_on_its_older_transport_unless_its_own_setting_says_otherwise(own: str | None) -> None:
    program = "import nexum_runtime, os; print(os.environ['GRPC_EXPERIMENTS'])"
    env = {name: value for name, value in environment().items() if name != "GRPC_EXPERIMENTS"}
    finished = await run(sys.executable, "-c", program, env=env | ({} if own is None else {"GRPC_EXPERIMENTS": own}))
    assert finished.stdout == ("-event_engine_client,-event_engine_listener" if own is None else own) + "\n", finished


async def test_the_shell_completes_commands_and_the_names_of_sessions_and_executions(
    client: Client, address: str
) -> None:
    for name in ("my-session/a", "my-session/b", "other/c"):
        await start(client, name)

    async def completed(line: str) -> list[str]:
        words = {"_NEXUM_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        finished = await run(NEXUM, env=environment(NEXUM_ADDRESS=address) | words)
        return finished.stdout.split()

    assert await completed("nexum appr") == ["approvals", "approve"]
    assert await completed("nexum show my") == ["my-session"]
    assert await completed("nexum cancel my-session/") == ["my-session/b", "my-session/a"]
    assert await completed("nexum show a\xa0b") == []
