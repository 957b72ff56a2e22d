"""The contract every store keeps, run on each of them; then what only SQLite's file can get wrong."""

import asyncio
import json
import os
import re
import shutil
import signal
import sqlite3
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from backends import BACKENDS
from processes import PATIENCE_SECONDS, TESTS, Process, environment, eventually, run
from slow_disk import hold_commits

from nexum_runtime.errors import NotFound
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.model.contract import (
    Approval,
    Execution,
    Reader,
    Span,
    Stop,
    Store,
    StoreUnavailable,
    Task,
    Transaction,
    Workflow,
)
from nexum_runtime.server.model.shapes import StartOrder
from nexum_runtime.server.model.states import ErrorCode, Event, ExecutionStatus, TaskStatus
from nexum_runtime.server.store.sqlite.schema import MIGRATIONS, SCHEMA_VERSION
from nexum_runtime.server.store.sqlite.store import BUSY_LOOK_MS, GROUP_LIMIT, SqliteStore

NOW_MS = 1_700_000_000_000
LEASE_MS = 10_000


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Callable[[Path], Store]:
    return BACKENDS[request.param]


@pytest.fixture
async def store(backend: Callable[[Path], Store], tmp_path: Path) -> AsyncIterator[Store]:
    store = backend(tmp_path)
    yield store
    await store.close()


def an_execution(execution_id: str, workflow_id: str = "w") -> Execution:
    return Execution(
        execution_id=execution_id,
        workflow_id=workflow_id,
        version_hash="h",
        status=ExecutionStatus.RUNNING,
        input_json="{}",
        max_attempts=4,
        effect="idempotent",
        timeout_ms=None,
        error=None,
        error_code=None,
        created_at_ms=NOW_MS,
        ended_at_ms=None,
    )


def a_task(key: str, execution_id: str = "e", workflow_id: str = "w") -> Task:
    return Task(
        task_key=key,
        execution_id=execution_id,
        workflow_id=workflow_id,
        version_hash="h",
        node_id=key,
        node_type="EFFECT",
        status=TaskStatus.READY,
        attempt=0,
        attempt_limit=4,
        available_at_ms=NOW_MS,
        worker_id=None,
        lease_ms=None,
        lease_expires_at_ms=None,
    )


async def add(store: Store, *rows: Workflow | Execution | Task) -> None:
    def work(tx: Transaction) -> None:
        for row in rows:
            if isinstance(row, Workflow):
                tx.add_workflow(row)
            elif isinstance(row, Execution):
                tx.add_execution(row)
            else:
                tx.add_task(row)

    await store.write(work)


async def claim(
    store: Store, *workflow_ids: str, version_hash: str = "h", worker_id: str = "worker", now_ms: int = NOW_MS
) -> Task | None:
    return await store.write(lambda tx: tx.claim(version_hash, workflow_ids or ("w",), worker_id, LEASE_MS, now_ms))


async def move(store: Store, key: str, to: TaskStatus, text: str = "null") -> bool:
    """Move a task, with `text` as the output or the error that its new status asks for."""
    return await store.write(
        lambda tx: tx.move_task(
            key,
            to,
            output_json=text if to == TaskStatus.DONE else None,
            error=text if to == TaskStatus.FAILED else None,
            error_code=ErrorCode.TOOL_ERROR if to == TaskStatus.FAILED else None,
        )
    )


async def task(store: Store, key: str) -> Task:
    found = await store.read(lambda reader: reader.task(key))
    assert found is not None
    return found


# Transactions


async def test_a_transaction_that_raises_leaves_nothing(store: Store) -> None:
    await add(store, an_execution("e"), a_task("before"))

    def work(tx: Transaction) -> None:
        tx.add_workflow(Workflow("w", "h", "{}", "NEW", NOW_MS))
        tx.add_execution(an_execution("half"))
        tx.add_task(a_task("half"))
        tx.move_execution("e", ExecutionStatus.CANCELLED)
        assert tx.claim("h", ["w"], "worker", LEASE_MS, NOW_MS)
        tx.add_event("e", NOW_MS, Event.EXECUTION_STARTED)
        raise LookupError("on second thoughts")

    with pytest.raises(LookupError, match="on second thoughts"):
        await store.write(work)

    def look(reader: Reader) -> None:
        assert reader.workflow("w", "") is None
        assert reader.executions("", "", "", 10) == [an_execution("e")]
        assert reader.tasks("e") == [a_task("before")]
        assert reader.events("e") == []

    await store.read(look)
    assert await store.write(lambda tx: tx.execution("half")) is None, "the writer sees none of it either"


async def test_a_refused_statement_takes_the_whole_transaction_with_it(store: Store) -> None:
    await add(store, an_execution("e"))

    def work(tx: Transaction) -> None:
        tx.add_execution(an_execution("other"))
        tx.add_execution(an_execution("e"))

    with pytest.raises(StoreUnavailable):
        await store.write(work)
    assert await store.read(lambda reader: reader.execution("other")) is None
    await add(store, an_execution("next"))


# Moves

EXECUTION_MOVES = {
    ("RUNNING", "COMPLETED"),
    ("RUNNING", "FAILED"),
    ("RUNNING", "CANCELLED"),
    ("FAILED", "RUNNING"),
    ("CANCELLED", "RUNNING"),
}
TASK_MOVES = {
    ("RUNNING", "DONE"),
    ("RUNNING", "READY"),
    ("RUNNING", "WAITING"),
    ("RUNNING", "FAILED"),
    ("RUNNING", "CANCELLED"),
    ("READY", "DONE"),
    ("READY", "FAILED"),
    ("READY", "CANCELLED"),
    ("READY", "RUNNING"),
    ("READY", "WAITING"),
    ("WAITING", "READY"),
    ("WAITING", "DONE"),
    ("WAITING", "FAILED"),
    ("WAITING", "CANCELLED"),
    ("FAILED", "DONE"),
    ("FAILED", "READY"),
    ("FAILED", "WAITING"),
    ("CANCELLED", "READY"),
    ("CANCELLED", "WAITING"),
}


@pytest.mark.parametrize("to", list(ExecutionStatus))
@pytest.mark.parametrize("source", list(ExecutionStatus))
async def test_an_execution_makes_its_legal_moves_and_no_other(
    store: Store, source: ExecutionStatus, to: ExecutionStatus
) -> None:
    await add(store, an_execution("e"), an_execution("neighbour"))
    if source != ExecutionStatus.RUNNING:
        assert await store.write(lambda tx: tx.move_execution("e", source, error="first", ended_at_ms=NOW_MS))
    before = await store.read(lambda reader: reader.execution("e"))
    assert before is not None

    moved = await store.write(
        lambda tx: tx.move_execution("e", to, error="why", error_code=ErrorCode.REJECTED, ended_at_ms=NOW_MS + 1)
    )

    after = await store.read(lambda reader: reader.execution("e"))
    assert (moved is not None) == ((source, to) in EXECUTION_MOVES)
    if moved:
        assert (
            after
            == moved
            == before._replace(status=to, error="why", error_code=ErrorCode.REJECTED, ended_at_ms=NOW_MS + 1)
        )
    else:
        assert after == before
    assert await store.read(lambda reader: reader.execution("neighbour")) == an_execution("neighbour")


@pytest.mark.parametrize("to", [status for status in TaskStatus if status != TaskStatus.RUNNING])
@pytest.mark.parametrize("source", list(TaskStatus))
async def test_a_task_makes_its_legal_moves_and_no_other(store: Store, source: TaskStatus, to: TaskStatus) -> None:
    begun = a_task("t") if source != TaskStatus.WAITING else a_task("t")._replace(status=source)
    await add(store, an_execution("e"), begun, a_task("neighbour"))
    if source not in (TaskStatus.READY, TaskStatus.WAITING):
        await claim(store)
    if source not in (TaskStatus.READY, TaskStatus.WAITING, TaskStatus.RUNNING):
        assert await move(store, "t", source, '"first"')
    before = await task(store, "t")
    assert before.status == source
    outputs_before = await store.read(lambda reader: reader.outputs("e"))

    moved = await move(store, "t", to, '"second"')

    assert moved is ((source, to) in TASK_MOVES)
    failed = to == TaskStatus.FAILED
    expected = before._replace(
        status=to,
        available_at_ms=0,
        lease_expires_at_ms=None,
        error='"second"' if failed else None,
        error_code=ErrorCode.TOOL_ERROR if failed else None,
    )
    assert await task(store, "t") == (expected if moved else before)
    outputs = await store.read(lambda reader: reader.outputs("e"))
    assert outputs == ({"t": '"second"'} if moved and to == TaskStatus.DONE else outputs_before)
    assert await task(store, "neighbour") == a_task("neighbour")


async def test_a_move_of_what_does_not_exist_returns_false(store: Store) -> None:
    assert not await store.write(lambda tx: tx.move_execution("ghost", ExecutionStatus.COMPLETED))
    assert not await store.write(lambda tx: tx.move_task("ghost", TaskStatus.CANCELLED))


