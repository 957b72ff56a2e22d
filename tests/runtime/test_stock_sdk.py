"""nexum-py's own client and worker, unmodified, against our server.

Both block the event loop they run on, so here they run in threads and processes of their own. As a program, this
file is one such process: `python test_stock_sdk.py PORT WORKFLOW_ID COUNT TOTAL`.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from nexum import NexumClient, Worker, workflow
from nexum.context import ContextView
from nexum.proto import nexum_pb2 as pb
from processes import LOOK_SECONDS, TESTS, environment, eventually, run
from pydantic import BaseModel

from nexum_runtime import Client, wire
from nexum_runtime import Worker as StreamingWorker
from nexum_runtime.server.app import Server
from nexum_runtime.server.engine import workers


class Page(BaseModel):
    text: str


class Count(BaseModel):
    words: int
    by: str


async def fetch(context: ContextView) -> Page:
    return Page(text=f"página 🦊 of {context.input['url']}")


def count(context: ContextView) -> Count:
    page = context.get("fetch")
    assert isinstance(page, Page), "a stock worker hands on models"
    return Count(words=len(page.text.split()), by="count")


COUNTING = workflow("counting").effect("fetch", Page, fetch).compute("count", Count, count).build()


async def slow(context: ContextView) -> Page:
    ATTEMPTS.append(context.input["url"])
    await asyncio.sleep(2 * SHORT_LEASE_MS / 1000)
    return Page(text="done")


ATTEMPTS: list[str] = []
SHORT_LEASE_MS = 3_000
SLOW = workflow("slow").effect("fetch", Page, slow).build()


async def in_a_thread(work: Callable[[NexumClient], Coroutine[Any, Any, Any]], port: int) -> Any:
    """Run stock code in a thread with an event loop of its own, as nobody else's would survive it."""

    def thread() -> Any:
        client = NexumClient(port=port)
        try:
            return asyncio.run(work(client))
        finally:
            client.close()

    return await asyncio.to_thread(thread)


