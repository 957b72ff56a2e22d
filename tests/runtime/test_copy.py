"""`nexum copy`: all records from one store into another, of each kind, whatever happens meanwhile."""

import shutil
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import postgres
import pytest
from command import ECHO, GATE, assert_refused, claim, finish, nexum, start
from processes import NEXUM, Finished, NexumDev, Terminal, environment, run
from test_postgres import asked, end_connections
from test_store import NOW_MS, add, an_execution, old_database

from nexum_runtime import Client
from nexum_runtime.cli import copy as command
from nexum_runtime.server.app import Server, ServerConfig
from nexum_runtime.server.model.states import ErrorCode, ExecutionStatus
from nexum_runtime.server.store.copying import copied
from nexum_runtime.server.store.opened import opened
from nexum_runtime.server.store.postgres import copying as of_postgres
from nexum_runtime.server.store.postgres import database as postgres_database
from nexum_runtime.server.store.postgres.place import place_of
from nexum_runtime.server.store.sql.copying import TABLES
from nexum_runtime.server.store.sqlite.copying import SqliteEnd
from nexum_runtime.server.store.sqlite.database import create_schema

SECRET = "s3cret-of-the-database"
KINDS = ["sqlite", "postgres"]
PAIRS = [(one, other) for one in KINDS for other in KINDS]
KILLED = -9


def named(kind: str, folder: Path, name: str) -> str:
    return str(folder / f"{name}.db") if kind == "sqlite" else postgres.schema_for(folder / name)


def database(name: str) -> Path | str:
    return name if "://" in name else Path(name)


async def fill(name: str, *execution_ids: str) -> None:
    store = opened(database(name))
    await add(store, *map(an_execution, execution_ids))
    await store.close()


async def held(name: str) -> list[str]:
    store = opened(database(name))
    try:
        return sorted(each.execution_id for each in await store.read(lambda reader: reader.executions("", "", "", 100)))
    finally:
        await store.close()


async def copy(source: str, target: str) -> Finished:
    return await nexum("", "copy", "--from", source, "--to", target)


def digests(finished: Finished) -> list[str]:
    assert finished.code == 0, finished
    return [line for line in finished.stdout.splitlines() if "sha256:" in line]


