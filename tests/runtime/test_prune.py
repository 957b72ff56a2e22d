"""What `nexum prune` deletes, what it never touches, and what it gives back to the disk."""

import asyncio
import json
import re
import signal
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from backends import sqlite_of
from command import ECHO, assert_refused, claim, finish, nexum, start
from processes import NEXUM, Finished, NexumDev, environment, run
from test_engine import FOREVER_MS, ONE, PAIR, Bench
from test_engine import sqlite_bench as bench

from nexum_runtime import Client, InvalidRequest, NotFound
from nexum_runtime.cli.base import NO_SERVER, USAGE
from nexum_runtime.server.app import Server
from nexum_runtime.server.engine.engine import PRUNE_BATCH
from nexum_runtime.server.methods.methods import AGE_MS_LIMIT
from nexum_runtime.server.model.contract import Execution, Store, Transaction
from nexum_runtime.server.model.states import Event, ExecutionStatus
from nexum_runtime.server.store.sqlite import SqliteStore
from nexum_runtime.text import MIB

__all__ = ["bench"]

DAY_MS = 86_400_000


async def ended(bench: Bench, execution_id: str, output_json: str = '"found"') -> None:
    await bench.start(execution_id)
    await bench.engine.complete(await bench.claim(), output_json)


async def fill(store: Store, execution_ids: Sequence[str], *, input_chars: int = 1_000, ended_at_ms: int = 1) -> None:
    """Record executions that ended long ago."""

    def work(tx: Transaction) -> None:
        for each in execution_ids:
            text = json.dumps("x" * input_chars)
            done = ExecutionStatus.COMPLETED
            tx.add_execution(Execution(each, "w", "h", done, text, 4, "read", None, None, None, 1, ended_at_ms))
            for event in (Event.EXECUTION_STARTED, Event.EXECUTION_COMPLETED):
                tx.add_event(each, 1, event)

    await store.write(work)


async def left(bench: Bench) -> list[str]:
    return [each.execution_id for each in reversed(await bench.engine.executions("", "", "", 100_000))]


def rows(database: Path) -> dict[str, int]:
    """How many rows each table has, of a database that is whole."""
    connection = sqlite3.connect(database)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        tables = ("workflows", "executions", "tasks", "events")
        return {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}
    finally:
        connection.close()


# What goes and what stays


async def test_what_ended_that_long_ago_goes_and_nothing_younger(bench: Bench) -> None:
    await bench.register(ONE)
    await ended(bench, "old")
    bench.now_ms += 1
    await ended(bench, "young")
    bench.now_ms += DAY_MS - 1
    assert await bench.engine.prune("", DAY_MS, dry_run=True) == (1, 0)
    assert await left(bench) == ["old", "young"], "a dry run deletes nothing"
    assert (await bench.engine.prune("", DAY_MS, dry_run=False))[0] == 1
    assert await left(bench) == ["young"]
    with pytest.raises(NotFound):
        await bench.snapshot("old")
    assert await bench.status("young") == "COMPLETED"


async def test_an_age_of_zero_takes_everything_that_has_ended_even_in_this_millisecond(bench: Bench) -> None:
    await bench.register(ONE)
    await ended(bench, "completed")
    await bench.start("failed")
    await bench.engine.fail(await bench.claim(), "no", retryable=False)
    await bench.start("cancelled")
    await bench.engine.cancel("cancelled")
    assert await bench.engine.prune("", 0, dry_run=True) == (3, 0)
    assert (await bench.engine.prune("", 0, dry_run=False))[0] == 3
    assert rows(sqlite_of(bench).path) == {"workflows": 1, "executions": 0, "tasks": 0, "events": 0}


