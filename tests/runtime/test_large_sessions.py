"""Sessions too large for one transaction, taken back and forked in pieces while others write."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from backends import BACKENDS
from processes import NexumDev, environment, eventually
from test_engine import Bench
from test_records import TURN, did, events, fill

from nexum_runtime import Client
from nexum_runtime.errors import InvalidRequest, NexumError, SessionStopped
from nexum_runtime.server.engine.rebuilding import LEFT_MS
from nexum_runtime.server.model.contract import Reader, Store, StoreUnavailable, Transaction
from nexum_runtime.server.model.shapes import Forget, Fork, Resolution
from nexum_runtime.server.model.states import Event
from nexum_runtime.server.rules import records
from nexum_runtime.server.rules.sessions import check_that_it_goes_on

MANY = 1_500  # three pieces
CALLS = 7
ALL = list(range(CALLS))
EVEN_ONCE = Forget(turn="s/2", by="ann", even_once=True)


@pytest.fixture(params=list(BACKENDS))
async def bench(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    """With a session "s" of some calls, of which two are a piece. The fourth has failed."""
    monkeypatch.setattr(records, "PIECE", 2)
    bench = Bench(BACKENDS[request.param](tmp_path))
    await bench.register({"run": "EFFECT"})
    for n in ALL:
        await bench.start(f"s/{n}")
        task_id = await bench.claim()
        if n == 4:
            await bench.engine.fail(task_id, "no", retryable=False)
        else:
            await bench.engine.complete(task_id, f'"{n}"')
    yield bench
    await bench.engine.close()
    bench.engine.end()
    await bench.store.close()


async def has(store: Store, session_id: str) -> list[int]:
    return await store.read(lambda reader: has_now(reader, session_id))


def has_now(reader: Reader, session_id: str) -> list[int]:
    found = reader.executions("", "", f"{session_id}/", 100)
    return sorted(int(each.execution_id.rpartition("/")[2]) for each in found)


class Between:
    """Makes a write of its own behind each of a store, as others do who have nothing to do with it."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch, write: Callable[[Transaction], Any]) -> None:
        self.told: list[asyncio.Future[Any]] = []
        begin_write = store.begin_write

        def begin(work: Callable[[Transaction], Any], **how: Any) -> Any:
            outcome = begin_write(work, **how)
            self.told.append(begin_write(write))
            return outcome

        monkeypatch.setattr(store, "begin_write", begin)

    async def found(self) -> list[Any]:
        return await asyncio.gather(*self.told)


def is_refused(reader: Reader, execution_id: str) -> bool:
    try:
        check_that_it_goes_on(reader, execution_id)
    except SessionStopped:
        return True
    return False


# What others see, and write, in between


async def test_others_write_while_a_large_session_is_taken_back_and_see_that_it_is_not_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(tx: Transaction) -> Any:
        (session,) = tx.sessions("s/", 1)
        record = next(iter(tx.sessions("s~1/", 1)), None)
        is_whole = record is not None and record.stop is not None and not record.stop.reason
        refused = is_refused(tx, "s/new"), is_refused(tx, "s~1/new")
        return has_now(tx, "s"), has_now(tx, "s~1"), session.rebuild is None, is_whole, refused

    between = Between(bench.store, monkeypatch, look)
    told = await bench.engine.forget("s", EVEN_ONCE)
    assert told == {"session_id": "s~1", "executions": 5, "turns": 0}
    assert await between.found() == [
        (ALL, [], False, False, (True, False)),
        (ALL[:6], ALL[6:], False, False, (True, True)),
        (ALL[:4], ALL[4:], False, False, (True, True)),
        (ALL[:2], ALL[2:], False, False, (True, True)),
        (ALL[:2], ALL[2:], True, True, (False, True)),
    ]


async def test_others_write_while_a_large_session_is_forked_and_there_is_no_fork_before_it_is_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(tx: Transaction) -> Any:
        return has_now(tx, "copy"), tx.knows_session("copy"), len(tx.sessions("", 9)), is_refused(tx, "copy/new")

    between = Between(bench.store, monkeypatch, look)
    assert await bench.engine.fork("s", Fork("copy")) == {"executions": 7, "left_out": [], "turns": 0}
    parts = [(ALL[:n], False, 1, True) for n in (0, 2, 4, 6, 7)]
    assert await between.found() == [*parts, (ALL, True, 2, False)]
    assert await bench.engine.first_session("copy/") == "s"
    await bench.start("copy/8")


