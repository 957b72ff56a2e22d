"""Who is pushed which task, and when: slots, backlog, lost leases, and commits that fail after a task has begun."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, cast

import pytest
from backends import sqlite_of
from processes import PATIENCE_SECONDS, eventually
from test_engine import CHAIN, FOREVER_MS, LEASE_MS, ONE, PAIR, STEP_MS, Bench, slow_disk
from test_engine import sqlite_bench as bench
from test_store import Faulty

from nexum_runtime.errors import InvalidRequest, NotFound
from nexum_runtime.server.engine.commits import OUTAGE_QUIET_MS
from nexum_runtime.server.model.contract import Reader, StoreUnavailable
from nexum_runtime.server.model.shapes import Claimed, StartOrder

__all__ = ["bench"]


class Worker:
    """What was pushed to a worker, whose stream is open until it is closed."""

    def __init__(self, bench: Bench, worker_id: str = "worker") -> None:
        self.worker_id = worker_id
        self.pushed: list[Claimed] = []
        self._bench, self._engine = bench, bench.engine

    async def opens(self, slots: int = 1, *workflow_ids: str) -> "Worker":
        """… and looks for what waits."""
        await self.begins_to_open(slots, *workflow_ids)
        await settled(self._bench)
        return self

    async def begins_to_open(self, slots: int = 1, *workflow_ids: str) -> "Worker":
        self._stream = await self._engine.open_stream(
            self.worker_id, "h", workflow_ids or ("w",), LEASE_MS, slots, self.pushed.append
        )
        return self

    async def closes(self, unsent: int = 0) -> None:
        """… of what was pushed, the last so many were not sent."""
        await self._engine.close_stream(self._stream, self.pushed[len(self.pushed) - unsent :])

    @property
    def has(self) -> list[str]:
        """The executions whose tasks it was pushed."""
        return [claimed.task.execution_id for claimed in self.pushed]

    async def completes(self, number: int) -> str:
        return await self._engine.complete(self.pushed[number].task.task_id, "1")


async def settled(bench: Bench) -> None:
    """Nothing more happens by itself."""
    await eventually(lambda: not bench.engine._jobs)


def fail_next(bench: Bench, statement: str) -> None:
    connection = sqlite_of(bench)._write_connection
    sqlite_of(bench)._write_connection = cast(sqlite3.Connection, Faulty(connection, statement))


# Slots


async def test_a_start_that_finds_a_free_slot_is_one_commit_with_its_claim(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    statements: list[str] = []
    sqlite_of(bench)._write_connection.set_trace_callback(statements.append)
    await bench.start(timeout_ms=5_000)
    await settled(bench)
    assert statements.count("COMMIT") == 1
    assert await bench.story() == ["ExecutionStarted", "AttemptStarted run 1"]
    (claimed,) = worker.pushed
    assert claimed.input_json == '{"input":{"q":"x"},"deps":{},"timeout_ms":5000}'
    assert (claimed.task.task_id, claimed.task.worker_id) == (f"{claimed.task.task_key}.1", "worker")


async def test_a_worker_has_no_more_tasks_than_slots_and_those_that_wait_come_in_order(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens(slots=2)
    names = [f"e{number}" for number in range(6)]
    await asyncio.gather(*(bench.start(name) for name in names))
    for done in range(len(names)):
        await settled(bench)
        assert worker.has == names[: done + 2], (
            "a slot for each that is done, at once and for the one that waits longest"
        )
        await worker.completes(done)
    assert [await bench.status(name) for name in names] == ["COMPLETED"] * 6


async def test_the_streams_of_one_worker_share_its_slots(bench: Bench) -> None:
    for workflow_id in ("w", "v"):
        await bench.register(ONE, workflow_id)
    worker, also = await Worker(bench).opens(2, "w"), await Worker(bench).opens(2, "v")
    for number in range(4):
        await bench.start(f"w{number}")
        await bench.start(f"v{number}", workflow_id="v")
    done: set[str] = set()
    for number in range(8):
        await settled(bench)
        pushed = [claimed.task.task_id for claimed in (*worker.pushed, *also.pushed)]
        assert len(pushed) == min(number + 2, 8)
        unfinished = next(task_id for task_id in pushed if task_id not in done)
        await bench.engine.complete(unfinished, "1")
        done.add(unfinished)


async def test_the_tasks_of_every_workflow_of_a_worker_that_wait_come_to_it(bench: Bench) -> None:
    for workflow_id in ("w", "v"):
        await bench.register(ONE, workflow_id)
        await bench.start(f"early {workflow_id}".replace(" ", "-"), workflow_id=workflow_id)
    first, second = await Worker(bench).opens(2, "w"), await Worker(bench).opens(2, "v")
    await settled(bench)
    assert (first.has, second.has) == (["early-w"], ["early-v"])
    await first.completes(0)
    await bench.engine.fail(second.pushed[0].task.task_id, "no luck")
    await bench.pass_time(2 * STEP_MS)
    await settled(bench)
    assert second.has == ["early-v", "early-v"], "also one whose time comes later"


async def test_what_a_worker_has_from_before_takes_its_slots_when_it_comes_back(bench: Bench) -> None:
    await bench.register(ONE)
    before = await Worker(bench).opens(slots=2)
    for name in ("a", "b", "c"):
        await bench.start(name)
    await before.closes()
    after = await Worker(bench).opens(slots=2)
    await settled(bench)
    assert after.has == []
    await before.completes(1)
    await settled(bench)
    assert after.has == ["c"]
    await bench.start("d")
    await settled(bench)
    assert after.has == ["c"]


@pytest.mark.parametrize("slots", [1, 3])
async def test_a_result_that_is_recorded_while_its_worker_comes_back_leaves_no_slot_taken(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    await bench.register(ONE)
    before = await Worker(bench).opens(slots)
    await bench.start("a")
    await before.closes()
    looked, go_on, read = asyncio.Event(), asyncio.Event(), bench.store.read

    async def slow_read(work: Callable[[Reader], Any]) -> Any:
        found = await read(work)
        looked.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(bench.store, "read", slow_read)
    after = Worker(bench)
    opening = asyncio.create_task(after.opens(slots))
    await asyncio.wait([opening, asyncio.create_task(looked.wait())], return_when=asyncio.FIRST_COMPLETED)
    await before.completes(0)
    go_on.set()
    await opening
    for number in range(slots + 1):
        await bench.start(f"b{number}")
    await settled(bench)
    assert len(after.pushed) == slots


async def test_a_claim_that_is_committed_while_another_stream_opens_takes_one_slot(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.register(ONE, "v")
    worker = await Worker(bench).opens(2, "w")
    async with slow_disk(bench):
        starting = asyncio.create_task(bench.start("a", effect="once", max_attempts=1))
        opening = asyncio.create_task(Worker(bench).opens(2, "v"))
        await asyncio.sleep(0)
    await asyncio.gather(starting, opening)
    await bench.start("b")
    await settled(bench)
    assert worker.has == ["a", "b"]


async def test_the_worker_with_the_most_free_slots_is_given_the_task(bench: Bench) -> None:
    await bench.register(ONE)
    small, large = await Worker(bench, "small").opens(1), await Worker(bench, "large").opens(3)
    for number in range(2):
        await bench.start(f"e{number}")
    assert (small.has, large.has) == ([], ["e0", "e1"])


async def test_a_start_that_finds_its_execution_there_keeps_no_slot_from_one_that_is_new(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    await bench.start("old")
    await worker.completes(0)
    await asyncio.gather(bench.start("old"), bench.start("new"))
    await settled(bench)
    assert worker.has == ["old", "new"], "without a sweep"


async def test_what_becomes_ready_while_a_worker_is_looked_after_is_not_left_behind(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens(slots=2)
    async with sqlite_of(bench)._turn:  # so that both share a commit
        bench.engine._giver.fill_slots(look=True)  # as the sweep does: no slot is free meanwhile
        starting = asyncio.create_task(bench.start())
        await asyncio.sleep(0)
    await starting
    await settled(bench)
    assert worker.has == ["e"], "without another sweep"


async def test_a_start_that_is_refused_keeps_no_slot(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    await bench.start()
    await worker.completes(0)
    with pytest.raises(InvalidRequest, match="was started with the input"):
        await bench.start(input_json="[]")
    await bench.start("next")
    assert worker.has == ["e", "next"]


async def test_a_local_effect_is_pushed_to_nobody(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    assert (await bench.start("here", claim="me")).claimed is not None
    await bench.start("there")
    assert worker.has == ["there"]


async def test_a_start_by_the_latest_version_reaches_its_stream(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    await bench.start(version_hash="")
    await settled(bench)
    assert worker.has == ["e"]


async def test_the_nodes_of_a_graph_are_pushed_as_they_become_ready(bench: Bench) -> None:
    await bench.register(CHAIN)
    worker = await Worker(bench).opens()
    await bench.start()
    for number in range(3):
        await settled(bench)
        assert len(worker.pushed) == number + 1
        await worker.completes(number)
    assert [claimed.task.node_id for claimed in worker.pushed] == ["search", "visit", "sum"]
    assert worker.pushed[2].input_json == '{"input":{"q":"x"},"deps":{"search":1,"visit":1}}'
    assert await bench.status() == "COMPLETED"


async def test_what_is_started_afresh_is_pushed(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    await bench.start()
    await bench.engine.fail(worker.pushed[0].task.task_id, "no", retryable=False)
    await bench.start(restart="failed")
    await settled(bench)
    assert [claimed.task.attempt for claimed in worker.pushed] == [1, 2]


async def test_a_retry_is_pushed_when_its_time_has_come_and_not_before(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    await bench.start()
    await bench.engine.fail(worker.pushed[0].task.task_id, "no luck")
    bench.now_ms += STEP_MS - 1
    await bench.engine.sweep()
    await settled(bench)
    assert len(worker.pushed) == 1
    bench.now_ms += 1
    await bench.engine.sweep()
    await settled(bench)
    assert [claimed.task.attempt for claimed in worker.pushed] == [1, 2]


@pytest.mark.parametrize("what", ["cancelled", "completed by another"])
async def test_a_task_that_is_no_longer_wanted_keeps_no_slot(bench: Bench, what: str) -> None:
    await bench.register(ONE)
    if what == "cancelled":
        worker = await Worker(bench).opens()
        await bench.start()
        await bench.engine.cancel("e")
    else:
        await bench.start()
        lost = await bench.claim("slow")
        await bench.pass_time(LEASE_MS)
        worker = await Worker(bench).opens()
        await settled(bench)
        assert worker.has == ["e"]
        await bench.engine.complete(lost, "1")
    await bench.start("next")
    await settled(bench)
    assert worker.has == ["e", "next"]


async def test_a_server_that_stops_pushes_nothing_more(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    await bench.start("a")
    await bench.start("b")
    await bench.engine.close()
    await worker.completes(0)
    await settled(bench)
    assert worker.has == ["a"]


# Leases that were lost


async def test_a_worker_that_has_lost_a_lease_is_given_nothing_before_it_is_heard_again(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens(slots=2)
    await bench.start()
    await bench.pass_time(LEASE_MS)
    await bench.start("next")
    await bench.pass_time(3 * LEASE_MS)
    await settled(bench)
    assert worker.has == ["e"], "it would have lost all its attempts"
    assert await bench.engine.heartbeat("worker", [worker.pushed[0].task.task_id]) == [worker.pushed[0].task.task_id]
    await settled(bench)
    assert worker.has == ["e", "e", "next"]
    assert [claimed.task.attempt for claimed in worker.pushed] == [1, 2, 1]
    await bench.start("third")
    assert len(worker.pushed) == 3, "and it has as many slots as ever"


async def test_others_have_the_tasks_of_a_worker_that_has_lost_its_leases(bench: Bench) -> None:
    await bench.register(ONE)
    silent = await Worker(bench, "silent").opens(slots=3)
    await bench.start()
    other = await Worker(bench, "other").opens(slots=2)
    await bench.pass_time(LEASE_MS)
    await settled(bench)
    assert (silent.has, other.has) == (["e"], ["e"])
    await bench.start("next")
    assert (silent.has, other.has) == (["e"], ["e", "next"])


@pytest.mark.parametrize("how", ["by its heartbeat", "by a new stream", "by another stream"])
async def test_a_worker_without_a_task_that_has_lost_a_lease_can_be_heard(bench: Bench, how: str) -> None:
    """As when it never had the task: what was sent to it got lost on the way."""
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    await bench.start()
    await bench.pass_time(LEASE_MS)
    if how == "by its heartbeat":
        assert await bench.engine.heartbeat("worker", []) == []
    else:
        if how == "by a new stream":
            await worker.closes()
        worker = await Worker(bench).opens()
    await settled(bench)
    assert worker.has[-1:] == ["e"]


async def test_what_a_dead_worker_had_frees_no_slot_of_another(bench: Bench) -> None:
    await bench.register(ONE)
    dead = await Worker(bench, "dead").opens()
    await bench.start()
    await dead.closes()
    other = await Worker(bench, "other").opens()
    await bench.pass_time(LEASE_MS)
    await settled(bench)
    await bench.start("next")
    await settled(bench)
    assert other.has == ["e"]


# Before the disk


@pytest.mark.parametrize("effect", ["read", "idempotent", "once"])
async def test_only_what_may_be_repeated_begins_before_its_start_is_synced(bench: Bench, effect: str) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    async with slow_disk(bench):
        starting = asyncio.create_task(bench.start(effect=effect, max_attempts=1))
        await eventually(lambda: sqlite_of(bench)._write_connection.in_transaction)
        assert worker.has == ([] if effect == "once" else ["e"])
        assert not starting.done()
    await starting
    assert worker.has == ["e"]


@pytest.mark.parametrize("effect", ["idempotent", "once"])
async def test_a_task_that_waited_begins_no_sooner_than_one_that_is_new(bench: Bench, effect: str) -> None:
    await bench.register(ONE)
    await bench.start(effect=effect, max_attempts=1)
    worker = await Worker(bench).begins_to_open()
    async with slow_disk(bench):
        await eventually(lambda: sqlite_of(bench)._write_connection.in_transaction)
        assert worker.has == ([] if effect == "once" else ["e"])
    await settled(bench)
    assert worker.has == ["e"]


async def test_a_pure_node_of_what_happens_once_need_not_wait(bench: Bench) -> None:
    await bench.register({"run": "COMPUTE"})
    worker = await Worker(bench).opens()
    async with slow_disk(bench):
        starting = asyncio.create_task(bench.start(effect="once", max_attempts=1))
        await eventually(lambda: worker.pushed)
    await starting


@pytest.mark.parametrize("word", ["its completion", "its failure", "its heartbeat"])
async def test_what_began_before_a_commit_that_failed_leaves_nothing(bench: Bench, word: str) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    fail_next(bench, "COMMIT")
    with pytest.raises(StoreUnavailable):
        await bench.start()
    (ghost,) = worker.pushed
    with pytest.raises(NotFound):
        await bench.snapshot()
    await bench.start()
    await settled(bench)
    assert worker.pushed == [ghost], "its worker is not told yet, and has no other slot"
    if word == "its heartbeat":
        assert await bench.engine.heartbeat("worker", [ghost.task.task_id]) == [ghost.task.task_id]
    else:
        with pytest.raises(NotFound, match=r"No task .* is known"):
            await (
                worker.completes(0)
                if word == "its completion"
                else bench.engine.fail(ghost.task.task_id, "no", retryable=False)
            )
    await settled(bench)
    assert worker.has == ["e", "e"]
    assert await bench.story() == ["ExecutionStarted", "AttemptStarted run 1"]
    await worker.completes(1)
    assert await bench.status() == "COMPLETED"


@pytest.mark.parametrize("effect", ["read", "idempotent", "once"])
async def test_what_may_be_done_again_is_begun_before_its_claim_is_synced(bench: Bench, effect: str) -> None:
    await bench.register(ONE)
    order = StartOrder("w", "h", "{}", "e", max_attempts=1, effect=effect, claim="me")
    async with aclosing(bench.engine.execute_here(order, FOREVER_MS)) as executing:
        async with slow_disk(bench):
            telling = asyncio.create_task(anext(executing))
            await eventually(lambda: sqlite_of(bench)._write_connection.in_transaction)
            if effect == "once":
                assert not telling.done()
            else:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await asyncio.wait([telling])
        started, found = await telling
        assert started.claimed is not None
        assert (started.before, found.execution.status, found.attempts) == ("NEW", "RUNNING", 1)
        assert await bench.engine.complete(started.claimed.task.task_id, "1") == ""
    assert await bench.story() == [
        "ExecutionStarted",
        "AttemptStarted run 1",
        "TaskCompleted run 1",
        "ExecutionCompleted",
    ]


async def test_local_effects_one_after_the_other_take_a_commit_each_and_nobody_looks_for_what_they_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.server.store.sqlite.store.PATIENCE_MS", 10 * PATIENCE_SECONDS * 1000)
    looks, read = list[Any](), bench.store.read

    async def noted(work: Any) -> Any:
        looks.append(work)
        return await read(work)

    monkeypatch.setattr(bench.store, "read", noted)
    await bench.register(ONE)
    for number in range(5):
        order = StartOrder("w", "h", "{}", f"e{number}", claim=f"me-{number}")
        async with aclosing(bench.engine.execute_here(order, FOREVER_MS)) as executing:
            started, _ = await anext(executing)
            assert started.claimed is not None
            assert await bench.engine.complete(started.claimed.task.task_id, "1") == ""
    await settled(bench)
    await eventually(lambda: sum(bench.store.metrics._commits) >= 1 + 5)
    assert sum(bench.store.metrics._commits) == 1 + 5, "one of them the workflow's"
    assert not looks, "each would hurry the commit of the next one"


async def test_who_has_gone_before_its_claim_is_synced_is_followed_at_once(bench: Bench) -> None:
    await bench.register(ONE)
    executing = bench.engine.execute_here(StartOrder("w", "h", "{}", "e", claim="me"), FOREVER_MS)
    async with slow_disk(bench):
        await anext(executing)
        await executing.aclose()
    await settled(bench)
    assert not bench.engine._unheard
    assert (await bench.events())[2]["error"] == "Worker me has gone."
    assert (await bench.start(claim="another", input_json="{}")).claimed is not None


async def test_a_claim_whose_commit_failed_after_it_was_told_is_had_anew(bench: Bench) -> None:
    await bench.register(ONE)
    order = StartOrder("w", "h", "{}", "e", claim="me")
    fail_next(bench, "COMMIT")
    async with aclosing(bench.engine.execute_here(order, FOREVER_MS)) as executing:
        (ghost, _) = await anext(executing)
        await settled(bench)
        assert ghost.claimed is not None
        with pytest.raises(NotFound, match=r"No task .* is known"):
            await bench.engine.complete(ghost.claimed.task.task_id, "1")
    async with aclosing(bench.engine.execute_here(order, FOREVER_MS)) as executing:
        (started, _) = await anext(executing)
        assert started.claimed is not None
        assert await bench.engine.complete(started.claimed.task.task_id, "1") == ""


async def test_a_commit_that_fails_before_a_task_is_pushed_frees_its_slot(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    fail_next(bench, "COMMIT")
    with pytest.raises(StoreUnavailable):
        await bench.start(effect="once", max_attempts=1)
    assert worker.pushed == []
    await bench.start("next", effect="once", max_attempts=1)
    assert worker.has == ["next"]


async def test_a_result_that_cannot_be_recorded_yet_keeps_its_slot(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    await bench.start("a")
    await bench.start("b")
    fail_next(bench, "COMMIT")
    with pytest.raises(StoreUnavailable):
        await worker.completes(0)
    await settled(bench)
    assert worker.has == ["a"], "it is told again"
    await worker.completes(0)
    await settled(bench)
    assert worker.has == ["a", "b"]


async def test_while_the_store_fails_nothing_begins_before_it_is_synced(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens(slots=3)
    fail_next(bench, "BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable):
        await bench.start("a")
    assert worker.pushed == []
    async with slow_disk(bench):
        starting = asyncio.create_task(bench.start("b"))
        await eventually(lambda: sqlite_of(bench)._write_connection.in_transaction)
        assert worker.pushed == []
    await starting
    assert worker.has == ["b"]
    bench.now_ms += OUTAGE_QUIET_MS + 1
    bench.engine._commits.note_end_of_outage()
    async with slow_disk(bench):
        starting = asyncio.create_task(bench.start("c"))
        await eventually(lambda: len(worker.pushed) == 2)
    await starting


async def test_a_caller_who_leaves_takes_no_task_with_him(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    async with slow_disk(bench):
        starting = asyncio.create_task(bench.start(effect="once", max_attempts=1))
        await eventually(lambda: sqlite_of(bench)._write_connection.in_transaction)
        starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await eventually(lambda: worker.pushed)
    assert await bench.story() == ["ExecutionStarted", "AttemptStarted run 1"]


# Streams that end


@pytest.mark.parametrize("streams", [1, 2])
async def test_what_was_not_sent_when_a_stream_ends_is_given_back_at_once(bench: Bench, streams: int) -> None:
    await bench.register(ONE)
    await bench.register(ONE, "v")
    worker = await Worker(bench).opens(2, "w")
    others = [await Worker(bench).opens(2, "v") for _ in range(streams - 1)]
    await bench.start("a", max_attempts=1)
    await bench.start("b", max_attempts=1)
    await worker.closes(unsent=1)
    assert await bench.story("a") == ["ExecutionStarted", "AttemptStarted run 1"]
    assert await bench.story("b") == ["ExecutionStarted", "AttemptStarted run 1", "AttemptReturned run 1"]
    for other in others:
        await bench.start("c", workflow_id="v")
        await bench.start("d", workflow_id="v")
        await settled(bench)
        assert other.has == ["c"], "its slot is free, and the other one is not"
    successor = await Worker(bench, "successor").opens()
    await settled(bench)
    assert successor.has == ["b"]


@pytest.mark.parametrize("effect", ["idempotent", "once"])
@pytest.mark.parametrize("streams", [1, 2])
async def test_what_is_claimed_for_a_stream_that_ends_meanwhile_is_given_back_at_once(
    bench: Bench, streams: int, effect: str
) -> None:
    await bench.register(ONE)
    await bench.register(ONE, "v")
    worker = await Worker(bench).opens(1, "w")
    others = [await Worker(bench).opens(1, "v") for _ in range(streams - 1)]
    async with slow_disk(bench):
        starting = asyncio.create_task(bench.start("a", effect=effect, max_attempts=1))
        await eventually(lambda: sqlite_of(bench)._write_connection.in_transaction)
        closing = asyncio.create_task(worker.closes(unsent=len(worker.pushed)))
        await asyncio.sleep(0)
    await asyncio.gather(starting, closing)
    await settled(bench)
    assert await bench.story("a") == ["ExecutionStarted", "AttemptStarted run 1", "AttemptReturned run 1"]
    for other in others:
        await bench.start("b", workflow_id="v")
        await settled(bench)
        assert other.has == ["b"]
    successor = await Worker(bench, "successor").opens()
    await settled(bench)
    assert successor.has == ["a"]


async def test_what_was_not_sent_is_given_back_although_whoever_ends_the_stream_is_cancelled(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens()
    await bench.start()
    async with sqlite_of(bench)._turn:
        closing = asyncio.create_task(worker.closes(unsent=1))
        await asyncio.sleep(0)  # it waits for the store now
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
    await settled(bench)
    assert closing.cancelled()
    assert (await bench.story())[-1] == "AttemptReturned run 1"


async def test_what_is_given_back_of_an_execution_that_has_failed_meanwhile_begins_no_more(bench: Bench) -> None:
    await bench.register(PAIR)
    worker = await Worker(bench).opens(2)
    await bench.start()
    await settled(bench)
    await bench.engine.fail(worker.pushed[0].task.task_id, "no", retryable=False)
    await worker.closes(unsent=1)
    assert (await bench.story())[-2:] == ["ExecutionFailed", "AttemptReturned b 1"]
    assert await bench.poll("successor") is None
    await bench.start(restart="failed")
    assert await bench.poll("successor") is not None
    assert await bench.poll("successor") is not None


async def test_a_worker_whose_stream_has_ended_is_given_nothing(bench: Bench) -> None:
    await bench.register(ONE)
    worker = await Worker(bench).opens(slots=2)
    await bench.start("a")
    await worker.closes()
    await bench.start("b")
    await worker.completes(0)
    await settled(bench)
    assert worker.has == ["a"]
    assert await bench.story("b") == ["ExecutionStarted"]
    assert bench.engine._streams._holders == {}, "nothing is remembered of it"
