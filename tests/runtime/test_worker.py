"""Our worker against a real server: handlers of every kind, leases, interruptions, and both sides' deaths.

As a program, this file is a worker process: `python test_worker.py PORT LEDGER LEASE_MS`.
"""

import asyncio
import json
import os
import re
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nexum import workflow
from nexum.context import ContextView
from nexum.proto import nexum_pb2 as pb
from nexum.proto import nexum_pb2_grpc as pb_grpc
from processes import PATIENCE_SECONDS, TESTS, NexumDev, Process, environment, eventually, remote, run
from pydantic import BaseModel, RootModel

from nexum_runtime import Client, InvalidRequest, NexumError, Outcome, TaskError, Worker, idempotency_key, wire
from nexum_runtime.client.client import ERROR_LIMIT
from nexum_runtime.client.connection import Connection
from nexum_runtime.server.app import Server
from nexum_runtime.server.model.shapes import StartOrder
from nexum_runtime.text import printable
from nexum_runtime.wire import batches

Handler = Callable[[ContextView], Any]


class Text(BaseModel):
    text: str


class Anything(RootModel[Any]):
    pass


def one_node(handler: Handler, output_model: Any = Text, workflow_id: str = "w") -> Any:
    return workflow(workflow_id).effect("run", output_model, handler).build()


@asynccontextmanager
async def working(port: int, *workflows: Any, **options: Any) -> AsyncIterator[Worker]:
    """A worker that runs in this event loop until the block ends."""
    worker = Worker(workflows, port=port, **({"drain_seconds": 0.0} | options))
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await running


@pytest.fixture(autouse=True)
def _retries_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexum_runtime.server.rules.attempts.RETRY_DELAY_MS_MIN", 1)


async def history(client: Client, execution_id: str) -> dict[str, Any]:
    (found,) = [each async for each in client.history(execution_id)]
    return found


async def story(client: Client, execution_id: str) -> list[str]:
    return [
        " ".join(str(word) for word in (event["type"], event["attempt"]) if word is not None)
        for event in (await history(client, execution_id))["events"]
    ]


# Handlers


async def test_an_async_and_a_sync_handler_work_hand_in_hand(server: Server, client: Client) -> None:
    async def fetch(context: ContextView) -> Text:
        return Text(text=f"página 🦊 {context.input['q']}")

    def shout(context: ContextView) -> dict[str, str]:
        page = context.get("fetch")
        assert isinstance(page, Text), "a dependency's output is the model it was made from"
        return {"text": page.text.upper()}

    built = workflow("w").effect("fetch", Text, fetch).compute("shout", Text, shout).build()
    async with working(server.port, built):
        outcome = await client.execute(built, {"q": "x"}, timeout=PATIENCE_SECONDS)
    assert outcome.outputs == {"fetch": {"text": "página 🦊 x"}, "shout": {"text": "PÁGINA 🦊 X"}}


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_no_more_tasks_run_at_once_than_there_are_slots_and_no_fewer(
    server: Server, client: Client, kind: str
) -> None:
    lock = threading.Lock()
    running, most = 0, 0
    all_slots_taken = threading.Event()

    def enter() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 3:
                all_slots_taken.set()

    def leave() -> Text:
        nonlocal running
        with lock:
            running -= 1
        return Text(text="done")

    async def run_async(_: ContextView) -> Text:
        enter()
        await eventually(all_slots_taken.is_set, "three handlers at once")
        return leave()

    def run_sync(_: ContextView) -> Text:
        enter()
        assert all_slots_taken.wait(PATIENCE_SECONDS), "three handlers never ran at once"
        return leave()

    built = one_node(run_async if kind == "async" else run_sync)
    async with working(server.port, built, concurrency=3):
        outcomes = await asyncio.gather(*(client.execute(built, {"n": n}, timeout=PATIENCE_SECONDS) for n in range(12)))
    assert {outcome.status for outcome in outcomes} == {"COMPLETED"}
    assert most == 3


async def test_a_worker_claims_nothing_it_has_no_slot_for(server: Server, client: Client) -> None:
    release = asyncio.Event()

    async def hold(_: ContextView) -> Text:
        await release.wait()
        return Text(text="done")

    built = one_node(hold)
    async with working(server.port, built, concurrency=1):
        first = asyncio.create_task(client.execute(built, {"n": 1}, execution_id="s/1", timeout=PATIENCE_SECONDS))
        await eventually(lambda: has_begun(client, "s/1"))
        second = asyncio.create_task(client.execute(built, {"n": 2}, execution_id="s/2", timeout=PATIENCE_SECONDS))
        other = Worker([one_node(quick)], port=server.port)
        running = asyncio.create_task(other.run())
        assert (await second).outputs == {"run": {"text": "quick"}}
        other.stop()
        await running
        release.set()
        assert (await first).outputs == {"run": {"text": "done"}}


async def quick(_: ContextView) -> Text:
    return Text(text="quick")


async def has_begun(client: Client, execution_id: str) -> bool:
    with suppress(NexumError):
        return bool((await client.status(execution_id)).attempts)
    return False


async def test_sync_handlers_do_not_block_the_event_loop(server: Server, client: Client) -> None:
    """The event loop itself lets the handler go on: had it waited for the handler, neither would ever end."""
    entered, release = threading.Event(), threading.Event()

    def block(_: ContextView) -> Text:
        entered.set()
        return Text(text=str(release.wait(PATIENCE_SECONDS)))

    built = one_node(block)
    async with working(server.port, built):
        executing = asyncio.create_task(client.execute(built, {}, timeout=PATIENCE_SECONDS))
        await eventually(entered.is_set)
        release.set()
        assert (await executing).outputs == {"run": {"text": "True"}}