def in_sqlite(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(script)


# What is copied


@pytest.mark.parametrize("kind", KINDS)
async def test_every_column_of_every_table_is_copied(kind: str, tmp_path: Path) -> None:
    name = named(kind, tmp_path, "its")
    await fill(name)
    if kind == "sqlite":
        with closing(sqlite3.connect(name)) as connection:
            tables = [each for (each,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            there = {
                each: sorted(column for _, column, *_ in connection.execute(f"PRAGMA table_info({each})"))
                for each in tables
            }
    else:
        there = {}
        for table, column in asked(
            name,
            "SELECT table_name, column_name FROM information_schema.columns JOIN information_schema.tables "
            "USING (table_schema, table_name) WHERE table_schema = %s AND table_type = 'BASE TABLE' "
            "AND table_name <> 'about' ORDER BY column_name COLLATE \"C\"",
            place_of(name).schema,
        ):
            there.setdefault(table, []).append(column)
    assert there == {table: sorted(columns.split(", ")) for table, columns in TABLES.items()}


@pytest.mark.parametrize(("one", "other"), PAIRS)
async def test_what_is_open_goes_on_in_the_other_database(one: str, other: str, tmp_path: Path) -> None:
    source, target = named(one, tmp_path, "source"), named(other, tmp_path, "target")
    server = Server(ServerConfig(database(source), port=0))
    await server.start()
    async with Client(f"localhost:{server.port}") as client:
        await finish(client, "s/done")
        await start(client, "s/claimed")
        task_id = await claim(client)
        await start(client, "s/ready")
        await start(client, "s/asked", GATE)
        await start(client, "stopped/e")
        await client.stop_session("stopped", "ann", "wrong customer")
        listed, history = await client.listed(), [each async for each in client.history("s/claimed")]
    await server.stop()

    finished = await copy(source, target)
    assert "The counts and the digests are the same there." in finished.stdout
    back = named(one, tmp_path, "back")
    assert digests(await copy(target, back)) == digests(finished)

    server = Server(ServerConfig(database(target), port=0))
    await server.start()
    async with Client(f"localhost:{server.port}") as client:
        assert await client.listed() == listed
        assert [each async for each in client.history("s/claimed")] == history
        assert (await client.status("s/done")).outputs == {"run": {"text": "é"}}
        assert await client.complete(task_id, '{"text": "late"}') == ""
        assert (await client.status("s/claimed")).outputs == {"run": {"text": "late"}}
        await client.complete(await claim(client), '{"text": "ready"}')
        assert (await client.status("s/ready")).outputs == {"run": {"text": "ready"}}
        assert await client.poll("worker-1", ECHO, lease_ms=60_000) is None, "the other session is stopped"
        assert [each.execution_id for each in await client.approvals()] == ["s/asked"]
        await client.approve("s/asked", "approve", "ann")
        assert (await client.status("s/asked")).status == "COMPLETED"
        assert await client.go_session("stopped")
        await client.complete(await claim(client), '{"text": "at last"}')
        await finish(client, "s/new")
        assert [each["execution_id"] for each in await client.listed()][:2] == ["s/new", "stopped/e"]
    await server.stop()


async def test_a_nul_in_an_error_is_told_and_is_no_difference(tmp_path: Path) -> None:
    source, target = named("sqlite", tmp_path, "source"), named("postgres", tmp_path, "target")
    store = opened(database(source))
    with_nul = an_execution("e")._replace(status=ExecutionStatus.FAILED, error="a\0b", error_code=ErrorCode.TOOL_ERROR)
    await add(store, with_nul, an_execution("f"))
    await store.close()
    finished = await copy(source, target)
    assert finished.code == 0, finished
    assert "1 row had NUL characters, which PostgreSQL cannot hold: each is now a ␀." in finished.stdout
    assert asked(target, f"SELECT error FROM {place_of(target).schema}.executions ORDER BY seq") == [("a␀b",), (None,)]
    assert "is in" in (await copy(source, target)).stdout, "it is there already"


# What is refused


@pytest.mark.parametrize(("one", "other"), PAIRS)
async def test_a_target_with_other_records_is_refused_and_stays_as_it_is(one: str, other: str, tmp_path: Path) -> None:
    source, target = named(one, tmp_path, "source"), named(other, tmp_path, "target")
    await fill(source, "e")
    await fill(target, "f")
    refused = await copy(source, target)
    assert_refused(refused, "is not empty: it has rows (1 in executions), and not the same as")
    await fill(target, "g")
    assert_refused(await copy(source, target), "is not empty: it has rows (2 in executions)")
    assert await held(target) == ["f", "g"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["source", "target"])
async def test_a_database_that_a_server_has_open_is_refused(
    kind: str, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_database, "TAKE_SECONDS", 0.0)
    open_one, other = named(kind, tmp_path, "open"), str(tmp_path / "other.db")
    await fill(other)
    store = opened(database(open_one))
    names = (open_one, other) if which == "source" else (other, open_one)
    assert_refused(await copy(*names), "is in use by process" if kind == "sqlite" else "A Nexum server (from")
    await add(store, an_execution("e"))
    await store.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_nobody_else_can_open_either_of_them_during_a_copy(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_database, "TAKE_SECONDS", 0.0)
    source, target = named(kind, tmp_path, "source"), named(kind, tmp_path, "target")
    await fill(source, "e")
    tried = []

    def told(what: str, done: int, total: int) -> None:
        for name in (source, target):
            with pytest.raises(Exception, match=r"in use by|is being copied"):
                opened(database(name))
            tried.append(what)

    copied(database(source), database(target), told)
    assert {"Copying executions", "Checking events"} <= set(tried)


def missing(folder: Path) -> str:
    return str(folder / "nosuch.db")


def older(folder: Path) -> str:
    return str(old_database(folder / "old.db"))


def newer(folder: Path) -> str:
    opened_once(folder / "newer.db")
    in_sqlite(folder / "newer.db", "PRAGMA user_version = 999")
    return str(folder / "newer.db")


def another_programs(folder: Path) -> str:
    in_sqlite(folder / "shop.db", "CREATE TABLE orders (id)")
    return str(folder / "shop.db")


def damaged(folder: Path) -> str:
    path = folder / "damaged.db"
    opened_once(path)
    data = bytearray(path.read_bytes())
    data[4096 : len(data)] = bytes([7]) * (len(data) - 4096)
    path.write_bytes(data)
    return str(path)


def broken_by_hand(folder: Path) -> str:
    """A task without its execution."""
    path = folder / "broken.db"
    opened_once(path)
    in_sqlite(
        path,
        "INSERT INTO tasks (seq, task_key, execution_id, workflow_id, version_hash, node_id, node_type, status, "
        "attempt, attempt_limit, available_at_ms) VALUES (1, 'k', 'nobody', 'w', 'h', 'n', 'EFFECT', 'READY', 0, 4, 0)",
    )
    return str(path)


def opened_once(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        create_schema(connection)


def no_schema(folder: Path) -> str:
    return postgres.schema_for(folder / "none")


def no_password(folder: Path) -> str:
    return f"postgresql://me:{SECRET}@/app?host={folder}&password={SECRET}"


def no_url(folder: Path) -> str:
    return f"mysql://me:{SECRET}@db/app"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        (missing, "nosuch.db. Name the one that is to be copied with --from."),
        (older, "has schema version 1, and this Nexum reads version 7. Bring an older one forward by starting"),
        (newer, "has schema version 999, and this Nexum knows versions up to"),
        (another_programs, "is a database of another program: it has orders."),
        (damaged, "Put a backup in its place, or save what can be read"),
        (broken_by_hand, "its table tasks has a row that is not as Nexum writes it"),
        (no_schema, "it has no records of Nexum in its schema 'test_"),
        (no_password, "Start PostgreSQL there, or put the right host and port into its URL."),
        (no_url, "--from is 'mysql://***@db/app'; it must be sqlite:///path"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_a_source_that_cannot_be_copied_is_told_in_a_sentence_and_leaves_nothing(
    kind: str, of: Callable[[Path], str], sentence: str, tmp_path: Path
) -> None:
    source, target = of(tmp_path), named(kind, tmp_path, "target")
    before = Path(source).read_bytes() if Path(source).exists() else None
    refused = await copy(source, target)
    assert_refused(refused, sentence)
    assert SECRET not in refused.stderr
    assert before is None or Path(source).read_bytes() == before
    assert await held(target) == []


async def test_an_older_schema_of_postgresql_is_not_brought_forward_by_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = named("postgres", tmp_path, "source")
    await fill(source, "e")
    monkeypatch.setattr(postgres_database, "SCHEMA_VERSION", 4)
    monkeypatch.setattr(postgres_database, "MIGRATIONS", {3: "SELECT 1"})
    refused = await copy(source, str(tmp_path / "target.db"))
    assert_refused(refused, "has version 3, and this Nexum reads version 4. Bring it forward by starting `nexum dev`")
    assert asked(source, f"SELECT schema_version FROM {place_of(source).schema}.about") == [(3,)]


async def test_a_replica_is_refused_as_it_does_not_know_who_has_the_primary_open(tmp_path: Path) -> None:
    own = postgres.Postgres()
    try:
        await fill(own.url, "e")
        own.stop()
        data = own.folder / "data"
        (data / "standby.signal").touch()
        shutil.chown(data / "standby.signal", data.owner(), data.group())
        own.start()
        assert_refused(await copy(own.url, str(tmp_path / "target.db")), "it is a replica")
    finally:
        own.remove()


async def test_a_database_is_not_copied_into_itself(tmp_path: Path) -> None:
    source = str(tmp_path / "source.db")
    await fill(source, "e")
    (tmp_path / "link.db").symlink_to(source)
    for other in (source, f"sqlite:///{source}", str(tmp_path / "link.db")):
        assert_refused(await copy(source, other), "are the same")
    in_postgres = postgres.schema_for(tmp_path)
    assert_refused(await copy(in_postgres, in_postgres), "are the same")


async def test_a_copy_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = str(tmp_path / "source.db"), str(tmp_path / "target.db")
    await fill(source, "e", "f")
    add_all = SqliteEnd.add

    def add_badly(self: SqliteEnd, table: str, rows: Any) -> None:
        add_all(self, table, rows)
        self._connection.execute("UPDATE executions SET created_at_ms = created_at_ms + 1 WHERE execution_id = 'f'")

    with monkeypatch.context() as badly:
        badly.setattr(SqliteEnd, "add", add_badly)
        assert_refused(await copy(source, target), f"The table executions in {target} is not what was read from")
    with monkeypatch.context() as badly:
        badly.setattr(SqliteEnd, "count", lambda self, table: 3 if self.where == source else 0)
        assert_refused(await copy(source, target), "it counts 3 rows in its table workflows, and 0 can be read")
    assert await held(target) == []
    assert (await copy(source, target)).code == 0
    assert await held(target) == ["e", "f"]


async def test_what_was_recorded_last_in_a_file_of_that_name_is_no_longer_looked_for(tmp_path: Path) -> None:
    source, target = str(tmp_path / "source.db"), str(tmp_path / "target.db")
    await fill(source, "e")
    Path(f"{target}-last").write_text(f"gone ExecutionStarted {NOW_MS}\n")
    assert (await copy(source, target)).code == 0
    assert await held(target) == ["e"]
    assert Path(target).stat().st_mode & 0o077 == 0, "it is for its owner alone"


# A copy that is killed


@pytest.mark.parametrize(("one", "other"), [("sqlite", "postgres"), ("postgres", "sqlite")])
@pytest.mark.parametrize("point", ["in-copy:1", "in-copy:4", "copied-uncommitted", "copied"])
async def test_a_copy_that_was_killed_is_run_again(one: str, other: str, point: str, tmp_path: Path) -> None:
    source, target = named(one, tmp_path, "source"), named(other, tmp_path, "target")
    await fill(source, "e", "f")
    words = (NEXUM, "copy", "--from", source, "--to", target)
    assert (await run(*words, env=environment(NEXUM_CRASH_AT=point))).code == KILLED
    if point != "copied":
        assert await held(target) == []
    again = await run(*words)
    assert again.code == 0, again
    assert ("already" in again.stdout) == (point == "copied")
    assert await held(target) == await held(source) == ["e", "f"]


async def test_a_copy_whose_postgresql_goes_away_says_so_and_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = str(tmp_path / "source.db"), named("postgres", tmp_path, "target")
    await fill(source, "e")
    rows = SqliteEnd.rows

    def cut(self: SqliteEnd, table: str) -> Generator[Any, None, None]:
        if table == "tasks":
            end_connections(target)
        return rows(self, table)

    with monkeypatch.context() as broken:
        broken.setattr(SqliteEnd, "rows", cut)
        assert_refused(await copy(source, target), "Cannot use the database postgresql://")
    assert await held(target) == []
    assert (await copy(source, target)).code == 0
    assert await held(target) == ["e"]


async def test_postgresql_ends_no_copy_because_it_takes_long(tmp_path: Path) -> None:
    url = named("postgres", tmp_path, "its")
    await fill(url, "e")
    impatient = "%20".join(f"-c{each}%3D60000" for each in ("idle_in_transaction_session_timeout", "statement_timeout"))
    for end in (of_postgres.source, of_postgres.target):
        with end(f"{url}&options={impatient}") as its:
            for each in ("idle_in_transaction_session_timeout", "statement_timeout"):
                assert its._connection.execute(f"SHOW {each}").fetchone() == ("0",)


# What is seen meanwhile


async def test_a_terminal_has_a_bar_and_a_log_has_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(tmp_path / "source.db")
    await fill(source, "e")
    words = (NEXUM, "copy", "--from", source, "--to")
    terminal = Terminal(*words, str(tmp_path / "one.db"), env=environment(), columns=200)
    await terminal.says("is copied to")
    assert await terminal.ended() == 0
    assert "━" in terminal.text
    assert "Checking" in terminal.text
    monkeypatch.setattr(command, "SAID_SECONDS", -1.0)
    finished = await copy(source, str(tmp_path / "two.db"))
    assert "Copying executions: 50% of the work is done\n" in finished.stderr
    assert "Checking events: 100% of the work is done\n" in finished.stderr


async def test_a_server_goes_on_with_what_was_copied_while_its_own_was_killed(tmp_path: Path) -> None:
    """The log of SQLite is copied, too, that the killed server has left."""
    target = named("postgres", tmp_path, "target")
    async with NexumDev(tmp_path) as dev:
        async with Client(dev.address) as client:
            await finish(client, "s/done")
            await start(client, "s/ready")
        dev.kill()
        assert Path(f"{dev.database}-wal").stat().st_size
        assert (await copy(str(dev.database), target)).code == 0
    assert await held(target) == ["s/done", "s/ready"]
