"""A database that cannot be used: full disks, damaged files, other people's files, and what becomes of the calls.

A limit on the size of a server's files is what a full disk looks like to it; it can be set and lifted while it runs.
"""

import asyncio
import gc
import json
import os
import re
import resource
import shlex
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from nexum import workflow
from processes import NEXUM, NexumDev, Process, environment, eventually, run
from pydantic import BaseModel

from nexum_runtime import Client, ExecutionTimeout, ServerUnavailable, Worker
from nexum_runtime.cli.base import NO_SERVER
from nexum_runtime.client import Outcome
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.model.contract import StoreUnavailable
from nexum_runtime.server.model.shapes import StartOrder
from nexum_runtime.server.store.sqlite import SqliteStore
from nexum_runtime.server.store.sqlite.last import last_of
from nexum_runtime.server.store.sqlite.schema import SCHEMA_VERSION

KIB = 1024
PAGE_BYTES = 4096
CALLS = 6
RESULT = "x" * PAGE_BYTES
BIG = 300 * KIB  # a result that needs more room than a full disk has


class Text(BaseModel):
    text: str


async def unused(_: Any) -> Text:
    raise AssertionError("no worker runs this")


ECHO = workflow("echo").effect("run", Text, unused).build()


async def finish(client: Client, execution_id: str, text: str = "é") -> None:
    """Start an execution, be its worker, and complete it."""
    waiting = asyncio.create_task(client.execute(ECHO, {}, execution_id=execution_id, labels={"kind": "turn"}))
    await client.register(ECHO)
    claimed = await client.poll("worker-1", ECHO, lease_ms=60_000, wait_ms=20_000)
    assert claimed is not None
    await client.complete(claimed.task_id, json.dumps({"text": text}))
    assert (await waiting).status == "COMPLETED"


async def a_database(folder: Path, *, killed: bool = False) -> Path:
    """A database with completed calls; that of a killed server has the last of them in the log beside it."""
    made = folder / "made"
    for calls in (range(CALLS - 1), range(CALLS - 1, CALLS)):
        store = SqliteStore(made / "nexum.db")
        engine = Engine(store)
        await engine.register(ECHO.workflow_id, ECHO.version_hash, ECHO.ir_json)
        for i in calls:
            await engine.start(StartOrder(ECHO.workflow_id, ECHO.version_hash, "{}", execution_id=f"s/{i}"))
            claimed = await engine.poll("worker-1", ECHO.version_hash, [ECHO.workflow_id], 60_000)
            assert claimed is not None
            await engine.complete(claimed.task.task_id, json.dumps({"text": RESULT}))
        if killed:
            for file in (store.path, log_of(store.path), last_of(store.path)):
                shutil.copy(file, folder)
        await store.close()
    database = folder / "nexum.db"
    if not killed:
        store.path.rename(database)
    shutil.rmtree(made)
    return database


def log_of(database: Path) -> Path:
    return Path(f"{database}-wal")


def bound_by_modes() -> list[str]:
    """What to put before a command, so that file modes bind it although it is root's."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root is above file modes")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def contents(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Every file under a folder: its mode and its bytes, but for SQLite's index of a log, which holds nothing."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith("-shm")
    }


def refused(database: Path) -> str:
    """What is said of a database that a server does not open, and leaves as it is."""
    before = contents(database.parent)
    with pytest.raises(StoreUnavailable) as refusal:
        SqliteStore(database)
    assert contents(database.parent) == before
    return str(refusal.value)


async def refused_by_dev(database: Path, *prefix: str | Path) -> str:
    """The same of `nexum dev`: one line on stderr, and exit code 1."""
    finished = await run(*prefix, NEXUM, "dev", "--port", "0", "--db", database, seconds=20)
    assert (finished.code, finished.stdout) == (1, ""), finished
    assert finished.stderr.count("\n") == 1, finished.stderr
    assert str(database) in finished.stderr
    return finished.stderr.strip()


async def results(database: Path) -> int:
    """How many calls' results a server finds in a database."""
    store = SqliteStore(database)
    executions = await store.read(lambda reader: reader.executions("", "COMPLETED", "s/", 1_000))
    for execution in executions:
        outputs = await store.read(lambda reader, e=execution: reader.outputs(e.execution_id))  # type: ignore[misc]
        assert json.loads(outputs["run"]) == {"text": RESULT}
    await store.close()
    return len(executions)


# A server that starts: what is not a database, not ours, or damaged


