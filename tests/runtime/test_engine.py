"""What happens to executions and tasks, on a real store and with a clock that the test moves."""

import asyncio
import gc
import json
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from backends import BACKENDS
from processes import PATIENCE_SECONDS, eventually
from slow_disk import hold_commits

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, LimitExceeded, NotFound
from nexum_runtime.server.engine.clock import Clock
from nexum_runtime.server.engine.engine import ABSENCE_MS, SWEEP_INTERVAL_MS, Engine
from nexum_runtime.server.engine.workers import POLLS_RENEW_MS
from nexum_runtime.server.model.contract import Store, StoreUnavailable
from nexum_runtime.server.model.shapes import Claimed, Resolution, Started, StartOrder, Verdict
from nexum_runtime.server.rules.executions import TIMERS_AT_ONCE
from nexum_runtime.server.rules.snapshots import Snapshot
from nexum_runtime.wire import NESTING_LIMIT

LEASE_MS = 10_000
STEP_MS = 1_000
FOREVER_MS = 60_000  # of a wait that something is expected to end

ONE = {"run": "EFFECT"}
PURE = {"run": "COMPUTE"}
CHAIN = {"search": "EFFECT", "visit": "EFFECT search", "sum": "COMPUTE search visit"}
PAIR = {"a": "EFFECT", "b": "EFFECT"}
GATE = {"ask": "HUMAN_APPROVAL", "run": "EFFECT ask"}
NAP = {"nap": "TIMER", "run": "EFFECT nap"}
TIMER_MS = 60_000


def ir(nodes: dict[str, str]) -> str:
    """`{"sum": "COMPUTE search visit"}` is a COMPUTE node that depends on two others."""
    spelled: dict[str, dict[str, Any]] = {
        node_id: {"type": words.split()[0], "dependencies": words.split()[1:]} for node_id, words in nodes.items()
    }
    for node in spelled.values():
        if node["type"] == "TIMER":
            node["delay_seconds"] = TIMER_MS / 1000
    return json.dumps({"nodes": spelled})


class Bench:
    """An engine whose time passes when the test says so."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now_ms = 1_700_000_000_000
        self.jitter = 0.0
        self.engine = self.new_engine()

    def new_engine(self, **options: Any) -> Engine:
        return Engine(self.store, **({"clock": lambda: self.now_ms, "jitter": lambda: self.jitter} | options))

    async def pass_time(self, ms: int) -> None:
        """Let time pass as a running server sees it: in small steps, each with its sweep."""
        while ms > 0:
            step_ms = min(ms, STEP_MS)
            self.now_ms += step_ms
            ms -= step_ms
            await self.engine.sweep()

    async def register(self, nodes: dict[str, str], workflow_id: str = "w", version_hash: str = "h") -> str:
        return await self.engine.register(workflow_id, version_hash, ir(nodes))

    async def start(self, execution_id: str = "e", input_json: str = '{"q":"x"}', **order: Any) -> Started:
        named = {"workflow_id": "w", "version_hash": "h"} | order
        return await self.engine.start(StartOrder(input_json=input_json, execution_id=execution_id, **named))

    async def poll(self, worker_id: str = "worker", lease_ms: int = LEASE_MS, wait_ms: int = 0) -> Claimed | None:
        return await self.engine.poll(worker_id, "h", ["w"], lease_ms, wait_ms)

    async def claim(self, worker_id: str = "worker", lease_ms: int = LEASE_MS) -> str:
        """Claim what must be there, and return its task id."""
        claimed = await self.poll(worker_id, lease_ms)
        assert claimed is not None, "there was nothing to claim"
        return claimed.task.task_id

    async def approve(self, node_id: str = "ask", execution_id: str = "e") -> str:
        return await self.engine.answer(execution_id, node_id, Verdict(True, "anna", "fine"))

    async def reject(self, node_id: str = "ask", execution_id: str = "e") -> str:
        return await self.engine.answer(execution_id, node_id, Verdict(False, "bob", "too dear"))

    async def pending(self) -> list[tuple[str, str]]:
        return [(each.execution_id, each.node_id) for each in await self.engine.approvals(10)]

    async def snapshot(self, execution_id: str = "e") -> Snapshot:
        return await self.engine.snapshot(execution_id)

    async def status(self, execution_id: str = "e") -> str:
        return str((await self.snapshot(execution_id)).execution.status)

    async def events(self, execution_id: str = "e") -> list[dict[str, Any]]:
        _, events = await self.engine.history(execution_id)
        return [{"type": str(e.type), "node": e.node_id, "attempt": e.attempt, "at": e.at_ms, **e.data} for e in events]

    async def story(self, execution_id: str = "e") -> list[str]:
        """The events, each as its type, node and attempt."""
        return [
            " ".join(str(event[key]) for key in ("type", "node", "attempt") if event[key] is not None)
            for event in await self.events(execution_id)
        ]

    async def lose(self, attempts: int) -> list[str]:
        """Let that many attempts' workers vanish; returns their task ids."""
        lost = []
        for _ in range(attempts):
            lost.append(await self.claim())
            await self.pass_time(LEASE_MS)
        return lost


@pytest.fixture(params=list(BACKENDS))
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with opened_bench(BACKENDS[request.param](tmp_path)) as bench:
        yield bench


@pytest.fixture
async def sqlite_bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with opened_bench(BACKENDS["sqlite"](tmp_path)) as bench:
        yield bench


@asynccontextmanager
async def opened_bench(store: Store) -> AsyncIterator[Bench]:
    bench = Bench(store)
    yield bench
    await bench.engine.close()
    await store.close()


# Workflows


async def test_a_version_is_compared_with_the_one_before_it(bench: Bench) -> None:
    assert await bench.register(ONE) == "NEW"
    assert await bench.register(ONE) == "IDENTICAL"
    assert await bench.register(ONE | {"then": "COMPUTE run"}, version_hash="h2") == "SAFE"
    assert await bench.register(PURE, version_hash="h3") == "BREAKING"
    assert await bench.register(PURE, workflow_id="other") == "NEW"
    assert [(each.version_hash, each.compatibility) for each in await bench.engine.versions("w")] == [
        ("h3", "BREAKING"),
        ("h2", "SAFE"),
        ("h", "NEW"),
    ]