async def test_a_move_keeps_the_attempts_and_their_limit_unless_told_otherwise(store: Store) -> None:
    await add(store, an_execution("e"), a_task("t"))
    await claim(store)
    await store.write(lambda tx: tx.move_task("t", TaskStatus.READY, available_at_ms=NOW_MS + 5, attempt_limit=9))
    assert (await task(store, "t")).available_at_ms == NOW_MS + 5
    await claim(store, now_ms=NOW_MS + 5)
    await store.write(lambda tx: tx.move_task("t", TaskStatus.READY))
    moved = await task(store, "t")
    assert (moved.available_at_ms, moved.attempt_limit, moved.attempt, moved.worker_id) == (0, 9, 2, "worker")


async def test_only_a_failed_execution_can_be_told_anew_why_it_failed(store: Store) -> None:
    await add(store, an_execution("failed"), an_execution("runs"))
    await store.write(lambda tx: tx.move_execution("failed", ExecutionStatus.FAILED, error="x", ended_at_ms=NOW_MS))

    def work(tx: Transaction) -> None:
        for name in ("failed", "runs"):
            tx.set_execution_error(name, "why", ErrorCode.OUTCOME_UNKNOWN)

    await store.write(work)
    failed, runs = [await store.read(lambda reader, e=e: reader.execution(e)) for e in ("failed", "runs")]  # type: ignore[misc]
    assert failed == an_execution("failed")._replace(
        status=ExecutionStatus.FAILED,
        error="why",
        error_code=ErrorCode.OUTCOME_UNKNOWN,
        ended_at_ms=NOW_MS,
    )
    assert runs == an_execution("runs")


async def test_what_is_declared_anew_holds_for_one_execution_and_what_is_left_of_its_tasks(store: Store) -> None:
    again = a_task("again")._replace(attempt=1)
    await add(
        store, an_execution("e"), a_task("begun"), a_task("ready"), again, an_execution("f"), a_task("other", "f")
    )
    await claim(store)
    await store.write(lambda tx: tx.declare("e", 1, "once", 5_000))
    declared = await store.read(lambda reader: reader.execution("e"))
    assert declared == an_execution("e")._replace(max_attempts=1, effect="once", timeout_ms=5_000)
    assert [(await task(store, key)).attempt_limit for key in ("begun", "ready", "again", "other")] == [1, 1, 2, 4]
    assert await store.read(lambda reader: reader.execution("f")) == an_execution("f")


# Claims


async def test_tasks_are_claimed_in_the_order_they_were_scheduled(store: Store) -> None:
    await add(store, an_execution("e"), *(a_task(key) for key in ("zebra", "ant", "mole")))
    claimed = [await claim(store) for _ in range(4)]
    assert [each.task_key if each else None for each in claimed] == ["zebra", "ant", "mole", None]


async def test_a_claim_starts_an_attempt_and_its_lease(store: Store) -> None:
    await add(store, an_execution("e"), a_task("t"))
    claimed = await claim(store, worker_id="w7")
    assert claimed == a_task("t")._replace(
        status=TaskStatus.RUNNING,
        attempt=1,
        worker_id="w7",
        lease_ms=LEASE_MS,
        lease_expires_at_ms=NOW_MS + LEASE_MS,
    )
    assert claimed == await task(store, "t")
    assert claimed.task_id == "t.1"


async def test_a_task_is_not_claimed_before_its_time(store: Store) -> None:
    await add(store, an_execution("e"), a_task("later")._replace(available_at_ms=NOW_MS + 100), a_task("now"))
    first = await claim(store)
    assert first is not None
    assert first.task_key == "now"
    assert await claim(store, now_ms=NOW_MS + 99) is None
    second = await claim(store, now_ms=NOW_MS + 100)
    assert second is not None
    assert second.task_key == "later"


async def test_a_claim_takes_only_tasks_of_the_workflows_and_the_version_it_names(store: Store) -> None:
    await add(
        store,
        an_execution("e", "other"),
        a_task("other", workflow_id="other"),
        a_task("old")._replace(version_hash="old"),
        a_task("mine"),
        a_task("second", workflow_id="second"),
    )
    assert await store.write(lambda tx: tx.claim("h", [], "worker", LEASE_MS, NOW_MS)) is None
    assert await claim(store, "nobody") is None
    assert await claim(store, version_hash="unknown") is None
    claimed = [await claim(store, "w", "second") for _ in range(3)]
    assert [each.task_key if each else None for each in claimed] == ["mine", "second", None]


async def test_a_claim_can_be_of_one_execution_alone(store: Store) -> None:
    mine = [a_task(key, "mine")._replace(available_at_ms=at_ms) for key, at_ms in (("a", NOW_MS), ("b", NOW_MS + 100))]
    await add(store, an_execution("e"), an_execution("mine"), a_task("first"), *mine)

    async def claim_mine(version_hash: str = "h", now_ms: int = NOW_MS) -> Task | None:
        return await store.write(lambda tx: tx.claim(version_hash, ["w"], "me", LEASE_MS, now_ms, "mine"))

    assert await claim_mine("unknown") is None
    claimed = [await claim_mine(), await claim_mine(), await claim_mine(now_ms=NOW_MS + 100)]
    assert [each.task_key if each else None for each in claimed] == ["a", None, "b"]
    assert (await task(store, "first")).status == TaskStatus.READY


async def test_a_worker_holds_the_tasks_that_it_runs_at_the_moment(store: Store) -> None:
    await add(store, an_execution("e"), *(a_task(key) for key in ("zebra", "done", "theirs", "ant", "ready")))
    claimed = [await claim(store, worker_id=worker_id) for worker_id in ("me", "me", "they", "me")]
    await move(store, "done", TaskStatus.DONE, "1")
    assert await store.read(lambda reader: reader.held("me")) == [claimed[0], claimed[3]]
    assert await store.read(lambda reader: reader.held("nobody")) == []


async def test_of_twenty_pollers_at_once_one_wins_each_task(store: Store) -> None:
    await add(store, an_execution("e"), a_task("a"), a_task("b"))
    claims = await asyncio.gather(*(claim(store, worker_id=f"worker-{i}") for i in range(20)))
    winners = [each for each in claims if each]
    assert [(each.task_key, each.attempt) for each in winners] == [("a", 1), ("b", 1)]
    assert len({each.worker_id for each in winners}) == 2


# Leases


async def test_a_lease_has_expired_from_the_moment_it_ends(store: Store) -> None:
    await add(store, an_execution("e"), a_task("t"), a_task("ready"))
    claimed = await claim(store)
    assert await store.read(lambda reader: reader.expired(NOW_MS + LEASE_MS - 1)) == []
    assert await store.read(lambda reader: reader.expired(NOW_MS + LEASE_MS)) == [claimed]
    await move(store, "t", TaskStatus.FAILED)
    assert await store.read(lambda reader: reader.expired(NOW_MS + 10 * LEASE_MS)) == []


async def test_a_worker_renews_the_leases_of_its_own_running_tasks_alone(store: Store) -> None:
    await add(store, an_execution("e"), a_task("mine"), a_task("done"), a_task("theirs"))
    await claim(store, worker_id="me")
    await claim(store, worker_id="me")
    await claim(store, worker_id="they")
    await move(store, "done", TaskStatus.DONE, "1")
    await store.write(lambda tx: tx.renew_leases("me", NOW_MS + 500))
    expiries = [each.lease_expires_at_ms for each in await store.read(lambda reader: reader.tasks("e"))]
    assert expiries == [NOW_MS + 500 + LEASE_MS, None, NOW_MS + LEASE_MS]


async def test_a_worker_can_renew_the_leases_of_some_of_its_tasks(store: Store) -> None:
    await add(store, an_execution("e"), a_task("a"), a_task("b"))
    await claim(store, worker_id="me")
    await claim(store, worker_id="they")
    await store.write(lambda tx: tx.renew_leases("me", NOW_MS + 500, []))
    await store.write(lambda tx: tx.renew_leases("they", NOW_MS + 700, ["a", "b", "ghost"]))
    expiries = [each.lease_expires_at_ms for each in await store.read(lambda reader: reader.tasks("e"))]
    assert expiries == [NOW_MS + LEASE_MS, NOW_MS + 700 + LEASE_MS]