async def test_a_file_that_is_no_database_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Dear diary, " * 1_000)
    sentence = (
        f"Cannot use the database {tmp_path}/notes.txt: file is not a database. Give Nexum a file of its own: "
        "NEXUM_DATABASE_URL=sqlite:///PATH, or nexum dev --db PATH."
    )
    assert refused(tmp_path / "notes.txt") == sentence
    assert await refused_by_dev(tmp_path / "notes.txt") == sentence


async def test_a_database_with_garbage_for_a_header_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    database = await a_database(tmp_path)
    with database.open("r+b") as file:
        file.write(os.urandom(PAGE_BYTES))
    assert f"Cannot use the database {database}: file is not a database." in refused(database)


async def test_a_database_with_an_overwritten_page_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    database = await a_database(tmp_path)
    with database.open("r+b") as file:
        file.seek(database.stat().st_size // PAGE_BYTES // 2 * PAGE_BYTES)
        file.write(os.urandom(PAGE_BYTES))
    said = refused(database)
    assert said.startswith(f"Cannot use the database {database}: ")
    assert said.endswith(
        f"Put a backup in its place, or save what can be read: sqlite3 {database} .recover | sqlite3 saved.db"
    )
    assert await refused_by_dev(database) == said


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
async def test_a_database_that_was_cut_short_is_named_and_left_as_it_is(tmp_path: Path, killed: bool) -> None:
    database = await a_database(tmp_path, killed=killed)
    os.truncate(database, database.stat().st_size // 2)
    said = refused(database)
    assert said.startswith(f"Cannot use the database {database}: ")
    assert said.endswith(
        f"Put a backup in its place, or save what can be read: sqlite3 {database} .recover | sqlite3 saved.db"
    )


@pytest.mark.parametrize("how", ["empty", "gone"])
async def test_results_in_the_log_of_a_database_that_is_gone_are_not_thrown_away(tmp_path: Path, how: str) -> None:
    database = await a_database(tmp_path, killed=True)
    whole, log = database.read_bytes(), log_of(database)
    os.truncate(database, 0) if how == "empty" else database.unlink()
    sentence = (
        f"Cannot use the database {database}: it is {how}, and its log {log} is not. "
        f"Put the database back, or move {log} away to begin anew."
    )
    assert refused(database) == sentence
    database.write_bytes(whole)
    assert await results(database) == CALLS


@pytest.mark.parametrize("what", ["garbage", "a few words"])
async def test_results_in_a_damaged_log_are_not_thrown_away(tmp_path: Path, what: str) -> None:
    database = await a_database(tmp_path, killed=True)
    log = log_of(database)
    whole = log.read_bytes()
    damaged = {"garbage": os.urandom(len(whole)), "a few words": b"Dear diary"}
    log.write_bytes(damaged[what])
    assert refused(database) == (
        f"Cannot use the database {database}: {log} is damaged, or no log of SQLite. "
        "Results may be missing that are nowhere else: put the right log there, or move this away to do without."
    )
    log.write_bytes(whole)
    assert await results(database) == CALLS


@pytest.mark.parametrize("where", ["all", "middle", "end"])
async def test_results_that_are_gone_with_their_log_or_a_part_of_it_are_missed(tmp_path: Path, where: str) -> None:
    """SQLite itself says nothing of these: it goes on with what comes before."""
    database = await a_database(tmp_path, killed=True)
    log = log_of(database)
    whole = log.read_bytes()
    if where == "all":
        log.unlink()
    else:
        with log.open("r+b") as file:
            file.seek({"middle": len(whole) // 2, "end": len(whole) - PAGE_BYTES}[where])
            file.write(os.urandom(KIB))
    said = refused(database)
    assert said == (
        f"Cannot use the database {database}: what was recorded last, ExecutionCompleted of s/{CALLS - 1}, is not in "
        "it: its log was damaged or deleted since, or it is an older copy. "
        f"Put back what was there, or delete {last_of(database)} to go on with what there is."
    )
    assert await refused_by_dev(database) == said
    log.write_bytes(whole)
    assert await results(database) == CALLS


async def test_one_can_go_on_without_what_is_gone(tmp_path: Path) -> None:
    database = await a_database(tmp_path, killed=True)
    log_of(database).unlink()
    last_of(database).unlink()
    assert await results(database) == CALLS - 1
    assert not last_of(database).exists(), "it stopped well"


@pytest.mark.parametrize("how", ["prune", "forget", "begin anew"])
async def test_what_was_deleted_or_renamed_is_not_missed_after_kill_9(tmp_path: Path, how: str) -> None:
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        await finish(client, "s/1")
        assert last_of(nexum.database).read_text().startswith("s/1 ExecutionCompleted ")
        command = {"prune": ["prune", "--older-than", "0s"], "forget": ["forget", "s", "--after", "0"]}.get(how)
        if command is not None:
            told = await run(NEXUM, *command, env=environment(NEXUM_ADDRESS=nexum.address))
            assert told.code == 0, told
        nexum.kill()
        await nexum.ended()
        if how == "begin anew":
            for file in (nexum.database, log_of(nexum.database)):
                file.unlink()
        await nexum.restart()
        await client.check()
        assert [each.execution_id for each in await client.executions()] == (["s~1/1"] if how == "forget" else [])
        nexum.kill()
        await nexum.restart()  # and again, before anything has happened
        await client.check()


async def test_a_log_that_a_pulled_plug_left_as_zeros_is_no_trouble(tmp_path: Path) -> None:
    database = await a_database(tmp_path)
    log_of(database).write_bytes(bytes(3 * PAGE_BYTES))
    assert await results(database) == CALLS


def another_program(database: Path) -> None:
    """Leaves a database and its log behind, as a program does that is killed."""
    program = (
        "import os, sqlite3, sys\n"
        "books = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "books.execute('PRAGMA journal_mode = WAL')\n"
        "books.execute('CREATE TABLE books (title TEXT)')\n"
        "books.executemany('INSERT INTO books VALUES (?)', [('Moby Dick',)] * 1_000)\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(database)], check=True)


async def test_the_database_of_another_program_is_left_as_it_is_with_its_log(tmp_path: Path) -> None:
    another_program(tmp_path / "books.db")
    assert refused(tmp_path / "books.db") == (
        f"{tmp_path}/books.db is a database of another program: it has books. "
        "Give Nexum a file of its own: NEXUM_DATABASE_URL=sqlite:///PATH, or nexum dev --db PATH."
    )


async def test_the_database_of_the_original_server_is_refused_by_its_name_and_left_as_it_is(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "local.db", isolation_level=None)) as original:  # as that of 0.2.0 has it
        for table in ("workflow_executions", "events", "task_queue", "workflow_versions", "map_results"):
            original.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY AUTOINCREMENT, execution_id TEXT)")
        original.execute("INSERT INTO workflow_executions (execution_id) VALUES ('exec-1')")
    assert refused(tmp_path / "local.db") == (
        f"{tmp_path}/local.db is a database of the original Nexum server, which keeps its records in another way. "
        "Give Nexum a file of its own: NEXUM_DATABASE_URL=sqlite:///PATH, or nexum dev --db PATH."
    )


async def test_a_database_of_many_tables_is_refused_with_the_names_of_a_few(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.db", isolation_level=None)) as shop:
        for table in ("orders", "goods", '"a\nb"', "visits", "workflow_executions"):
            shop.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY AUTOINCREMENT)")
    said = refused(tmp_path / "shop.db")
    assert said.startswith(
        f"{tmp_path}/shop.db is a database of another program: it has a\\nb, goods, orders and 2 more."
    )


async def test_the_log_of_another_program_is_not_taken_for_ours(tmp_path: Path) -> None:
    database = await a_database(tmp_path)
    another_program(tmp_path / "books.db")
    log_of(tmp_path / "books.db").rename(log_of(database))
    assert refused(database) == (
        f"Cannot use the database {database}: {log_of(database)} does not fit it. "
        "Results may be missing that are nowhere else: put the right log there, or move this away to do without."
    )
    log_of(database).unlink()
    assert await results(database) == CALLS


async def test_a_file_that_is_no_lock_of_ours_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "nexum.db.lock").write_text("the combination is 1-2-3")
    said = refused(tmp_path / "nexum.db")
    assert (
        f"Cannot use the database {tmp_path}/nexum.db: {tmp_path}/nexum.db.lock is no lock of a Nexum server." in said
    )


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1])
async def test_a_database_of_another_schema_version_is_named_and_left_as_it_is(tmp_path: Path, version: int) -> None:
    database = await a_database(tmp_path)
    with closing(sqlite3.connect(database)) as later:
        later.execute(f"PRAGMA user_version = {version}")
    assert refused(database) == (
        f"{database} has schema version {version}, and this Nexum knows versions up to {SCHEMA_VERSION}. "
        "Use the Nexum that wrote it, or another file: NEXUM_DATABASE_URL=sqlite:///PATH, or nexum dev --db PATH."
    )