async def test_a_worker_of_several_workflows_serves_them_all(server: Server, client: Client) -> None:
    async def say(context: ContextView) -> Text:
        return Text(text=str(context.input))

    first, second = one_node(say, workflow_id="first"), one_node(quick, workflow_id="second")
    async with working(server.port, first, second):
        outcomes = await asyncio.gather(
            *(client.execute(built, n, timeout=PATIENCE_SECONDS) for n in range(4) for built in (first, second))
        )
    assert [outcome.outputs["run"]["text"] for outcome in outcomes] == [
        text for n in range(4) for text in (str(n), "quick")
    ]


async def test_workflows_of_one_worker_that_share_a_version_hash_have_each_its_own_tasks(
    server: Server, client: Client
) -> None:
    running, most = 0, 0

    def by(name: str) -> Any:
        async def say(context: ContextView) -> Text:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await eventually(lambda: running == 2 or most == 2, "two handlers at once")
            running -= 1
            return Text(text=f"{name} {context.input}")

        return one_node(say, workflow_id=name)

    built = [by(name) for name in ("first", "second", "third")]
    assert len({each.version_hash for each in built}) == 1
    async with working(server.port, *built, concurrency=2):
        outcomes = await asyncio.gather(
            *(client.execute(each, n, timeout=PATIENCE_SECONDS) for n in range(4) for each in built)
        )
    assert [outcome.outputs["run"]["text"] for outcome in outcomes] == [
        f"{each.workflow_id} {n}" for n in range(4) for each in built
    ]
    assert most == 2, "they share its slots"


@pytest.mark.parametrize("name", ["página 🦊", "two\nlines", " spaces around ", "a\x00b"])
async def test_a_workflow_may_have_any_name(server: Server, client: Client, name: str) -> None:
    """Its name travels as metadata, which holds less than a text may."""
    built = one_node(quick, workflow_id=name)
    await client.register(built)
    worker = Worker([built], port=server.port)
    running = asyncio.create_task(worker.run())
    executing = asyncio.create_task(client.execute(built, {}, timeout=5))
    await asyncio.wait({running, executing}, return_when=asyncio.FIRST_COMPLETED)
    ended = executing.done()
    executing.cancel()
    worker.stop()
    await running
    assert ended
    assert (await executing).status == "COMPLETED"


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_the_idempotency_key_is_the_same_for_every_attempt(server: Server, client: Client, kind: str) -> None:
    keys: list[str] = []

    def record() -> Text:
        keys.append(idempotency_key())
        if len(keys) < 3:
            raise RuntimeError("again")
        return Text(text="done")

    async def run_async(_: ContextView) -> Text:
        return record()

    def run_sync(_: ContextView) -> Text:
        return record()

    built = one_node(run_async if kind == "async" else run_sync)
    async with working(server.port, built):
        outcome = await client.execute(built, {}, execution_id="s/a", timeout=PATIENCE_SECONDS)
        await client.execute(built, {}, execution_id="s/b", timeout=PATIENCE_SECONDS)
    assert (outcome.status, outcome.attempts) == ("COMPLETED", 3)
    assert keys[:3] == [f"s/a:run:{built.version_hash}"] * 3
    assert keys[3:] == [f"s/b:run:{built.version_hash}"]


def test_there_is_no_idempotency_key_outside_of_a_handler() -> None:
    with pytest.raises(LookupError):
        idempotency_key()


# Handlers that fail


async def test_a_handler_s_own_words_reach_the_caller(server: Server, client: Client) -> None:
    async def fail(_: ContextView) -> Text:
        raise ValueError("página 🦊 is not there")

    built = one_node(fail)
    async with working(server.port, built):
        outcome = await client.execute(built, {}, max_attempts=2, timeout=PATIENCE_SECONDS)
    assert (outcome.status, outcome.error, outcome.error_code, outcome.attempts) == (
        "FAILED",
        "ValueError: página 🦊 is not there",
        "TOOL_ERROR",
        2,
    )


@pytest.mark.parametrize(("retryable", "attempts"), [(True, 3), (False, 1)])
async def test_a_task_error_says_whether_trying_again_can_help(
    server: Server, client: Client, retryable: bool, attempts: int
) -> None:
    def fail(_: ContextView) -> Text:
        raise TaskError("no such page", retryable=retryable)

    built = one_node(fail)
    async with working(server.port, built):
        outcome = await client.execute(built, {}, max_attempts=3, timeout=PATIENCE_SECONDS)
    assert (outcome.status, outcome.error, outcome.attempts) == ("FAILED", "no such page", attempts)


