"""What every store keeps of items and children, and that an older PostgreSQL database gets their columns."""

from collections.abc import AsyncIterator
from pathlib import Path

import postgres
import psycopg
import pytest
from backends import BACKENDS
from test_store import LEASE_MS, NOW_MS, a_task, add, an_execution, claim, move, task

from nexum_runtime.server.model.contract import Execution, Store, Task, Transaction, Workflow
from nexum_runtime.server.model.states import ErrorCode, ExecutionStatus, TaskStatus
from nexum_runtime.server.store.postgres.place import place_of
from nexum_runtime.server.store.postgres.store import PostgresStore


@pytest.fixture(params=list(BACKENDS))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened = BACKENDS[request.param](tmp_path)
    yield opened
    await opened.close()


def an_item(index: int, of: str = "m", parts: int = 3) -> Task:
    key = f"{of}__{index}"
    return a_task(key)._replace(node_type="MAP_SUBTASK", part=index, parts=parts)


def a_child(execution_id: str, node: str) -> Execution:
    return an_execution(execution_id)._replace(parent_node=node)


async def fill(store: Store, count: int = 3) -> None:
    whole = a_task("m")._replace(node_type="MAP", status=TaskStatus.WAITING)
    await add(store, Workflow("w", "h", "{}", "NEW", NOW_MS), an_execution("e"), whole)

    def add_items(tx: Transaction) -> None:
        for index in range(count):
            tx.add_task(an_item(index), f'{{"n":{index}}}')
        tx.wait_for_items("m", count)

    await store.write(add_items)


async def test_an_item_is_kept_with_its_task_and_the_outputs_are_in_their_order(store: Store) -> None:
    await fill(store, 12)
    assert await store.read(lambda reader: reader.item("m__11")) == '{"n":11}'
    for index in reversed(range(12)):
        await move(store, f"m__{index}", TaskStatus.DONE, str(index))
    await add(store, a_task("m__x__0")._replace(node_type="MAP_SUBTASK", part=0, parts=1))
    await move(store, "m__x__0", TaskStatus.DONE, '"of another"')
    assert await store.read(lambda reader: reader.item_outputs("e", "m")) == [str(index) for index in range(12)]


async def test_outputs_are_of_nodes_and_not_of_items(store: Store) -> None:
    await fill(store)
    await add(store, a_task("a"), a_task("b"))
    for key in ("a", "b", "m__0"):
        await move(store, key, TaskStatus.DONE, "1")
    assert await store.read(lambda reader: reader.outputs("e")) == {"a": "1", "b": "1"}
    assert await store.read(lambda reader: reader.outputs("e", ["b", "m"])) == {"b": "1"}
    assert await store.read(lambda reader: reader.outputs("e", ())) == {}
    await store.write(lambda tx: tx.move_execution("e", ExecutionStatus.COMPLETED))
    journal, _ = await store.read(lambda reader: reader.journal("e", "", 1_000))
    assert journal == {"e": {"a": "1", "b": "1"}}


async def test_items_are_counted_on_their_maps_own_row(store: Store) -> None:
    await fill(store)
    counted = [await store.write(lambda tx: tx.count_item("e", "m")) for _ in range(3)]
    assert [(each.part, each.parts) for each in counted if each] == [(1, 3), (2, 3), (3, 3)]
    assert await store.write(lambda tx: tx.count_item("e", "m__0")) is None, "that is no MAP"
    found = await store.read(lambda reader: reader.node_task("e", "m"))
    assert found == await task(store, "m")
    assert await store.read(lambda reader: reader.node_task("e", "ghost")) is None


async def test_who_claims_without_items_gets_other_tasks_and_can_see_that_there_are_some(store: Store) -> None:
    await fill(store)
    await add(store, a_task("a"))
    first = await store.write(lambda tx: tx.claim("h", ("w",), "stock", LEASE_MS, NOW_MS, with_items=False))
    assert first is not None
    assert first.node_id == "a"
    assert await store.write(lambda tx: tx.claim("h", ("w",), "stock", LEASE_MS, NOW_MS, with_items=False)) is None
    assert await store.read(lambda reader: reader.ready_item("h", ("w",))) == "e"
    assert await store.read(lambda reader: reader.ready_item("h", ("other",))) is None
    for index in range(3):
        claimed = await claim(store)
        assert claimed is not None
        assert (claimed.node_id, claimed.part, claimed.parts) == (f"m__{index}", index, 3)
    assert await store.read(lambda reader: reader.ready_item("h", ("w",))) is None