@pytest.mark.parametrize("now_ms", [NOW_MS + 500, NOW_MS - 3_600_000], ids=["later", "a clock set back"])
async def test_restarting_the_clock_gives_every_lease_its_whole_time_and_lets_no_retry_wait_long(
    store: Store, now_ms: int
) -> None:
    await add(store, an_execution("e"), *(a_task(key) for key in ("runs", "waits", "due", "done")))
    for _ in range(4):
        await claim(store)
    await store.write(lambda tx: tx.move_task("waits", TaskStatus.READY, available_at_ms=now_ms + 90_000))
    await store.write(lambda tx: tx.move_task("due", TaskStatus.READY, available_at_ms=now_ms + 3))
    await move(store, "done", TaskStatus.DONE)
    await store.write(lambda tx: tx.restart_clock(now_ms, 30_000))
    tasks = await store.read(lambda reader: reader.tasks("e"))
    assert [each.lease_expires_at_ms for each in tasks] == [now_ms + LEASE_MS, None, None, None]
    assert [each.available_at_ms - now_ms for each in tasks if each.status == TaskStatus.READY] == [30_000, 3]
    await store.write(lambda tx: tx.shift_clock(-400))
    tasks = await store.read(lambda reader: reader.tasks("e"))
    assert [each.lease_expires_at_ms for each in tasks] == [now_ms + LEASE_MS - 400, None, None, None]
    assert [each.available_at_ms - now_ms for each in tasks if each.status == TaskStatus.READY] == [29_600, -397]


async def test_a_long_write_keeps_nobody_from_reading_and_is_a_group_of_its_own(store: Store) -> None:
    await add(store, an_execution("e"))
    may_end, order = threading.Event(), []

    def work(tx: Transaction) -> None:
        assert may_end.wait(PATIENCE_SECONDS)
        order.append("long")
        tx.add_execution(an_execution("long"))

    def fails(tx: Transaction) -> None:
        raise ValueError("it cannot be done")

    writes = [
        store.begin_write(lambda tx: order.append("before")),
        store.begin_write(work, is_long=True),
        store.begin_write(fails, is_long=True),
        store.begin_write(lambda tx: order.append("after")),
    ]
    await eventually(writes[0].done)
    assert await store.read(lambda reader: reader.execution("e")) is not None
    assert order == ["before"]
    may_end.set()
    told = await asyncio.gather(*writes, return_exceptions=True)
    assert [str(each) for each in told] == ["None", "None", "it cannot be done", "None"]
    assert order == ["before", "long", "after"]
    assert await store.read(lambda reader: reader.execution("long")) is not None


# What is read


@pytest.mark.parametrize(
    "text",
    [
        '"página 🦊"',
        r'"half a pair: \ud83e"',
        r'"nothing: \u0000, and on"',
        r'{"caf\u00e9": "caf\u00e9"}',
        '{ "b" : 1,\n  "a" : 1.0, "a": 2 }',
        "123456789012345678901234567890",
        "1e400",
        "null",
    ],
)
async def test_json_comes_back_as_the_very_text_that_was_stored(store: Store, text: str) -> None:
    await add(store, an_execution("e")._replace(input_json=text), a_task("t"))
    await claim(store)
    await move(store, "t", TaskStatus.DONE, text)

    def look(reader: Reader) -> None:
        assert reader.outputs("e") == {"t": text}
        execution = reader.execution("e")
        assert execution is not None
        assert execution.input_json == text

    await store.read(look)


async def test_a_result_of_many_megabytes_comes_back_whole(store: Store) -> None:
    text = json.dumps("x" * 15_000_000)
    await add(store, an_execution("e"), a_task("t"))
    await claim(store)
    await move(store, "t", TaskStatus.DONE, text)
    assert await store.read(lambda reader: reader.outputs("e")) == {"t": text}


async def test_only_done_nodes_have_outputs(store: Store) -> None:
    await add(store, an_execution("e"), *(a_task(key) for key in ("a", "b", "c")))
    await claim(store)
    await move(store, "a", TaskStatus.FAILED)
    await move(store, "c", TaskStatus.DONE, "3")
    await move(store, "b", TaskStatus.DONE, "2")
    assert await store.read(lambda reader: reader.outputs("e")) == {"b": "2", "c": "3"}


@pytest.mark.parametrize(
    ("prefix", "found"),
    [
        ("s1/", ["s1/b", "s1/a"]),
        ("s1", ["s10/a", "s1/b", "s1/a", "s1"]),
        ("s10/", ["s10/a"]),
        ("s1/a", ["s1/a"]),
        ("s2/", []),
        ("S1/", []),
        ("s_/", []),
        ("s%", []),
        ("", ["s0/z", "s10/a", "s1/b", "s1/a", "s1"]),
    ],
)
async def test_a_prefix_does_not_match_its_neighbours(store: Store, prefix: str, found: list[str]) -> None:
    await add(store, *(an_execution(name) for name in ("s1", "s1/a", "s1/b", "s10/a", "s0/z")))
    executions = await store.read(lambda reader: reader.executions("", "", prefix, 100))
    assert [execution.execution_id for execution in executions] == found


async def test_executions_are_listed_newest_first_and_filtered_by_all_that_is_asked(store: Store) -> None:
    await add(store, *(an_execution(f"e{i}", "even" if i % 2 == 0 else "odd") for i in range(6)))
    await store.write(lambda tx: [tx.move_execution(f"e{i}", ExecutionStatus.COMPLETED) for i in (0, 1, 2)])

    async def listed(workflow_id: str, status: str, prefix: str, limit: int) -> list[str]:
        executions = await store.read(lambda reader: reader.executions(workflow_id, status, prefix, limit))
        return [execution.execution_id for execution in executions]

    assert await listed("", "", "", 3) == ["e5", "e4", "e3"]
    assert await listed("even", "", "", 10) == ["e4", "e2", "e0"]
    assert await listed("", "COMPLETED", "", 10) == ["e2", "e1", "e0"]
    assert await listed("even", "COMPLETED", "e", 10) == ["e2", "e0"]
    assert await listed("even", "COMPLETED", "e2", 10) == ["e2"]
    assert await listed("none", "", "", 10) == []


async def test_tasks_and_events_come_in_the_order_they_happened(store: Store) -> None:
    await add(store, an_execution("e"), an_execution("other"), a_task("z"), a_task("a"))

    def work(tx: Transaction) -> None:
        tx.add_event("e", NOW_MS + 5, Event.EXECUTION_STARTED)
        tx.add_event("other", NOW_MS, Event.EXECUTION_STARTED)
        tx.add_event("e", NOW_MS, Event.ATTEMPT_FAILED, "z", 1, {"error": "é 🦊", "retry_at_ms": 7})

    await store.write(work)
    events = await store.read(lambda reader: reader.events("e"))
    assert [(e.at_ms, e.type, e.node_id, e.attempt, e.data) for e in events] == [
        (NOW_MS + 5, Event.EXECUTION_STARTED, None, None, {}),
        (NOW_MS, Event.ATTEMPT_FAILED, "z", 1, {"error": "é 🦊", "retry_at_ms": 7}),
    ]
    assert [each.task_key for each in await store.read(lambda reader: reader.tasks("e"))] == ["z", "a"]


async def test_executions_under_way_at_once_have_each_its_own_story_and_lose_it_alone(store: Store) -> None:
    await add(store, *map(an_execution, "abc"))
    told: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for at_ms, execution_id in enumerate("abcabbacabca"):
        told[execution_id].append(at_ms)
        await store.write(lambda tx, x=execution_id, at_ms=at_ms: tx.add_event(x, at_ms, Event.ATTEMPT_STARTED))  # type: ignore[misc]

    async def stories() -> dict[str, list[int]]:
        def look(reader: Reader) -> dict[str, list[int]]:
            assert [reader.count_events(each) for each in "abc"] == [len(reader.events(each)) for each in "abc"]
            return {each: [event.at_ms for event in reader.events(each)] for each in "abc" if reader.events(each)}

        return await store.read(look)

    assert await stories() == told
    await store.write(lambda tx: tx.delete_execution("b"))
    del told["b"]
    assert await stories() == told
    await add(store, an_execution("b"))
    await store.write(lambda tx: tx.add_event("b", 20, Event.EXECUTION_STARTED))
    assert await stories() == told | {"b": [20]}


async def test_a_task_is_found_by_its_whole_key_alone(store: Store) -> None:
    def begin(tx: Transaction) -> list[str]:
        tx.add_execution(an_execution("e"))
        keys = [tx.new_task_key() for _ in range(3)]
        for key in keys:
            tx.add_task(a_task(key))
        return keys

    first, second, third = await store.write(begin)
    assert [each.task_key for each in await store.read(lambda reader: reader.tasks("e"))] == [first, second, third]
    assert (await claim(store)) == await task(store, first)
    number, _, random = first.partition("-")
    of_another = second.partition("-")[2]
    garbage = [
        "",
        "-",
        "x",
        number,
        f"{number}-",
        f"-{random}",
        random,
        f" {first}",
        f"+{first}",
        f"0{first}",
        f"{first} ",
    ]
    garbage += [f"{number}-{of_another}", f"{number}-{random.upper()}x", f"{'9' * 18}-{random}", f"{'9' * 19}-{random}"]
    garbage += [f"{'9' * 5_000}-{random}", f"٣-{random}", f"²-{random}", f"{first}\x00", f"{number}-{random}.1"]

    def misuse(tx: Transaction) -> None:
        for key in garbage:
            assert tx.task(key) is None, key
            assert tx.finish(key, 1, "{}") is None, key
            assert not tx.move_task(key, TaskStatus.CANCELLED), key
            tx.settle_failure(key, "why")

    await store.write(misuse)
    assert [each.status for each in await store.read(lambda reader: reader.tasks("e"))] == ["RUNNING", "READY", "READY"]
    assert await store.write(lambda tx: tx.finish(first, 2, "{}")) is None, "another attempt"
    finished = await store.write(lambda tx: tx.finish(first, 1, "{}"))
    assert finished is not None
    assert (finished.task_key, finished.status) == (first, TaskStatus.DONE)