class Panic(BaseException):
    """What extensions written in Rust raise when they break is no Exception either."""


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (StopIteration("over"), "StopIteration"),
        (asyncio.CancelledError(), "CancelledError"),
        (TimeoutError(), "TimeoutError"),
        (Panic("unwrap on None"), "Panic: unwrap on None"),
        (OSError("odd name \udcff"), "OSError: odd name "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_whatever_a_handler_raises_fails_its_task_and_not_its_worker(
    server: Server, client: Client, kind: str, error: BaseException, words: str
) -> None:
    def raise_sync(context: ContextView) -> Text:
        if context.input == "raise":
            raise error
        return Text(text="fine")

    async def raise_async(context: ContextView) -> Text:
        return raise_sync(context)

    built = one_node(raise_async if kind == "async" else raise_sync)
    async with working(server.port, built, concurrency=1):
        outcome = await client.execute(built, "raise", max_attempts=1, timeout=5)
        assert outcome.status == "FAILED"
        assert outcome.error is not None
        assert words in outcome.error
        assert (await client.execute(built, "return", timeout=5)).status == "COMPLETED"


@pytest.mark.parametrize(
    ("returned", "output_model"),
    [
        (object(), Anything),
        ({"text": 1}, Text),
        (None, Text),
        ("plain words", Text),
        ({"a": {1: object()}}, None),
    ],
)
async def test_a_result_that_cannot_be_recorded_fails_at_once_and_says_why(
    server: Server, client: Client, returned: Any, output_model: Any
) -> None:
    async def give(_: ContextView) -> Any:
        return returned

    built = one_node(give, output_model)
    async with working(server.port, built):
        outcome = await client.execute(built, {}, timeout=5)
    assert (outcome.status, outcome.attempts) == ("FAILED", 1)
    assert outcome.error is not None
    assert outcome.error.startswith("Node 'run' returned what cannot be recorded: ")


async def test_any_json_value_is_recorded(server: Server, client: Client) -> None:
    values: list[Any] = [
        None,
        True,
        0,
        1.5,
        "página 🦊",
        "half \ud83e",
        "\x00",
        "",
        [],
        {},
        [1, [2, {"a": None}]],
        2**70,
    ]

    async def give(context: ContextView) -> Any:
        return values[context.input]

    built = one_node(give, Anything)
    async with working(server.port, built):
        outcomes = await asyncio.gather(
            *(client.execute(built, i, timeout=PATIENCE_SECONDS) for i in range(len(values)))
        )
    assert [outcome.outputs["run"] for outcome in outcomes] == values


async def test_a_node_this_worker_does_not_have_fails_at_once_and_is_named(server: Server, client: Client) -> None:
    built = one_node(quick)
    built.nodes[0].handler = None
    async with working(server.port, built):
        outcome = await client.execute(built, {}, timeout=PATIENCE_SECONDS)
    assert (outcome.status, outcome.error) == ("FAILED", "This worker has no handler for node 'run'.")


async def test_a_very_long_error_still_arrives(server: Server, client: Client) -> None:
    async def fail(_: ContextView) -> Text:
        raise TaskError("é" * 10_000_000, retryable=False)

    built = one_node(fail)
    async with working(server.port, built):
        outcome = await client.execute(built, {}, timeout=PATIENCE_SECONDS)
    assert outcome.error is not None
    assert set(outcome.error) == {"é"}


# Leases and interruptions


async def test_a_long_task_with_a_short_lease_runs_once_while_its_worker_lives(server: Server, client: Client) -> None:
    """It runs until its lease has been renewed past where three whole leases would have ended."""
    calls = 0

    async def lease_end() -> int:
        tasks = await server.store.read(lambda reader: reader.tasks("e"))
        return (tasks[0].lease_expires_at_ms or 0) if tasks else 0  # it may begin before its start is committed

    async def run_long(_: ContextView) -> Text:
        nonlocal calls
        calls += 1
        first: int = await eventually(lease_end)

        async def renewed() -> bool:
            return bool(await lease_end() > first + 2_000)

        await eventually(renewed, "a lease renewed twice over")
        return Text(text="done")

    built = one_node(run_long)
    async with working(server.port, built, lease_ms=1_000):
        outcome = await client.execute(built, {}, execution_id="e", timeout=PATIENCE_SECONDS)
    assert (outcome.status, outcome.attempts, calls) == ("COMPLETED", 1, 1)
    assert "LeaseExpired 1" not in await story(client, "e")


async def test_cancelling_stops_the_handler_and_frees_its_slot(server: Server, client: Client) -> None:
    stopped = asyncio.Event()

    async def run_forever(context: ContextView) -> Text:
        if context.input == "quick":
            return Text(text="done")
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        raise AssertionError("unreachable")

    built = one_node(run_forever)
    async with working(server.port, built, concurrency=1, lease_ms=1_000):
        executing = asyncio.create_task(client.execute(built, "forever", execution_id="e", timeout=PATIENCE_SECONDS))
        await eventually(lambda: has_begun(client, "e"))
        await client.cancel("e")
        outcome = await executing
        async with asyncio.timeout(PATIENCE_SECONDS):
            await stopped.wait()
        assert (await client.execute(built, "quick", timeout=PATIENCE_SECONDS)).status == "COMPLETED"
    assert (outcome.status, outcome.error_code) == ("CANCELLED", "CANCELLED")
    assert await story(client, "e") == ["ExecutionStarted", "AttemptStarted 1", "ExecutionCancelled"]


async def test_a_slot_is_not_used_again_before_its_handler_has_stopped(server: Server, client: Client) -> None:
    """The server frees it at once, and the worker hears of that with its next heartbeat."""
    happened: list[str] = []

    async def run_forever(context: ContextView) -> Text:
        happened.append(f"{context.input} begins")
        try:
            if context.input == "first":
                await asyncio.Event().wait()
        finally:
            happened.append(f"{context.input} ends")
        return Text(text="done")

    built = one_node(run_forever)
    async with working(server.port, built, concurrency=1, lease_ms=1_000):
        executing = asyncio.create_task(client.execute(built, "first", execution_id="e", timeout=PATIENCE_SECONDS))
        await eventually(lambda: happened)
        await client.cancel("e")
        await client.execute(built, "second", timeout=PATIENCE_SECONDS)
        await executing
    assert happened == ["first begins", "first ends", "second begins", "second ends"]


async def test_a_worker_is_heard_also_when_it_has_nothing_to_do(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeat, heard = server.engine.heartbeat, asyncio.Event()

    async def noted(*args: Any) -> list[str]:
        heard.set()
        return await heartbeat(*args)

    monkeypatch.setattr(server.engine, "heartbeat", noted)
    async with working(server.port, one_node(quick), lease_ms=1_000), asyncio.timeout(PATIENCE_SECONDS):
        await heard.wait()


async def test_stop_lets_what_runs_finish(server: Server, client: Client) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def hold(_: ContextView) -> Text:
        begun.set()
        await release.wait()
        return Text(text="done")

    built = one_node(hold)
    worker = Worker([built], port=server.port, drain_seconds=PATIENCE_SECONDS)
    running = asyncio.create_task(worker.run())
    executing = asyncio.create_task(client.execute(built, {}, execution_id="e", timeout=PATIENCE_SECONDS))
    await eventually(begun.is_set)
    worker.stop()
    started_late = asyncio.create_task(client.execute(built, {}, execution_id="late", timeout=PATIENCE_SECONDS))
    await eventually(lambda: client_knows(client, "late"))
    assert not running.done()
    release.set()
    await running
    assert (await executing).outputs == {"run": {"text": "done"}}
    assert (await client.status("late")).attempts == 0, "a worker that stops takes nothing new"
    await client.cancel("late")
    await started_late


async def test_tasks_that_arrive_while_a_worker_stops_are_each_executed_once(server: Server, client: Client) -> None:
    ran: list[int] = []

    async def stop(context: ContextView) -> Text:
        ran.append(context.input)
        if len(ran) == 10:
            worker.stop()
        return Text(text="done")

    built = one_node(stop)
    worker = Worker([built], port=server.port, concurrency=4)
    running = asyncio.create_task(worker.run())
    executing = [
        asyncio.create_task(client.execute(built, n, execution_id=f"e{n}", timeout=PATIENCE_SECONDS)) for n in range(40)
    ]
    await running
    async with working(server.port, built):
        outcomes = await asyncio.gather(*executing)
    assert {(outcome.status, outcome.attempts) for outcome in outcomes} == {("COMPLETED", 1)}
    assert sorted(ran) == list(range(40))


async def client_knows(client: Client, execution_id: str) -> bool:
    return bool(await client.executions(execution_id))


@pytest.mark.parametrize("concurrency", [1, 2], ids=["all slots taken", "a slot free"])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_stop_hands_back_at_once_what_is_too_slow(
    server: Server, client: Client, kind: str, concurrency: int
) -> None:
    begun, released = threading.Event(), threading.Event()

    async def hold_async(_: ContextView) -> Text:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    def hold_sync(_: ContextView) -> Text:
        begun.set()
        released.wait(PATIENCE_SECONDS)
        return Text(text="too late")

    slow = one_node(hold_async if kind == "async" else hold_sync)
    worker = Worker([slow], port=server.port, drain_seconds=0.05, concurrency=concurrency, lease_ms=3_600_000)
    running = asyncio.create_task(worker.run())
    executing = asyncio.create_task(client.execute(slow, {}, execution_id="e", timeout=PATIENCE_SECONDS))
    try:
        await eventually(begun.is_set)
        worker.stop()
        await asyncio.wait({running}, timeout=PATIENCE_SECONDS / 4)
        assert running.done(), "stop() did not end the worker"
        async with working(server.port, one_node(quick)):
            assert (await executing).outputs == {"run": {"text": "quick"}}
    finally:
        released.set()
        await client.cancel("e")
        running.cancel()
        await asyncio.gather(running, executing, return_exceptions=True)
    events = (await history(client, "e"))["events"]
    lost = next(event for event in events if event["type"] == "LeaseExpired")
    assert (lost["attempt"], lost["error"]) == (1, "Its worker was stopped.")


async def test_a_worker_that_is_cancelled_leaves_no_handler_running(server: Server, client: Client) -> None:
    """As `asyncio.run(worker.run())` does on Ctrl-C."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def hold(_: ContextView) -> Text:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError("unreachable")

    built = one_node(hold)
    running = asyncio.create_task(Worker([built], port=server.port).run())
    executing = asyncio.create_task(client.execute(built, {}, execution_id="e", timeout=PATIENCE_SECONDS))
    await eventually(began.is_set)  # the server knows of it a moment before
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert ended.is_set()
    executing.cancel()
    await asyncio.gather(executing, return_exceptions=True)


async def test_a_workflow_that_the_server_refuses_ends_the_worker(server: Server) -> None:
    refused = workflow("w").timer("nap", -1).build()
    with pytest.raises(InvalidRequest, match="node 'nap' is a TIMER whose delay_seconds is '-1'"):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await Worker([one_node(quick, workflow_id="fine"), refused], port=server.port).run()


# run_until_complete


async def test_run_until_complete_returns_the_outputs(server: Server, client: Client) -> None:
    built = one_node(quick)
    execution_id = await started(client, built)
    worker = Worker([built], port=server.port)
    assert await worker.run_until_complete(execution_id, timeout=PATIENCE_SECONDS) == {"run": {"text": "quick"}}


async def test_run_until_complete_raises_why_it_failed(server: Server, client: Client) -> None:
    async def fail(_: ContextView) -> Text:
        raise TaskError("no such page", retryable=False)

    built = one_node(fail)
    execution_id = await started(client, built)
    with pytest.raises(NexumError, match=f"Execution {execution_id} is FAILED: no such page"):
        await Worker([built], port=server.port).run_until_complete(execution_id, timeout=PATIENCE_SECONDS)


async def test_run_until_complete_gives_up_after_its_timeout(server: Server, client: Client) -> None:
    async def hold(_: ContextView) -> Text:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    built = one_node(hold)
    execution_id = await started(client, built)
    with pytest.raises(TimeoutError):
        await Worker([built], port=server.port, drain_seconds=0).run_until_complete(execution_id, timeout=0.2)


async def test_run_until_complete_ends_when_its_workflow_is_refused(server: Server, client: Client) -> None:
    execution_id = await started(client, one_node(quick))
    refused = workflow("w").timer("nap", -1).build()
    ending = asyncio.create_task(
        Worker([refused], port=server.port).run_until_complete(execution_id, timeout=PATIENCE_SECONDS)
    )
    await asyncio.wait({ending}, timeout=5)
    in_time = ending.done()
    ending.cancel()
    ended: list[Any] = await asyncio.gather(ending, return_exceptions=True)
    assert in_time, "it waited for an execution that it would never work on"
    assert isinstance(ended[0], InvalidRequest)


async def started(client: Client, built: Any) -> str:
    """Start an execution and do not wait for its end."""
    await client.register(built)
    request = pb.StartRequest(workflow_id=built.workflow_id, version_hash=built.version_hash, input_json="{}")
    return str((await pb_grpc.NexumServiceStub(remote(client).connection.channel).StartExecution(request)).execution_id)


# Several at once


async def test_a_cancellation_that_a_handler_leaves_behind_hits_nobody_else(server: Server, client: Client) -> None:
    async def cancels_itself(context: ContextView) -> Text:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()  # which it would notice when it waits next
        return Text(text=str(context.input))

    built = one_node(cancels_itself)
    async with working(server.port, built):
        for n in range(2):
            outcome = await client.execute(built, n, timeout=PATIENCE_SECONDS)
            assert outcome.outputs == {"run": {"text": str(n)}}


@pytest.mark.parametrize("in_batches", [True, False])
async def test_many_tasks_and_results_travel_in_few_messages_where_both_sides_know_how(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch, in_batches: bool
) -> None:
    begun, all_begun, packed, pack = 0, asyncio.Event(), defaultdict[str, list[int]](list), batches.pack

    def counted(messages: Any) -> bytes:
        packed[type(messages[0]).__name__].append(len(messages))
        return pack(messages)

    async def hold(context: ContextView) -> Text:
        nonlocal begun
        begun += 1
        if begun == 40:
            all_begun.set()
        await all_begun.wait()
        return Text(text=str(context.input))

    monkeypatch.setattr(batches, "pack", counted)
    if not in_batches:
        metadata = Connection.metadata
        monkeypatch.setattr(
            Connection,
            "metadata",
            lambda self, sent: metadata(self, {key: sent[key] for key in sent if key != wire.BATCHES}),
        )
    built = one_node(hold)
    await client.register(built)
    for n in range(40):
        await server.engine.start(StartOrder("w", built.version_hash, str(n), f"e/{n:02}"))
    async with working(server.port, built, concurrency=40) as worker:
        await eventually(lambda: all_begun.is_set() and not worker._results, "all that was told is acknowledged")
        journal = await client.journal("e/")
    assert journal == {f"e/{n:02}": {"run": {"text": str(n)}} for n in range(40)}
    if in_batches:
        assert sum(packed["CompleteRequest"]) == 40
        assert max(len(each) for each in packed.values()) < 10, packed
    else:
        assert not packed


# Timeouts


STUCK_SECONDS = 0.2  # what a handler gets that does not end in time


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_handler_that_takes_too_long_is_given_up_and_tried_again_in_the_slot_that_is_free(
    server: Server, client: Client, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled, release, returned, calls = asyncio.Event(), threading.Event(), threading.Event(), []

    async def hang_async(_: ContextView) -> Text:
        calls.append(idempotency_key())
        try:
            if len(calls) == 1:
                await asyncio.Event().wait()
        finally:
            cancelled.set()
        return Text(text="in time")

    def hang_sync(_: ContextView) -> Text:
        calls.append(idempotency_key())
        if len(calls) == 1:
            release.wait(PATIENCE_SECONDS)
            returned.set()
            return Text(text="too late")
        return Text(text="in time")

    built = one_node(hang_async if kind == "async" else hang_sync)
    async with working(server.port, built, concurrency=1):
        outcome = await client.execute(
            built, {}, execution_id="e", effect="read", attempt_timeout=STUCK_SECONDS, timeout=PATIENCE_SECONDS
        )
        release.set()
        if kind == "sync":
            assert await asyncio.to_thread(returned.wait, PATIENCE_SECONDS)
        else:
            assert cancelled.is_set()
        assert (await client.execute(built, {}, timeout=PATIENCE_SECONDS)).status == "COMPLETED"
    assert (outcome.status, outcome.outputs) == ("COMPLETED", {"run": {"text": "in time"}})
    assert calls[0] == calls[1], "every attempt of a call has the same idempotency key"
    failed = [event["error"] for event in (await history(client, "e"))["events"] if event["type"] == "AttemptFailed"]
    assert failed == ["It took longer than its 200 ms."]
    logged = [record.message for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert logged == ["e run: It took longer than its 200 ms."]


async def test_a_handler_that_never_ends_in_time_has_failed_after_its_last_attempt(
    server: Server, client: Client
) -> None:
    async def hang(_: ContextView) -> Text:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    built = one_node(hang)
    async with working(server.port, built):
        outcome = await client.execute(
            built, {}, effect="read", max_attempts=3, attempt_timeout=0.05, timeout=PATIENCE_SECONDS
        )
    assert (outcome.status, outcome.error_code, outcome.attempts) == ("FAILED", "TOOL_ERROR", 3)
    assert outcome.error == "It took longer than its 50 ms."


@pytest.mark.parametrize("how", ["hangs", "raises", "goes on"])
async def test_an_effect_that_happens_once_and_takes_too_long_is_unknown_and_not_tried_again(
    server: Server, client: Client, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.worker.attempt.CANCEL_SECONDS", 0.05)
    calls = []
    release = asyncio.Event()

    async def hang(_: ContextView) -> Text:
        calls.append(how)
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                if how == "hangs":
                    raise
                if how == "raises":
                    raise RuntimeError("aborted") from None
        return Text(text="long after")

    built = one_node(hang)
    async with working(server.port, built, concurrency=1):
        outcome = await client.execute(
            built, {}, execution_id="e", effect="once", attempt_timeout=STUCK_SECONDS, timeout=PATIENCE_SECONDS
        )
        again = await client.execute(
            built, {}, execution_id="e", effect="once", restart="failed", timeout=PATIENCE_SECONDS
        )
        assert len(calls) == 1
        release.set()
        quick_one = await client.execute(built, {}, timeout=PATIENCE_SECONDS)
        assert quick_one.status == "COMPLETED", "the slot is free again"
    assert (outcome.status, outcome.error_code, outcome.attempts) == ("FAILED", "OUTCOME_UNKNOWN", 1)
    assert outcome.error == "It took longer than its 200 ms: the effect may or may not have happened."
    assert (again.before, again.error_code) == ("FAILED", "OUTCOME_UNKNOWN")


async def test_a_handler_that_makes_an_end_when_its_time_is_up_is_taken_at_its_word(
    server: Server, client: Client
) -> None:
    async def hurry(_: ContextView) -> Text:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return Text(text="half of it")
        raise AssertionError("unreachable")

    built = one_node(hurry)
    async with working(server.port, built):
        outcome = await client.execute(
            built, {}, effect="once", attempt_timeout=STUCK_SECONDS, timeout=PATIENCE_SECONDS
        )
    assert outcome.outputs == {"run": {"text": "half of it"}}


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_handler_s_own_timeout_is_told_in_its_own_words(server: Server, client: Client, kind: str) -> None:
    def give_up(_: ContextView) -> Text:
        raise TimeoutError("the bank did not answer")

    async def give_up_async(context: ContextView) -> Text:
        return give_up(context)

    built = one_node(give_up if kind == "sync" else give_up_async)
    async with working(server.port, built):
        outcome = await client.execute(built, {}, effect="once", attempt_timeout=60, timeout=PATIENCE_SECONDS)
    assert (outcome.error_code, outcome.error) == ("TOOL_ERROR", "TimeoutError: the bank did not answer")


async def test_a_handler_that_cannot_tell_whether_it_had_its_effect_says_so(server: Server, client: Client) -> None:
    async def lose_track(_: ContextView) -> Text:
        raise TaskError("The line went dead.", unknown=True)

    built = one_node(lose_track)
    async with working(server.port, built):
        once = await client.execute(built, {}, effect="once", timeout=PATIENCE_SECONDS)
        read = await client.execute(built, {}, effect="read", timeout=PATIENCE_SECONDS)
    assert (once.error_code, once.attempts) == ("OUTCOME_UNKNOWN", 1)
    assert (read.error_code, read.attempts, read.error) == ("TOOL_ERROR", 4, "The line went dead.")


@pytest.mark.parametrize("returned", [object(), {"text": 1}])
async def test_an_effect_that_happens_once_whose_result_cannot_be_recorded_is_unknown(
    server: Server, client: Client, returned: Any
) -> None:
    async def give(_: ContextView) -> Any:
        return returned

    built = one_node(give)
    async with working(server.port, built):
        outcome = await client.execute(built, {}, effect="once", timeout=PATIENCE_SECONDS)
    assert (outcome.error_code, outcome.attempts) == ("OUTCOME_UNKNOWN", 1)
    assert "returned what cannot be recorded" in (outcome.error or "")


@pytest.mark.parametrize("node", ["run", "página 🦊\n", "a b"])
async def test_an_idempotency_key_is_ready_for_a_header_whatever_the_node_is_called(
    server: Server, client: Client, node: str
) -> None:
    async def tell(_: ContextView) -> Text:
        return Text(text=idempotency_key())

    built = workflow("w").effect(node, Text, tell).build()
    async with working(server.port, built):
        outcome = await client.execute(built, {}, execution_id="s1/Pay:1@x=-", timeout=PATIENCE_SECONDS)
    key = outcome.outputs[node]["text"]
    assert key.startswith("s1/Pay:1@x=-:")
    assert wire.fits_header(key)


# What leaves a worker


async def test_a_handler_s_error_is_told_without_the_secrets_of_its_worker(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_API_KEY", "sk-0123456789")

    async def ask(context: ContextView) -> Text:
        what = "x" * (ERROR_LIMIT - len(" 401 for https://me:pw")) if context.input == "long" else ""
        raise TaskError(f"{what} 401 for https://me:pw@host/?key=sk-0123456789\x1b[2J", retryable=False)

    async def answer(_: ContextView) -> Text:
        return Text(text="https://me:pw@host/?key=sk-0123456789")

    built, fine = one_node(ask), one_node(answer, workflow_id="fine")
    async with working(server.port, built, fine):
        failed = await client.execute(built, "short", execution_id="e", timeout=PATIENCE_SECONDS)
        long = await client.execute(built, "long", timeout=PATIENCE_SECONDS)
        outcome = await client.execute(fine, {}, timeout=PATIENCE_SECONDS)
    assert failed.error == " 401 for https://***@host/?key=[SEARCH_API_KEY]\x1b[2J", "a control character is told"
    assert "sk-0" not in json.dumps(await history(client, "e"))
    told = (await history(client, long.execution_id))["events"][-1]["error"]
    assert len(told) == ERROR_LIMIT
    assert "pw" not in told, "nothing is cut before it is looked at as a whole"
    assert outcome.outputs == {"run": {"text": "https://me:pw@host/?key=sk-0123456789"}}, "a result is the truth"


async def test_the_tools_worker_logs_and_tells_neither_secrets_nor_control_characters(
    server: Server, client: Client, address: str, tmp_path: Path
) -> None:
    """worker.py itself, whose tools are given what a model may make up."""
    from nexum_agents.workflows import tool_call_workflow  # not at the top: this file is a program too, of no agents

    root = Path(__file__).parents[2]
    env = environment(NEXUM_ADDRESS=address, WEB_PASSWORD="hush-hush")
    worker = Process([sys.executable, root / "worker.py", "--offline"], tmp_path / "worker.log", env=env)
    worker.start()
    await worker.says("Connected to Nexum")
    url = f"https://me:pw@offline.example/\x1b[2J\u009b\u202e{'x' * 65}hush-hush\n\n12:00:00  forged"
    calls = {
        "visit_webpage": {"url": url},
        f"ghost\x1b[2J\n{url}": {},
        "web_search": {"query": "durable", "max_results": url},
    }
    outcomes = [
        await client.execute(tool_call_workflow(), {"tool_name": name, "tool_args": args}, timeout=PATIENCE_SECONDS)
        for name, args in calls.items()
    ]
    worker.terminate()
    await worker.ended()
    logged = worker.log.read_bytes().decode()
    assert [outcome.status for outcome in outcomes] == ["FAILED"] * 3
    for text in (logged, *(outcome.error or "" for outcome in outcomes)):
        assert "hush" not in text
        assert "pw@" not in text
    assert "[WEB_PASSWORD]" in (outcomes[0].error or "")
    assert "\x1b[2J\x9b\u202e" in (outcomes[0].error or ""), "the model is told what there was"
    assert printable(logged) == logged
    assert logged.count("visit_webpage failed: ") == 1
    assert all(re.match(r"\d\d:\d\d:\d\d  (?!forged)|    ", line) for line in logged.splitlines()), logged


# Deaths


async def test_a_result_is_recorded_although_the_server_died_in_mid_task(tmp_path: Path) -> None:
    calls = 0
    release = asyncio.Event()

    async def hold(_: ContextView) -> Text:
        nonlocal calls
        calls += 1
        await release.wait()
        return Text(text="worth waiting for")

    built = one_node(hold)
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        async with working(nexum.port, built, lease_ms=2_000, drain_seconds=PATIENCE_SECONDS):
            executing = asyncio.create_task(client.execute(built, {}, execution_id="e", timeout=PATIENCE_SECONDS))
            await eventually(lambda: calls)
            await eventually(lambda: client.executions("e"))  # it may begin a moment before that is recorded
            nexum.kill()
            release.set()  # the handler ends while nobody is there to be told
            await nexum.restart()
            outcome = await executing
            assert (outcome.status, outcome.outputs, outcome.before) == (
                "COMPLETED",
                {"run": {"text": "worth waiting for"}},
                "",  # what it was before was known to the server that died
            )
        assert calls == 1
        assert await story(client, "e") == [
            "ExecutionStarted",
            "AttemptStarted 1",
            "TaskCompleted 1",
            "ExecutionCompleted",
        ]


async def test_results_that_were_not_acknowledged_are_told_again_and_recorded_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    release = asyncio.Event()

    async def hold(context: ContextView) -> Text:
        calls.append(context.input)
        await release.wait()
        return Text(text=str(context.input))

    built = one_node(hold)
    dying = environment(NEXUM_EXIT_WITH_PARENT="1", NEXUM_CRASH_AT="completion-committed")
    async with NexumDev(tmp_path, env=dying) as nexum, Client(nexum.address) as client:
        async with working(nexum.port, built, concurrency=3) as worker:
            executing = [
                asyncio.create_task(client.execute(built, n, execution_id=f"s/{n}", timeout=PATIENCE_SECONDS))
                for n in range(3)
            ]
            for n in range(3):
                await eventually(partial(has_begun, client, f"s/{n}"))
            release.set()
            assert await nexum.ended() == -signal.SIGKILL, "it has recorded one, and acknowledged none"
            async with NexumDev(tmp_path, port=nexum.port, database=nexum.database):
                outcomes = await asyncio.gather(*executing)
                await eventually(lambda: not worker._results, "the acknowledgement of all")
                assert [outcome.outputs["run"]["text"] for outcome in outcomes] == ["0", "1", "2"]
                for n in range(3):
                    assert await story(client, f"s/{n}") == [
                        "ExecutionStarted",
                        "AttemptStarted 1",
                        "TaskCompleted 1",
                        "ExecutionCompleted",
                    ]
        assert sorted(calls) == [0, 1, 2]
        assert "was completed already; this result was not recorded." in caplog.text


@dataclass
class OnItsWay:
    """A result so large that a server which has stopped reading has only a part of it."""

    nexum: NexumDev
    client: Client
    worker: Worker
    executing: "asyncio.Task[Outcome]"
    calls: int = 0  # of its handler

    async def has_come(self) -> bool:
        return len((await self.executing).outputs["run"]["text"]) == 10_000_000


@asynccontextmanager
async def on_its_way(folder: Path) -> AsyncIterator[OnItsWay]:
    release = asyncio.Event()

    async def hold(_: ContextView) -> Text:
        result.calls += 1
        await release.wait()
        return Text(text="x" * 10_000_000)

    built = one_node(hold)
    async with NexumDev(folder) as nexum, Client(nexum.address) as client, working(nexum.port, built) as worker:
        executing = asyncio.create_task(client.execute(built, {}, execution_id="e", timeout=PATIENCE_SECONDS))
        result = OnItsWay(nexum, client, worker, executing)
        await eventually(lambda: has_begun(client, "e"))
        nexum.send(signal.SIGSTOP)
        release.set()
        (outgoing,) = worker._streams.values()
        await eventually(lambda: worker._results and not outgoing._waiting, "the result on its way")
        yield result


async def test_a_result_that_is_on_its_way_when_the_server_is_killed_is_told_again(tmp_path: Path) -> None:
    async with on_its_way(tmp_path) as result:
        await result.nexum.restart()
        assert await result.has_come()
    assert result.calls == 1


async def test_a_result_that_is_on_its_way_when_the_worker_is_stopped_is_told_in_another_way(tmp_path: Path) -> None:
    async with on_its_way(tmp_path) as result:
        result.worker.stop()
        await eventually(lambda: result.worker._reports, "another way")
        result.nexum.send(signal.SIGCONT)
        assert await result.has_come()
        assert await story(result.client, "e") == [
            "ExecutionStarted",
            "AttemptStarted 1",
            "TaskCompleted 1",
            "ExecutionCompleted",
        ]


async def test_a_worker_waits_for_a_server_that_is_not_there_yet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = one_node(quick)
    nexum = NexumDev(tmp_path)
    async with nexum:
        port = nexum.port
    async with working(port, built):
        await eventually(lambda: "Waiting for it." in caplog.text)
        await nexum.restart()
        async with Client(nexum.address) as client:
            assert (await client.execute(built, {}, timeout=PATIENCE_SECONDS)).status == "COMPLETED"
    assert caplog.text.count("Waiting for it.") == 1, "it says so once, not with every try"


async def test_a_worker_registers_its_workflow_with_a_server_that_has_lost_its_database(tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as nexum, working(nexum.port, one_node(quick)):
        await eventually(lambda: knows_workflow(nexum.address))
        nexum.kill()
        nexum.database = tmp_path / "new.db"
        await nexum.restart()
        await eventually(lambda: knows_workflow(nexum.address))


async def knows_workflow(address: str) -> bool:
    async with Client(address) as client:
        await client.check(PATIENCE_SECONDS)
        stub = pb_grpc.NexumServiceStub(remote(client).connection.channel)
        return bool((await stub.ListWorkflowVersions(pb.ListVersionsRequest(workflow_id="w"))).versions)


async def test_another_worker_takes_over_from_one_that_was_killed_in_mid_task(
    server: Server, client: Client, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    command = [sys.executable, __file__, str(server.port), str(ledger), "1000"]
    first = Process(command, tmp_path / "first.log", env=environment(HOLD="1", PYTHONPATH=TESTS))
    first.start()
    executing = asyncio.create_task(client.execute(effect_on(ledger), {}, execution_id="e", timeout=PATIENCE_SECONDS))
    await first.says("began")
    second = Process(command, tmp_path / "second.log", env=environment(PYTHONPATH=TESTS))
    second.start()
    await second.says("ready")
    assert (await client.status("e")).status == "RUNNING"
    first.kill()
    outcome = await executing
    assert (outcome.status, outcome.attempts) == ("COMPLETED", 2)
    assert outcome.outputs == {"run": {"text": f"by {second.pid}"}}
    keys = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [entry["pid"] for entry in keys] == [first.pid, second.pid]
    assert len({entry["key"] for entry in keys}) == 1, "the effect can tell that it was asked for once"
    assert await story(client, "e") == [
        "ExecutionStarted",
        "AttemptStarted 1",
        "LeaseExpired 1",
        "AttemptStarted 2",
        "TaskCompleted 2",
        "ExecutionCompleted",
    ]
    second.kill()


async def test_a_once_only_effect_of_a_killed_worker_has_an_unknown_outcome(
    server: Server, client: Client, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    command = [sys.executable, __file__, str(server.port), str(ledger), "1000"]
    first = Process(command, tmp_path / "first.log", env=environment(HOLD="1", PYTHONPATH=TESTS))
    first.start()
    built = effect_on(ledger)
    executing = asyncio.create_task(
        client.execute(built, {}, execution_id="e", max_attempts=1, timeout=PATIENCE_SECONDS)
    )
    await first.says("began")
    first.kill()
    outcome = await executing
    assert (outcome.status, outcome.error_code, outcome.attempts) == ("FAILED", "OUTCOME_UNKNOWN", 1)
    assert len(ledger.read_text().splitlines()) == 1


async def test_a_worker_s_process_ends_although_a_sync_handler_never_does(
    server: Server, client: Client, tmp_path: Path
) -> None:
    built = one_node(quick, workflow_id="stuck")
    execution_id = await started(client, built)
    program = (
        "import asyncio, threading\n"
        "from test_worker import Text, one_node\n"
        "from nexum_runtime import Worker\n"
        "async def main():\n"
        "    began = threading.Event()\n"
        "    def stick(_):\n"
        "        began.set()\n"
        "        threading.Event().wait()\n"
        f"    worker = Worker([one_node(stick, workflow_id='stuck')], port={server.port}, drain_seconds=0)\n"
        "    running = asyncio.create_task(worker.run())\n"
        "    await asyncio.to_thread(began.wait)\n"
        "    worker.stop()\n"
        "    await running\n"
        "asyncio.run(main())\n"
    )
    env, here = environment(PYTHONPATH=TESTS), Path(__file__).parent
    finished = await run(sys.executable, "-c", program, env=env, cwd=here, seconds=PATIENCE_SECONDS)
    assert (finished.code, finished.stderr) == (0, "")
    assert (await story(client, execution_id))[-1] == "LeaseExpired 1"


def effect_on(ledger: Path) -> Any:
    """A workflow whose one effect is a line in a file. With HOLD set it never ends."""

    async def write(_: ContextView) -> Text:
        with ledger.open("a") as lines:
            lines.write(json.dumps({"pid": os.getpid(), "key": idempotency_key()}) + "\n")
        print("began", flush=True)
        if os.environ.get("HOLD"):
            await asyncio.Event().wait()
        return Text(text=f"by {os.getpid()}")

    return one_node(write, workflow_id="effect")


async def work(port: int, ledger: Path, lease_ms: int) -> None:
    worker = Worker([effect_on(ledger)], port=port, lease_ms=lease_ms, concurrency=1)
    running = asyncio.create_task(worker.run())
    print("ready", flush=True)
    await running


if __name__ == "__main__":
    asyncio.run(work(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