async def test_what_runs_is_never_pruned(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start("waits")
    bench.now_ms += 365 * DAY_MS
    assert (await bench.engine.prune("", 0, dry_run=False))[0] == 0
    task_id = await bench.claim()
    assert (await bench.engine.prune("", 0, dry_run=False))[0] == 0
    assert await bench.engine.complete(task_id, '"found"') == ""
    assert await bench.status("waits") == "COMPLETED"


async def test_a_failed_execution_with_a_task_that_still_runs_is_not_pruned_before_that_has_ended(bench: Bench) -> None:
    await bench.register(PAIR)
    await bench.start()
    first, second = await bench.claim(), await bench.claim()
    await bench.engine.fail(first, "no", retryable=False)
    assert await bench.status() == "FAILED"
    assert (await bench.engine.prune("", 0, dry_run=False))[0] == 0
    assert await bench.engine.complete(second, '"kept"') == ""
    assert (await bench.engine.prune("", 0, dry_run=False))[0] == 1


async def test_an_unknown_outcome_is_kept_until_a_person_has_settled_it(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(effect="once", max_attempts=1)
    task_id = (await bench.lose(1))[0]
    assert (await bench.snapshot()).execution.error_code == "OUTCOME_UNKNOWN"
    bench.now_ms += 365 * DAY_MS
    assert (await bench.engine.prune("", 0, dry_run=False))[0] == 0
    assert await bench.engine.complete(task_id, '"it happened"') == ""
    assert (await bench.engine.prune("", 0, dry_run=False))[0] == 1


async def test_an_execution_that_is_started_again_meanwhile_is_not_pruned(bench: Bench) -> None:
    await bench.register(ONE)
    await fill(bench.store, [f"s/{n}" for n in range(PRUNE_BATCH)])
    await bench.start("last")
    await bench.engine.fail(await bench.claim(), "no", retryable=False)
    pruning = asyncio.create_task(bench.engine.prune("", 0, dry_run=False))
    again = await bench.start("last", restart="failed")
    assert (await pruning)[0] == PRUNE_BATCH
    assert again.before == "FAILED"
    assert await left(bench) == ["last"]
    assert await bench.engine.complete(await bench.claim(), '"found"') == ""


async def test_a_worker_that_reports_to_a_pruned_execution_is_told_that_it_is_unknown(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    task_id = await bench.claim()
    await bench.engine.cancel("e")
    assert (await bench.engine.prune("", 0, dry_run=False))[0] == 1
    with pytest.raises(NotFound, match="No task"):
        await bench.engine.complete(task_id, '"late"')
    assert await bench.engine.heartbeat("worker", [task_id]) == [task_id], "and to stop"


async def test_a_pruned_execution_is_executed_anew_when_it_is_started_again(bench: Bench) -> None:
    await bench.register(ONE)
    await ended(bench, "e", '"first"')
    await bench.engine.prune("", 0, dry_run=False)
    assert (await bench.start("e")).before == "NEW"
    await bench.engine.complete(await bench.claim(), '"second"')
    assert (await bench.snapshot()).outputs == {"run": '"second"'}


async def test_who_waits_for_an_execution_hears_its_end_and_who_asks_for_a_pruned_one_does_not_hang(
    bench: Bench,
) -> None:
    await bench.register(ONE)
    await bench.start()
    waiting = asyncio.create_task(bench.engine.snapshot("e", FOREVER_MS))
    await bench.engine.complete(await bench.claim(), '"found"')
    assert (await waiting).outputs == {"run": '"found"'}
    await bench.engine.prune("", 0, dry_run=False)
    with pytest.raises(NotFound):
        await bench.engine.snapshot("e", FOREVER_MS)


async def test_a_prefix_prunes_what_begins_with_it_and_no_pattern(bench: Bench) -> None:
    await fill(bench.store, ["s1/a", "s1/b", "s10/a", "S1/a", "s_/a", "s1"])
    assert await bench.engine.prune("s1/", 0, dry_run=True) == (2, 0)
    assert (await bench.engine.prune("s_/", 0, dry_run=False))[0] == 1
    assert (await bench.engine.prune("s1/", 0, dry_run=False))[0] == 2
    assert await left(bench) == ["s10/a", "S1/a", "s1"]
    with pytest.raises(InvalidRequest):
        await bench.engine.prune("%", 0, dry_run=False)


# How much, and what it holds up


async def test_twenty_thousand_executions_are_pruned_in_batches_and_the_file_shrinks(bench: Bench) -> None:
    await bench.register(ONE)
    await fill(bench.store, [f"s{n % 7}/{n}" for n in range(20_000)])
    await bench.store.compact()
    before_bytes = sqlite_of(bench).path.stat().st_size
    assert await bench.engine.prune("", 0, dry_run=True) == (20_000, 0)
    assert sqlite_of(bench).path.stat().st_size >= before_bytes
    meanwhile = 0
    pruning = asyncio.create_task(bench.engine.prune("", 0, dry_run=False))
    while await bench.engine.executions("", "", "s", 1):
        await ended(bench, f"busy/{meanwhile}")
        meanwhile += 1
    deleted, given_back = await pruning
    assert deleted >= 20_000
    after_bytes = sqlite_of(bench).path.stat().st_size
    assert before_bytes > 20 * MIB
    assert after_bytes < MIB, "as good as nothing is left, and so it is on the disk"
    assert abs(before_bytes - given_back - after_bytes) < MIB, "as it was told"
    assert meanwhile > 2, "work went on between the batches"
    assert {kept.execution_id for kept in await bench.engine.executions("", "", "s", 10)} == set()


async def test_a_file_that_cannot_give_pages_back_is_made_to(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    store = SqliteStore(path)
    await fill(store, [f"s/{n}" for n in range(3_000)])
    await store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA auto_vacuum = NONE")
    connection.execute("VACUUM")
    connection.close()
    before_bytes = path.stat().st_size
    store = SqliteStore(path)
    bench = Bench(store)
    deleted, given_back = await bench.engine.prune("", 0, dry_run=False)
    assert (deleted, given_back > 2 * MIB) == (3_000, True)
    assert path.stat().st_size < before_bytes - 2 * MIB
    await fill(store, [f"s/{n}" for n in range(3_000)])
    assert (await bench.engine.prune("", 0, dry_run=False))[1] > 2 * MIB, "from now on"
    await store.close()


async def test_agents_and_workers_go_on_while_it_is_pruned(server: Server, client: Client) -> None:
    await fill(server.store, [f"old/{n}" for n in range(10 * PRUNE_BATCH)])
    await client.register(ECHO)
    pruning = asyncio.create_task(client.prune("old/", 0))
    busy = 0
    while not pruning.done():
        await finish(client, f"new/{busy}", json.dumps({"text": str(busy)}))
        busy += 1
    assert (await pruning)["executions"] == 10 * PRUNE_BATCH
    assert busy > 0
    for n in range(busy):
        assert (await client.status(f"new/{n}")).outputs == {"run": {"text": str(n)}}


# When it is interrupted


async def test_a_client_that_goes_away_leaves_whole_batches_and_the_next_prune_does_the_rest(
    server: Server, client: Client, address: str
) -> None:
    await fill(server.store, [f"s/{n}" for n in range(30 * PRUNE_BATCH)])
    async with Client(address) as leaving:
        pruning = asyncio.create_task(leaving.prune("", 0))
        while len(await client.executions(limit=10_000)) == 30 * PRUNE_BATCH:
            pass
        pruning.cancel()
        with suppress(asyncio.CancelledError):
            await pruning
    await client.prune("", 0)
    assert await client.executions() == []
    assert sqlite_of(server).path.stat().st_size < MIB


@pytest.mark.parametrize("nth", [2, 4])
async def test_a_server_that_dies_in_mid_prune_leaves_a_sound_database_and_prunes_the_rest_afterwards(
    tmp_path: Path, nth: int
) -> None:
    store = SqliteStore(tmp_path / "nexum.db")
    await fill(store, [f"s/{n}" for n in range(10 * PRUNE_BATCH)])
    await store.close()
    dying = NexumDev(tmp_path, env=environment(NEXUM_CRASH_AT=f"in-commit:{nth}"))
    async with dying:
        env = environment(NEXUM_ADDRESS=dying.address)
        finished = await run(NEXUM, "prune", "--older-than", "0s", env=env)
        assert_refused(finished, f"No Nexum server answers at {dying.address}.", NO_SERVER)
        assert await dying.ended() == -signal.SIGKILL
    # The first write is the server's own, at its start, and what dies in a commit is not in the database.
    assert rows(dying.database)["executions"] == (12 - nth) * PRUNE_BATCH
    async with NexumDev(tmp_path) as nexum:
        again = await run(NEXUM, "prune", "--older-than", "0s", env=environment(NEXUM_ADDRESS=nexum.address))
        assert again.stdout.startswith(f"{(12 - nth) * PRUNE_BATCH} executions deleted, ")
    assert rows(nexum.database)["executions"] == 0


# The command


async def prune(address: str, *words: str) -> Finished:
    return await nexum(address, "prune", *words)


async def test_the_command_counts_deletes_and_tells(client: Client, address: str) -> None:
    for execution_id in ("s1/a", "s1/b", "s10/a", "alone"):
        await finish(client, execution_id)
    await start(client, "s1/runs")
    nothing = await prune(address, "--older-than", "1d")
    assert nothing == Finished(0, "0 executions deleted, 0 B given back to the disk.\n", "")
    assert (await prune(address, "--older-than", "0s", "--dry-run")).stdout == "4 executions would be deleted.\n"
    one = await prune(address, "--older-than", "0s", "--session", "s10", "--dry-run")
    assert one.stdout == "1 execution would be deleted.\n"
    told = await prune(address, "--older-than", "0s", "--session", "s1")
    assert re.fullmatch(r"2 executions deleted, [\d.]+ [KM]?i?B given back to the disk\.\n", told.stdout), told
    told = await prune(address, "--older-than", "0m", "--session", "s10/")
    assert told.stdout.startswith("1 execution deleted, ")
    listed = [each.execution_id for each in await client.executions()]
    assert listed == ["s1/runs", "alone"]
    assert await client.complete(await claim(client), '{"text": "é"}') == ""


async def test_a_session_is_that_session_or_one_tool_of_it_and_never_another_that_begins_alike(
    client: Client, server: Server, address: str
) -> None:
    await fill(server.store, ["s1/search/a/0", "s1/searching/a/0", "s1/visit/a/0", "s10/search/a/0"])
    for session, expected in (("s1", 3), ("s1/", 3), ("s1/search", 1), ("s10", 1), ("s", 0), ("search", 0)):
        told = await prune(address, "--older-than", "30d", "--session", session, "--dry-run")
        assert told.stdout.startswith(f"{expected} execution"), session


@pytest.mark.parametrize("age", ["", "d", "30", "-1d", "1.5h", "30 d", "1w", "1D", "٣d", "1e3s", "1000000d", "0"])
async def test_an_age_that_is_none_is_told_in_a_sentence(age: str) -> None:
    finished = await nexum("localhost:1", "prune", "--older-than", age)
    said = f"--older-than is {age!r}; it must be a whole number with s, m, h or d, such as 30d."
    assert_refused(finished, said, USAGE)


async def test_the_greatest_age_is_taken(address: str) -> None:
    assert (await prune(address, "--older-than", "999999d")).stdout.startswith("0 executions deleted")


async def test_an_empty_session_is_refused_instead_of_pruning_all(client: Client, address: str) -> None:
    await finish(client, "e")
    refused = await prune(address, "--older-than", "0s", "--session", "")
    assert_refused(refused, "--session is empty; leave it out to prune every session.", USAGE)
    assert_refused(await prune(address, "--older-than", "0s", "--session", "a b"), "is not 1 to 200 of A-Z")
    assert (await client.status("e")).status == "COMPLETED"


async def test_an_age_beyond_its_limit_is_refused_by_the_server_and_the_limit_is_taken(client: Client) -> None:
    assert (await client.prune("", AGE_MS_LIMIT))["executions"] == 0
    with pytest.raises(InvalidRequest, match="nexum-older-than-ms"):
        await client.prune("", AGE_MS_LIMIT + 1)


async def test_without_an_age_the_server_prunes_nothing(client: Client) -> None:
    await finish(client, "e")
    with pytest.raises(InvalidRequest, match="Prune needs nexum-older-than-ms"):
        await client.way.ask("Prune", {}, {})
    assert (await client.status("e")).status == "COMPLETED"