async def test_no_two_tasks_have_one_key_also_when_the_store_was_opened_anew(
    backend: Callable[[Path], Store], tmp_path: Path
) -> None:
    def begin(tx: Transaction) -> str:
        key = tx.new_task_key()
        tx.add_execution(an_execution(f"of {key}"))
        tx.add_task(a_task(key, f"of {key}"))
        return key

    keys = []
    for _ in range(2):
        store = backend(tmp_path)
        keys += [await store.write(begin) for _ in range(2)]
        await store.write(lambda tx, last=keys[-1]: tx.delete_execution(f"of {last}"))  # type: ignore[misc]
        await store.close()
    assert len(set(keys)) == 4
    store = backend(tmp_path)
    found = await store.read(lambda reader: [reader.task(key) is not None for key in keys])
    assert found == [True, False, True, False]
    await store.close()


async def test_versions_of_a_workflow_are_listed_newest_first_with_what_they_run(store: Store) -> None:
    one, two = Workflow("w", "h", "{}", "NEW", NOW_MS), Workflow("w", "h2", "{}", "SAFE", NOW_MS - 5)
    await add(store, one, two, replace(one, workflow_id="v"), *(an_execution(each) for each in "abc"))
    await add(store, *(a_task(f"{each}1", each) for each in "abc"), a_task("a2", "a"))
    await store.write(lambda tx: tx.move_execution("c", ExecutionStatus.COMPLETED))
    await move(store, "c1", TaskStatus.DONE)

    def look(reader: Reader) -> None:
        assert reader.workflows("w") == [two, replace(one, active_executions=2)]
        assert reader.workflows("none") == []
        assert [each.workflow_id for each in reader.workflows("")] == ["v", "w", "w"], "of every workflow"
        assert reader.workflow("w", "h") == one
        assert reader.workflow("w", "") == two
        assert reader.workflow("w", "h3") is None
        assert reader.workflow_ids("h") == ["w", "v"]

    await store.read(look)


async def test_what_is_not_there_is_none(store: Store) -> None:
    def look(reader: Reader) -> None:
        assert reader.execution("e") is None
        assert reader.task("t") is None
        assert reader.tasks("e") == []
        assert reader.outputs("e") == {}
        assert reader.workflow("w", "") is None

    await store.read(look)


async def test_what_a_person_asks_who_wonders_what_is_wrong(store: Store) -> None:
    names = ("waits", "runs", "lost", "over", "unknown")
    await add(store, *map(an_execution, names))
    await add(store, *(a_task(f"t-{name}", name) for name in ("runs", "waits")))
    await add(store, a_task("t-lost", "lost")._replace(attempt=1))
    await add(store, a_task("later")._replace(execution_id="waits", available_at_ms=NOW_MS + 9_000))
    await add(store, a_task("a-person")._replace(execution_id="waits", node_type="HUMAN_APPROVAL"))
    assert (await claim(store, now_ms=NOW_MS + 1_000)) is not None
    lost = {"worker": "w", "error": "silent"}

    def work(tx: Transaction) -> None:
        tx.touch()
        tx.add_event("waits", NOW_MS + 500, Event.EXECUTION_STARTED)
        tx.add_event("lost", NOW_MS + 2_000, Event.LEASE_EXPIRED, "t-lost", 1, lost)
        tx.add_event("lost", NOW_MS + 2_000, Event.LEASE_EXPIRED, "t-lost", 1, lost | {"worker": "process-1-a"})
        tx.add_event("over", NOW_MS + 2_000, Event.LEASE_EXPIRED, "x", 1, lost)
        tx.add_event("runs", NOW_MS - 10**7, Event.LEASE_EXPIRED, "t-runs", 1, lost)
        tx.move_execution("over", ExecutionStatus.COMPLETED)
        tx.move_execution("unknown", ExecutionStatus.FAILED, error="?", error_code=ErrorCode.OUTCOME_UNKNOWN)

    await store.write(work)
    told = await store.inspect(NOW_MS + 4_000)
    database = told.pop("database")
    assert (database["damage"], database["size_bytes"] > 0, database["free_bytes"] != 0) == (None, True, True)
    assert told == {
        "executions": {"RUNNING": 3, "COMPLETED": 1, "UNKNOWN": 1},
        "held": {"worker": 1},
        "waiting": [
            {
                "workflow_id": "w",
                "version_hash": "h",
                "local": False,
                "tasks": 2,
                "execution_id": "waits",
                "since_ms": 3_500,
            }
        ],
        "running": [
            {
                "execution_id": "runs",
                "node_id": "t-runs",
                "attempt": 1,
                "worker_id": "worker",
                "silent_ms": 3_000,
                "lease_ms": LEASE_MS,
            }
        ],
        "expired": [
            {"execution_id": "lost", "node_id": "t-lost", "attempt": 1, "ago_ms": 2_000, "error": "silent"},
        ],
        "unknown": ["unknown"],
        "stopped": [],
    }


# What a session has stopped


async def add_ready(store: Store, *execution_ids: str) -> None:
    for execution_id in execution_ids:
        await add(store, an_execution(execution_id), a_task(execution_id, execution_id))


async def stop(store: Store, session_id: str, stop: Stop | None) -> None:
    await store.write(lambda tx: tx.set_stop(session_id, stop))


async def test_tasks_of_a_stopped_session_are_claimed_when_it_goes_on_in_their_order(store: Store) -> None:
    await add_ready(store, "s/1", "t/1", "s/2", "s0/1")
    await stop(store, "s", Stop(NOW_MS, "ann", ""))
    await add_ready(store, "s/late")  # as a node that follows one that happens once
    assert [getattr(await claim(store), "task_key", None) for _ in range(3)] == ["t/1", "s0/1", None]
    await stop(store, "s", None)
    assert [getattr(await claim(store), "task_key", None) for _ in range(4)] == ["s/1", "s/2", "s/late", None]


async def test_a_claim_takes_as_long_with_many_tasks_of_a_stopped_session_before_it_as_with_few(
    sqlite_store: SqliteStore,
) -> None:
    async def steps_with(stopped: int) -> int:
        await add_ready(sqlite_store, *(f"s/{stopped}/{n}" for n in range(stopped)))
        await stop(sqlite_store, "s", Stop(NOW_MS, "ann", ""))
        await add_ready(sqlite_store, f"t/{stopped}")
        return await steps_in(sqlite_store, lambda tx: tx.claim("h", ["w", "other"], "worker", LEASE_MS, NOW_MS))

    few, many = await steps_with(3), await steps_with(300)
    assert many < few * 1.5


# What a session has recorded


async def add_done(store: Store, execution_id: str, nodes: int = 1) -> None:
    """An execution that is COMPLETED, with so many tasks, each with an output of its own, and two events."""

    def work(tx: Transaction) -> None:
        tx.add_execution(an_execution(execution_id))
        tx.add_event(execution_id, NOW_MS, Event.EXECUTION_STARTED)
        for n in range(nodes):
            key = tx.new_task_key()
            tx.add_task(replace_task(key, execution_id, f"node-{n}"))
            tx.claim("h", ["w"], "worker", LEASE_MS, NOW_MS)
            tx.finish(key, 1, f'"{execution_id} {n}"')
        tx.move_execution(execution_id, ExecutionStatus.COMPLETED, ended_at_ms=NOW_MS + 5)
        tx.add_event(execution_id, NOW_MS + 5, Event.EXECUTION_COMPLETED, data={"of": execution_id})

    await store.write(work)


@pytest.mark.parametrize(
    "ask",
    [
        lambda tx: (tx.set_stop("s", Stop(NOW_MS, "ann", "")), tx.set_stop("s", None)),
        lambda tx: tx.executions("", ExecutionStatus.RUNNING, "s/", 10),
        lambda tx: tx.count_running("s/", 10),
        lambda tx: tx.workflows(""),
    ],
    ids=["stop and go", "executions", "count_running", "workflows"],
)
async def test_what_is_asked_of_those_that_run_takes_as_long_with_many_that_have_ended_as_with_few(
    sqlite_store: SqliteStore, ask: Callable[[Transaction], Any]
) -> None:
    await add(sqlite_store, Workflow("w", "h", "{}", "NEW", NOW_MS))
    key = await sqlite_store.write(lambda tx: tx.new_task_key())
    await add(sqlite_store, an_execution("s/runs", "other"), a_task(key, "s/runs", "other"))
    few = await steps_in(sqlite_store, ask)
    for number in range(300):
        await add_done(sqlite_store, f"s/{number}")
    assert await steps_in(sqlite_store, ask) < few + 300


