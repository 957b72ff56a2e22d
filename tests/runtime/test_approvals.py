"""Nodes that no worker executes, over the wire: a person's approval and a timer, to nexum-py's client and to ours."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from nexum import NexumClient, Worker, workflow
from nexum.context import ContextView
from nexum.proto import nexum_pb2 as pb
from processes import PATIENCE_SECONDS, NexumDev, eventually
from pydantic import BaseModel
from test_stock_sdk import in_a_thread

from nexum_runtime import Client, human_approval
from nexum_runtime.server.app import Server


class Letter(BaseModel):
    text: str


async def draft(context: ContextView) -> Letter:
    return Letter(text=f"Dear {context.input['to']}")


async def send(context: ContextView) -> Letter:
    letter, yes = context.get("draft"), context.get("approval")
    assert isinstance(letter, Letter), "a stock worker hands on models"
    return Letter(text=f"{letter.text}, sent by leave of {yes['approver']}")


LETTER = (
    human_approval(workflow("letter").effect("draft", Letter, draft), "approval").effect("send", Letter, send).build()
)
NAP = workflow("nap").timer("nap", 1).build()
GATE = human_approval(workflow("gate"), "approval").build()


# nexum-py's own client and worker


async def pending(stock: NexumClient) -> Any:
    """The only one that waits for an approval, as soon as there is one."""
    found = await eventually(lambda: stock._stub.GetPendingApprovals(pb.EmptyRequest()).items, "an approval")
    assert len(found) == 1
    return found[0]


async def test_a_stock_worker_goes_on_with_what_a_stock_client_approves(server: Server, client: Client) -> None:
    async def work(stock: NexumClient) -> Any:
        stock.register_workflow(LETTER)
        execution_id = stock.start_execution("letter", {"to": "Ana"})
        working = asyncio.create_task(Worker([LETTER], port=server.port).run_until_complete(execution_id))
        waiting = await pending(stock)
        assert (waiting.execution_id, waiting.node_id, waiting.workflow_id) == (execution_id, "approval", "letter")
        named = {"execution_id": execution_id, "node_id": "approval"}
        acknowledged = stock._stub.ApproveTask(pb.ApproveRequest(**named, approver="Eva", comment="sim"))
        assert (acknowledged.ok, acknowledged.message) == (True, "Approved.")
        return waiting, await working

    waiting, outputs = await in_a_thread(work, server.port)
    assert outputs == {
        "draft": {"text": "Dear Ana"},
        "approval": {"approved": True, "approver": "Eva", "comment": "sim"},
        "send": {"text": "Dear Ana, sent by leave of Eva"},
    }
    (history,) = [each async for each in client.history(waiting.execution_id)]
    asked_ms = next(each["at_ms"] for each in history["events"] if each["type"] == "ApprovalRequested")
    assert waiting.started_at.endswith(f".{asked_ms % 1000:03}Z")


async def test_what_a_stock_client_rejects_has_failed_with_its_reason(server: Server, client: Client) -> None:
    async def work(stock: NexumClient) -> Any:
        stock.register_workflow(LETTER)
        execution_id = stock.start_execution("letter", {"to": "Ana"})
        working = asyncio.create_task(Worker([LETTER], port=server.port).run_until_complete(execution_id))
        await pending(stock)
        named = {"execution_id": execution_id, "node_id": "approval"}
        stock._stub.RejectTask(pb.RejectRequest(**named, approver="Eva", reason="não"))
        with pytest.raises(RuntimeError, match="failed"):
            await working
        return execution_id

    outcome = await client.status(await in_a_thread(work, server.port))
    assert (outcome.status, outcome.error_code, outcome.error) == ("FAILED", "REJECTED", "Rejected by Eva: não")
    assert await client.approvals() == []


async def test_a_timer_of_nexum_py_is_over_without_a_worker(server: Server, client: Client) -> None:
    async def work(stock: NexumClient) -> Any:
        stock.register_workflow(NAP)
        return stock.start_execution("nap", {})

    outcome = await client.status(await in_a_thread(work, server.port), wait_ms=int(PATIENCE_SECONDS * 1000))
    assert (outcome.status, outcome.outputs["nap"]["delay_seconds"]) == ("COMPLETED", 1)
    (history,) = [each async for each in client.history(outcome.execution_id)]
    set_at, fired = [each for each in history["events"] if each["type"] in ("TimerSet", "TimerFired")]
    assert fired["at_ms"] >= set_at["due_at_ms"] == set_at["at_ms"] + 1_000


# Our client


async def test_a_call_is_told_that_it_waits_for_a_person_and_its_patience_begins_with_the_approval(
    server: Server, client: Client
) -> None:
    told: list[str] = []
    built = human_approval(workflow("gated"), "approval").effect("send", Letter, send).build()
    executing = asyncio.create_task(client.execute(built, {}, execution_id="s/1", timeout=1.0, on_wait=told.append))
    await eventually(lambda: told.count("approval") == 2, "it waits for longer than its patience")
    assert await client.approve("s/1", "approval", "Eva") == "Approved."
    await eventually(lambda: told[-1] == "worker")
    claimed = await client.poll("worker-1", built, lease_ms=60_000)
    await client.complete(claimed.task_id, '"sent"')  # type: ignore[union-attr]
    assert (await executing).outputs["send"] == "sent"


async def test_a_rejection_ends_the_call_at_once_and_every_later_one(client: Client) -> None:
    executing = asyncio.create_task(client.execute(GATE, {}, execution_id="s/1"))
    await eventually(client.approvals)
    assert await client.reject("s/1", "approval", "Eva", "no money") == "Rejected."
    for outcome in (await executing, await client.execute(GATE, {}, execution_id="s/1", restart="unknown")):
        assert (outcome.error_code, outcome.error) == ("REJECTED", "Rejected by Eva: no money")


# A server that is killed


async def test_an_approval_and_a_timer_survive_a_server_that_is_killed(tmp_path: Path) -> None:
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        executing = [
            asyncio.create_task(client.execute(each, {}, execution_id=each.workflow_id)) for each in (GATE, NAP)
        ]

        async def both_wait() -> bool:
            return len(await client.executions()) == 2

        await eventually(both_wait)
        await nexum.restart()
        await client.check(PATIENCE_SECONDS)
        (waiting,) = await client.approvals()
        assert waiting.execution_id == "gate"
        await client.approve("gate", "approval", "Eva")
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert [outcome.status for outcome in await asyncio.gather(*executing)] == ["COMPLETED", "COMPLETED"]
        await nexum.restart()
        await client.check(PATIENCE_SECONDS)
        assert (await client.status("gate")).outputs["approval"]["approver"] == "Eva"