@pytest.mark.parametrize("node_type", ["ROUTER", "MAP", "SUBWORKFLOW"])
async def test_an_attempt_whose_result_means_something_is_not_finished_without_looking(
    store: Store, node_type: str
) -> None:
    await add(store, an_execution("e"), a_task("t")._replace(node_type=node_type))
    await claim(store)
    before = await task(store, "t")
    assert await store.write(lambda tx: tx.finish("t", 1, "1")) is None
    assert await task(store, "t") == before


async def test_what_waits_is_cancelled_and_ready_again_in_one_go(store: Store) -> None:
    await fill(store)
    await add(store, a_task("done"), a_task("failed"))
    running = await claim(store)
    assert running is not None
    await move(store, "done", TaskStatus.DONE, "1")
    await move(store, "failed", TaskStatus.FAILED, "no luck")
    await store.write(lambda tx: tx.cancel_waiting("e"))
    statuses = {each.node_id: each.status for each in await store.read(lambda reader: reader.tasks("e"))}
    cancelled = dict.fromkeys(("m", "m__1", "m__2"), TaskStatus.CANCELLED)
    kept = {"m__0": TaskStatus.RUNNING, "done": TaskStatus.DONE, "failed": TaskStatus.FAILED}
    assert statuses == cancelled | kept
    await store.write(lambda tx: tx.ready_again("e", 2))
    for each in await store.read(lambda reader: reader.tasks("e")):
        if each.node_id in ("m__1", "m__2", "failed"):
            assert (each.status, each.attempt_limit - each.attempt, each.error) == (TaskStatus.READY, 2, None)
        assert each.status == kept.get(each.node_id, TaskStatus.READY) or each.node_id == "failed"


async def test_why_a_task_failed_is_said_anew_of_a_failed_one_alone(store: Store) -> None:
    await add(store, an_execution("e"), a_task("t"), a_task("other"))
    await move(store, "t", TaskStatus.FAILED, "before")
    for key in ("t", "other"):
        await store.write(lambda tx, key=key: tx.say_failure(key, "now", ErrorCode.OUTCOME_UNKNOWN))  # type: ignore[misc]
    failed = await task(store, "t")
    assert (failed.error, failed.error_code) == ("now", ErrorCode.OUTCOME_UNKNOWN)
    assert (await task(store, "other")).error is None


async def test_a_child_is_found_by_its_parent_and_node_and_not_what_is_below_it(store: Store) -> None:
    await add(store, an_execution("e"), an_execution("e/x"), a_child("e/x/a", "a"), a_child("e/b1", "b"))
    await add(store, a_child("e2/a", "a"), a_child("e/b1/a", "a"))
    asked = (("e", "a"), ("e", "b"), ("e/b1", "a"))
    found = await store.read(lambda reader: [reader.child(*at) for at in asked])
    assert [each and each.execution_id for each in found] == [None, "e/b1", "e/b1/a"]
    assert found[1] is not None
    assert (found[1].parent_id, found[1].parent_node) == ("e", "b")


async def test_an_older_database_of_postgresql_gets_the_columns(tmp_path: Path) -> None:
    url = postgres.schema_for(tmp_path)
    store = PostgresStore(place_of(url))
    await add(store, an_execution("e"), a_task("t"))
    await store.close()
    with psycopg.connect(url.partition("&schema=")[0], autocommit=True) as connection:
        connection.execute(f'SET search_path = "{place_of(url).schema}"')
        connection.execute("ALTER TABLE executions DROP COLUMN parent_node, DROP COLUMN awaited_by_json")
        connection.execute("ALTER TABLE tasks DROP COLUMN part, DROP COLUMN parts, DROP COLUMN item_json")
        connection.execute("UPDATE about SET schema_version = 1")
    store = PostgresStore(place_of(url))
    assert await task(store, "t") == a_task("t")
    await add(store, a_child("e/t", "t"))
    assert await store.read(lambda reader: reader.child("e", "t")) is not None
    await store.close()