async def test_a_task_that_was_cancelled_in_a_stopped_session_can_be_claimed_when_it_is_tried_again(
    store: Store,
) -> None:
    await add_ready(store, "s/1")
    await stop(store, "s", Stop(NOW_MS, "ann", ""))
    await move(store, "s/1", TaskStatus.CANCELLED)
    await stop(store, "s", None)
    await move(store, "s/1", TaskStatus.READY)
    assert getattr(await claim(store), "task_key", None) == "s/1"


def replace_task(key: str, execution_id: str, node_id: str) -> Task:
    return a_task(key, execution_id)._replace(node_id=node_id)


def copy(tx: Transaction, span: Span, to: str, at_ms: int = NOW_MS, data: Any = None) -> None:
    tx.add_session(to, at_ms)
    tx.copy(span.session_id, [order for order, _ in tx.ended(span)], to, at_ms, data or {})


def take_back(tx: Transaction, span: Span, to: str, stop: Stop) -> None:
    tx.take_back(span.session_id, tx.orders(span), to, stop)


async def test_a_fork_copies_tasks_of_several_nodes_in_their_order_with_keys_of_their_own(store: Store) -> None:
    await add_done(store, "s/b", nodes=3)
    await add_done(store, "t/between")
    await add_done(store, "s/a")
    await add_done(store, "s/late")
    end = await store.read(lambda reader: reader.order_of("s/late"))
    assert end is not None
    span = Span("s", 0, end)
    assert await store.read(lambda reader: reader.longest_id(span)) == len("s/a")
    await store.write(lambda tx: copy(tx, span, "copy", NOW_MS + 9, {"session_id": "s"}))

    def read(reader: Reader) -> Any:
        copies = [each.execution_id for each in reversed(reader.executions("", "", "copy/", 10))]
        keys = [task.task_key for name in ("copy/b", "copy/a", "s/b", "s/a") for task in reader.tasks(name)]
        return copies, keys, reader.outputs("copy/b"), reader.events("copy/a")

    copies, keys, outputs, events = await store.read(read)
    assert copies == ["copy/b", "copy/a"]
    assert len(set(keys)) == len(keys) == 8
    assert outputs == {f"node-{n}": f'"s/b {n}"' for n in range(3)}
    assert [(event.type, event.at_ms) for event in events] == [
        (Event.EXECUTION_STARTED, NOW_MS),
        (Event.EXECUTION_COMPLETED, NOW_MS + 5),
        (Event.EXECUTION_FORKED, NOW_MS + 9),
    ]
    assert [each.data for each in events[1:]] == [{"of": "s/a"}, {"session_id": "s"}]
    for key in keys:
        assert (await task(store, key)).task_key == key
    await add_done(store, "s/after", nodes=2)
    new = await store.read(lambda reader: [task.task_key for task in reader.tasks("s/after")])
    assert not set(new) & set(keys)
    assert await store.read(lambda reader: reader.first_session("copy")) == "s"


async def test_what_is_taken_back_has_its_tasks_and_events_under_its_new_id(store: Store) -> None:
    for name in ("s/a", "s/b", "s0/c", "s/d"):
        await add_done(store, name, nodes=2)
    first = await store.read(lambda reader: reader.order_of("s/b"))
    assert first is not None
    stop = Stop(NOW_MS + 9, "ann", "")
    await store.write(lambda tx: take_back(tx, Span("s", first, 1 << 60), "s~1", stop))

    def read(reader: Reader) -> Any:
        return [
            [each.execution_id for each in reversed(reader.executions("", "", prefix, 10))] for prefix in ("s/", "s~1/")
        ], [event.type for event in reader.events("s~1/d")]

    assert await store.read(read) == (
        [["s/a"], ["s~1/b", "s~1/d"]],
        [Event.EXECUTION_STARTED, Event.EXECUTION_COMPLETED, Event.EXECUTION_TAKEN_BACK],
    )
    assert await store.read(lambda reader: reader.outputs("s~1/b")) == {"node-0": '"s/b 0"', "node-1": '"s/b 1"'}
    assert await store.read(lambda reader: reader.taken_back("s")) == ["s~1"]
    assert await store.read(lambda reader: (reader.stop_of("s~1"), reader.stop_of("s"))) == (stop, None)


async def test_a_fork_or_a_taking_back_that_raises_leaves_nothing(store: Store) -> None:
    await add_done(store, "s/a")

    def work(tx: Transaction) -> None:
        copy(tx, Span("s", 0, 1 << 60), "copy")
        take_back(tx, Span("s", 0, 1 << 60), "s~1", Stop(NOW_MS, "", ""))
        raise NotFound("on purpose")

    others = [add(store, an_execution(f"e{n}")) for n in range(3)]  # in the same commit
    found = await asyncio.gather(store.write(work), *others, return_exceptions=True)
    assert isinstance(found[0], NotFound)
    assert sorted(await stored(store)) == ["e0", "e1", "e2", "s/a"]
    assert await store.read(lambda reader: reader.outputs("s/a")) == {"node-0": '"s/a 0"'}


@pytest.mark.parametrize("what", ["fork", "take_back", "under_way", "turns", "again", "longest_id"])
async def test_what_a_session_is_asked_takes_as_long_with_many_others_as_with_few(tmp_path: Path, what: str) -> None:
    span = Span("s", 0, 1 << 60)
    asked: dict[str, Callable[[Transaction], Any]] = {
        "fork": lambda tx: copy(tx, span, "copy"),
        "take_back": lambda tx: take_back(tx, span, "s~1", Stop(NOW_MS, "", "")),
        "under_way": lambda tx: tx.under_way(span),
        "turns": lambda tx: tx.turns("s"),
        "again": lambda tx: tx.would_happen_again(tx.orders(span)),
        "longest_id": lambda tx: tx.longest_id(span),
    }
    few, many = [await steps_of(asked[what], tmp_path / f"{others}.db", others) for others in (5, 500)]
    assert many < few * 1.5


async def steps_of(work: Callable[[Transaction], Any], path: Path, others: int) -> int:
    """How many steps SQLite takes for this with a session of two executions, beside those of other sessions."""
    store = SqliteStore(path)
    for name in ("s/a", *(f"{'rt'[n % 2]}/{n}" for n in range(others)), "s/b"):
        await add_done(store, name)
    steps = await steps_in(store, work)
    await store.close()
    return steps