async def test_a_small_session_is_taken_back_and_forked_in_one_transaction(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "PIECE", CALLS)
    between = Between(bench.store, monkeypatch, lambda tx: [has_now(tx, each) for each in ("s", "copy", "s~1")])
    await bench.engine.fork("s", Fork("copy"))
    await bench.engine.forget("s", EVEN_ONCE)
    assert await between.found() == [[ALL, ALL, []], [ALL[:2], ALL, ALL[2:]]]


# What must not be


async def test_what_may_not_be_taken_back_is_refused_before_anything_is(bench: Bench) -> None:
    await bench.start("s/7", effect="once", max_attempts=1)
    task_id = await bench.claim()
    with pytest.raises(InvalidRequest, match="s/7 still runs"):
        await bench.engine.forget("s", Forget(turn="s/2"))
    await bench.engine.complete(task_id, '"7"')
    with pytest.raises(InvalidRequest, match="s/7 happens once"):
        await bench.engine.forget("s", Forget(turn="s/2"))
    assert await has(bench.store, "s") == [*ALL, 7]
    assert await bench.store.read(lambda reader: reader.rebuilds()) == []
    await bench.start("s/8")


@pytest.mark.parametrize("what", ["new", "approved"])
async def test_what_happens_after_it_was_looked_for_is_seen_all_the_same(bench: Bench, what: str) -> None:
    rules = records.Records(lambda: bench.now_ms)
    await bench.register({"ask": "HUMAN_APPROVAL"}, "gate")
    if what == "approved":
        await bench.start("s/7", workflow_id="gate")
    choice = await bench.store.read(lambda reader: rules.choose(reader, "s", Forget(turn="s/2")))
    if what == "new":
        await bench.start("s/7", effect="once", max_attempts=1)
        await bench.engine.complete(await bench.claim(), '"done"')
    else:
        await bench.approve("ask", "s/7")
    with pytest.raises(InvalidRequest, match="s/7 happens once, or had a yes"):
        await bench.store.write(lambda tx: rules.begin_forget(tx, choice))


async def test_what_was_taken_back_since_it_was_looked_for_is_not_taken_back_again(bench: Bench) -> None:
    rules = records.Records(lambda: bench.now_ms)
    choice = await bench.store.read(lambda reader: rules.choose(reader, "s", EVEN_ONCE))
    await bench.engine.forget("s", EVEN_ONCE)
    with pytest.raises(InvalidRequest, match="Session s was changed at this very moment"):
        await bench.store.write(lambda tx: rules.begin_forget(tx, choice))


@pytest.mark.parametrize("what", ["tried again", "pruned"])
async def test_a_fork_of_what_changes_meanwhile_is_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def change(tx: Transaction) -> None:
        if what == "pruned" and tx.execution("s/6"):
            tx.delete_execution("s/6")
        elif what == "tried again" and tx.events("s/4")[-1].type != Event.OUTCOME_RESOLVED:
            tx.add_event("s/4", bench.now_ms, Event.OUTCOME_RESOLVED)

    between = Between(bench.store, monkeypatch, change)
    with pytest.raises(InvalidRequest, match="Session s was changed while it was forked"):
        await bench.engine.fork("s", Fork("copy"))
    await between.found()
    assert await has(bench.store, "copy") == []
    assert await bench.store.read(lambda reader: reader.rebuilds()) == []
    assert (await bench.engine.fork("s", Fork("copy")))["executions"] in (6, 7)


async def test_of_two_forks_to_one_name_one_is_made_and_it_is_whole(bench: Bench) -> None:
    forks = [bench.engine.fork("s", Fork("copy")) for _ in range(2)]
    told = await asyncio.gather(*forks, bench.engine.sweep(), return_exceptions=True)
    refused = [each for each in told if isinstance(each, InvalidRequest)]
    assert [str(each) for each in refused] == ["Session copy is there already. Choose another id for the fork."]
    assert await has(bench.store, "copy") == ALL


# What is left of a server


class _Gone(StoreUnavailable):
    pass