async def test_a_database_that_another_server_holds_is_named_with_its_process(tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        said = await refused_by_dev(nexum.database)
        assert f"is in use by process {nexum.pid}, which runs the engine" in said
        await finish(client, "undisturbed")


# A server that starts: places where it cannot write


async def test_a_folder_in_place_of_the_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "nexum.db").mkdir()
    said = await refused_by_dev(tmp_path / "nexum.db")
    assert (
        said == f"Cannot use the database {tmp_path}/nexum.db: Is a directory. Name a file in it: "
        "NEXUM_DATABASE_URL=sqlite:///PATH, or nexum dev --db PATH."
    )


async def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    assert await refused_by_dev(tmp_path / "data" / "nexum.db") == (
        f"Cannot use the database {tmp_path}/data/nexum.db: Not a directory ({tmp_path}/data). "
        "Name another file: NEXUM_DATABASE_URL=sqlite:///PATH, or nexum dev --db PATH."
    )


async def test_a_pipe_in_place_of_the_database_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "nexum.db")
    assert f"Cannot use the database {tmp_path}/nexum.db: it is no regular file." in refused(tmp_path / "nexum.db")


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_a_link_that_leads_nowhere_does_not_become_a_new_database(tmp_path: Path, what: str) -> None:
    """The disk with the database is not mounted, say: to begin anew would be to forget everything."""
    missing, link = tmp_path / "mnt", tmp_path / "link"
    link.symlink_to(missing)
    real = missing if what == "file" else missing / "nexum.db"
    with pytest.raises(StoreUnavailable) as refusal:
        SqliteStore(link if what == "file" else link / "nexum.db")
    assert str(refusal.value) == (
        f"Cannot use the database {real}: {link} is a link to {missing}, which is not there. "
        "Bring that back, or make it."
    )
    assert list(tmp_path.iterdir()) == [link]