async def steps_in(store: SqliteStore, work: Callable[[Transaction], Any]) -> int:
    """How many steps SQLite takes for this."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def counted(tx: Transaction) -> None:
        store._write_connection.set_progress_handler(count, 1)
        work(tx)
        store._write_connection.set_progress_handler(None, 1)

    await store.write(counted)
    assert steps
    return steps


# Life and death


async def test_what_was_stored_is_there_when_it_is_opened_again(
    backend: Callable[[Path], Store], tmp_path: Path
) -> None:
    store = backend(tmp_path)
    await add(store, Workflow("w", "h", "{}", "NEW", NOW_MS), an_execution("e"), a_task("t"))
    claimed = await claim(store)
    await store.close()

    store = backend(tmp_path)
    assert await task(store, "t") == claimed
    assert await store.read(lambda reader: reader.execution("e")) == an_execution("e")
    await store.close()


async def test_what_was_committed_is_there_after_sigkill(tmp_path: Path) -> None:
    writer = Process(
        [sys.executable, __file__, str(tmp_path / "store.db"), "1", "100000"],
        tmp_path / "writer.log",
        env=environment(PYTHONPATH=TESTS),
    )
    writer.start()
    await writer.says(r"(?m)^committed 200$")
    writer.kill()
    acknowledged = writer.output.count("committed")

    store = SqliteStore(tmp_path / "store.db")
    found = await store.read(lambda reader: reader.executions("", "", "", 100_000))
    await store.close()
    names = [execution.execution_id for execution in reversed(found)]
    assert names == [f"e{i}" for i in range(len(names))]
    assert acknowledged <= len(names) <= acknowledged + 1


async def test_every_commit_is_synced(tmp_path: Path) -> None:
    """No test can pull the plug; so ask SQLite whether it waits for the disk."""
    store = SqliteStore(tmp_path / "store.db")
    ask = store._write_connection.execute
    assert ask("PRAGMA synchronous").fetchone() == (2,), "FULL"
    assert ask("PRAGMA journal_mode").fetchone() == ("wal",)
    await store.close()


async def test_a_second_store_on_the_same_file_is_refused_naming_the_file_and_the_process(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    first = SqliteStore(path)
    for _ in range(2):
        with pytest.raises(StoreUnavailable) as refused:
            SqliteStore(path)
        assert str(refused.value) == (
            f"The database {path} is in use by process {os.getpid()}, which runs the engine for it. "
            "Stop that one, or name another file: NEXUM_DATABASE_URL=sqlite:///PATH, or nexum dev --db PATH."
        )
    await add(first, an_execution("e"))
    await first.close()
    second = SqliteStore(path)
    assert await second.read(lambda reader: reader.execution("e")) == an_execution("e")
    await second.close()


@pytest.mark.parametrize("link_to", ["file", "folder"])
async def test_a_link_to_the_file_is_still_the_same_file(tmp_path: Path, link_to: str) -> None:
    (tmp_path / "real").mkdir()
    store = SqliteStore(tmp_path / "real" / "store.db")
    if link_to == "file":
        (tmp_path / "link.db").symlink_to(tmp_path / "real" / "store.db")
        other = tmp_path / "link.db"
    else:
        (tmp_path / "link").symlink_to(tmp_path / "real")
        other = tmp_path / "link" / "store.db"
    try:
        with pytest.raises(StoreUnavailable, match="is in use by process"):
            await SqliteStore(other).close()
    finally:
        await store.close()


def test_a_database_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "books.db"
    with sqlite3.connect(path) as books:
        books.execute("CREATE TABLE books (title TEXT)")
    books.close()
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable) as refused:
        SqliteStore(path)
    assert str(refused.value).startswith(f"{path} is a database of another program: it has books. Give Nexum a file")
    assert path.read_bytes() == before


async def test_a_database_of_a_later_nexum_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    await add(store, an_execution("e"))
    await store.close()
    with sqlite3.connect(path) as later:
        later.execute("PRAGMA user_version = 99")
    later.close()
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable) as refused:
        SqliteStore(path)
    assert str(refused.value) == (
        f"{path} has schema version 99, and this Nexum knows versions up to 7. "
        "Use the Nexum that wrote it, or another file: NEXUM_DATABASE_URL=sqlite:///PATH, or nexum dev --db PATH."
    )
    assert path.read_bytes() == before


def test_a_refused_file_can_be_opened_once_it_is_put_right(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_text("Dear diary, " * 1_000)
    with pytest.raises(StoreUnavailable):
        SqliteStore(path)
    path.unlink()
    asyncio.run(SqliteStore(path).close())


async def test_the_folder_it_makes_is_for_its_owner_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "new" / "store.db")
    finally:
        os.umask(umask)
    await store.close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


async def test_a_full_disk_is_told_and_nothing_is_kept_of_the_write(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    pages = store._write_connection.execute("PRAGMA page_count").fetchone()[0]
    store._write_connection.execute(f"PRAGMA max_page_count = {pages + 4}")

    def work(tx: Transaction) -> None:
        tx.add_execution(an_execution("small"))
        tx.add_execution(an_execution("big")._replace(input_json="x" * 1_000_000))

    with pytest.raises(StoreUnavailable, match=f"Cannot use the database {store.path}: database or disk is full"):
        await store.write(work)
    assert await store.read(lambda reader: reader.executions("", "", "", 10)) == []
    store._write_connection.execute("PRAGMA max_page_count = 1000000")
    await store.write(work)
    assert len(await store.read(lambda reader: reader.executions("", "", "", 10))) == 2
    await store.close()


async def test_a_reader_of_the_file_beside_the_server_is_no_trouble(tmp_path: Path) -> None:
    """A person looks into the database with the sqlite3 shell while the server writes."""
    store = SqliteStore(tmp_path / "store.db")
    await add(store, an_execution("e"))
    shell = sqlite3.connect(store.path)
    shell.execute("BEGIN")
    assert shell.execute("SELECT execution_id FROM executions").fetchall() == [("e",)]
    await add(store, an_execution("f"))
    shell.execute("COMMIT")
    assert shell.execute("SELECT count(*) FROM executions").fetchone() == (2,)
    shell.close()
    await store.close()


# One commit for many writes


async def together(store: SqliteStore, *works: Callable[[Transaction], Any]) -> "list[asyncio.Task[Any]]":
    """Writes that share one commit, all settled."""
    async with store._turn:
        writes = [asyncio.create_task(store.write(work)) for work in works]
        await asyncio.sleep(0)  # each is in line now
    await asyncio.wait(writes)
    return writes


def adds(execution_id: str, input_json: str = "{}") -> Callable[[Transaction], str]:
    def work(tx: Transaction) -> str:
        tx.add_execution(an_execution(execution_id)._replace(input_json=input_json))
        return execution_id

    return work


async def stored(store: Store) -> list[str]:
    found = await store.read(lambda reader: reader.executions("", "", "", 10_000))
    return [execution.execution_id for execution in reversed(found)]


class Faulty:
    """The connection, but for one statement that fails once."""

    def __init__(self, connection: Any, statement: str) -> None:
        self._connection = connection
        self._failing = {statement}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: str, *parameters: Any) -> Any:
        if statement in self._failing:
            self._failing.remove(statement)
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(statement, *parameters)


@pytest.fixture
async def sqlite_store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "store.db")
    yield store
    await store.close()


async def test_of_writes_that_share_a_commit_each_is_whole_or_not_at_all(sqlite_store: SqliteStore) -> None:
    def half(tx: Transaction) -> None:
        adds("half")(tx)
        raise LookupError("on second thoughts")

    def refused(tx: Transaction) -> None:
        adds("refused")(tx)
        adds("a")(tx)

    writes = await together(sqlite_store, adds("a"), half, adds("b"), refused, adds("c"))
    told = [write.exception() or write.result() for write in writes]
    assert [told[0], told[2], told[4]] == ["a", "b", "c"]
    assert isinstance(told[1], LookupError)
    assert isinstance(told[3], StoreUnavailable)
    assert await stored(sqlite_store) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "statement", ["BEGIN IMMEDIATE", "SAVEPOINT work", "RELEASE work", "COMMIT"], ids=lambda each: each.lower()
)
async def test_a_group_that_cannot_be_committed_is_told_to_everyone_in_it_and_leaves_nothing(
    sqlite_store: SqliteStore, statement: str
) -> None:
    store, connection = sqlite_store, sqlite_store._write_connection
    store._write_connection = cast(sqlite3.Connection, Faulty(connection, statement))
    writes = await together(store, adds("a"), adds("b"), adds("c"))
    told = [write.exception() for write in writes]
    assert [str(error).partition(". ")[0] for error in told] == [
        f"Cannot use the database {store.path}: disk I/O error"
    ] * 3
    assert await stored(store) == []
    assert not connection.in_transaction, "nothing is left open that would keep others from writing"
    assert await store.write(adds("next")) == "next"
    assert await stored(store) == ["next"]


@pytest.mark.parametrize("statement", ["ROLLBACK TO work", "ROLLBACK"], ids=["of one", "of all"])
async def test_what_could_not_be_rolled_back_is_not_committed_with_what_comes_next(
    sqlite_store: SqliteStore, statement: str
) -> None:
    def half(tx: Transaction) -> None:
        adds("half")(tx)
        raise LookupError("on second thoughts")

    store, connection = sqlite_store, sqlite_store._write_connection
    faulty = Faulty(connection, statement)
    if statement == "ROLLBACK":
        faulty = Faulty(faulty, "COMMIT")
    store._write_connection = cast(sqlite3.Connection, faulty)
    writes = await together(store, half, adds("a"))
    assert [type(write.exception()) for write in writes] == (
        [StoreUnavailable] * 2 if statement != "ROLLBACK" else [LookupError, StoreUnavailable]
    )
    assert await store.write(adds("next")) == "next"
    assert await stored(store) == ["next"]


async def test_a_read_sees_nothing_of_a_write_under_way(sqlite_store: SqliteStore) -> None:
    go = threading.Event()
    hold_commits(sqlite_store, go)
    executed = asyncio.Event()

    def noted() -> bool:
        executed.set()
        return False

    writing = sqlite_store.begin_write(adds("a"), executed=noted)
    await executed.wait()
    assert await stored(sqlite_store) == []
    go.set()
    assert await writing == "a", "the read waited for the write"
    assert await stored(sqlite_store) == ["a"]


async def test_a_write_that_was_given_up_while_it_waited_is_not_made(sqlite_store: SqliteStore) -> None:
    async with sqlite_store._turn:
        given_up = asyncio.ensure_future(sqlite_store.write(adds("given up")))
        await asyncio.sleep(0)
        given_up.cancel()
        writing = asyncio.ensure_future(sqlite_store.write(adds("a")))
    assert await writing == "a"
    assert given_up.cancelled()
    assert await stored(sqlite_store) == ["a"]


async def test_who_leaves_while_the_file_is_made_smaller_lets_no_write_come_between(sqlite_store: SqliteStore) -> None:
    begun, released = threading.Event(), threading.Event()

    def compact() -> None:
        begun.set()
        assert released.wait(PATIENCE_SECONDS)

    compacting = asyncio.create_task(sqlite_store._on_disk(compact))
    await eventually(begun.is_set)
    compacting.cancel()
    await asyncio.wait({compacting})
    sqlite_store._disk_is_quick = True  # then a commit needs no thread
    writing = sqlite_store.begin_write(adds("a"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not writing.done()
    released.set()
    assert await writing == "a"


async def test_a_write_that_was_given_up_while_it_was_made_is_whole(sqlite_store: SqliteStore) -> None:
    settled: list[Any] = []

    def give_up() -> bool:
        given_up.cancel()
        return False

    given_up = sqlite_store.begin_write(adds("a"), executed=give_up, settled=settled.append)
    await asyncio.sleep(0)  # it is in line now
    assert await sqlite_store.write(adds("b")) == "b"
    assert given_up.cancelled()
    assert settled == [None]
    assert await stored(sqlite_store) == ["a", "b"]


async def test_a_write_lock_that_another_program_has_is_waited_for_and_holds_up_nobody(
    sqlite_store: SqliteStore,
) -> None:
    with closing(sqlite3.connect(sqlite_store.path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        writing = asyncio.ensure_future(sqlite_store.write(adds("a")))
        await asyncio.sleep(3 * BUSY_LOOK_MS / 1000)  # the event loop goes on
        assert await stored(sqlite_store) == []
        assert not writing.done()
        shell.execute("COMMIT")
    assert await writing == "a"


async def test_writes_that_wait_when_the_store_is_closed_are_made_and_told(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    names = [f"e{i}" for i in range(2 * GROUP_LIMIT + 1)]
    async with store._turn:
        writes = [asyncio.ensure_future(store.write(adds(name))) for name in names]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(store.close())
        await asyncio.sleep(0)
    await closing
    assert [write.result() for write in writes] == names
    store = SqliteStore(tmp_path / "store.db")
    assert await stored(store) == names
    await store.close()


async def test_a_group_has_its_limit_and_whoever_is_beyond_it_has_the_next(sqlite_store: SqliteStore) -> None:
    commits: list[str] = []
    sqlite_store._write_connection.set_trace_callback(commits.append)
    names = [f"e{i}" for i in range(2 * GROUP_LIMIT + 1)]
    writes = await together(sqlite_store, *(adds(name) for name in names))
    assert [write.result() for write in writes] == names
    assert await stored(sqlite_store) == names
    assert commits.count("COMMIT") == 3


async def test_a_group_that_is_killed_before_its_commit_leaves_nothing_and_was_told_to_nobody(tmp_path: Path) -> None:
    environ = environment(NEXUM_CRASH_AT="in-commit:30", PYTHONPATH=TESTS)
    writer = Process(
        [sys.executable, __file__, str(tmp_path / "store.db"), "20", "5"], tmp_path / "writer.log", env=environ
    )
    writer.start()
    assert await writer.ended() == -signal.SIGKILL
    acknowledged = re.findall(r"(?m)^committed (\d+)$", writer.output)
    store = SqliteStore(tmp_path / "store.db")
    found = await stored(store)
    await store.close()
    assert {f"e{number}" for number in acknowledged} <= set(found)
    assert len(found) < 30, "what was applied and not committed is gone"


@pytest.mark.skipif(shutil.which("strace") is None, reason="nothing here counts a process's syncs")
async def test_fifty_writes_at_once_share_few_syncs_and_a_write_alone_has_its_own(tmp_path: Path) -> None:
    syncs = []
    for name, at_once, rounds in (("none", 0, 0), ("together", 50, 1), ("one by one", 1, 50)):
        trace = tmp_path / f"{name}.trace"
        program = [sys.executable, __file__, str(tmp_path / f"{name}.db"), str(at_once), str(rounds)]
        finished = await run(
            "strace", "-f", "-e", "trace=fsync,fdatasync", "-o", trace, *program, env=environment(PYTHONPATH=TESTS)
        )
        if finished.code:
            pytest.skip("no process can be traced here")
        assert finished.stdout.count("committed") == at_once * rounds
        syncs.append(len(re.findall(r"f(?:data)?sync\(", trace.read_text())))
    none, together, one_by_one = syncs
    assert none < together <= none + 5
    assert one_by_one >= none + 50


# What needs no worker


def waiting(key: str, node_type: str, available_at_ms: int = 0) -> Task:
    return a_task(key)._replace(node_type=node_type, status=TaskStatus.WAITING, available_at_ms=available_at_ms)


async def test_what_waits_for_a_person_or_the_time_is_no_work_for_anybody(store: Store) -> None:
    await add(store, an_execution("e"), waiting("ask", "HUMAN_APPROVAL"), waiting("nap", "TIMER", NOW_MS - 1))
    assert await claim(store) is None
    await store.write(lambda tx: tx.restart_clock(NOW_MS, 0))
    assert (await task(store, "nap")).available_at_ms == NOW_MS - 1


async def test_an_execution_that_waits_for_a_person_is_found_among_those_that_run(store: Store) -> None:
    await add(store, Workflow("w", "h", "{}", "NEW", NOW_MS), an_execution("e"), waiting("ask", "HUMAN_APPROVAL"))
    assert await store.read(lambda reader: reader.count_running("e", 9)) == 1
    assert await store.read(lambda reader: reader.executions("", "RUNNING", "", 9)) == [an_execution("e")]
    (workflow,) = await store.read(lambda reader: reader.workflows("w"))
    assert workflow.active_executions == 1


async def test_timers_are_found_in_the_order_in_which_they_fire(store: Store) -> None:
    assert await store.read(lambda reader: reader.next_timer()) is None
    await add(store, an_execution("e"), a_task("t"), waiting("ask", "HUMAN_APPROVAL"))
    assert await store.read(lambda reader: reader.next_timer()) is None
    for key, after_ms in (("late", 30), ("soon", 10), ("then", 20)):
        await add(store, waiting(key, "TIMER", NOW_MS + after_ms))
    assert await store.read(lambda reader: reader.next_timer()) == NOW_MS + 10

    async def due(now_ms: int, limit: int = 9) -> list[str]:
        return [each.task_key for each in await store.read(lambda reader: reader.due(now_ms, limit))]

    assert await due(NOW_MS + 9) == []
    assert await due(NOW_MS + 10) == ["soon"]
    assert await due(NOW_MS + 30) == ["soon", "then", "late"]
    assert await due(NOW_MS + 30, limit=2) == ["soon", "then"]
    await move(store, "soon", TaskStatus.DONE)
    assert await store.read(lambda reader: reader.next_timer()) == NOW_MS + 20


async def test_an_approval_is_due_at_its_deadline_as_a_timer_is_and_without_one_never(store: Store) -> None:
    await add(store, an_execution("e"), waiting("open", "HUMAN_APPROVAL"), waiting("nap", "TIMER", NOW_MS + 20))
    assert await store.read(lambda reader: reader.next_timer()) == NOW_MS + 20
    await add(store, waiting("asked", "HUMAN_APPROVAL", NOW_MS + 10))
    assert await store.read(lambda reader: reader.next_timer()) == NOW_MS + 10
    due = await store.read(lambda reader: reader.due(NOW_MS + 20, 9))
    assert [each.task_key for each in due] == ["asked", "nap"]


async def test_approvals_are_listed_from_when_they_were_last_asked_for(store: Store) -> None:
    await add(store, an_execution("e"), waiting("nap", "TIMER"), a_task("t"))
    for key, asked_ms in (("first", (10, 40)), ("second", (20,)), ("third", (30,)), ("answered", (5,))):
        await add(store, waiting(key, "HUMAN_APPROVAL"))
        for at_ms in asked_ms:
            await store.write(lambda tx, k=key, at=at_ms: tx.add_event("e", at, Event.APPROVAL_REQUESTED, k))  # type: ignore[misc]
    await store.write(lambda tx: tx.add_event("e", 90, Event.TASK_REJECTED, "second"))
    await move(store, "answered", TaskStatus.DONE)
    expected = [Approval("e", "second", "w", 20), Approval("e", "third", "w", 30), Approval("e", "first", "w", 40)]
    assert await store.read(lambda reader: reader.approvals(9)) == expected
    assert await store.read(lambda reader: reader.approvals(1)) == expected[:1]


@pytest.mark.parametrize("joining", [["half"], ["again"], ["half", "again", "sound"]])
async def test_what_joins_a_commit_that_has_begun_is_whole_or_not_at_all(
    sqlite_store: SqliteStore, joining: list[str]
) -> None:
    """The first was alone, and nobody waits for it."""

    def half(tx: Transaction) -> None:
        adds("half")(tx)
        assert tx.execution("half") is not None
        adds("second half")(tx)
        raise LookupError("on second thoughts")

    def again(tx: Transaction) -> None:
        adds("again")(tx)
        adds("a")(tx)

    works: dict[str, tuple[Callable[[Transaction], Any], type]] = {
        "half": (half, LookupError),
        "again": (again, StoreUnavailable),
        "sound": (adds("sound"), str),
    }
    joined: list[asyncio.Future[Any]] = []

    def executed() -> bool:
        joined.extend(sqlite_store.begin_write(works[name][0]) for name in joining)
        return True

    assert await sqlite_store.begin_write(adds("a"), executed=executed, is_patient=True) == "a"
    told = await asyncio.gather(*joined, return_exceptions=True)
    assert [type(each) for each in told] == [works[name][1] for name in joining]
    assert await stored(sqlite_store) == ["a", *(name for name in joining if name == "sound")]


async def test_what_was_begun_is_found_by_who_reads_at_once_though_its_commit_has_time(
    sqlite_store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.server.store.sqlite.store.PATIENCE_MS", 10 * PATIENCE_SECONDS * 1000)
    go, begun = threading.Event(), asyncio.Event()
    hold_commits(sqlite_store, go)

    def executed() -> bool:
        begun.set()
        return True

    writing = sqlite_store.begin_write(adds("a"), executed=executed, is_patient=True)
    await begun.wait()
    reading = asyncio.create_task(stored(sqlite_store))
    await eventually(lambda: sqlite_store._disk._work_queue.qsize(), "the commit")
    go.set()
    assert await reading == ["a"]
    assert await writing == "a"


@pytest.mark.parametrize("fails", ["in the work", "at its end"])
async def test_a_write_that_is_alone_and_fails_leaves_nothing_and_is_told_once(
    sqlite_store: SqliteStore, fails: str
) -> None:
    await sqlite_store.write(adds("a"))
    told: list[BaseException | None] = []

    def work(tx: Transaction) -> None:
        adds("half")(tx)
        assert tx.execution("half") is not None
        tx.add_event("half", NOW_MS, Event.EXECUTION_STARTED)
        adds("a")(tx)
        if fails == "in the work":
            raise LookupError("on second thoughts")

    expected = LookupError if fails == "in the work" else StoreUnavailable
    with pytest.raises(expected):
        await sqlite_store.begin_write(work, executed=lambda: False, settled=told.append)
    assert [type(error) for error in told] == [expected]
    assert await sqlite_store.write(lambda tx: tx.execution("half")) is None
    assert await sqlite_store.write(adds("b")) == "b"
    assert await stored(sqlite_store) == ["a", "b"]
    assert await sqlite_store.read(lambda reader: reader.count_events("half")) == 0


# Space


async def test_compacting_gives_the_space_of_what_was_deleted_back_to_the_disk(sqlite_store: SqliteStore) -> None:
    for i in range(4):
        await sqlite_store.write(adds(f"e{i}", "x" * 3_000_000))
    await sqlite_store.compact()
    full_bytes = sqlite_store.path.stat().st_size
    assert full_bytes > 12_000_000
    for i in range(4):
        await sqlite_store.write(lambda tx, i=i: tx.delete_execution(f"e{i}"))  # type: ignore[misc]
    given_back = await sqlite_store.compact()
    assert sqlite_store.path.stat().st_size == full_bytes - given_back < 200_000
    assert Path(f"{sqlite_store.path}-wal").stat().st_size == 0


# Schema versions


def old_database(path: Path, version: int = 1) -> Path:
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("PRAGMA journal_mode = WAL")
        old.executescript((Path(__file__).parent / "schema_1.sql").read_text(encoding="utf-8"))
        for before in range(1, version):
            old.executescript(f"{MIGRATIONS[before]} PRAGMA user_version = {before + 1};")
    return path


OLD_VERSIONS = range(1, SCHEMA_VERSION)


def schema(path: Path) -> dict[str, Any]:
    """Every table and index: its SQL without comments and spaces, and what SQLite makes of it."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute(
            "SELECT name, type, sql FROM sqlite_master WHERE name <> 'sqlite_sequence' ORDER BY name"
        ).fetchall()
        return {
            name: (
                re.sub(r"\s", "", re.sub(r"--.*", "", sql or "")),
                database.execute(f"PRAGMA {type}_xinfo({name})").fetchall(),
                database.execute(f"PRAGMA {type}_list({name})").fetchall(),
            )
            for name, type, sql in rows
        } | {"user_version": database.execute("PRAGMA user_version").fetchone()}


