"""What only PostgreSQL can get wrong: places, passwords, connections that break, servers beside each other."""

import asyncio
import json
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import postgres
import psycopg
import pytest
from local_process import ASK
from processes import NEXUM, PATIENCE_SECONDS, TESTS, NexumDev, Process, environment, eventually, run
from test_engine import LEASE_MS, ONE, ir
from test_store import NOW_MS, add, an_execution

from nexum_runtime import Client, wire
from nexum_runtime.errors import InvalidRequest, SessionStopped
from nexum_runtime.server.engine.engine import SWEEP_INTERVAL_MS, Engine
from nexum_runtime.server.model.contract import Reader, Store, StoreUnavailable, Transaction, Workflow
from nexum_runtime.server.model.shapes import StartOrder
from nexum_runtime.server.store.opened import opened
from nexum_runtime.server.store.postgres import database
from nexum_runtime.server.store.postgres import store as the_store
from nexum_runtime.server.store.postgres.connection import Connection
from nexum_runtime.server.store.postgres.place import place_of
from nexum_runtime.server.store.postgres.store import PostgresStore
from nexum_runtime.server.store.postgres.talk import Talk

SECRET = "s3cret-of-the-database"


@pytest.fixture(scope="module")
def own() -> Iterator[postgres.Postgres]:
    """One that may be stopped, and whose disk is synced."""
    its = postgres.Postgres(syncs=True)
    yield its
    its.remove()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return postgres.schema_for(tmp_path)


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(place_of(url))
    yield store
    await store.close()


def schema_of(url: str) -> str:
    return place_of(url).schema


def asked(url: str, sql: str, *parameters: Any) -> list[Any]:
    """By a connection beside the store's."""
    with closing(psycopg.connect(place_of(url).conninfo, autocommit=True)) as connection:
        cursor = connection.execute(sql.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def end_connections(url: str) -> None:
    """As an administrator, or a proxy, ends them."""
    assert asked(
        url,
        "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a JOIN pg_locks l USING (pid) "
        "WHERE locktype = 'advisory' AND objid = hashtext(%s)::oid",
        schema_of(url),
    )


def of_started(tx: Transaction) -> list[str]:
    return sorted(each.execution_id for each in tx.executions("", "", "", 100))


# Places


@pytest.mark.parametrize(
    ("url", "shown", "schema"),
    [
        (f"postgresql://me:{SECRET}@db:5433/app", "postgresql://me@db:5433/app", "nexum"),
        (f"postgres://db/app?password={SECRET}&sslmode=require", "postgresql://db/app?sslmode=require", "nexum"),
        ("postgresql:///app?schema=own", "postgresql:///app?schema=own", "own"),
        ("postgresql://me@[::1]/app", "postgresql://me@[::1]/app", "nexum"),
        (f"postgresql://a:p%40{SECRET}@b,c/app", "postgresql://a@b,c/app", "nexum"),
    ],
)
def test_a_place_is_shown_without_its_password(url: str, shown: str, schema: str) -> None:
    place = place_of(url)
    assert (str(place), place.schema) == (shown, schema)
    assert SECRET not in f"{place} {place!r}"
    assert "schema" not in place.conninfo, "libpq does not know it"
    assert (SECRET in place.conninfo) == (SECRET in url)


@pytest.mark.parametrize("url", [f"postgresql://me:{SECRET}@[db/app", f"postgresql://me:{SECRET}@db/app?schema="])
def test_a_place_that_is_none_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidRequest, match="URL") as refused:
        place_of(url)
    assert SECRET not in str(refused.value)


# What keeps a database from being used


def nowhere(own: postgres.Postgres) -> str:
    return own.url.replace(own.folder.name, "no-such-folder")


def no_database(own: postgres.Postgres) -> str:
    return own.url.replace("/postgres?", "/nosuch?")


def wrong_password(own: postgres.Postgres) -> str:
    asked(own.url, f"DROP ROLE IF EXISTS {postgres.LOCKED}")
    asked(own.url, f"CREATE ROLE {postgres.LOCKED} LOGIN PASSWORD 'right'")
    return own.url.replace(f"{postgres.USER}@", f"{postgres.LOCKED}:{SECRET}@")