async def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (tmp_path / "nexum.db").symlink_to(tmp_path / "nexum.db")
    assert f"Cannot use the database {tmp_path}/nexum.db: " in refused(tmp_path / "nexum.db")


async def test_a_database_that_may_only_be_read_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    database = await a_database(tmp_path)
    database.chmod(0o400)
    before = contents(tmp_path)
    assert await refused_by_dev(database, *bound_by_modes()) == (
        f"Cannot use the database {database}: Permission denied. "
        "The user that Nexum runs as must be able to read and to write the file and its folder."
    )
    assert contents(tmp_path) == before


@pytest.mark.parametrize("mode", [0o500, 0o600], ids=["written to", "entered"])
async def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(mode)
    said = await refused_by_dev(folder / "nexum.db", *bound_by_modes())
    assert re.fullmatch(
        rf"Cannot use the database {folder}/nexum\.db: Permission denied( \(.*\))?\. "
        r"The user that Nexum runs as must be able to read and to write the file and its folder\.",
        said,
    ), said
    assert stat.S_IMODE(folder.stat().st_mode) == mode
    folder.chmod(0o700)
    assert list(folder.iterdir()) == []


LIMITED = (
    "import os, resource, sys; hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]; "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), hard)); os.execv(sys.argv[2], sys.argv[2:])"
)


@pytest.mark.parametrize("limit_bytes", [2 * KIB, 20 * KIB])
async def test_a_disk_that_is_full_from_the_start_is_told(tmp_path: Path, limit_bytes: int) -> None:
    database = tmp_path / "nexum.db"
    said = await refused_by_dev(database, sys.executable, "-c", LIMITED, str(limit_bytes))
    assert re.fullmatch(rf"Cannot use the database {database}: .*Make room on its disk .*\.", said)
    assert await results(database) == 0  # there is room


def mounted(folder: Path, options: str, then: str) -> list[str]:
    """A command that runs `then` where a tmpfs is mounted at `folder`, which only it and its children see."""
    folder.mkdir(exist_ok=True)
    script = f"mount -t tmpfs -o {options} tmpfs {shlex.quote(str(folder))} && {then}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, script.partition("&&")[0]], capture_output=True, check=False).returncode
    ):
        pytest.skip("nothing can be mounted here")
    return [*command, script]


async def test_a_read_only_file_system_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    finished = await run(*mounted(folder, "ro", f"exec {NEXUM} dev --port 0 --db {folder}/nexum.db"))
    assert finished.code == 1
    assert finished.stderr == (
        f"Cannot use the database {folder}/nexum.db: Read-only file system ({folder}/nexum.db.lock). "
        "Make its file system writable, or name another file: "
        "NEXUM_DATABASE_URL=sqlite:///PATH, or nexum dev --db PATH.\n"
    )