@pytest.mark.parametrize("version", OLD_VERSIONS)
async def test_an_old_database_goes_on_where_it_was(tmp_path: Path, version: int) -> None:
    store = SqliteStore(old_database(tmp_path / "store.db", version))
    engine = Engine(store)
    await engine.restart_clock()
    assert (await engine.snapshot("s/done")).outputs == {"run": '{"text":"kept"}'}
    claimed = await engine.poll("worker-2", "h", ["w"], LEASE_MS)
    assert claimed is not None
    assert claimed.task.execution_id == "s/ready"
    assert await engine.complete(claimed.task.task_id, '{"text":"new"}') == ""
    with pytest.raises(NotFound):
        await engine.complete("2-018bcfe5680112d687.1", "{}")
    of_the_worker_that_had_it = "018bcfe5680112d687.1"
    assert await engine.complete(of_the_worker_that_had_it, '{"text":"late"}') == ""
    assert (await engine.snapshot("s/claimed")).outputs == {"run": '{"text":"late"}'}
    for name in ("s/ready", "s/claimed", "s/done"):
        snapshot, events = await engine.history(name)
        assert snapshot.execution.status == "COMPLETED"
        assert (snapshot.execution.effect, snapshot.execution.timeout_ms) == ("idempotent", None)
        assert [event.type for event in events] == [
            Event.EXECUTION_STARTED,
            Event.ATTEMPT_STARTED,
            Event.TASK_COMPLETED,
            Event.EXECUTION_COMPLETED,
        ]
    new = await engine.start(StartOrder("w", "h", "{}", "s/new"))
    assert new.before == "NEW"
    (added,) = await store.read(lambda reader: reader.tasks("s/new"))
    assert added.task_key.startswith("4-")
    await store.close()