async def begin_and_go(bench: Bench, monkeypatch: pytest.MonkeyPatch, asked: Any, writes: int) -> None:
    """What is asked for begins, and its server has gone after so many writes."""
    begin_write, left = bench.store.begin_write, writes

    def begin(work: Callable[[Transaction], Any], **how: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise _Gone("gone")
        return begin_write(work, **how)

    with monkeypatch.context() as patched:
        patched.setattr(bench.store, "begin_write", begin)
        with pytest.raises(_Gone):
            await asked
    await bench.engine.close()
    bench.engine.end()
    bench.engine = bench.new_engine()


@pytest.mark.parametrize("writes", [1, 3, 4])
async def test_what_a_server_left_half_taken_back_is_taken_back_by_the_next_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    await begin_and_go(bench, monkeypatch, bench.engine.forget("s", EVEN_ONCE), writes)
    with pytest.raises(SessionStopped, match="Session s is being changed: some of it becomes s~1, taken back by ann"):
        await bench.start("s/new")
    failed = "s~1/4" if 4 in await has(bench.store, "s~1") else "s/4"
    for kind in ("retry", "failed"):
        with pytest.raises(InvalidRequest, match="Session s is being changed"):
            await bench.engine.resolve(failed, "", Resolution(kind, "no"))
    bench.now_ms += LEFT_MS + 1
    await bench.engine.sweep()
    await bench.engine.close()
    assert [await has(bench.store, each) for each in ("s", "s~1")] == [ALL[:2], ALL[2:]]
    assert await bench.store.read(lambda reader: reader.rebuilds()) == []


@pytest.mark.parametrize("writes", [1, 3, 5])
async def test_of_a_fork_that_a_server_left_half_made_nothing_is_left_and_it_can_be_made_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    await begin_and_go(bench, monkeypatch, bench.engine.fork("s", Fork("copy")), writes)
    if 4 in await has(bench.store, "copy"):
        with pytest.raises(InvalidRequest, match="Session copy is being forked from session s"):
            await bench.engine.resolve("copy/4", "", Resolution("retry"))
    if bench.store.is_shared:  # the other server may still be at it
        with pytest.raises(InvalidRequest, match="Session copy is being forked from session s"):
            await bench.engine.fork("s", Fork("copy"))
        bench.now_ms += LEFT_MS + 1
    assert (await bench.engine.fork("s", Fork("copy", before="s/6")))["executions"] == 6
    assert await has(bench.store, "copy") == ALL[:6]


async def test_nothing_is_left_of_a_fork_that_the_server_was_killed_over(tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as nexum_dev, Client(nexum_dev.address) as client:
        fork = partial(client.fork_session, "s1", "s2")
        await kill_over(nexum_dev, client, fork, "between-fork:2", "between-undo:4")
        assert await client.session("s2") is None
        told = await client.fork_session("s1", "s2", before="s1/call/1000")
        assert told == {"executions": 1_000, "left_out": [], "turns": 1}
        assert len(await client.journal("s2/")) == 1_000
        assert len(await client.journal("s1/")) == MANY + 1


async def test_what_the_server_was_killed_over_is_taken_back_to_the_end(tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as nexum_dev, Client(nexum_dev.address) as client:
        forget = partial(client.forget_session, "s1", turn="s1/call/1")
        await kill_over(nexum_dev, client, forget, "between-forget:1", "between-forget:1")

        async def whole() -> Any:
            session = await client.session("s1")
            return session if session and not session["stopped"] else None

        is_now = await eventually(whole)
        assert (is_now["executions"], is_now["taken_back"]) == (1, ["s1~1"])
        record = await client.session("s1~1")
        assert record is not None
        assert (record["state"], record["executions"]) == ("TAKEN_BACK", MANY)
        assert (await events(client, "s1~1/call/7"))[-1] == "ExecutionTakenBack"
        await did(client, "s1/call/1")


async def kill_over(nexum_dev: NexumDev, client: Client, ask: Callable[[], Awaitable[Any]], *points: str) -> None:
    """Ask it of a session of many, while the server is killed at the first of these points, and at the others when it
    has been started again."""
    await did(client, "s1/turn/1", TURN)
    nexum_dev.terminate()
    await nexum_dev.ended()
    fill(nexum_dev.database, MANY)
    for n, point in enumerate(points):
        nexum_dev._env = environment(NEXUM_EXIT_WITH_PARENT="1", NEXUM_CRASH_AT=point)
        nexum_dev.start()
        await nexum_dev.ready()
        if n == 0:
            with pytest.raises(NexumError):
                await ask()
        assert await nexum_dev.ended() == -9
    nexum_dev._env = environment(NEXUM_EXIT_WITH_PARENT="1")
    nexum_dev.start()
    await nexum_dev.ready()
    await client.check(20)
    with closing(sqlite3.connect(nexum_dev.database)) as database:
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