def no_permission(own: postgres.Postgres) -> str:
    asked(own.url, "DROP ROLE IF EXISTS poor")
    asked(own.url, "CREATE ROLE poor LOGIN")
    return own.url.replace(f"{postgres.USER}@", "poor@") + "&schema=not_poors"


def another_programs(own: postgres.Postgres) -> str:
    asked(own.url, "CREATE SCHEMA IF NOT EXISTS shop")
    asked(own.url, "CREATE TABLE IF NOT EXISTS shop.orders (id int)")
    return own.url + "&schema=shop"


def of_a_newer_nexum(own: postgres.Postgres) -> str:
    asked(own.url, "CREATE SCHEMA IF NOT EXISTS newer")
    asked(own.url, "CREATE TABLE IF NOT EXISTS newer.about AS SELECT true AS only_row, 999 AS schema_version")
    return own.url + "&schema=newer"


def read_only(own: postgres.Postgres) -> str:
    return own.url + "&schema=new_here&options=-cdefault_transaction_read_only%3Don"


def full(own: postgres.Postgres) -> str:
    asked(own.url, "DROP ROLE IF EXISTS crowded")
    asked(own.url, "CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
    return own.url.replace(f"{postgres.USER}@", "crowded@")


@pytest.mark.parametrize(
    ("of", "sentence"),
    [
        (nowhere, "Start PostgreSQL there, or put the right host and port into its URL."),
        (no_database, 'database "nosuch" does not exist. Make it, or name another one.'),
        (wrong_password, "Put the right user and password into its URL, PGPASSWORD or ~/.pgpass."),
        (no_permission, "permission denied for database postgres. Its user needs CREATE on the database"),
        (another_programs, "its schema 'shop' is another program's, with 'orders'. Give Nexum one of its own"),
        (of_a_newer_nexum, "has version 999, and this Nexum knows versions up to 3. Use the Nexum that wrote it"),
        (read_only, "It is a replica, or read-only: name the one that can be written to."),
        (full, 'too many connections for role "crowded". Raise its max_connections'),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
async def test_what_keeps_a_database_from_being_used_is_told_in_a_sentence(
    own: postgres.Postgres, of: Callable[[postgres.Postgres], str], sentence: str
) -> None:
    url = of(own)
    finished = await run(NEXUM, "dev", "--port", "0", "--db", url, env=environment())
    assert finished.code == 1
    assert sentence in finished.stderr
    assert finished.stderr.startswith("Cannot use the database postgresql://")
    assert finished.stderr.count("\n") == 1
    assert SECRET not in finished.stderr + finished.stdout


def test_a_postgresql_that_is_too_old_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "OLDEST", 990_000)
    with pytest.raises(StoreUnavailable, match=r"it is PostgreSQL \d+\.\d+\. Nexum needs 99 or newer\."):
        opened(url)


def test_without_psycopg_it_is_said_how_to_install_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    for name in [each for each in sys.modules if each.startswith("nexum_runtime.server.store.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(StoreUnavailable, match=r"pip install 'psycopg\[binary\]"):
        opened(url)


def test_a_parameter_comes_to_postgresql_as_it_was_written(url: str) -> None:
    place = place_of(f"{url}&options=-cstatement_timeout%3D60000%20-clock_timeout%3D50000&application_name=a+b")
    connection = Connection(place)
    for name, value in (("statement_timeout", "1min"), ("lock_timeout", "50s"), ("application_name", "a+b")):
        assert connection.execute(f"SHOW {name}").fetchone() == (value,)
    connection.close()


# Connections that break


async def test_a_connection_that_was_ended_between_two_writes_is_made_anew(store: PostgresStore, url: str) -> None:
    await add(store, an_execution("before"))
    end_connections(url)
    await add(store, an_execution("after"))
    assert await store.read(lambda reader: reader.executions("", "", "", 10))
    assert await store.write(of_started) == ["after", "before"]


async def test_a_work_whose_connection_breaks_is_run_again_and_is_there_once(store: PostgresStore, url: str) -> None:
    runs = 0

    def work(tx: Transaction) -> int:
        nonlocal runs
        runs += 1
        tx.add_workflow(Workflow("w", f"h{runs}", "{}", "NEW", NOW_MS))
        if runs == 1:
            end_connections(url)
        tx.add_execution(an_execution("e"))
        assert tx.execution("e") is not None
        return runs

    assert await store.write(work) == 2
    assert [each.version_hash for each in await store.read(lambda reader: reader.workflows("w"))] == ["h2"]


@pytest.mark.parametrize("is_made", [True, False], ids=["it was made", "it was not"])
async def test_a_commit_whose_answer_is_lost_is_told_as_what_it_was(
    store: PostgresStore, url: str, is_made: bool
) -> None:
    runs = 0
    connection = store._writes_by
    execute = connection.raw_execute

    def cut(text: Any) -> Any:
        if text == "COMMIT":
            connection.raw_execute = execute  # type: ignore[method-assign]
            if is_made:
                execute(text)
            end_connections(url)
        return execute("SELECT 1" if is_made and text == "COMMIT" else text)

    def work(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        tx.add_execution(an_execution("e"))

    connection.raw_execute = cut  # type: ignore[method-assign]
    await store.write(work)
    assert runs == (1 if is_made else 2)
    assert await store.write(of_started) == ["e"]


async def test_in_a_group_what_fails_after_it_has_written_takes_nobody_with_it(store: PostgresStore) -> None:
    async def well(number: int) -> None:
        await add(store, an_execution(f"e{number}"))

    async def badly() -> None:
        def work(tx: Transaction) -> None:
            tx.add_execution(an_execution("half"))
            assert tx.execution("half") is not None
            raise LookupError("on second thoughts")

        await store.write(work)

    outcomes = await asyncio.gather(*(well(i) for i in range(5)), badly(), well(5), return_exceptions=True)
    assert [type(each) for each in outcomes if each is not None] == [LookupError]
    assert await store.write(of_started) == [f"e{i}" for i in range(6)]


async def test_a_postgresql_that_is_killed_and_comes_back_has_all_that_was_acknowledged(
    own: postgres.Postgres, tmp_path: Path
) -> None:
    store: Store = opened(f"{own.url}&schema=killed")
    known: list[str] = []
    try:
        for i in range(20):
            await add(store, an_execution(f"e{i}"))
            known.append(f"e{i}")
        own.stop(signal.SIGKILL)
        with pytest.raises(StoreUnavailable, match="Start PostgreSQL there"):
            await add(store, an_execution("lost"))
        with pytest.raises(StoreUnavailable):
            await store.read(lambda reader: reader.execution("e0"))
        own.start()
        await add(store, an_execution("next"))
        assert await store.write(of_started) == sorted([*known, "next"])
    finally:
        await store.close()


async def test_a_commit_of_which_nothing_is_told_for_long_is_not_made_again(
    own: postgres.Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(the_store, "ANSWER_SECONDS", 0.3)
    store = PostgresStore(place_of(f"{own.url}&schema=untold"))
    runs = 0
    connection = store._writes_by
    execute = connection.raw_execute

    def killed(text: Any) -> Any:
        if text != "COMMIT":
            return execute(text)
        execute(text)
        own.stop(signal.SIGKILL)
        return execute("SELECT 1")

    def work(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        tx.add_execution(an_execution("e"))

    connection.raw_execute = killed  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await store.write(work)
    own.start()
    assert await store.write(of_started) == ["e"]
    assert runs == 1
    await store.close()


async def test_a_server_whose_postgresql_is_away_can_be_stopped(own: postgres.Postgres, tmp_path: Path) -> None:
    async with NexumDev(tmp_path, "--db", f"{own.url}&schema=stopped") as nexum, Client(nexum.address) as client:
        await client.register(ASK)
        await client.run_local(ASK, {}, recorded, execution_id="s/0")
        own.stop(signal.SIGKILL)
        nexum.terminate()
        try:
            assert await nexum.ended() == 0
        finally:
            own.start()


async def test_words_that_cannot_be_told_keep_nobody_from_ending(own: postgres.Postgres) -> None:
    store = PostgresStore(place_of(f"{own.url}&schema=silent"))
    store.listen(lambda _: None)
    own.stop(signal.SIGKILL)
    try:
        store.tell([["ended", "e"]])
        async with asyncio.timeout(PATIENCE_SECONDS):
            await store.close()
    finally:
        own.start()


# Servers


async def test_a_server_that_was_killed_goes_on_where_it_was_and_shows_no_password(
    own: postgres.Postgres, tmp_path: Path
) -> None:
    url = own.url.replace(f"{postgres.USER}@", f"{postgres.USER}:{SECRET}@") + "&schema=of_servers"
    runs = 0

    async def effect() -> dict[str, str]:
        nonlocal runs
        runs += 1
        return {"text": "done"}

    async with NexumDev(tmp_path, "--db", url, "--verbose") as nexum, Client(nexum.address) as client:
        for _ in range(2):
            await client.register(ASK)
            found = await client.run_local(ASK, {}, effect, execution_id="s/1", effect="once")
            assert found.outputs == {"ask": {"text": "done"}}
            await nexum.restart()
        told = await client.inspect()
        assert told["database"]["path"] == place_of(url).shown
        assert told["executions"] == {"COMPLETED": 1}
        assert SECRET not in nexum.output
    assert runs == 1


async def test_two_servers_have_one_database_and_either_goes_on_in_the_middle_of_a_call_when_the_other_is_killed(
    own: postgres.Postgres, tmp_path: Path
) -> None:
    options = ("--db", f"{own.url}&schema=of_two")
    begun, go_on = asyncio.Event(), asyncio.Event()
    runs = 0

    async def effect() -> dict[str, str]:
        nonlocal runs
        runs += 1
        begun.set()
        await go_on.wait()
        return {"text": "done"}

    async with (
        NexumDev(tmp_path, *options) as first,
        NexumDev(tmp_path, *options) as second,
        Client(f"{first.address}, {second.address}") as client,
        Client(second.address) as other,
    ):
        await client.register(ASK)
        before = await client.run_local(ASK, {}, recorded, execution_id="s/0")
        assert (await other.run_local(ASK, {}, recorded, execution_id="s/0")).attempts == before.attempts
        running = asyncio.create_task(client.run_local(ASK, {}, effect, execution_id="s/1", effect="once"))
        await begun.wait()
        waiting = asyncio.create_task(other.status("s/1", wait_ms=60_000))
        first.kill()
        go_on.set()
        assert (await running).outputs == (await waiting).outputs == {"ask": {"text": "done"}}
        assert client.address == second.address
        assert [each["executions"] for each in await client.sessions("s")] == [2]
    assert runs == 1


class Servers:
    """The engines of several servers on one database."""

    def __init__(self, url: str, count: int) -> None:
        self.engines = [Engine(opened(url)) for _ in range(count)]
        self._sweepers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> list[Engine]:
        for engine in self.engines:
            engine.listen()
        for workflow_id, nodes in (("one", ONE), ("pair", PAIR_AND_SUM)):
            await self.engines[0].register(workflow_id, "h", ir(nodes))
        self._sweepers = [asyncio.create_task(engine.run_sweeper()) for engine in self.engines]
        return self.engines

    async def __aexit__(self, *_: object) -> None:
        for sweeper in self._sweepers:
            sweeper.cancel()
        for engine in self.engines:
            await engine.close()
            await engine._store.close()
            engine.end()


PAIR_AND_SUM = {"a": "EFFECT", "b": "EFFECT", "sum": "COMPUTE a b"}


async def test_what_is_started_at_one_server_is_claimed_at_another_at_once_and_its_end_is_heard_at_the_first(
    url: str,
) -> None:
    async with Servers(url, 2) as (here, there):
        for i in range(10):
            polling = asyncio.create_task(there.poll("w", "h", ["one"], LEASE_MS, 60_000))
            await eventually(lambda: there._ready.count())
            began = time.monotonic()
            waiting = asyncio.create_task(here.execute(StartOrder("one", "h", "{}", f"s/{i}"), 60_000))
            claimed = await polling
            assert claimed is not None
            await there.complete(claimed.task.task_id, "1")
            _, found = await waiting
            assert found.execution.status == "COMPLETED"
            quick = time.monotonic() - began < SWEEP_INTERVAL_MS / 1000
            if quick:
                break
        assert quick, "it was told, and not only found by a look"


async def test_two_nodes_that_end_at_two_servers_at_one_moment_are_joined(url: str) -> None:
    async with Servers(url, 2) as engines:
        here, there = engines
        for i in range(30):
            await here.start(StartOrder("pair", "h", "{}", f"s/{i}"))
            found = [await each.poll("w", "h", ["pair"], LEASE_MS, 60_000) for each in engines]
            claimed = [each for each in found if each is not None]
            await asyncio.gather(
                *(each.complete(task.task.task_id, "1") for each, task in zip(engines, claimed, strict=True))
            )
            last = await there.poll("w", "h", ["pair"], LEASE_MS, 60_000)
            assert last is not None
            assert last.task.node_id == "sum"
            await there.complete(last.task.task_id, "2")
            assert (await here.snapshot(f"s/{i}")).execution.status == "COMPLETED"


async def test_each_task_is_claimed_once_by_whichever_server(url: str) -> None:
    async with Servers(url, 3) as engines:
        await asyncio.gather(*(engines[i % 3].start(StartOrder("one", "h", "{}", f"s{i % 7}/{i}")) for i in range(100)))
        tasks: list[str] = []

        async def work(engine: Engine, name: str) -> None:
            while claimed := await engine.poll(name, "h", ["one"], LEASE_MS, 500):
                tasks.append(claimed.task.execution_id)
                assert await engine.complete(claimed.task.task_id, "1") == ""

        await asyncio.gather(*(work(engine, f"w{n}{m}") for n, engine in enumerate(engines) for m in range(3)))
        assert sorted(tasks) == sorted(f"s{i % 7}/{i}" for i in range(100))


async def claimed_at(engine: Engine) -> str:
    found = await engine.poll("w", "h", ["one"], LEASE_MS, 60_000)
    assert found is not None, "nothing was to be had"
    return found.task.task_id


async def test_a_server_hears_at_once_that_what_was_parked_at_another_goes_on(url: str) -> None:
    servers = Servers(url, 2)
    async with servers as (here, there):
        for sweeper in servers._sweepers:  # which would find it as well, later
            sweeper.cancel()
        for name in ("run", "awaited"):
            await here.start(StartOrder("one", "h", "{}", f"s/{name}"))
        run, awaited = await claimed_at(here), await claimed_at(here)
        assert await here.park(run, json.dumps({"ended": ["s/awaited"]})) == ""
        polling = asyncio.create_task(claimed_at(there))
        await eventually(lambda: there._ready.count())
        await here.complete(awaited, "1")
        assert await polling == f"{run.rpartition('.')[0]}.2"


async def test_what_is_parked_at_one_server_when_what_it_waits_for_ends_at_another_goes_on(url: str) -> None:
    async with Servers(url, 2) as (here, there):
        for i in range(30):
            for name in ("run", "awaited"):
                await here.start(StartOrder("one", "h", "{}", f"s{i}/{name}"))
            run, awaited = await claimed_at(here), await claimed_at(here)
            until = json.dumps({"ended": [f"s{i}/awaited"]})
            told = await asyncio.gather(here.park(run, until), there.complete(awaited, "1"))
            assert list(told) == ["", ""]
            await there.complete(await claimed_at(there), "2")


async def test_what_is_parked_until_a_time_at_a_server_that_is_gone_goes_on_at_another(url: str) -> None:
    async with Servers(url, 1) as (there,):
        async with Servers(url, 1) as (here,):
            await here.start(StartOrder("one", "h", "{}", "s/run"))
            run = await claimed_at(here)
            assert await here.park(run, json.dumps({"ms": 1_000})) == ""
        assert await claimed_at(there) == f"{run.rpartition('.')[0]}.2"


async def test_of_a_session_that_is_stopped_at_one_server_nothing_begins_at_another(url: str) -> None:
    async with Servers(url, 2) as (here, there):
        stops: list[str] = []
        started = await here.start(StartOrder("one", "h", "{}", "s/0", claim="local-1", lease_ms=LEASE_MS))
        assert started.claimed is not None
        with here.telling_to_stop(started.claimed.task.task_id, stops.append):
            told = await there.stop_session("s", "anna", "enough")
            assert told["stopped"] == ["s/0"]
            await eventually(lambda: stops)
        assert "stopped by anna: enough" in stops[0]
        with pytest.raises(SessionStopped):
            await here.start(StartOrder("one", "h", "{}", "s/1"))
        assert await here.poll("w", "h", ["one"], LEASE_MS) is None
        await here.go_session("s")
        assert await there.poll("w", "h", ["one"], LEASE_MS) is not None


async def test_starts_and_stops_of_a_session_at_two_servers_never_leave_anything_running(url: str) -> None:
    async with Servers(url, 2) as (here, there):
        for round in range(15):
            session = f"s{round}"
            await here.start(StartOrder("one", "h", "{}", f"{session}/first"))

            async def start(i: int, session: str = session) -> None:
                with suppress(SessionStopped):
                    await (here, there)[i % 2].start(
                        StartOrder("one", "h", "{}", f"{session}/{i}", claim=f"local-{i}", lease_ms=LEASE_MS)
                    )

            await asyncio.gather(*(start(i) for i in range(6)), there.stop_session(session, "", ""))
            found = await here.executions("", "RUNNING", f"{session}/", 99)
            for execution in found:
                assert {task.status for task in await tasks_of(here, execution.execution_id)} <= {"READY"}


# Servers that die

LONG_MS = 600_000  # a lease, longer than any test waits


def process_at(folder: Path, execution_id: str, address: str, effect: str) -> Process:
    """A program that executes it itself at this address, or one of these."""
    env = environment(
        NEXUM_ADDRESS=address,
        LEDGER=str(folder / f"ledger-{execution_id[2:]}"),
        GATE=str(folder / "gate"),
        EFFECT=effect,
        LEASE_MS=str(LONG_MS),
        PYTHONPATH=TESTS,
    )
    program = Path(__file__).with_name("local_process.py")
    return Process([sys.executable, program, execution_id], folder / f"log-{execution_id[2:]}", env=env)


async def begun(folder: Path, execution_id: str) -> None:
    ledger = folder / f"ledger-{execution_id[2:]}"
    await eventually(lambda: ledger.exists() and ledger.read_text())


async def looked(engine: Engine, times: int = 5) -> None:
    """Return when it has looked so often for servers that have died: for longer than one of them is waited for."""
    for _ in range(times):
        await eventually(partial(_differs, engine, engine._shared_look_ms))


def _differs(engine: Engine, look_ms: int) -> bool:
    return engine._shared_look_ms != look_ms


async def story_of(engine: Engine, execution_id: str) -> list[str]:
    _, events = await engine.history(execution_id)
    return [str(event.type) for event in events]


async def _is_lost(engine: Engine, execution_id: str) -> bool:
    return "LeaseExpired" in await story_of(engine, execution_id)


@pytest.mark.parametrize("effect", ["idempotent", "once"])
async def test_what_dies_together_with_its_server_is_given_up_at_another_one_within_seconds_and_nothing_else(
    tmp_path: Path, url: str, effect: str
) -> None:
    async with (
        NexumDev(tmp_path, "--db", url) as first,
        NexumDev(tmp_path, "--db", url) as second,
        Client(second.address) as other,
    ):
        dies = process_at(tmp_path, "s/dies", first.address, effect)
        lives = process_at(tmp_path, "s/lives", f"{first.address},{second.address}", effect)
        for program, name in ((dies, "s/dies"), (lives, "s/lives")):
            program.start()
            await begun(tmp_path, name)
        await other.register(ASK)
        waiting = asyncio.create_task(other.run_local(ASK, {}, recorded, execution_id="s/dies", effect=effect))
        first.kill()  # before it could see the end of the program
        dies.kill()
        found = await waiting
        if effect == "once":
            assert found.error_code == "OUTCOME_UNKNOWN"
        else:
            assert (found.outputs, found.attempts) == ({"ask": {"text": "recorded"}}, 2)
        (tmp_path / "gate").touch()
        assert await lives.ended() == 0
        assert json.loads(lives.output.splitlines()[-1]) == ["COMPLETED", f"by {lives.pid}"]
        (history,) = [each async for each in other.history("s/lives")]
        told = [each["type"] for each in history["events"]]
        assert told == ["ExecutionStarted", "AttemptStarted", "TaskCompleted", "ExecutionCompleted"]
        assert len((tmp_path / "ledger-lives").read_text().splitlines()) == 1


async def test_what_is_executed_at_a_server_that_is_paused_is_left_to_its_lease(tmp_path: Path, url: str) -> None:
    async with NexumDev(tmp_path, "--db", url) as first, Servers(url, 1) as (second,):
        program = process_at(tmp_path, "s/1", first.address, "once")
        program.start()
        await begun(tmp_path, "s/1")
        first.send(signal.SIGSTOP)
        try:
            await looked(second)
            assert await story_of(second, "s/1") == ["ExecutionStarted", "AttemptStarted"]
        finally:
            first.send(signal.SIGCONT)
        (tmp_path / "gate").touch()
        assert await program.ended() == 0
        assert await story_of(second, "s/1") == [
            "ExecutionStarted", "AttemptStarted", "TaskCompleted", "ExecutionCompleted"
        ]  # fmt: skip


async def test_what_is_executed_at_a_server_that_is_stopped_is_left_to_its_lease(tmp_path: Path, url: str) -> None:
    async with NexumDev(tmp_path, "--db", url) as first, Servers(url, 1) as (second,):
        program = process_at(tmp_path, "s/1", first.address, "once")
        program.start()
        await begun(tmp_path, "s/1")
        first.terminate()
        assert await first.ended() == 0
        await looked(second)
        assert await story_of(second, "s/1") == ["ExecutionStarted", "AttemptStarted"]


async def test_a_server_whose_connections_were_ended_is_there_again_before_it_is_given_up(url: str) -> None:
    async with Servers(url, 2) as (here, there):
        order = StartOrder("one", "h", "{}", "s/1", claim=f"{wire.LOCAL_WORKER}1-a", lease_ms=LONG_MS)
        started = await here.start(order)
        assert started.claimed is not None
        assert here._store.server in await there._store.servers()
        assert asked(
            url,
            "SELECT pg_terminate_backend(pid) FROM pg_locks "
            "WHERE locktype = 'advisory' AND classid = %s AND objid = %s",
            database.SERVER_LOCK,
            int(here._store.server),
        )
        await looked(there)
        assert await story_of(there, "s/1") == ["ExecutionStarted", "AttemptStarted"]
        assert await there.complete(started.claimed.task.task_id, "1") == ""


async def test_a_server_is_there_while_one_of_its_connections_is(url: str) -> None:
    first, second = (PostgresStore(place_of(url)) for _ in range(2))
    try:
        first.listen(lambda words: None)
        await eventually(lambda: first._talk is not None and first._talk.listens)
        first._writes_by.close()  # as when it was paused in the middle of a write
        assert {first.server, second.server} <= await second.servers()
        await first.write(of_started)
        assert first._talk is not None
        await asyncio.to_thread(first._talk.close)
        first._talk = None
        assert first.server in await second.servers()
    finally:
        await first.close()
        await eventually(lambda: _is_gone(first, second))
        await second.close()


async def _is_gone(first: PostgresStore, second: PostgresStore) -> bool:
    return first.server not in await second.servers()


async def test_of_a_server_that_has_died_nothing_is_given_up_that_was_heard_of_since(url: str) -> None:
    async with Servers(url, 1) as (there,):
        async with Servers(url, 1) as (here,):
            order = StartOrder("one", "h", "{}", "s/1", claim=f"{wire.LOCAL_WORKER}1-a", lease_ms=LONG_MS)
            await here.start(order)
        await eventually(lambda: there._missed)
        await there.restart_clock()
        await eventually(lambda: not there._missed, "it is given up")
        await eventually(lambda: there._missed, "it is missed anew")
        assert await story_of(there, "s/1") == ["ExecutionStarted", "AttemptStarted"]
        await eventually(lambda: not there._missed, "it is given up")
        await eventually(partial(_is_lost, there, "s/1"))


async def test_a_program_that_asks_again_at_another_server_has_its_task_and_no_attempt_more(url: str) -> None:
    async with Servers(url, 2) as (here, there):
        order = StartOrder("one", "h", "{}", "s/1", max_attempts=1, effect="once", lease_ms=LONG_MS)
        order = order._replace(claim=f"{wire.LOCAL_WORKER}1-a")
        assert (await here.start(order)).claimed is not None
        claimed = (await there.start(order)).claimed
        assert claimed is not None
        assert (await there.snapshot("s/1")).attempts == 1


@pytest.mark.parametrize("is_stopped", [False, True], ids=["it is cut off", "it is stopped"])
async def test_what_has_gone_on_at_another_server_is_not_given_up_by_the_first(url: str, is_stopped: bool) -> None:
    async with Servers(url, 2) as (here, there):
        owner = f"{wire.LOCAL_WORKER}1-a"
        await here.start(StartOrder("one", "h", "{}", "s/1", claim=owner, lease_ms=LONG_MS))
        async with aclosing(here.attend(owner)) as first, aclosing(there.attend(owner)) as second:
            await anext(first)
            if is_stopped:
                await here.hand_over()
            await anext(second)
            await first.aclose()
            await eventually(lambda: not here._jobs)
            assert await story_of(there, "s/1") == ["ExecutionStarted", "AttemptStarted"]
        await eventually(lambda: not there._jobs)
        assert await story_of(there, "s/1") == ["ExecutionStarted", "AttemptStarted", "LeaseExpired"]


async def test_words_between_servers_are_all_told_however_many_and_however_long(url: str) -> None:
    heard: list[list[Any]] = []
    places = [place_of(url)] * 2
    opened_once = PostgresStore(places[0])
    first, second = (Talk(place, name, heard.extend, lambda _: None) for place, name in zip(places, "12", strict=True))
    words = [["ended", f"{i}/{'ü' * (i % 700)}"] for i in range(3_000)]
    words.insert(7, ["ended", "x" * 9_000])
    try:
        await eventually(lambda: first.listens and second.listens)
        first.tell(words)
        await eventually(lambda: len(heard) >= 3_000)
        assert heard == [each for each in words if len(each[1]) < 9_000]
    finally:
        first.close()
        second.close()
        await opened_once.close()


async def test_what_another_program_says_on_the_channel_is_passed_over(url: str) -> None:
    heard: list[list[Any]] = []
    opened_once = PostgresStore(place_of(url))
    talk = Talk(place_of(url), "1", heard.extend, lambda _: None)
    try:
        await eventually(lambda: talk.listens)
        for payload in ("hello", "7", '{"ended": "e"}', '[["ended", "e"]]'):
            asked(url, "SELECT pg_notify(%s, %s)", talk._channel, payload)
        await eventually(lambda: heard)
        assert heard == [["ended", "e"]]
    finally:
        talk.close()
        await opened_once.close()


async def test_no_call_waits_for_what_people_look_at(store: PostgresStore) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def look(_: Reader) -> None:
        begun.set()
        go_on.wait()

    looking = [asyncio.create_task(store.read(look, is_look=True)) for _ in range(5)]
    try:
        await eventually(begun.is_set)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await store.read(lambda reader: reader.count_workflows()) == 0
    finally:
        go_on.set()
        await asyncio.gather(*looking)


async def test_where_notifications_do_not_arrive_it_is_said_and_servers_look_for_themselves(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(self: Connection, seconds: float) -> Iterator[tuple[int, str]]:
        time.sleep(seconds / 10)
        return iter([])

    monkeypatch.setattr(Connection, "notifications", none)
    async with Servers(url, 2) as (here, there):
        waiting = asyncio.create_task(here.execute(StartOrder("one", "h", "{}", "s/0"), 60_000))
        claimed = await there.poll("w", "h", ["one"], LEASE_MS, 60_000)
        assert claimed is not None
        await there.complete(claimed.task.task_id, "1")
        _, found = await waiting
        assert found.execution.status == "COMPLETED"
        await eventually(lambda: "Notifications of postgresql://" in caplog.text)
    assert "A pooler in transaction mode hands none on" in caplog.text


async def tasks_of(engine: Engine, execution_id: str) -> list[Any]:
    return await engine._store.read(lambda reader: reader.tasks(execution_id))


async def recorded() -> dict[str, str]:
    return {"text": "recorded"}


async def test_commands_and_agents_say_that_a_server_has_to_be_there(tmp_path: Path, url: str) -> None:
    finished = await run(
        NEXUM, "ps", env=environment(NEXUM_ADDRESS="", NEXUM_DATABASE_URL=url, NEXUM_PORT="1"), cwd=tmp_path
    )
    assert finished.code == 3
    assert "No Nexum server answers at localhost:1" in finished.stderr
    finished = await run(NEXUM, "ps", env=environment(NEXUM_ADDRESS="", NEXUM_DATABASE_URL=url), cwd=tmp_path)
    assert "which only a server opens, and NEXUM_PORT=0 looks for none." in finished.stderr