@pytest.mark.parametrize("version", OLD_VERSIONS)
async def test_a_migrated_database_has_the_schema_of_a_new_one(tmp_path: Path, version: int) -> None:
    await SqliteStore(old_database(tmp_path / "old.db", version)).close()
    await SqliteStore(tmp_path / "new.db").close()
    assert schema(tmp_path / "old.db") == schema(tmp_path / "new.db")


async def test_an_old_database_gives_space_back_too(tmp_path: Path) -> None:
    store = SqliteStore(old_database(tmp_path / "store.db"))
    await store.write(adds("big", "x" * 3_000_000))
    await store.write(lambda tx: tx.delete_execution("big"))
    for _ in range(2):  # the first time it is written anew, and from then on page by page
        await store.compact()
        assert store.path.stat().st_size < 200_000
        await store.write(adds("big", "x" * 3_000_000))
        await store.write(lambda tx: tx.delete_execution("big"))
    assert await stored(store) == ["s/ready", "s/claimed", "s/done"]
    await store.close()


@pytest.mark.parametrize("version", OLD_VERSIONS)
async def test_a_migration_that_is_killed_in_the_middle_has_not_begun(tmp_path: Path, version: int) -> None:
    path = old_database(tmp_path / "store.db", version)
    before = schema(path)
    migration = Process(
        [sys.executable, __file__, "kill-in-migration", str(path)],
        tmp_path / "migration.log",
        env=environment(PYTHONPATH=TESTS),
    )
    migration.start()
    assert await migration.ended() == -signal.SIGKILL, migration.output
    assert schema(path) == before
    await SqliteStore(path).close()
    assert schema(path) != before


def test_a_migration_that_fails_in_the_middle_has_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_database(tmp_path / "store.db")
    before = schema(path)
    fills = "CREATE TABLE filler (x); PRAGMA max_page_count = 30; INSERT INTO filler VALUES (zeroblob(1000000));"
    with monkeypatch.context() as patch:
        patch.setitem(MIGRATIONS, 1, MIGRATIONS[1] + fills)
        with pytest.raises(StoreUnavailable, match=f"Cannot use the database {path}: database or disk is full. Make"):
            SqliteStore(path)
    assert schema(path) == before
    asyncio.run(SqliteStore(path).close())
    assert schema(path)["user_version"] == (SCHEMA_VERSION,)


def test_a_version_without_a_migration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_database(tmp_path / "store.db")
    monkeypatch.delitem(MIGRATIONS, 1)
    with pytest.raises(StoreUnavailable, match="has schema version 1, and this Nexum knows"):
        SqliteStore(path)


def kill_in_migration(path: Path) -> None:
    connect: Callable[..., sqlite3.Connection] = sqlite3.connect

    def die(statement: str) -> None:
        if statement.lstrip().startswith("PRAGMA user_version = "):  # the tables have been altered
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*args, **options)
        connection.set_trace_callback(die)
        return connection

    vars(sqlite3)["connect"] = traced
    SqliteStore(path)


async def commit(path: Path, at_once: int, rounds: int) -> None:
    """Print each write when it is acknowledged."""
    store = SqliteStore(path)

    async def one(number: int) -> None:
        await add(store, an_execution(f"e{number}"))
        print("committed", number, flush=True)

    for i in range(rounds):
        await asyncio.gather(*(one(i * at_once + j) for j in range(at_once)))
    await store.close()


if __name__ == "__main__":
    if sys.argv[1] == "kill-in-migration":
        kill_in_migration(Path(sys.argv[2]))
    else:
        asyncio.run(commit(Path(sys.argv[1]), at_once=int(sys.argv[2]), rounds=int(sys.argv[3])))