async def test_a_tool_that_takes_longer_than_the_lease_runs_once_in_a_stock_worker(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "LEASE_MS_DEFAULT", SHORT_LEASE_MS)
    monkeypatch.setattr(workers, "RENEW_MS", SHORT_LEASE_MS // 10)
    ATTEMPTS.clear()

    async def work(stock: NexumClient) -> Any:
        stock.register_workflow(SLOW)
        execution_id = stock.start_execution("slow", {"url": "x"})
        return execution_id, await Worker([SLOW], port=server.port).run_until_complete(execution_id)

    execution_id, outputs = await in_a_thread(work, server.port)
    assert outputs == {"fetch": {"text": "done"}}
    assert ATTEMPTS == ["x"]
    (history,) = [each async for each in client.history(execution_id)]
    assert history["attempts"] == 1


async def test_an_effect_feeds_a_compute_node(server: Server, client: Client) -> None:
    async def work(stock: NexumClient) -> Any:
        assert stock.register_workflow(COUNTING) == "NEW"
        assert stock.register_workflow(COUNTING) == "IDENTICAL"
        execution_id = stock.start_execution("counting", {"url": "x"})
        outputs = await Worker([COUNTING], port=server.port).run_until_complete(execution_id)
        assert stock.get_status(execution_id) == {"status": "COMPLETED", "completedNodes": outputs}
        return execution_id, outputs

    execution_id, outputs = await in_a_thread(work, server.port)
    assert outputs == {"fetch": {"text": "página 🦊 of x"}, "count": {"words": 4, "by": "count"}}
    (history,) = [each async for each in client.history(execution_id)]
    assert [event["type"] for event in history["events"]] == [
        "ExecutionStarted",
        "AttemptStarted",
        "TaskCompleted",
        "AttemptStarted",
        "TaskCompleted",
        "ExecutionCompleted",
    ]


async def test_a_failing_handler_is_retried_and_fails_in_the_end(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.server.rules.attempts.RETRY_DELAY_MS_MIN", 1)
    calls = []

    async def fail(_: ContextView) -> Page:
        calls.append(1)
        raise RuntimeError(f"no luck {len(calls)}")

    built = workflow("failing").effect("run", Page, fail).build()

    async def work(stock: NexumClient) -> str:
        stock.register_workflow(built)
        execution_id = str(stock.start_execution("failing", {}))
        with pytest.raises(RuntimeError, match="failed"):
            await Worker([built], port=server.port).run_until_complete(execution_id)
        return execution_id

    execution_id = await in_a_thread(work, server.port)
    outcome = await client.status(execution_id)
    assert (outcome.status, outcome.error, outcome.attempts) == ("FAILED", "no luck 4", 4)
    assert len(calls) == 4


async def test_an_attempt_that_fails_once_is_made_good_by_the_next(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nexum_runtime.server.rules.attempts.RETRY_DELAY_MS_MIN", 1)
    calls = []

    async def fail_once(_: ContextView) -> Page:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("no luck")
        return Page(text="there")

    built = workflow("flaky").effect("run", Page, fail_once).build()

    async def work(stock: NexumClient) -> Any:
        stock.register_workflow(built)
        execution_id = stock.start_execution("flaky", {})
        return await Worker([built], port=server.port).run_until_complete(execution_id)

    assert await in_a_thread(work, server.port) == {"run": {"text": "there"}}


async def test_a_stock_worker_runs_what_was_declared_once_and_given_a_timeout(server: Server, client: Client) -> None:
    async def work(stock: NexumClient) -> Any:
        stock.register_workflow(COUNTING)
        executing = asyncio.run_coroutine_threadsafe(
            client.execute(COUNTING, {"url": "x"}, execution_id="e", effect="once", attempt_timeout=60), loop
        )
        while not client_knows("e"):
            await asyncio.sleep(LOOK_SECONDS)
        await Worker([COUNTING], port=server.port).run_until_complete("e")
        return executing.result()

    def client_knows(execution_id: str) -> bool:
        return bool(asyncio.run_coroutine_threadsafe(client.executions(execution_id), loop).result())

    loop = asyncio.get_running_loop()
    outcome = await in_a_thread(work, server.port)
    assert outcome.outputs == {"fetch": {"text": "página 🦊 of x"}, "count": {"words": 4, "by": "count"}}


async def test_a_cancelled_execution_ends_a_stock_worker_s_wait(server: Server, client: Client) -> None:
    async def work(stock: NexumClient) -> Any:
        stock.register_workflow(COUNTING)
        execution_id = stock.start_execution("counting", {"url": "x"})
        waiting = asyncio.create_task(Worker([], port=server.port).run_until_complete(execution_id))
        asyncio.run_coroutine_threadsafe(client.cancel(execution_id), loop).result()
        assert await waiting == {}
        return stock.get_status(execution_id)

    loop = asyncio.get_running_loop()
    assert await in_a_thread(work, server.port) == {"status": "CANCELLED", "completedNodes": {}}


async def test_two_workers_whose_workflows_share_a_hash_never_take_each_other_s_tasks(server: Server) -> None:
    """nexum-py leaves the workflow's id out of the hash, and its polls name nothing but the hash."""
    programs = [
        run(sys.executable, __file__, str(server.port), name, "20", "40", env=environment(PYTHONPATH=TESTS))
        for name in ("ham", "spam")
    ]
    for name, finished in zip(("ham", "spam"), await asyncio.gather(*programs), strict=True):
        assert finished.code == 0, finished.stderr
        outputs = json.loads(finished.stdout)
        assert outputs == [{"run": {"text": f"{name} made {i} of {name}"}} for i in range(20)]


async def test_a_stock_worker_and_one_with_a_stream_share_the_work(server: Server, client: Client) -> None:
    def by(who: str) -> Any:
        async def say(context: ContextView) -> Page:
            ran[who].append(context.input)
            if who == "stream" and len(ran[who]) > 2:
                await eventually(lambda: ran["stock"], "a task for the worker that polls")
            if context.input == len(names) - 1:  # with it a stock worker ends, whatever it has taken besides
                await eventually(lambda: len(ran["stock"] + ran["stream"]) == len(names), "all the others")
            return Page(text=who)

        return workflow("shared").effect("run", Page, say).build()

    async def work(stock: NexumClient) -> Any:
        return await Worker([by("stock")], poll_interval=0.01, port=server.port).run_until_complete("last")

    ran: dict[str, list[int]] = {"stock": [], "stream": []}
    streaming = StreamingWorker([by("stream")], port=server.port, concurrency=2)
    running = asyncio.create_task(streaming.run())
    names = [*(f"e{number}" for number in range(20)), "last"]
    calls = [
        asyncio.create_task(client.execute(by("stream"), number, execution_id=name))
        for number, name in enumerate(names)
    ]
    await eventually(lambda: client.executions("last"), "the last of the calls")
    await in_a_thread(work, server.port)
    outcomes = await asyncio.gather(*calls)
    streaming.stop()
    await running
    assert {(outcome.status, outcome.attempts) for outcome in outcomes} == {("COMPLETED", 1)}
    assert sorted(ran["stock"] + ran["stream"]) == list(range(len(names))), "each is executed once"
    assert ran["stock"]
    assert ran["stream"]


async def work_off(port: int, workflow_id: str, amount: int, total: int) -> list[Any]:
    """Register a workflow, start executions of it, and work until all have ended; returns their outputs.

    Works from when the server has `total` executions.
    """

    async def make(context: ContextView) -> Page:
        return Page(text=f"{workflow_id} made {context.input['number']} of {context.input['for']}")

    built = workflow(workflow_id).effect("run", Page, make).build()
    client = NexumClient(port=port)
    client.register_workflow(built)
    started = [client.start_execution(workflow_id, {"number": i, "for": workflow_id}) for i in range(amount)]
    listing = pb.ListRequest(limit=10_000)
    while len(client._stub.ListExecutions(listing).executions) < total:  # until the other program is as far
        await asyncio.sleep(LOOK_SECONDS)
    worker = Worker([built], poll_interval=0.01, port=port)
    return [await worker.run_until_complete(execution_id) for execution_id in started]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(work_off(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))))


async def test_the_unrelated_project_of_the_same_name_is_said_to_be_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "nexum").mkdir()
    (tmp_path / "nexum" / "__init__.py").touch()
    finished = await run(sys.executable, "-c", "import nexum_runtime", env=environment(PYTHONPATH=str(tmp_path)))
    assert finished.code == 1
    assert "the unrelated project `nexum` of the package index stands in its place" in finished.stderr