async def test_a_version_that_is_registered_again_is_the_one_that_is_started(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.register(PURE, version_hash="h2")
    assert await bench.register(ONE) == "BREAKING"
    await bench.register(PURE, workflow_id="other")
    await bench.start(version_hash="")
    assert (await bench.snapshot()).execution.version_hash == "h"


async def test_a_hash_cannot_be_registered_with_other_nodes(bench: Bench) -> None:
    await bench.register(ONE)
    with pytest.raises(InvalidRequest, match="Workflow 'w': h is registered with other nodes"):
        await bench.register(PURE)


async def test_a_broken_workflow_is_refused_by_name_and_not_kept(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="Workflow 'w' is refused: node 'run' depends on itself"):
        await bench.register({"run": "EFFECT run"})
    assert await bench.engine.versions("w") == []


async def test_without_a_version_the_one_registered_last_is_started(bench: Bench) -> None:
    await bench.register(ONE, version_hash="h0")
    await bench.register(ONE)
    await bench.start(version_hash="")
    assert (await bench.snapshot()).execution.version_hash == "h"


# Starting


@pytest.mark.parametrize("text", ["1e999", '{"q":[-1e400]}'])
async def test_a_number_that_json_cannot_spell_again_is_refused_as_input_and_as_output(bench: Bench, text: str) -> None:
    await bench.register(ONE)
    with pytest.raises(InvalidRequest, match=r"The input of e is not JSON: -?1e.* is too large a number"):
        await bench.start(input_json=text)
    await bench.start()
    with pytest.raises(InvalidRequest, match="is too large a number"):
        await bench.engine.complete(await bench.claim(), text)
    assert await bench.story() == ["ExecutionStarted", "AttemptStarted run 1"]


@pytest.mark.parametrize("opening", ["[", '{"a":'])
async def test_what_is_nested_too_deeply_to_be_told_again_is_refused(bench: Bench, opening: str) -> None:
    await bench.register(ONE)

    def nested(levels: int) -> str:
        return opening * levels + "0" + ("]" if opening == "[" else "}") * levels

    with pytest.raises(InvalidRequest, match="The input of e is nested more than 200 levels deep"):
        await bench.start(input_json=nested(NESTING_LIMIT + 1))
    await bench.start(input_json=nested(NESTING_LIMIT))
    await bench.start(input_json=f" {nested(NESTING_LIMIT)}")  # another text: both are parsed, and spelled again
    with pytest.raises(InvalidRequest, match="nested more than 200 levels deep"):
        await bench.engine.complete(await bench.claim(), nested(NESTING_LIMIT + 1))


async def test_a_refusal_whose_caller_has_left_is_not_an_error_of_the_server(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    cancelling = asyncio.create_task(bench.engine.cancel("nothing"))
    await asyncio.sleep(0)
    cancelling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelling
    await eventually(lambda: not bench.engine._jobs)
    gc.collect()  # the event loop tells of an error that nobody asked for when it is collected
    assert caplog.text == ""


async def test_twenty_starts_of_one_id_at_once_make_one_execution(bench: Bench) -> None:
    await bench.register(ONE)
    started = await asyncio.gather(*(bench.start() for _ in range(20)))
    assert sorted(each.before for each in started) == ["NEW", *["RUNNING"] * 19]
    assert {each.execution_id for each in started} == {"e"}
    assert await bench.story() == ["ExecutionStarted"]
    await bench.claim()
    assert await bench.poll() is None


async def test_starting_again_finds_the_end_and_does_not_run_anything(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.engine.complete(await bench.claim(), '"found"')
    again = await bench.start()
    assert again.before == "COMPLETED"
    assert await bench.poll() is None
    assert (await bench.snapshot()).outputs == {"run": '"found"'}


async def test_without_an_id_every_start_is_an_execution_of_its_own(bench: Bench) -> None:
    await bench.register(ONE)
    started = [await bench.start(execution_id="") for _ in range(3)]
    assert len({each.execution_id for each in started}) == 3
    assert {each.before for each in started} == {"NEW"}


async def test_an_id_used_with_other_input_is_refused_naming_both(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(input_json='{"q": "x"}')
    with pytest.raises(InvalidRequest) as refused:
        await bench.start(input_json='{"q": "y"}')
    assert str(refused.value) == (
        'Execution e was started with the input {"q":"x"}, not with {"q":"y"}. Choose another id.'
    )
    assert await bench.story() == ["ExecutionStarted"]


async def test_an_id_used_with_another_workflow_is_refused_naming_both(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.register(ONE, workflow_id="v")
    await bench.start()
    with pytest.raises(InvalidRequest, match="Execution e belongs to workflow 'w', not to 'v'"):
        await bench.start(workflow_id="v")


@pytest.mark.parametrize("formatted", ['{"b": "é", "a": 1}', '{\n  "a": 1,\n  "b": "\\u00e9"\n}', '{"a":1,"b":"é"}'])
async def test_the_same_input_formatted_differently_is_the_same_input(bench: Bench, formatted: str) -> None:
    await bench.register(ONE)
    await bench.start(input_json='{"a": 1, "b": "é"}')
    assert (await bench.start(input_json=formatted)).before == "RUNNING"


@pytest.mark.parametrize("execution_id", ["a b", "é", "a\n", "x" * 201, "a[b]", "%", "\x00"])
async def test_an_id_of_other_characters_is_refused(bench: Bench, execution_id: str) -> None:
    await bench.register(ONE)
    with pytest.raises(InvalidRequest, match="is not 1 to 200 of A-Z"):
        await bench.start(execution_id=execution_id)


async def test_an_id_may_have_200_characters_of_every_allowed_kind(bench: Bench) -> None:
    await bench.register(ONE)
    execution_id = "Session-1/tool_x/a.b:c@d=e/0".ljust(200, "z")
    assert (await bench.start(execution_id=execution_id)).execution_id == execution_id


@pytest.mark.parametrize("input_json", ["", "{", '{"a": NaN}', "[" * 100_000])
async def test_an_input_that_is_not_json_is_refused_and_nothing_is_kept(bench: Bench, input_json: str) -> None:
    await bench.register(ONE)
    with pytest.raises(InvalidRequest, match="The input of e is not JSON"):
        await bench.start(input_json=input_json)
    with pytest.raises(NotFound, match="No execution 'e' is known"):
        await bench.snapshot()


async def test_an_unknown_workflow_or_version_is_told_apart(bench: Bench) -> None:
    with pytest.raises(NotFound, match="No workflow 'w' of version 'h' is registered"):
        await bench.start()
    await bench.register(ONE)
    with pytest.raises(NotFound, match="No workflow 'w' of version 'h2' is registered"):
        await bench.start(version_hash="h2")
    with pytest.raises(NotFound, match="No workflow 'v' is registered"):
        await bench.start(workflow_id="v", version_hash="")


async def test_a_too_large_input_is_refused_naming_both_sizes(bench: Bench) -> None:
    await bench.register(ONE)
    bench.engine = bench.new_engine(max_message_bytes=2_048)
    with pytest.raises(LimitExceeded, match=r"The input is 4\.0 KiB; the limit is 2\.0 KiB"):
        await bench.start(input_json=json.dumps("x" * 4_094))
    with pytest.raises(NotFound):
        await bench.snapshot()


# Attempts that fail


async def test_a_failed_attempt_is_tried_again_after_1_2_4_and_at_most_30_seconds(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(max_attempts=9)
    for delay_ms in (1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000):
        await bench.engine.fail(await bench.claim(), "no luck")
        await bench.pass_time(delay_ms - 1)
        assert await bench.poll() is None, f"it came back before {delay_ms} ms were over"
        await bench.pass_time(1)
    await bench.claim()
    failures = [event for event in await bench.events() if event["type"] == "AttemptFailed"]
    assert [event["retry_at_ms"] - event["at"] for event in failures] == [
        *(1_000, 2_000, 4_000, 8_000, 16_000),
        *(30_000, 30_000, 30_000),
    ]


@pytest.mark.parametrize(("jitter", "delay_ms"), [(0.0, 1_000), (0.5, 900), (0.999_999, 800)])
async def test_jitter_brings_a_retry_forward_by_a_fifth_at_most(bench: Bench, jitter: float, delay_ms: int) -> None:
    await bench.register(ONE)
    await bench.start()
    bench.jitter = jitter
    await bench.engine.fail(await bench.claim(), "no luck")
    await bench.pass_time(delay_ms - 1)
    assert await bench.poll() is None
    await bench.pass_time(1)
    await bench.claim()


async def test_the_last_attempt_s_words_are_why_the_execution_failed(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(max_attempts=2)
    await bench.engine.fail(await bench.claim(), "timed out")
    await bench.pass_time(1_000)
    await bench.engine.fail(await bench.claim(), "página 🦊 not found")
    snapshot = await bench.snapshot()
    execution = snapshot.execution
    assert (execution.status, execution.error_code, execution.error, snapshot.attempts) == (
        "FAILED",
        "TOOL_ERROR",
        "página 🦊 not found",
        2,
    )
    assert execution.ended_at_ms == bench.now_ms
    assert await bench.story() == [
        "ExecutionStarted",
        "AttemptStarted run 1",
        "AttemptFailed run 1",
        "AttemptStarted run 2",
        "AttemptFailed run 2",
        "ExecutionFailed",
    ]
    events = await bench.events()
    assert (events[2]["error"], events[4]["error"]) == ("timed out", "página 🦊 not found")
    assert "retry_at_ms" not in events[4]
    assert events[1]["worker"] == "worker"


async def test_what_cannot_help_is_not_tried_again(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.engine.fail(await bench.claim(), "bad argument", retryable=False)
    snapshot = await bench.snapshot()
    assert (snapshot.execution.status, snapshot.execution.error, snapshot.attempts) == ("FAILED", "bad argument", 1)


async def test_a_compute_node_is_not_tried_again_when_it_fails(bench: Bench) -> None:
    await bench.register(PURE)
    await bench.start()
    await bench.engine.fail(await bench.claim(), "division by zero")
    snapshot = await bench.snapshot()
    assert (snapshot.execution.status, snapshot.execution.error_code, snapshot.attempts) == ("FAILED", "TOOL_ERROR", 1)


async def test_a_compute_node_is_tried_again_when_its_worker_vanishes(bench: Bench) -> None:
    await bench.register(PURE)
    await bench.start()
    await bench.lose(1)
    await bench.engine.complete(await bench.claim("other"), "1")
    assert await bench.status() == "COMPLETED"


async def test_a_compute_node_whose_workers_all_vanish_has_simply_failed(bench: Bench) -> None:
    await bench.register(PURE)
    await bench.start(max_attempts=2)
    await bench.lose(2)
    execution = (await bench.snapshot()).execution
    assert (execution.status, execution.error_code) == ("FAILED", "TOOL_ERROR")
    assert execution.error == "Worker worker was silent for 10 s. That was attempt 2, the last one."


async def test_a_failing_node_fails_its_execution_and_what_runs_beside_it_is_kept(bench: Bench) -> None:
    await bench.register({"a": "EFFECT", "b": "EFFECT", "c": "EFFECT", "d": "COMPUTE b"})
    await bench.start()
    a, b = await bench.claim(), await bench.claim()
    await bench.engine.fail(a, "no", retryable=False)
    assert await bench.poll() is None, "c was still offered"
    assert await bench.engine.complete(b, '"paid for"') == ""
    snapshot = await bench.snapshot()
    assert (snapshot.execution.status, snapshot.execution.error, snapshot.outputs) == (
        "FAILED",
        "no",
        {"b": '"paid for"'},
    )
    assert await bench.poll() is None, "d was scheduled for an execution that is over"


async def test_a_long_error_is_cut_and_not_refused(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.engine.fail(await bench.claim(), "é" * 100_000, retryable=False)
    assert (await bench.snapshot()).execution.error == "é" * 64 * 1024


# Leases


async def test_a_lease_that_expires_hands_the_task_to_another_worker_under_a_new_id(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    first = await bench.claim("one")
    await bench.pass_time(LEASE_MS - 1)
    assert await bench.poll("two") is None
    await bench.pass_time(1)
    second = await bench.claim("two")
    assert first != second
    assert await bench.engine.complete(second, "2") == ""
    assert await bench.story() == [
        "ExecutionStarted",
        "AttemptStarted run 1",
        "LeaseExpired run 1",
        "AttemptStarted run 2",
        "TaskCompleted run 2",
        "ExecutionCompleted",
    ]
    expired = (await bench.events())[2]
    assert (expired["worker"], expired["error"]) == ("one", "Worker one was silent for 10 s.")


async def test_an_effect_whose_workers_all_vanish_has_an_unknown_outcome(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(max_attempts=2)
    await bench.lose(2)
    snapshot = await bench.snapshot()
    assert (snapshot.execution.status, snapshot.execution.error_code, snapshot.attempts) == (
        "FAILED",
        "OUTCOME_UNKNOWN",
        2,
    )
    assert snapshot.execution.error == (
        "Worker worker was silent for 10 s. That was attempt 2, the last one: the effect may or may not have happened."
    )
    assert await bench.poll() is None
    assert (await bench.story())[-2:] == ["LeaseExpired run 2", "ExecutionFailed"]


async def test_failed_and_lost_attempts_are_counted_together(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(max_attempts=2)
    await bench.lose(1)
    await bench.engine.fail(await bench.claim(), "no luck")
    assert await bench.status() == "FAILED"


async def test_heartbeats_keep_a_lease_for_as_long_as_the_worker_lives(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    task_id = await bench.claim()
    for _ in range(20):
        await bench.pass_time(LEASE_MS - 1)
        assert await bench.engine.heartbeat("worker") == []
    assert await bench.engine.complete(task_id, "1") == ""
    assert "LeaseExpired run 1" not in await bench.story()
    assert (await bench.snapshot()).attempts == 1


async def polls_of_a_worker_without_heartbeats(bench: Bench, worker_id: str, ms: int) -> None:
    for _ in range(ms // STEP_MS):
        await bench.pass_time(STEP_MS)
        await bench.engine.poll(worker_id, "h", ["other"], LEASE_MS, renews=True)


async def test_polls_keep_the_leases_of_a_worker_that_sends_no_heartbeats(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    task_id = await bench.claim()
    await polls_of_a_worker_without_heartbeats(bench, "worker", 600_000)
    assert await bench.engine.complete(task_id, "1") == ""
    assert "LeaseExpired run 1" not in await bench.story()


async def test_polls_keep_no_other_worker_s_lease(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.claim("silent")
    await polls_of_a_worker_without_heartbeats(bench, "lively", LEASE_MS)
    assert (await bench.story())[-1] == "LeaseExpired run 1"


async def test_polls_do_not_keep_for_ever_what_its_worker_may_have_lost(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.claim()
    await polls_of_a_worker_without_heartbeats(bench, "worker", POLLS_RENEW_MS + 2 * LEASE_MS)
    assert (await bench.story())[-1] == "LeaseExpired run 1"
    second = await bench.claim()
    await polls_of_a_worker_without_heartbeats(bench, "worker", 2 * LEASE_MS)
    assert await bench.engine.complete(second, "1") == ""
    assert (await bench.story())[-2:] == ["TaskCompleted run 2", "ExecutionCompleted"], "each attempt has its own time"


async def test_a_heartbeat_keeps_no_other_worker_s_lease(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.claim("silent")
    for _ in range(10):
        await bench.pass_time(LEASE_MS // 10)
        await bench.engine.heartbeat("lively")
    assert (await bench.story())[-1] == "LeaseExpired run 1"


async def test_a_heartbeat_that_names_what_it_holds_keeps_no_claim_whose_answer_got_lost(bench: Bench) -> None:
    await bench.register(PAIR)
    await bench.start()
    held = await bench.claim()
    lost = await bench.claim()
    for _ in range(10):
        await bench.pass_time(LEASE_MS // 10)
        assert await bench.engine.heartbeat("worker", [held]) == []
    assert (await bench.story())[-1] == "LeaseExpired b 1"
    assert await bench.engine.heartbeat("worker", [held, lost]) == [lost]
    assert await bench.engine.complete(held, "1") == ""


async def test_a_heartbeat_is_told_of_every_task_that_is_no_longer_its_own(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start("e1")
    await bench.start("e2")
    cancelled, done = await bench.claim(), await bench.claim()
    await bench.engine.cancel("e1")
    await bench.engine.complete(done, "1")
    bench.engine = bench.new_engine()  # one that remembers nothing but what is stored
    assert await bench.engine.heartbeat("worker", [cancelled, done, "ghost.1", ""]) == [cancelled, done, "ghost.1", ""]
    await bench.start("e3")
    (first,) = await bench.lose(1)
    second = await bench.claim()
    assert await bench.engine.heartbeat("worker", [first, second]) == [first]


async def test_what_a_vanished_worker_was_to_stop_is_forgotten_after_a_while(bench: Bench) -> None:
    """Workers come and go under new ids for months."""
    await bench.register(ONE)
    await bench.start(max_attempts=2)
    (lost,) = await bench.lose(1)
    assert await bench.engine.heartbeat("worker") == [lost]
    for _ in range(2):
        bench.now_ms += 600_000
        await bench.engine.sweep()
    assert await bench.engine.heartbeat("worker") == []
    assert not bench.engine._stops


async def test_each_claim_has_the_lease_it_asked_for(bench: Bench) -> None:
    await bench.register(PAIR)
    await bench.start()
    await bench.claim("short", lease_ms=1_000)
    await bench.claim("long", lease_ms=5_000)
    await bench.pass_time(4_999)
    assert (await bench.story())[-1] == "LeaseExpired a 1"
    await bench.pass_time(1)
    assert (await bench.story())[-1] == "LeaseExpired b 1"


async def test_an_interrupted_attempt_is_handed_on_at_once(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.engine.fail(await bench.claim("one"), "Its worker was stopped.", interrupted=True)
    await bench.engine.complete(await bench.claim("two"), "2")
    assert await bench.status() == "COMPLETED"
    assert (await bench.events())[2]["error"] == "Its worker was stopped."


async def test_an_interrupted_last_attempt_of_an_effect_has_an_unknown_outcome(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(max_attempts=1)
    await bench.engine.fail(await bench.claim(), "Its worker was stopped.", interrupted=True)
    execution = (await bench.snapshot()).execution
    assert (execution.status, execution.error_code) == ("FAILED", "OUTCOME_UNKNOWN")


async def test_leases_do_not_expire_while_the_server_could_hear_nobody(bench: Bench) -> None:
    """A laptop that slept: the clock jumps, and no worker had a chance to report."""
    await bench.register(ONE)
    await bench.start()
    task_id = await bench.claim()
    bench.now_ms += 3_600_000
    await bench.engine.sweep()
    await bench.pass_time(LEASE_MS - 1)
    assert (await bench.story())[-1] == "AttemptStarted run 1"
    assert await bench.engine.complete(task_id, "1") == ""


async def test_after_an_absence_a_lease_is_as_long_as_ever_and_no_longer(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.claim()
    bench.now_ms += ABSENCE_MS + 1
    await bench.engine.sweep()
    await bench.pass_time(LEASE_MS)
    assert (await bench.story())[-1] == "LeaseExpired run 1"


async def test_a_pause_that_is_no_absence_renews_nothing(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.claim(lease_ms=ABSENCE_MS)
    bench.now_ms += ABSENCE_MS
    await bench.engine.sweep()
    assert (await bench.story())[-1] == "LeaseExpired run 1"


@pytest.mark.parametrize("jump_ms", [3_000, -3_000, 3_600_000, -3_600_000])
async def test_a_clock_that_is_set_shortens_no_lease_and_makes_it_no_longer_than_whole(
    bench: Bench, jump_ms: int
) -> None:
    """Several servers follow the same clock, each by itself: a lease begins anew then."""
    ahead_ms = 0
    clock = Clock(of_day=lambda: bench.now_ms + ahead_ms, steady=lambda: bench.now_ms - 1_700_000_000_000)
    bench.engine = bench.new_engine(clock=clock)
    await bench.register(ONE)
    await bench.start()
    await bench.claim(lease_ms=2_000)
    await bench.pass_time(1_000)
    ahead_ms = jump_ms
    await bench.pass_time(999)
    assert (await bench.story())[-1] == "AttemptStarted run 1"
    await bench.pass_time(2_001 if bench.store.is_shared else 2)
    assert (await bench.story())[-1] == "LeaseExpired run 1"
    events = (await bench.engine.history("e"))[1]
    assert abs(events[-1].at_ms - bench.now_ms - jump_ms) < 10, "and events tell the time of day"


async def test_a_clock_that_is_set_while_nothing_can_be_written_is_followed_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead_ms = 0
    clock = Clock(of_day=lambda: bench.now_ms + ahead_ms, steady=lambda: bench.now_ms)
    bench.engine = bench.new_engine(clock=clock)
    await bench.register(ONE)
    await bench.start()
    await bench.claim(lease_ms=2_000)
    ahead_ms = 3_000
    with monkeypatch.context() as full:
        full.setattr(bench.store, "begin_write", no_room)
        with pytest.raises(StoreUnavailable):
            await bench.engine.sweep()
    assert clock() == bench.now_ms
    await bench.pass_time(1_999)
    assert clock() == bench.now_ms + ahead_ms
    assert (await bench.story())[-1] == "AttemptStarted run 1"


def no_room(_: Any, *, settled: Callable[[Exception], None], **__: Any) -> asyncio.Future[Any]:
    """A store's `begin_write` when the disk is full."""
    error = StoreUnavailable("Cannot use the database: no room.")
    settled(error)
    refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    refused.set_exception(error)
    return refused


async def test_a_result_that_cannot_be_written_keeps_no_task_of_a_dead_worker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.register(PAIR)
    await bench.start()
    await bench.claim("dead")
    large = await bench.claim("alive")
    for _ in range(LEASE_MS // STEP_MS):
        with monkeypatch.context() as outage:
            outage.setattr(bench.store, "begin_write", no_room)
            with pytest.raises(StoreUnavailable):
                await bench.engine.complete(large, "1")
        await bench.engine.heartbeat("alive", [large])
        await bench.pass_time(STEP_MS)
    assert [story for story in await bench.story() if "Lease" in story] == ["LeaseExpired a 1"]


async def test_no_lease_expires_because_its_renewal_could_not_be_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.register(ONE)
    await bench.start()
    task_id = await bench.claim()
    await bench.pass_time(LEASE_MS - STEP_MS)

    with monkeypatch.context() as outage:
        outage.setattr(bench.store, "begin_write", no_room)
        with pytest.raises(StoreUnavailable):
            await bench.engine.heartbeat("worker", [task_id])
        bench.now_ms += STEP_MS
        with pytest.raises(StoreUnavailable):
            await bench.engine.sweep()
    await bench.pass_time(LEASE_MS)
    assert (await bench.story())[-1] == "AttemptStarted run 1"
    await bench.pass_time(STEP_MS)
    assert (await bench.story())[-1] == "LeaseExpired run 1"


async def test_a_server_that_was_away_gives_every_attempt_a_whole_lease_to_report(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    task_id = await bench.claim()
    bench.now_ms += 3_600_000
    bench.engine = bench.new_engine()
    await bench.engine.restart_clock()
    await bench.pass_time(LEASE_MS - 1)
    assert await bench.engine.complete(task_id, "1") == ""
    assert await bench.status() == "COMPLETED"


async def test_a_clock_that_is_set_back_makes_no_retry_wait_and_no_lease_last_for_hours(bench: Bench) -> None:
    await bench.register(PAIR)
    await bench.start()
    await bench.engine.fail(await bench.claim(), "no luck")
    await bench.claim("silent")
    bench.now_ms -= 3_600_000
    await bench.engine.sweep()
    await bench.pass_time(30_000)
    assert (await bench.story())[-1] == "LeaseExpired b 1"
    claimed = [await bench.poll(), await bench.poll()]
    assert [each.task.node_id if each else None for each in claimed] == ["a", "b"]


# Late words


async def test_a_late_result_is_recorded_while_the_next_attempt_has_not_begun(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    (first,) = await bench.lose(1)
    assert await bench.engine.complete(first, '"late"') == ""
    assert (await bench.snapshot()).outputs == {"run": '"late"'}
    assert await bench.poll() is None
    assert (await bench.story())[-2:] == ["TaskCompleted run 1", "ExecutionCompleted"]
    assert (await bench.events())[-2]["late"] is True


async def test_a_late_result_wins_over_the_attempt_that_runs_which_is_told_to_stop(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    (first,) = await bench.lose(1)
    second = await bench.claim("two")
    assert await bench.engine.complete(first, '"late"') == ""
    assert await bench.engine.heartbeat("two") == [second]
    assert await bench.engine.complete(second, '"second"') == (
        "Node run was completed already; this result was not recorded."
    )
    assert (await bench.snapshot()).outputs == {"run": '"late"'}
    assert (await bench.story())[-2:] == ["TaskCompleted run 1", "ExecutionCompleted"]


async def test_a_late_result_after_the_next_attempt_s_is_acknowledged_and_changes_nothing(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    (first,) = await bench.lose(1)
    await bench.engine.complete(await bench.claim(), '"second"')
    story = await bench.story()
    for _ in range(2):
        assert await bench.engine.complete(first, '"late"') == (
            "Node run was completed already; this result was not recorded."
        )
    assert (await bench.snapshot()).outputs == {"run": '"second"'}
    assert await bench.story() == story


async def test_the_same_result_sent_twice_is_recorded_once(bench: Bench) -> None:
    """An acknowledgement that got lost makes a worker send again."""
    await bench.register(ONE)
    await bench.start()
    task_id = await bench.claim()
    messages = await asyncio.gather(*(bench.engine.complete(task_id, '"x"') for _ in range(5)))
    assert sorted(messages)[0] == ""
    assert len([message for message in messages if message]) == 4
    assert (await bench.story()).count("TaskCompleted run 1") == 1


async def test_a_late_failure_changes_nothing(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    (first,) = await bench.lose(1)
    second = await bench.claim()
    story = await bench.story()
    assert await bench.engine.fail(first, "late") == "Attempt 1 of node run is over; nothing was changed."
    assert await bench.story() == story
    assert await bench.engine.complete(second, "2") == ""
    assert await bench.engine.fail(second, "after all") == "Attempt 2 of node run is over; nothing was changed."
    assert await bench.status() == "COMPLETED"


async def test_a_late_result_settles_an_unknown_outcome(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(max_attempts=1)
    (first,) = await bench.lose(1)
    assert await bench.status() == "FAILED"
    waiting = asyncio.create_task(bench.engine.snapshot("e"))
    assert await bench.engine.complete(first, '"it did happen"') == ""
    await waiting
    snapshot = await bench.snapshot()
    assert (snapshot.execution.status, snapshot.execution.error, snapshot.execution.error_code) == (
        "COMPLETED",
        None,
        None,
    )
    assert snapshot.outputs == {"run": '"it did happen"'}


async def test_a_late_result_settles_an_unknown_outcome_in_the_middle_of_a_graph_which_goes_on(bench: Bench) -> None:
    await bench.register(CHAIN)
    await bench.start(max_attempts=1)
    await bench.engine.complete(await bench.claim(), '"hits"')
    (visit,) = await bench.lose(1)
    assert (await bench.snapshot()).execution.error_code == "OUTCOME_UNKNOWN"
    assert await bench.engine.complete(visit, '"page"') == ""
    assert await bench.status() == "RUNNING"
    last = await bench.poll()
    assert last is not None
    assert json.loads(last.input_json)["deps"] == {"search": "hits", "visit": "page"}
    await bench.engine.complete(last.task.task_id, '"summary"')
    assert (await bench.snapshot()).outputs == {"search": '"hits"', "visit": '"page"', "sum": '"summary"'}
    assert await bench.status() == "COMPLETED"


async def test_of_two_unknown_outcomes_both_must_be_settled(bench: Bench) -> None:
    await bench.register(PAIR)
    await bench.start(max_attempts=1)
    a, b = await bench.claim(), await bench.claim()
    await bench.pass_time(LEASE_MS)
    assert await bench.engine.complete(a, "1") == ""
    assert (await bench.snapshot()).execution.error_code == "OUTCOME_UNKNOWN"
    assert await bench.engine.complete(b, "2") == ""
    snapshot = await bench.snapshot()
    assert (snapshot.execution.status, snapshot.outputs) == ("COMPLETED", {"a": "1", "b": "2"})


async def test_an_unknown_outcome_that_is_settled_leaves_the_other_node_s_failure_as_the_reason(bench: Bench) -> None:
    await bench.register(PAIR)
    await bench.start(max_attempts=1)
    a, b = await bench.claim("vanishes"), await bench.claim("fails")
    await bench.engine.fail(b, "no luck")
    await bench.pass_time(LEASE_MS)
    assert (await bench.snapshot()).execution.error_code == "OUTCOME_UNKNOWN"
    assert await bench.engine.complete(a, '"it did happen"') == ""
    snapshot = await bench.snapshot()
    execution = snapshot.execution
    assert (execution.status, execution.error_code, execution.error) == ("FAILED", "TOOL_ERROR", "no luck")
    assert snapshot.outputs == {"a": '"it did happen"'}
    await bench.start(restart="failed")
    await bench.engine.complete(await bench.claim(), "2")
    assert await bench.status() == "COMPLETED"


async def test_a_late_result_does_not_overturn_a_failure_that_was_told(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(max_attempts=2)
    (first,) = await bench.lose(1)
    await bench.engine.fail(await bench.claim(), "no luck")
    assert await bench.engine.complete(first, "1") == "Execution e is FAILED; this result was not recorded."
    assert (await bench.snapshot()).outputs == {}


@pytest.mark.parametrize("task_id", ["", "ghost", "ghost.1", "{key}", "{key}.", "{key}.0", "{key}.2", "{key}.1.1"])
async def test_an_unknown_task_is_not_found(bench: Bench, task_id: str) -> None:
    await bench.register(ONE)
    await bench.start()
    key = (await bench.claim()).removesuffix(".1")
    task_id = task_id.format(key=key)
    with pytest.raises(NotFound, match=r"No task .* is known"):
        await bench.engine.complete(task_id, "1")
    with pytest.raises(NotFound, match=r"No task .* is known"):
        await bench.engine.fail(task_id, "no")


@pytest.mark.parametrize("output_json", ["", "plain words", "NaN", '{"a": Infinity}', "[" * 100_000])
async def test_an_output_that_is_not_json_is_refused_and_the_attempt_goes_on(bench: Bench, output_json: str) -> None:
    await bench.register(ONE)
    await bench.start()
    task_id = await bench.claim()
    with pytest.raises(InvalidRequest, match="is not JSON"):
        await bench.engine.complete(task_id, output_json)
    assert await bench.engine.complete(task_id, "1") == ""


async def test_a_too_large_result_fails_the_task_naming_both_sizes(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    bench.engine = bench.new_engine(max_message_bytes=2_048)
    message = await bench.engine.complete(await bench.claim(), json.dumps("x" * 4_094))
    assert message.startswith("The result is 4.0 KiB; the limit is 2.0 KiB")
    snapshot = await bench.snapshot()
    execution = snapshot.execution
    assert (execution.status, execution.error_code, snapshot.attempts) == ("FAILED", "TOOL_ERROR", 1)
    assert execution.error is not None
    assert execution.error.startswith("The result is 4.0 KiB; the limit is 2.0 KiB")


async def test_a_result_of_exactly_the_limit_is_recorded(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    bench.engine = bench.new_engine(max_message_bytes=2_048)
    assert await bench.engine.complete(await bench.claim(), json.dumps("x" * 2_046)) == ""
    assert await bench.status() == "COMPLETED"


async def test_a_late_result_that_is_too_large_does_not_claim_to_have_failed_what_is_done(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    bench.engine = bench.new_engine(max_message_bytes=2_048)
    (first,) = await bench.lose(1)
    await bench.engine.complete(await bench.claim(), "1")
    message = await bench.engine.complete(first, json.dumps("x" * 4_094))
    assert await bench.status() == "COMPLETED"
    assert "has failed" not in message


# Restarting


async def test_a_failed_execution_is_found_failed_unless_a_restart_is_asked_for(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.engine.fail(await bench.claim(), "no", retryable=False)
    assert (await bench.start()).before == "FAILED"
    assert await bench.status() == "FAILED"
    assert (await bench.start(restart="failed")).before == "FAILED"
    assert await bench.status() == "RUNNING"
    assert (await bench.snapshot()).execution.error is None


async def test_a_restart_keeps_what_is_recorded_and_gives_the_rest_new_attempts(bench: Bench) -> None:
    await bench.register(CHAIN)
    await bench.start(max_attempts=2)
    await bench.engine.complete(await bench.claim(), '"hits"')
    for _ in range(2):
        await bench.engine.fail(await bench.claim(), "no luck")
        await bench.pass_time(30_000)
    assert await bench.status() == "FAILED"
    await bench.start(restart="failed")
    await bench.engine.fail(await bench.claim(), "no luck")
    assert await bench.status() == "RUNNING", "the restart gave it one attempt instead of two"
    failed = (await bench.events())[-1]
    assert failed["retry_at_ms"] - failed["at"] == 1_000, "its pauses begin anew, too"
    await bench.pass_time(30_000)
    await bench.engine.complete(await bench.claim(), '"page"')
    await bench.engine.complete(await bench.claim(), '"summary"')
    assert await bench.status() == "COMPLETED"
    story = await bench.story()
    assert story.count("AttemptStarted search 1") == 1
    assert not any("search 2" in event for event in story)
    assert story.count("ExecutionRestarted") == 1


async def test_an_unknown_outcome_is_restarted_only_when_that_is_what_was_asked_for(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(max_attempts=1)
    await bench.lose(1)
    story = await bench.story()
    assert (await bench.start(restart="failed")).before == "FAILED"
    assert await bench.story() == story
    assert await bench.poll() is None
    assert (await bench.start(restart="unknown")).before == "FAILED"
    await bench.engine.complete(await bench.claim(), "2")
    assert await bench.status() == "COMPLETED"


async def test_an_outcome_that_became_unknown_after_another_node_failed_is_not_restarted_as_failed(
    bench: Bench,
) -> None:
    """At most once holds for each effect, also for one that was running when the execution failed for another."""
    await bench.register(PAIR)
    await bench.start(max_attempts=1)
    await bench.claim("vanishes")
    b = await bench.claim("fails")
    await bench.engine.fail(b, "no luck")
    await bench.pass_time(LEASE_MS)
    assert (await bench.story())[-1] == "LeaseExpired a 1"
    await bench.start(restart="failed")
    offered = [each.task.node_id for each in [await bench.poll(), await bench.poll()] if each]
    assert "a" not in offered


async def test_restart_of_what_runs_or_is_completed_changes_nothing(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    assert (await bench.start(restart="unknown")).before == "RUNNING"
    await bench.engine.complete(await bench.claim(), "1")
    assert (await bench.start(restart="unknown")).before == "COMPLETED"
    assert "ExecutionRestarted" not in await bench.story()


async def test_a_cancelled_execution_can_be_restarted(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.engine.cancel("e")
    assert (await bench.start(restart="failed")).before == "CANCELLED"
    await bench.engine.complete(await bench.claim(), "1")
    assert await bench.status() == "COMPLETED"


async def test_twenty_restarts_at_once_restart_once(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.engine.fail(await bench.claim(), "no", retryable=False)
    started = await asyncio.gather(*(bench.start(restart="failed") for _ in range(20)))
    assert sorted(each.before for each in started) == ["FAILED", *["RUNNING"] * 19]
    assert (await bench.story()).count("ExecutionRestarted") == 1


async def test_another_word_than_failed_or_unknown_is_refused(bench: Bench) -> None:
    await bench.register(ONE)
    with pytest.raises(InvalidRequest, match="'always'; it can be 'failed' or 'unknown'"):
        await bench.start(restart="always")


# Cancelling


async def test_cancelling_ends_the_execution_and_tells_its_workers_to_stop(bench: Bench) -> None:
    await bench.register(PAIR)
    await bench.start()
    task_id = await bench.claim()
    assert await bench.engine.cancel("e") == "Execution cancelled"
    execution = (await bench.snapshot()).execution
    assert (execution.status, execution.error_code) == ("CANCELLED", "CANCELLED")
    assert await bench.engine.heartbeat("worker") == [task_id]
    assert await bench.poll() is None, "the node that had not begun was still offered"
    assert await bench.engine.complete(task_id, "1") == "Execution e is CANCELLED; this result was not recorded."
    assert await bench.engine.heartbeat("worker") == []
    assert (await bench.snapshot()).outputs == {}
    assert await bench.story() == ["ExecutionStarted", "AttemptStarted a 1", "ExecutionCancelled"]


async def test_cancelling_what_is_over_changes_nothing_and_says_so(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.engine.complete(await bench.claim(), "1")
    assert await bench.engine.cancel("e") == "Execution e is COMPLETED already; nothing was changed."
    assert await bench.status() == "COMPLETED"
    with pytest.raises(NotFound, match="No execution 'ghost' is known"):
        await bench.engine.cancel("ghost")


async def test_a_cancelled_execution_s_lease_does_not_expire(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.claim()
    await bench.engine.cancel("e")
    await bench.pass_time(2 * LEASE_MS)
    assert (await bench.story())[-1] == "ExecutionCancelled"


# Waiting


async def test_a_poll_that_waits_gets_the_task_that_is_started_meanwhile(bench: Bench) -> None:
    await bench.register(ONE)
    polling = asyncio.create_task(bench.poll(wait_ms=FOREVER_MS))
    await eventually(lambda: bench.engine._ready)
    await bench.start()
    async with asyncio.timeout(PATIENCE_SECONDS):
        claimed = await polling
    assert claimed is not None
    assert claimed.task.execution_id == "e"


async def test_a_poll_that_waits_gets_the_node_that_a_completion_makes_ready(bench: Bench) -> None:
    await bench.register(CHAIN)
    await bench.start()
    search = await bench.claim()
    polling = asyncio.create_task(bench.poll(wait_ms=FOREVER_MS))
    await eventually(lambda: bench.engine._ready)
    await bench.engine.complete(search, "1")
    async with asyncio.timeout(PATIENCE_SECONDS):
        claimed = await polling
    assert claimed is not None
    assert claimed.task.node_id == "visit"


async def test_a_poll_that_waits_gets_a_retry_when_its_time_has_come(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.engine.fail(await bench.claim(), "no luck")
    polling = asyncio.create_task(bench.poll(wait_ms=FOREVER_MS))
    await eventually(lambda: bench.engine._ready)
    await bench.pass_time(1_000)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await polling is not None


@pytest.mark.parametrize("how", ["complete", "fail", "cancel", "expire"])
async def test_whoever_waits_for_the_end_is_woken_by_it(bench: Bench, how: str) -> None:
    await bench.register(ONE)
    await bench.start(max_attempts=1)
    task_id = await bench.claim()
    waiting = [asyncio.create_task(bench.engine.snapshot("e", FOREVER_MS)) for _ in range(3)]
    await eventually(lambda: len(bench.engine._watched.get("e", ())) == 3)
    match how:
        case "complete":
            await bench.engine.complete(task_id, "1")
        case "fail":
            await bench.engine.fail(task_id, "no")
        case "cancel":
            await bench.engine.cancel("e")
        case "expire":
            await bench.pass_time(LEASE_MS)
    async with asyncio.timeout(PATIENCE_SECONDS):
        ends = {str((await each).execution.status) for each in waiting}
    expected = {"complete": "COMPLETED", "fail": "FAILED", "cancel": "CANCELLED", "expire": "FAILED"}
    assert ends == {expected[how]}
    assert not bench.engine._watched


async def test_a_wait_whose_time_is_up_answers_with_what_there_is(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    assert (await bench.engine.snapshot("e", 30)).execution.status == "RUNNING"
    await bench.claim()
    assert await bench.poll(wait_ms=30) is None
    assert not bench.engine._watched
    assert not bench.engine._ready


async def test_waiting_calls_that_vanish_leave_nothing_behind(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.claim()
    calls: list[asyncio.Task[Any]] = [asyncio.create_task(bench.engine.snapshot("e", FOREVER_MS)) for _ in range(5)] + [
        asyncio.create_task(bench.poll(f"worker-{i}", wait_ms=FOREVER_MS)) for i in range(5)
    ]
    await eventually(lambda: len(bench.engine._watched["e"]) == 5 and len(bench.engine._ready["h"]) == 5)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert all(call.cancelled() for call in calls)
    assert not bench.engine._watched
    assert not bench.engine._ready
    await eventually(lambda: not bench.engine._jobs)


async def test_waiting_for_an_execution_that_is_unknown_is_not_found_and_leaves_nothing_behind(bench: Bench) -> None:
    with pytest.raises(NotFound):
        await bench.engine.snapshot("ghost", FOREVER_MS)
    assert not bench.engine._watched


async def test_closing_answers_the_calls_that_wait(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await bench.claim()
    ending = asyncio.create_task(bench.engine.snapshot("e", FOREVER_MS))
    polling = asyncio.create_task(bench.poll(wait_ms=FOREVER_MS))
    await eventually(lambda: bench.engine._watched and bench.engine._ready)
    await bench.engine.close()
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert (await ending).execution.status == "RUNNING"
        assert await polling is None


@asynccontextmanager
async def slow_disk(bench: Bench) -> AsyncIterator[None]:
    """No commit is made before the block ends."""
    gate = threading.Event()
    hold_commits(bench.store, gate)
    try:
        yield
    finally:
        gate.set()


async def poll_that_vanishes(bench: Bench) -> None:
    """A poll that is cancelled while its claim is being committed."""
    async with slow_disk(bench):
        polling = asyncio.create_task(bench.poll("vanishes"))
        await eventually(lambda: bench.engine._jobs)
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
        assert polling.cancelled()
    await eventually(lambda: not bench.engine._jobs)


async def test_a_poll_that_is_cancelled_as_it_is_woken_takes_nothing_more(bench: Bench) -> None:
    await bench.register(ONE)
    poll = asyncio.create_task(bench.engine.poll("gone", "h", ["w"], LEASE_MS, wait_ms=60_000))
    await eventually(lambda: any(waiting._waiters for waiting in bench.engine._ready["h"]))
    for waiting in bench.engine._ready["h"]:
        waiting.set()
    await asyncio.sleep(0)  # the wait is over, and whoever waits has not heard of it yet
    poll.cancel()
    done, _ = await asyncio.wait({poll}, timeout=5)
    assert done, "it polls on, for a worker that is gone"
    assert poll.cancelled()


async def test_whoever_waits_is_told_whether_it_is_for_a_worker(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    assert (await bench.snapshot()).waits_for == "worker"
    claimed = await bench.claim()
    assert (await bench.snapshot()).waits_for == ""
    await bench.engine.fail(claimed, "no")
    assert (await bench.snapshot()).waits_for == "", "the next attempt's time has not come"
    bench.now_ms += 60_000
    assert (await bench.snapshot()).waits_for == "worker"


async def test_a_poll_that_vanishes_after_its_claim_gives_the_task_back(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(max_attempts=1)
    await poll_that_vanishes(bench)
    assert await bench.story() == ["ExecutionStarted", "AttemptStarted run 1", "AttemptReturned run 1"]
    await bench.engine.complete(await bench.claim(), "1")
    assert await bench.status() == "COMPLETED"


async def test_an_attempt_that_was_given_back_is_not_counted(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(max_attempts=2)
    await poll_that_vanishes(bench)
    await poll_that_vanishes(bench)
    await bench.engine.fail(await bench.claim(), "no luck")
    assert await bench.status() == "RUNNING"
    await bench.pass_time(30_000)
    await bench.engine.fail(await bench.claim(), "no luck")
    assert await bench.status() == "FAILED", "attempts are bounded all the same"


async def test_an_attempt_that_was_given_back_does_not_make_retries_slower(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await poll_that_vanishes(bench)
    await poll_that_vanishes(bench)
    await bench.engine.fail(await bench.claim(), "no luck")
    failed = (await bench.events())[-1]
    assert failed["retry_at_ms"] - failed["at"] == 1_000, "this was the first attempt that ran"


async def test_an_attempt_that_was_given_back_is_not_told_as_a_try(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    await poll_that_vanishes(bench)
    assert (await bench.snapshot()).attempts == 0
    await bench.engine.complete(await bench.claim(), "1")
    assert (await bench.snapshot()).attempts == 1


async def test_a_task_given_back_wakes_a_poll_that_waits(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start()
    async with slow_disk(bench):
        vanishing = asyncio.create_task(bench.poll("vanishes"))
        await eventually(lambda: bench.engine._jobs)
        waiting = asyncio.create_task(bench.poll("waits", wait_ms=FOREVER_MS))
        await eventually(lambda: len(bench.engine._jobs) == 2)
        vanishing.cancel()
    async with asyncio.timeout(PATIENCE_SECONDS):
        claimed = await waiting
    assert claimed is not None
    assert claimed.task.worker_id == "waits"


# Claims by whoever starts


async def test_whoever_starts_an_execution_can_claim_its_task_in_the_same_commit(bench: Bench) -> None:
    await bench.register(ONE)
    started = await bench.start(claim="me", lease_ms=LEASE_MS)
    assert started.before == "NEW"
    assert started.claimed is not None
    assert (started.claimed.task.worker_id, started.claimed.task.attempt) == ("me", 1)
    assert await bench.poll() is None, "it was never there for a worker"
    assert await bench.engine.complete(started.claimed.task.task_id, '"mine"') == ""
    assert await bench.status() == "COMPLETED"
    again = await bench.start(claim="another")
    assert (again.before, again.claimed) == ("COMPLETED", None)
    assert len(await bench.story()) == 4


async def test_what_is_claimed_in_a_start_is_lost_at_the_end_of_its_lease(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(claim="me", lease_ms=LEASE_MS)
    await bench.pass_time(LEASE_MS - STEP_MS)
    assert (await bench.start(claim="another")).claimed is None
    await bench.pass_time(STEP_MS)
    assert (await bench.start(claim="another")).claimed is not None


@pytest.mark.parametrize("effect", ["idempotent", "once"])
async def test_an_owner_that_asks_again_has_its_task_and_no_attempt_more(bench: Bench, effect: str) -> None:
    await bench.register(ONE)
    claims = [(await bench.start(claim="me", max_attempts=1, effect=effect)).claimed for _ in range(3)]
    assert [each.task.attempt for each in claims if each] == [1, 2, 3], "the answers to the first two were lost"
    assert (await bench.snapshot()).attempts == 1
    assert claims[2] is not None
    assert await bench.engine.complete(claims[2].task.task_id, "1") == ""
    assert await bench.status() == "COMPLETED"


async def test_an_owner_that_asks_again_has_its_task_also_when_it_was_thought_to_have_gone(bench: Bench) -> None:
    """Its connection was cut before the answer had come."""
    await bench.register(ONE)
    owner = f"{wire.LOCAL_WORKER}1-me"
    once: dict[str, Any] = {"effect": "once", "max_attempts": 1}
    order = StartOrder("w", "h", "{}", "e", claim=owner, **once)
    executing = bench.engine.execute_here(order, FOREVER_MS)
    await anext(executing)
    await executing.aclose()
    await eventually(lambda: not bench.engine._jobs)
    assert (await bench.snapshot()).execution.error_code == "OUTCOME_UNKNOWN"
    for restart in ("", "failed"):
        assert (await bench.start(claim="another", input_json="{}", restart=restart, **once)).claimed is None
    claimed = (await bench.start(claim=owner, input_json="{}", **once)).claimed
    assert claimed is not None
    assert (await bench.snapshot()).attempts == 1
    assert await bench.engine.complete(claimed.task.task_id, "1") == ""
    assert await bench.status() == "COMPLETED"


async def test_a_claim_given_back_after_its_owner_has_asked_again_takes_nothing_from_it(bench: Bench) -> None:
    await bench.register(ONE)
    async with slow_disk(bench):
        first = asyncio.create_task(bench.start(claim="me", effect="once", max_attempts=1))
        await eventually(lambda: bench.engine._jobs)
        first.cancel()
        again = asyncio.create_task(bench.start(claim="me", effect="once", max_attempts=1))
        await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled()
    claimed = (await again).claimed
    await eventually(lambda: not bench.engine._jobs)
    assert claimed is not None
    assert (await bench.start(claim="another", effect="once", max_attempts=1)).claimed is None
    assert await bench.poll() is None
    assert await bench.engine.complete(claimed.task.task_id, "1") == ""


async def test_a_claim_is_given_back_when_its_caller_leaves_before_it_is_told(bench: Bench) -> None:
    await bench.register(ONE)
    order = StartOrder("w", "h", "{}", "e", max_attempts=1, effect="once", claim="me")
    async with slow_disk(bench):
        leaving = asyncio.create_task(bench.engine.execute(order, FOREVER_MS))
        await eventually(lambda: bench.engine._jobs)
        leaving.cancel()
    await eventually(lambda: not bench.engine._jobs)
    assert leaving.cancelled()
    assert await bench.story() == ["ExecutionStarted", "AttemptStarted run 1", "AttemptReturned run 1"]
    assert (await bench.start(claim="another", input_json="{}", effect="once", max_attempts=1)).claimed is not None


async def test_another_owner_waits_and_takes_over_as_soon_as_the_first_has_gone(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(claim="first", input_json="{}")
    attending = bench.engine.attend("first")
    await anext(attending)
    order = StartOrder("w", "h", "{}", "e", claim="second")
    waiting = asyncio.create_task(bench.engine.execute(order, FOREVER_MS))
    await eventually(lambda: bench.engine._watched)
    assert not waiting.done()
    await attending.aclose()
    async with asyncio.timeout(PATIENCE_SECONDS):
        started, found = await waiting
    assert (started.claimed, found.execution.status, found.waits_for) == (None, "RUNNING", "worker")
    assert (await bench.engine.execute(order, FOREVER_MS))[0].claimed is not None
    lost = (await bench.events())[2]
    assert (lost["type"], lost["error"]) == ("LeaseExpired", "Worker first has gone.")


async def test_of_several_owners_that_wait_for_a_task_one_gets_it(bench: Bench) -> None:
    await bench.register(ONE)
    first = (await bench.start(claim="first", input_json="{}")).claimed
    assert first is not None

    async def ask(owner: str) -> str | None:
        while True:
            order = StartOrder("w", "h", "{}", "e", claim=owner)
            started, found = await bench.engine.execute(order, FOREVER_MS)
            if started.claimed or found.execution.status != "RUNNING":
                return started.claimed.task.task_id if started.claimed else None

    asking = [asyncio.create_task(ask(f"owner-{number}")) for number in range(5)]
    await eventually(lambda: len(bench.engine._watched.get("e", ())) == 5)
    async with aclosing(bench.engine.attend("first")) as attending:
        await anext(attending)
    async with asyncio.timeout(PATIENCE_SECONDS):
        (winner,), waiting = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        task_id = winner.result()
        assert task_id is not None
        await bench.engine.complete(task_id, "1")
        assert [await each for each in waiting] == [None] * 4
    assert (await bench.snapshot()).attempts == 2


async def test_an_effect_that_happens_once_is_unknown_as_soon_as_its_owner_has_gone(bench: Bench) -> None:
    await bench.register(ONE)
    first = (await bench.start(claim="first", effect="once", max_attempts=1)).claimed
    assert first is not None
    waiting = asyncio.create_task(bench.engine.snapshot("e", FOREVER_MS, or_ready=True))
    async with aclosing(bench.engine.attend("first")) as attending:
        await anext(attending)
    async with asyncio.timeout(PATIENCE_SECONDS):
        found = (await waiting).execution
    assert (found.status, found.error_code) == ("FAILED", "OUTCOME_UNKNOWN")
    assert found.error == "Worker first has gone: the effect may or may not have happened."
    again = await bench.start(claim="second", restart="failed", effect="once", max_attempts=1)
    assert (again.before, again.claimed) == ("FAILED", None), "it is not begun again"
    assert await bench.engine.complete(first.task.task_id, '"it did happen"') == "", "it was only out of sight"
    assert (await bench.snapshot()).outputs == {"run": '"it did happen"'}


async def test_an_owner_that_has_gone_gives_up_all_it_holds_and_nothing_of_others(bench: Bench) -> None:
    await bench.register(ONE)
    for execution_id, owner in (("e0", "me"), ("e1", "other"), ("e2", "me")):
        await bench.start(execution_id, claim=owner)
    async with aclosing(bench.engine.attend("me")) as attending:
        await anext(attending)
    await eventually(lambda: not bench.engine._jobs)
    assert [(await bench.snapshot(each)).waits_for for each in ("e0", "e1", "e2")] == ["worker", "", "worker"]


async def test_a_server_that_stops_gives_up_nothing_of_those_who_attend(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start(claim="me")
    attending = bench.engine.attend("me")
    await anext(attending)
    ending = asyncio.ensure_future(anext(attending, "over"))
    await bench.engine.close()
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await ending == "over"
    await attending.aclose()
    assert not bench.engine._jobs
    assert await bench.story() == ["ExecutionStarted", "AttemptStarted run 1"]


@pytest.mark.parametrize("owner", ["x" * 201, "é" * 201])
async def test_an_owner_without_a_proper_name_is_refused_and_nothing_is_started(bench: Bench, owner: str) -> None:
    await bench.register(ONE)
    with pytest.raises(InvalidRequest, match=r"The worker id .* must be 1 to 200 characters long"):
        await bench.start(claim=owner)
    with pytest.raises(InvalidRequest, match=r"The worker id .* must be 1 to 200 characters long"):
        await anext(bench.engine.attend(owner))
    with pytest.raises(NotFound):
        await bench.snapshot()


# Graphs


async def test_tasks_are_offered_first_come_first_served(bench: Bench) -> None:
    await bench.register(ONE)
    names = [f"e{i}" for i in (5, 3, 9, 1)]
    for name in names:
        await bench.start(name)
    claimed = [await bench.poll() for _ in names]
    assert [each.task.execution_id if each else None for each in claimed] == names


async def test_a_clock_that_is_set_back_holds_up_no_task_and_changes_no_order(bench: Bench) -> None:
    await bench.register(ONE)
    await bench.start("first")
    bench.now_ms -= 3_600_000
    await bench.engine.sweep()
    await bench.start("second")
    claimed = [await bench.poll(), await bench.poll()]
    assert [each.task.execution_id if each else None for each in claimed] == ["first", "second"]


async def test_a_task_s_input_is_the_execution_s_with_the_outputs_it_depends_on(bench: Bench) -> None:
    await bench.register(CHAIN)
    await bench.start(input_json='{"q": "página 🦊"}')
    first = await bench.poll()
    assert first is not None
    assert json.loads(first.input_json) == {"input": {"q": "página 🦊"}, "deps": {}}
    await bench.engine.complete(first.task.task_id, r'{"hits": ["\u00e9"]}')
    second = await bench.poll()
    assert second is not None
    assert json.loads(second.input_json) == {"input": {"q": "página 🦊"}, "deps": {"search": {"hits": ["é"]}}}


async def test_a_diamond_runs_both_arms_before_it_joins_them(bench: Bench) -> None:
    await bench.register({"top": "EFFECT", "left": "EFFECT top", "right": "EFFECT top", "join": "COMPUTE left right"})
    await bench.start()
    await bench.engine.complete(await bench.claim(), '"t"')
    left, right = await bench.claim("one"), await bench.claim("two")
    await bench.engine.complete(right, '"r"')
    assert await bench.poll() is None, "the join was offered before its left arm was done"
    await bench.engine.complete(left, '"l"')
    join = await bench.poll()
    assert join is not None
    assert join.task.node_id == "join"
    assert json.loads(join.input_json)["deps"] == {"left": "l", "right": "r"}
    await bench.engine.complete(join.task.task_id, '"j"')
    assert await bench.story() == [
        "ExecutionStarted",
        "AttemptStarted top 1",
        "TaskCompleted top 1",
        "AttemptStarted left 1",
        "AttemptStarted right 1",
        "TaskCompleted right 1",
        "TaskCompleted left 1",
        "AttemptStarted join 1",
        "TaskCompleted join 1",
        "ExecutionCompleted",
    ]


async def test_two_arms_that_finish_at_once_schedule_the_join_once(bench: Bench) -> None:
    await bench.register(PAIR | {"join": "COMPUTE a b"})
    for number in range(10):
        name = f"e{number}"
        await bench.start(name)
        a, b = await bench.claim(), await bench.claim()
        await asyncio.gather(bench.engine.complete(a, "1"), bench.engine.complete(b, "2"))
        await bench.engine.complete(await bench.claim(), "3")
        assert await bench.status(name) == "COMPLETED"
        assert await bench.poll() is None


async def test_two_hundred_nodes_run_in_the_order_of_their_dependencies(bench: Bench) -> None:
    chance = random.Random(20)
    names = [f"n{i}" for i in range(200)]
    parents = {name: chance.sample(names[:i], min(i, chance.randrange(4))) for i, name in enumerate(names)}
    shuffled = list(names)
    chance.shuffle(shuffled)
    await bench.register({name: " ".join([chance.choice(["EFFECT", "COMPUTE"]), *parents[name]]) for name in shuffled})
    await bench.start()

    async def work(worker_id: str) -> None:
        while await bench.status() == "RUNNING":
            claimed = await bench.poll(worker_id)
            if claimed is None:
                continue
            node = claimed.task.node_id
            assert json.loads(claimed.input_json)["deps"] == {parent: f"<{parent}>" for parent in parents[node]}
            await bench.engine.complete(claimed.task.task_id, json.dumps(f"<{node}>"))

    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*(work(f"worker-{i}") for i in range(4)))
    assert await bench.status() == "COMPLETED"
    assert (await bench.snapshot()).outputs == {name: f'"<{name}>"' for name in names}
    done: set[str | None] = set()
    started: list[str] = []
    for event in await bench.events():
        if event["type"] == "AttemptStarted":
            assert set(parents[event["node"]]) <= done
            started.append(event["node"])
        elif event["type"] == "TaskCompleted":
            done.add(event["node"])
    assert sorted(started) == sorted(names), "each node ran once"


async def test_outputs_are_put_together_without_a_change_to_their_text(bench: Bench) -> None:
    await bench.register(PAIR)
    await bench.start()
    await bench.engine.complete(await bench.claim(), r'{"b": 1.0, "a": "\ud83e"}')
    await bench.engine.complete(await bench.claim(), "123456789012345678901234567890")
    assert (await bench.snapshot()).outputs_json == (
        r'{"a":{"b": 1.0, "a": "\ud83e"},"b":123456789012345678901234567890}'
    )


async def test_a_state_at_any_moment_is_one_a_new_server_carries_on_from(bench: Bench) -> None:
    """Whatever had been committed when the server died, the next one brings the execution to its end."""
    await bench.register(CHAIN)
    await bench.start()
    for node in ("search", "visit", "sum"):
        bench.engine = bench.new_engine()
        task_id = await bench.claim()
        bench.engine = bench.new_engine()
        assert await bench.engine.complete(task_id, json.dumps(node)) == ""
    assert await bench.status() == "COMPLETED"


# Approvals


async def test_an_approval_waits_from_the_moment_its_node_is_ready_and_no_worker_gets_it(bench: Bench) -> None:
    await bench.register({"draft": "EFFECT", "ask": "HUMAN_APPROVAL draft", "run": "EFFECT ask"})
    await bench.start()
    draft = await bench.claim()
    assert await bench.pending() == []
    bench.now_ms += 5_000
    await bench.engine.complete(draft, '"a letter"')
    (asked,) = await bench.engine.approvals(10)
    assert (asked.execution_id, asked.node_id, asked.workflow_id, asked.since_ms) == ("e", "ask", "w", bench.now_ms)
    assert await bench.poll() is None
    assert (await bench.snapshot()).waits_for == "approval"
    await bench.pass_time(10 * LEASE_MS)
    assert await bench.pending() == [("e", "ask")], "it has no lease that could end"


async def test_what_is_approved_goes_on_with_who_said_so_and_why(bench: Bench) -> None:
    await bench.register(GATE)
    await bench.start()
    assert await bench.approve() == "Approved."
    assert await bench.pending() == []
    claimed = await bench.poll()
    assert claimed is not None
    assert json.loads(claimed.input_json)["deps"] == {"ask": {"approved": True, "approver": "anna", "comment": "fine"}}
    assert await bench.engine.complete(claimed.task.task_id, '"sent"') == ""
    snapshot = await bench.snapshot()
    assert (snapshot.execution.status, snapshot.attempts) == ("COMPLETED", 1)
    assert await bench.story() == [
        "ExecutionStarted",
        "ApprovalRequested ask",
        "TaskApproved ask",
        "AttemptStarted run 1",
        "TaskCompleted run 1",
        "ExecutionCompleted",
    ]
    assert (await bench.events())[2].items() >= {"approver": "anna", "comment": "fine"}.items()


async def test_a_stream_whose_worker_waits_gets_the_task_as_soon_as_it_is_approved(bench: Bench) -> None:
    await bench.register(GATE)
    pushed: list[Claimed] = []
    stream = await bench.engine.open_stream("worker", "h", ["w"], LEASE_MS, 1, pushed.append)
    await bench.start()
    assert stream.pool.free == 1
    await bench.approve()
    await eventually(lambda: pushed)
    assert pushed[0].task.node_id == "run"
    await bench.engine.close_stream(stream, ())


async def test_an_execution_of_nothing_but_an_approval_is_over_with_it(bench: Bench) -> None:
    await bench.register({"ask": "HUMAN_APPROVAL"})
    await bench.start()
    waiting = asyncio.create_task(bench.engine.snapshot("e", FOREVER_MS))
    await eventually(lambda: bench.engine._watched)
    await bench.approve()
    async with asyncio.timeout(PATIENCE_SECONDS):
        found = await waiting
    assert found.execution.status == "COMPLETED"
    assert json.loads(found.outputs["ask"])["approver"] == "anna"


async def test_what_is_rejected_fails_with_the_reason_and_nothing_of_it_begins(bench: Bench) -> None:
    await bench.register(GATE | {"other": "HUMAN_APPROVAL", "nap": "TIMER", "beside": "EFFECT"})
    await bench.start()
    assert await bench.reject() == "Rejected."
    execution = (await bench.snapshot()).execution
    assert (execution.status, execution.error_code) == ("FAILED", "REJECTED")
    assert execution.error == "Rejected by bob: too dear"
    assert await bench.pending() == [], "the other approval is not asked for any more"
    await bench.pass_time(TIMER_MS)
    assert await bench.poll() is None
    assert (await bench.story())[-2:] == ["TaskRejected ask", "ExecutionFailed"]


async def test_the_first_word_on_an_approval_wins_and_the_second_is_told(bench: Bench) -> None:
    await bench.register(GATE)
    for execution_id, first, second in (("e1", bench.approve, bench.reject), ("e2", bench.reject, bench.approve)):
        await bench.start(execution_id)
        await first("ask", execution_id)
        status = await bench.status(execution_id)
        said = "approved by anna" if first == bench.approve else "rejected by bob"
        told = f"Node ask of {execution_id} was {said} already; nothing was changed."
        assert await first("ask", execution_id) == told
        with pytest.raises(InvalidRequest, match=told):
            await second("ask", execution_id)
        assert await bench.status(execution_id) == status
        assert [each.split()[0] for each in await bench.story(execution_id)].count("TaskApproved") <= 1


async def test_of_many_answers_at_once_one_counts(bench: Bench) -> None:
    await bench.register(GATE)
    await bench.start()
    answers = [bench.approve() if number % 2 else bench.reject() for number in range(20)]
    said = await asyncio.gather(*answers, return_exceptions=True)
    assert [each for each in said if each in ("Approved.", "Rejected.")] == ["Rejected."]


async def test_what_was_rejected_is_asked_for_again_only_when_a_person_says_so(bench: Bench) -> None:
    await bench.register(GATE)
    await bench.start()
    await bench.reject()
    for restart in ("failed", "unknown"):
        assert (await bench.start(restart=restart)).before == "FAILED"
        assert await bench.status() == "FAILED"
    await bench.engine.resolve("e", "", Resolution("retry"))
    assert await bench.pending() == [("e", "ask")]
    await bench.approve()
    await bench.engine.complete(await bench.claim(), "1")
    assert await bench.status() == "COMPLETED"


async def test_what_was_approved_stays_so_when_its_effect_is_tried_again(bench: Bench) -> None:
    await bench.register(GATE)
    await bench.start()
    await bench.approve()
    await bench.engine.fail(await bench.claim(), "no luck", retryable=False)
    await bench.start(restart="failed")
    assert await bench.pending() == []
    await bench.engine.complete(await bench.claim(), "1")
    assert await bench.status() == "COMPLETED"


async def test_a_no_outweighs_what_fails_besides(bench: Bench) -> None:
    await bench.register({"beside": "EFFECT"} | GATE)
    await bench.start()
    beside = await bench.claim()
    await bench.reject()
    await bench.engine.fail(beside, "no luck", retryable=False)
    assert (await bench.snapshot()).execution.error_code == "REJECTED"


async def test_what_is_cancelled_is_not_asked_for_any_more_and_is_again_with_its_restart(bench: Bench) -> None:
    await bench.register(GATE)
    await bench.start()
    await bench.engine.cancel("e")
    assert await bench.pending() == []
    with pytest.raises(InvalidRequest, match="Execution e has ended; its node ask needs no answer"):
        await bench.approve()
    bench.now_ms += 5_000
    await bench.start(restart="failed")
    (asked,) = await bench.engine.approvals(10)
    assert asked.since_ms == bench.now_ms


async def test_what_waits_for_a_person_is_not_pruned(bench: Bench) -> None:
    await bench.register(GATE)
    await bench.start()
    bench.now_ms += 1_000_000
    assert await bench.engine.prune("", 0, dry_run=False) == (0, 0)
    await bench.reject()
    assert (await bench.engine.prune("", 0, dry_run=False))[0] == 1


async def test_the_one_that_waits_the_longest_is_listed_first(bench: Bench) -> None:
    await bench.register(GATE)
    for number in (1, 2, 3):
        bench.now_ms += 1_000
        await bench.start(f"e{number}")
    await bench.engine.cancel("e1")
    bench.now_ms += 1_000
    await bench.start("e1", restart="failed")
    assert await bench.pending() == [("e2", "ask"), ("e3", "ask"), ("e1", "ask")]


@pytest.mark.parametrize(("execution_id", "node_id"), [("ghost", "ask"), ("e", "ghost"), ("e", "run"), ("e", "")])
async def test_an_answer_to_what_nobody_asked_is_not_found(bench: Bench, execution_id: str, node_id: str) -> None:
    await bench.register(GATE)
    await bench.start()
    with pytest.raises(NotFound, match=f"Node '{node_id}' of '{execution_id}' waits for no approval."):
        await bench.approve(node_id, execution_id)


async def test_who_answers_has_a_name_of_bounded_length(bench: Bench) -> None:
    await bench.register(GATE)
    await bench.start()
    with pytest.raises(InvalidRequest, match="The approver 'xxx"):
        await bench.engine.answer("e", "ask", Verdict(True, "x" * 201, ""))
    assert await bench.engine.answer("e", "ask", Verdict(False, "", "")) == "Rejected."
    assert (await bench.snapshot()).execution.error == "Rejected."
    with pytest.raises(InvalidRequest, match="was rejected already"):
        await bench.approve()


# Timers


async def test_a_timer_fires_when_its_time_has_come_and_needs_no_worker(bench: Bench) -> None:
    await bench.register(NAP)
    await bench.start()
    due_ms = bench.now_ms + TIMER_MS
    assert (await bench.events())[1].items() >= {"type": "TimerSet", "node": "nap", "due_at_ms": due_ms}.items()
    await bench.pass_time(TIMER_MS - 1)
    assert await bench.poll() is None
    await bench.pass_time(1)
    claimed = await bench.poll()
    assert claimed is not None
    assert json.loads(claimed.input_json)["deps"] == {
        "nap": {"waited_until": "2023-11-14T22:14:20.000Z", "delay_seconds": 60.0}
    }
    assert await bench.story() == ["ExecutionStarted", "TimerSet nap", "TimerFired nap", "AttemptStarted run 1"]


async def test_the_sweep_before_a_timer_is_over_says_when_it_fires(bench: Bench) -> None:
    await bench.register(NAP)
    assert await bench.engine.sweep() == SWEEP_INTERVAL_MS
    await bench.start()
    assert await bench.engine.sweep() == SWEEP_INTERVAL_MS
    bench.now_ms += TIMER_MS - 70
    await bench.engine.sweep()
    assert await bench.engine.sweep() == 70
    bench.now_ms += 100
    await bench.engine.sweep()
    assert await bench.engine.sweep() == SWEEP_INTERVAL_MS


async def test_a_timer_whose_time_came_while_no_server_ran_fires_when_one_does(bench: Bench) -> None:
    await bench.register({"nap": "TIMER"})
    await bench.start()
    bench.now_ms += 100 * TIMER_MS
    bench.engine = bench.new_engine()
    await bench.engine.restart_clock()
    await bench.engine.sweep()
    assert await bench.status() == "COMPLETED"


async def test_a_restart_of_the_server_does_not_cut_a_timer_short(bench: Bench) -> None:
    await bench.register({"nap": "TIMER"})
    await bench.start()
    bench.engine = bench.new_engine()
    await bench.engine.restart_clock()
    await bench.pass_time(TIMER_MS - 1)
    assert await bench.status() == "RUNNING"
    await bench.pass_time(1)
    assert await bench.status() == "COMPLETED"


async def test_a_timer_that_was_cancelled_is_set_anew_with_its_restart(bench: Bench) -> None:
    await bench.register({"nap": "TIMER"})
    await bench.start()
    await bench.engine.cancel("e")
    await bench.pass_time(2 * TIMER_MS)
    assert await bench.status() == "CANCELLED"
    await bench.start(restart="failed")
    await bench.pass_time(TIMER_MS - 1)
    assert await bench.status() == "RUNNING"
    await bench.pass_time(1)
    assert await bench.status() == "COMPLETED"
    assert await bench.story() == [
        "ExecutionStarted",
        "TimerSet nap",
        "ExecutionCancelled",
        "ExecutionRestarted",
        "TimerSet nap",
        "TimerFired nap",
        "ExecutionCompleted",
    ]


async def test_many_timers_that_are_due_fire_a_part_at_a_time_without_a_pause(bench: Bench) -> None:
    await bench.register({"nap": "TIMER"})
    for number in range(TIMERS_AT_ONCE + 1):
        await bench.start(f"e{number}")
    bench.now_ms += TIMER_MS
    assert await bench.engine.sweep() == 0
    assert await bench.status(f"e{TIMERS_AT_ONCE - 1}") == "COMPLETED"
    assert await bench.status(f"e{TIMERS_AT_ONCE}") == "RUNNING"
    assert await bench.engine.sweep() == 0
    assert await bench.status(f"e{TIMERS_AT_ONCE}") == "COMPLETED"
    assert await bench.engine.sweep() == SWEEP_INTERVAL_MS