# A server that runs: full disks


class Handler:
    """A worker in this process. A call's input says how large its result is."""

    def __init__(self, lease_ms: int = 60_000) -> None:
        self.ran: list[int] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self._lease_ms = lease_ms
        self.workflow = workflow("work").effect("run", Text, self.run).build()

    async def run(self, context: Any) -> Text:
        self.ran.append(context.input["bytes"])
        await self.may_go_on.wait()
        return Text(text="x" * context.input["bytes"])

    @asynccontextmanager
    async def working(self, port: int) -> AsyncIterator[Worker]:
        worker = Worker([self.workflow], port=port, lease_ms=self._lease_ms)
        running = asyncio.create_task(worker.run())
        yield worker
        worker.stop()
        await running

    async def call(self, client: Client, execution_id: str, size_bytes: int, **options: Any) -> Outcome:
        return await client.execute(self.workflow, {"bytes": size_bytes}, execution_id=execution_id, **options)


def limit(nexum: NexumDev, size_bytes: int | None) -> None:
    """Let the server's files grow to no more than this; None lifts the limit."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("the limits of a running process can be changed on Linux alone")
    _, hard = resource.prlimit(nexum.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(nexum.pid, resource.RLIMIT_FSIZE, (hard if size_bytes is None else size_bytes, hard))


def warnings(nexum: NexumDev) -> list[str]:
    return re.findall(r"(?m)^.* WARNING (.*)$", nexum.output)


async def test_work_waits_for_a_full_disk_and_goes_on_by_itself(tmp_path: Path) -> None:
    handler = Handler()
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client, handler.working(nexum.port):
        await handler.call(client, "before", 1)
        limit(nexum, 64 * KIB)
        calls = [asyncio.create_task(handler.call(client, f"e{i}", BIG, effect="once")) for i in range(2)]
        await nexum.says(rf"Cannot use the database {nexum.database}: .* Make room on its disk")
        new = asyncio.create_task(handler.call(client, "new", BIG))  # it cannot even be started
        with pytest.raises(ServerUnavailable) as told:
            await handler.call(client, "impatient", BIG, timeout=0.5)
        assert str(told.value).startswith(f"Cannot use the database {nexum.database}: ")
        assert (await client.status("before")).status == "COMPLETED"
        assert not any(call.done() for call in (*calls, new))
        limit(nexum, None)
        outcomes = await asyncio.gather(*calls, new)
        assert [(each.status, len(each.outputs["run"]["text"])) for each in outcomes] == [("COMPLETED", BIG)] * 3
        ran = handler.ran.count(BIG)
        assert 3 <= ran <= 5, "each call once, the impatient one's if it had been started, and one that began too soon"
        assert [each.attempts for each in outcomes] == [1, 1, 1]
        await nexum.says("The database can be used again.")
        assert [text.partition(": ")[0] for text in warnings(nexum)] == [
            f"Cannot use the database {nexum.database}",
            "The database can be used again.",
        ], "said once each, however often it was met"
        assert "Traceback" not in nexum.output


async def test_a_worker_whose_claims_fail_has_its_task_when_there_is_room(tmp_path: Path) -> None:
    handler = Handler()
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        call = asyncio.create_task(handler.call(client, "e", 1))
        await eventually(client.executions)
        limit(nexum, 8 * KIB)
        async with handler.working(nexum.port):
            await nexum.says("Cannot use the database")
            limit(nexum, None)
            assert (await call).status == "COMPLETED"
        assert [text.partition(": ")[0] for text in warnings(nexum)][:1] == [
            f"Cannot use the database {nexum.database}"
        ]


def lease_ended(nexum: NexumDev) -> bool:
    with closing(sqlite3.connect(f"file:{nexum.database}?mode=ro", uri=True)) as database:
        ((expires_at_ms,),) = database.execute("SELECT lease_expires_at_ms FROM tasks WHERE status = 'RUNNING'")
    return bool(time.time() * 1000 > expires_at_ms)


async def test_a_full_disk_costs_no_attempt_of_a_tool_whose_worker_could_not_be_heard(tmp_path: Path) -> None:
    handler = Handler(lease_ms=1_000)
    handler.may_go_on.clear()
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client, handler.working(nexum.port):
        call = asyncio.create_task(handler.call(client, "e", 1, effect="once"))
        await eventually(lambda: handler.ran)
        limit(nexum, 8 * KIB)
        await eventually(lambda: lease_ended(nexum), "the end of the lease")
        assert len(warnings(nexum)) == 1
        limit(nexum, None)
        await nexum.says("The database can be used again.")
        handler.may_go_on.set()
        outcome = await call
        assert (outcome.status, outcome.attempts, handler.ran) == ("COMPLETED", 1, [1])


async def test_what_was_acknowledged_on_a_full_disk_is_there_after_kill_9(tmp_path: Path) -> None:
    handler = Handler()
    async with NexumDev(tmp_path) as nexum, handler.working(nexum.port):
        acknowledged: set[str] = set()

        async def keep_calling(number: int) -> None:
            async with Client(nexum.address) as client:
                with suppress(ServerUnavailable, ExecutionTimeout):
                    for i in range(100):
                        await handler.call(client, f"s/{number}-{i}", 4 * KIB, timeout=1)
                        acknowledged.add(f"s/{number}-{i}")

        limit(nexum, 1024 * KIB)
        await asyncio.gather(*(keep_calling(number) for number in range(8)))
        nexum.kill()
        assert 5 < len(acknowledged) < 800
        await nexum.restart()
        async with Client(nexum.address) as client:
            await client.check()
            for execution_id in acknowledged:
                outcome = await client.status(execution_id)
                assert (outcome.status, len(outcome.outputs["run"]["text"])) == ("COMPLETED", 4 * KIB)


async def test_a_full_disk_does_not_keep_a_server_from_stopping_and_what_it_acknowledged_is_kept(
    tmp_path: Path,
) -> None:
    handler = Handler()
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        async with handler.working(nexum.port):
            await handler.call(client, "before", 1)
            limit(nexum, 8 * KIB)
            with pytest.raises(ServerUnavailable):
                await handler.call(client, "e", 1, timeout=0.5)
        nexum.terminate()
        assert await nexum.ended() == 0
        assert "Traceback" not in nexum.output
        await nexum.restart()
        await client.check()
        assert (await client.status("before")).status == "COMPLETED"


async def test_pruning_on_a_full_disk_says_so_and_prunes_later(tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        for i in range(4):
            await finish(client, f"s/{i}", "x" * BIG)
        limit(nexum, 8 * KIB)
        env = environment(NEXUM_ADDRESS=nexum.address)
        told = await run(NEXUM, "prune", "--older-than", "0s", env=env)
        assert told.code == NO_SERVER
        assert told.stderr.startswith(f"Cannot use the database {nexum.database}: ")
        limit(nexum, None)
        pruned = await run(NEXUM, "prune", "--older-than", "0s", env=env)
        assert pruned.code == 0, pruned
        assert sum(file.stat().st_size for file in (nexum.database, log_of(nexum.database))) < BIG
        assert await client.executions() == []


async def test_a_disk_with_no_space_left_is_told_and_work_goes_on_when_there_is_some(tmp_path: Path) -> None:
    """A real one, small and in memory."""
    disk = tmp_path / "disk"
    filler = disk / "filler"
    commands = mounted(disk, "size=1m", f"exec {NEXUM} dev --port 0 --db {disk}/nexum.db")
    dev = Process(commands, tmp_path / "dev.log", env=environment(NEXUM_EXIT_WITH_PARENT="1"))
    dev.start()
    port = int((await dev.says(r"Nexum is ready at localhost:(\d+)"))[1])
    inside = Path(f"/proc/{dev.pid}/root{filler}")  # only the server sees that disk
    handler = Handler()
    async with Client(f"localhost:{port}") as client, handler.working(port):
        await handler.call(client, "before", 1)
        with suppress(OSError), inside.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(PAGE_BYTES))
        call = asyncio.create_task(handler.call(client, "e", BIG))
        await dev.says(rf"Cannot use the database {disk}/nexum.db: .* Make room on its disk")
        assert (await client.status("before")).status == "COMPLETED"
        assert not call.done()
        inside.unlink()
        assert len((await call).outputs["run"]["text"]) == BIG
    assert "Traceback" not in dev.output


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("limit_bytes", [8 * KIB, 20 * KIB])
async def test_a_server_that_starts_on_a_full_disk_can_be_read_and_goes_on_when_there_is_room(
    tmp_path: Path, killed: bool, limit_bytes: int
) -> None:
    database, handler = await a_database(tmp_path, killed=killed), Handler()
    async with (
        NexumDev(tmp_path, database=database, prefix=(sys.executable, "-c", LIMITED, str(limit_bytes))) as nexum,
        Client(nexum.address) as client,
    ):
        assert "nothing can be recorded until there is room" in nexum.output
        assert (await client.status("s/1")).outputs == {"run": {"text": RESULT}}
        async with handler.working(nexum.port):
            call = asyncio.create_task(handler.call(client, "new", 1))
            await nexum.says(rf"WARNING Cannot use the database {database}: .*Make room on its disk")
            assert "in use by process" in await refused_by_dev(database), "it holds its lock"
            doctor = await run(NEXUM, "doctor", env=environment(NEXUM_ADDRESS=nexum.address))
            assert "Nothing can be recorded: Cannot use the database" in doctor.stdout
            assert "damaged" not in doctor.stdout
            assert not call.done()
            limit(nexum, None)
            await call
            await nexum.says("The database can be used again.")
            assert len(warnings(nexum)) == 2, nexum.output
        nexum.prefix = ()
        await nexum.restart()
        await client.check()
        assert [(await client.status(each)).status for each in ("s/1", "new")] == ["COMPLETED"] * 2
        assert "Traceback" not in nexum.output


async def test_a_server_starts_where_there_is_no_space_left_at_all(tmp_path: Path) -> None:
    """On a real disk, small and in memory, with the log of a server that was killed."""
    made, disk = tmp_path / "from", tmp_path / "disk"
    made.mkdir()
    await a_database(made, killed=True)
    fill = f"cp {made}/* {disk}; cat /dev/zero > {disk}/filler 2> /dev/null"
    commands = mounted(disk, "size=1m", f"{{ {fill}; exec {NEXUM} dev --port 0 --db {disk}/nexum.db; }}")
    dev = Process(commands, tmp_path / "dev.log", env=environment(NEXUM_EXIT_WITH_PARENT="1"))
    dev.start()
    port = int((await dev.says(r"Nexum is ready at localhost:(\d+)"))[1])
    async with Client(f"localhost:{port}") as client:
        assert (await client.status(f"s/{CALLS - 1}")).outputs == {"run": {"text": RESULT}}, "it was in the log"
        handler = Handler()
        async with handler.working(port):
            call = asyncio.create_task(handler.call(client, "new", 1))
            await dev.says(rf"Cannot use the database {disk}/nexum.db: .*Make room on its disk")
            Path(f"/proc/{dev.pid}/root{disk}/filler").unlink()  # only the server sees that disk
            await call
        assert (await client.status(f"s/{CALLS - 1}")).status == "COMPLETED"
    assert "Traceback" not in dev.output


# A server that runs: its files are deleted, moved, replaced, damaged, held


@pytest.mark.parametrize("what", ["database", "log", "folder"])
@pytest.mark.parametrize("how", ["moved", "replaced"])
async def test_nothing_is_acknowledged_in_a_file_that_a_restart_would_not_find(
    tmp_path: Path, what: str, how: str
) -> None:
    folder, away = tmp_path / "data", tmp_path / "away"
    handler = Handler()
    async with NexumDev(tmp_path, database=folder / "nexum.db") as nexum, Client(nexum.address) as client:
        async with handler.working(nexum.port):
            await handler.call(client, "before", 1)
            lost = {"database": nexum.database, "log": log_of(nexum.database), "folder": folder}[what]
            lost.rename(away)
            if how == "replaced":
                shutil.copytree(
                    away, lost, ignore=shutil.ignore_patterns("*.sock")
                ) if what == "folder" else shutil.copy(away, lost)
            for attempt in (
                handler.call(client, "e", 1, timeout=0.3),
                client.status("before"),
                client.executions(),
                client.prune("", 0),
            ):
                with pytest.raises(ServerUnavailable) as told:
                    await attempt
                assert re.fullmatch(
                    rf"Cannot use the database {nexum.database}: {nexum.database}(-wal)? was "
                    rf"{'deleted' if how == 'moved' else 'replaced'} while this server had it open\. "
                    "Put it back, or stop this server and start it again with what is there.",
                    str(told.value),
                )
            assert handler.ran == [1]
            waiting = asyncio.create_task(handler.call(client, "e", 2))
            await nexum.says("while this server had it open")
            if how == "replaced":
                shutil.rmtree(lost) if what == "folder" else lost.unlink()
            away.rename(lost)
            assert (await waiting).status == "COMPLETED"
        await nexum.restart()
        await client.check()
        assert [(await client.status(name)).status for name in ("before", "e")] == ["COMPLETED"] * 2


async def test_a_server_whose_log_was_deleted_saves_what_was_in_it_when_it_stops(tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        await finish(client, "e")
        log_of(nexum.database).unlink()
        with pytest.raises(ServerUnavailable, match="was deleted while this server had it open"):
            await client.status("e")
        nexum.terminate()
        assert await nexum.ended() == 0
        await nexum.restart()
        await client.check()
        assert (await client.status("e")).outputs == {"run": {"text": "é"}}


async def test_a_server_whose_folder_was_deleted_does_not_unlock_the_database_of_the_next_one(tmp_path: Path) -> None:
    database = tmp_path / "data" / "nexum.db"
    async with NexumDev(tmp_path, database=database) as first:
        shutil.rmtree(database.parent)
        async with NexumDev(tmp_path, database=database) as second, Client(second.address) as client:
            first.terminate()
            assert await first.ended() == 0
            await finish(client, "e")
            said = await refused_by_dev(database)
            assert f"in use by process {second.pid}, which" in said


async def test_damage_to_a_running_server_s_database_is_told_by_the_calls_that_come_upon_it(tmp_path: Path) -> None:
    database = await a_database(tmp_path)
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        with database.open("r+b") as file:
            file.seek(PAGE_BYTES)
            file.write(os.urandom(database.stat().st_size - PAGE_BYTES))
        with pytest.raises(ServerUnavailable) as told:
            await client.status("s/1")
        assert str(told.value) == (
            f"Cannot use the database {database}: database disk image is malformed. "
            f"Put a backup in its place, or save what can be read: sqlite3 {database} .recover | sqlite3 saved.db"
        )
        assert "Traceback" not in nexum.output


async def test_a_write_waits_for_a_person_who_holds_the_database_in_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.server.store.sqlite.database.BUSY_TIMEOUT_MS", 50)
    store = SqliteStore(tmp_path / "nexum.db")
    engine = Engine(store)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable) as told:
            await engine.register(ECHO.workflow_id, ECHO.version_hash, ECHO.ir_json)
        assert str(told.value) == (
            f"Cannot use the database {store.path}: database is locked. "
            "Another program is writing to it: let that one finish."
        )
        assert await engine.workflow_ids(ECHO.version_hash) == [], "reads do not wait"
        shell.execute("ROLLBACK")
    assert await engine.register(ECHO.workflow_id, ECHO.version_hash, ECHO.ir_json) == "NEW"
    await store.close()


async def test_a_claim_that_fails_when_nobody_waits_for_it_any_more_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nexum_runtime.server.store.sqlite.database.BUSY_TIMEOUT_MS", 50)
    store = SqliteStore(tmp_path / "nexum.db")
    engine = Engine(store)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        poll = asyncio.create_task(engine.poll("worker-1", "h", ["w"], 1_000))
        await asyncio.sleep(0)  # it has begun
        await asyncio.sleep(0)
        poll.cancel()
        await asyncio.wait([poll])
        await engine.close()
    gc.collect()
    await asyncio.sleep(0)
    await store.close()
    assert poll.cancelled()
    assert [record.levelname for record in caplog.records] == ["WARNING"], caplog.text
    assert caplog.messages[0].startswith(f"Cannot use the database {store.path}: database is locked.")


# Who may read a database


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
async def test_a_database_is_its_owner_s_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = SqliteStore(tmp_path / "new" / "deep" / "nexum.db")
        await store.write(lambda tx: None)
    finally:
        os.umask(before)
    try:
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*")}
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == modes.pop("deep") == 0o700
        assert modes == dict.fromkeys(
            ["nexum.db", "nexum.db-wal", "nexum.db-shm", "nexum.db-last", "nexum.db.lock"], 0o600
        )
    finally:
        await store.close()


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
async def test_a_database_that_others_may_read_is_narrowed_and_its_folder_left_as_it_is(
    tmp_path: Path, killed: bool
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    database = await a_database(folder, killed=killed)
    (folder / "nexum.db.lock").touch()
    for path in folder.iterdir():
        path.chmod(0o666)
    folder.chmod(0o755)
    store = SqliteStore(database)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    await store.close()
    assert modes == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


async def test_a_folder_that_every_user_may_write_to_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for mode, said in ((0o755, 0), (0o1777, 0), (0o777, 1)):
        folder = tmp_path / f"{mode:o}"
        folder.mkdir()
        folder.chmod(mode)
        caplog.clear()
        await SqliteStore(folder / "nexum.db").close()
        told = f"Every user may write to {folder}, and replace the database: chmod o-w {folder}"
        assert [each.message for each in caplog.records if "may write" in each.message] == [told] * said
