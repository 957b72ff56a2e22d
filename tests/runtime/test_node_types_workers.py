"""ROUTER, MAP, REDUCE and SUBWORKFLOW over the wire: our builders and Worker, nexum-py's, and the TypeScript SDK."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from command import nexum
from nexum import NexumClient, Worker, workflow
from nexum.context import ContextView
from nexum.proto import nexum_pb2 as pb
from nexum.proto import nexum_pb2_grpc
from processes import PATIENCE_SECONDS, eventually
from pydantic import BaseModel
from test_stock_sdk import in_a_thread

from nexum_runtime import Client, map_over, near, reduce, router, subworkflow
from nexum_runtime import Worker as OurWorker
from nexum_runtime.engines import host
from nexum_runtime.server.app import Server, ServerConfig


class Page(BaseModel):
    text: str


class Total(BaseModel):
    pages: int


class Receipt(BaseModel):
    amount: int


async def visit(context: ContextView, item: dict[str, str]) -> Page:
    return Page(text=f"{context.input['by']} saw {item['url']}")


def total(context: ContextView) -> Total:
    pages = context.get_map_results("pages")
    assert all(isinstance(page, Page) for page in pages), pages
    return Total(pages=len(pages))


async def pay(context: ContextView) -> Receipt:
    return Receipt(amount=context.input["amount"])


def thank(context: ContextView) -> Page:
    receipt = context.get("pay")
    assert isinstance(receipt, Receipt)
    return Page(text=f"{receipt.amount} paid")


async def urls(context: ContextView) -> list[dict[str, str]]:
    return [{"url": each} for each in context.input["urls"]]


PAYMENT = workflow("payment").effect("run", Receipt, pay).build()


def all_types() -> Any:
    builder = router(
        workflow("all"), "decide", ["buy", "leave"], lambda context: "buy" if context.input["urls"] else "leave"
    )
    builder = builder.compute("leave", Page, lambda _: Page(text="left"), depends_on=["decide"])
    builder = builder.compute("buy", Page, lambda _: Page(text="bought"), depends_on=["decide"])
    builder = map_over(builder, "pages", urls, visit, output_model=Page, depends_on=["buy"])
    builder = reduce(builder, "total", "pages", Total, total)
    paid = subworkflow(
        builder,
        "pay",
        "payment",
        lambda context: {"amount": 2 * context.get("total").pages},
        output_model=Receipt,
        depends_on=["total"],
    )
    return paid.compute("thank", Page, thank, depends_on=["pay", "leave"]).build()


ALL = all_types()
DONE = {
    "decide": {"routed_to": "buy"},
    "buy": {"text": "bought"},
    "pages": [{"text": "Ana saw a"}, {"text": "Ana saw b"}],
    "total": {"pages": 2},
    "pay": {"amount": 4},
    "thank": {"text": "4 paid"},
}


async def run_all(open_client: Callable[[], Client]) -> dict[str, Any]:
    async with open_client() as client:
        await client.register(PAYMENT)
        async with working(OurWorker([ALL, PAYMENT], open_client=open_client)):
            given = {"by": "Ana", "urls": ["a", "b"]}
            outcome = await client.execute(ALL, given, execution_id="s/all", timeout=PATIENCE_SECONDS)
    assert outcome.status == "COMPLETED", outcome.error
    return outcome.outputs


@asynccontextmanager
async def working(worker: OurWorker) -> AsyncIterator[None]:
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await running


async def test_our_worker_runs_what_our_builders_make_of_a_server(server: Server) -> None:
    assert await run_all(lambda: Client(f"localhost:{server.port}")) == DONE


async def test_show_tells_of_items_and_children(server: Server) -> None:
    address = f"localhost:{server.port}"
    await run_all(lambda: Client(address))
    shown = (await nexum(address, "show", "s/all")).stdout
    for words in (
        "pages: 2 items",
        "pages__1: attempt 1 done in",
        "pages: done, result of",
        "pay: started payment s/all/pay",
    ):
        assert words in shown, shown
    assert "all/pay" in (await nexum(address, "show", "s")).stdout


async def test_of_many_items_the_first_ones_and_those_that_are_not_done_are_shown(tmp_path: Path) -> None:
    async def but_one(_: ContextView, item: int) -> Page:
        if item == 28:
            raise RuntimeError("no luck")
        return Page(text="seen")

    server = Server(ServerConfig(tmp_path / "nexum.db", port=0, web_port=0))
    await server.start()
    address = f"localhost:{server.port}"
    many = map_over(workflow("many"), "pages", lambda _: list(range(30)), but_one, output_model=Page).build()
    async with (
        Client(address) as client,
        working(OurWorker([many], open_client=lambda: Client(address), concurrency=1)),
    ):
        ended = await client.execute(many, {}, execution_id="s/many", max_attempts=1, timeout=PATIENCE_SECONDS)
    assert ended.status == "FAILED"
    shown = (await nexum(address, "show", "s/many")).stdout
    whole = (await nexum(address, "show", "s/many", "--events")).stdout
    async with httpx.AsyncClient(base_url=f"http://localhost:{server.web_port}") as web:
        page = (await web.get("/execution?id=s/many")).text
    await server.stop()
    for told in shown, page:
        assert "pages__19: attempt 1 done" in told
        assert "pages__20: attempt 1" not in told
        assert "pages__28: attempt 1 failed" in told
        assert "… and 8 more items that are done" in told
    assert "pages__20: attempt 1 done" in whole


async def test_show_tells_what_a_parent_waits_for_and_of_a_child_that_was_tried_again(
    server: Server, client: Client
) -> None:
    address = f"localhost:{server.port}"
    parent = subworkflow(workflow("parent"), "pay", "payment", lambda _: {}).build()
    await client.register(PAYMENT)
    executing = asyncio.create_task(client.execute(parent, {}, execution_id="s/p", timeout=PATIENCE_SECONDS))
    task = await eventually(lambda: client.poll("w", parent, lease_ms=60_000), "the task of the parent")
    await client.complete(task.task_id, '{"subWorkflowId":"payment","childInput":1}')
    assert "waits for s/p/pay" in (await nexum(address, "show", "s")).stdout
    task = await client.poll("w", PAYMENT, lease_ms=60_000)
    assert task is not None
    await client.fail(task.task_id, "no luck", retryable=False)
    assert (await executing).error == "payment s/p/pay failed: no luck"
    await client.resolve("s/p/pay", "retry")
    task = await client.poll("w", PAYMENT, lease_ms=60_000)
    assert task is not None
    await client.complete(task.task_id, "2")
    shown = (await nexum(address, "show", "s/p")).stdout
    assert "pay: done, result of 1 B stored, after it had been given up" in shown
    assert "completed" in shown


async def test_and_with_the_engine_in_its_own_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUM_DATABASE_URL", f"sqlite:///{tmp_path / 'nexum.db'}")
    try:
        assert await run_all(lambda: near("")) == DONE
    finally:
        host.close_all()


def test_the_ir_has_what_the_protocol_says_and_the_rest_is_as_nexum_py_spells_it() -> None:
    nodes = json.loads(ALL.ir_json)["nodes"]
    assert nodes["decide"] == {"type": "ROUTER", "dependencies": [], "routes": [{"target": "buy"}, {"target": "leave"}]}
    assert nodes["pages"] == {"type": "MAP", "dependencies": ["buy"]}
    assert nodes["total"] == {"type": "REDUCE", "dependencies": ["pages"], "mapNodeId": "pages"}
    assert nodes["pay"] == {"type": "SUBWORKFLOW", "dependencies": ["total"], "subWorkflowId": "payment"}
    plain = workflow("w").effect("run", Receipt, pay).timer("nap", 1)
    spelled = plain.build()
    assert (reduced := reduce(plain, "r", "run", Total, total).build()).ir_json.startswith(spelled.ir_json[:-2])
    assert reduced.version_hash != spelled.version_hash


async def test_nexum_pys_own_worker_runs_all_but_the_items_of_a_map_and_a_line_says_so(
    server: Server, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    pages = map_over(workflow("pages"), "pages", urls, visit, output_model=Page)
    built = pages.compute("after", Page, lambda _: Page(text="after")).build()
    other = router(workflow("other"), "decide", ["a", "b"], lambda _: "a")
    other = other.compute("a", Page, lambda _: Page(text="a")).compute("b", Page, lambda _: Page(text="b")).build()

    async def work(stock: NexumClient) -> Any:
        for each in (built, other):
            stock.register_workflow(each)
        stock.start_execution("pages", {"by": "Ana", "urls": ["a"]})
        worker = Worker([built, other], port=server.port)
        return await worker.run_until_complete(stock.start_execution("other", {}))

    assert await in_a_thread(work, server.port) == {"decide": {"routed_to": "a"}, "a": {"text": "a"}}
    waits = (await client.executions(workflow_id="pages"))[0].execution_id

    async def poll(stock: NexumClient) -> Any:
        await eventually(lambda: "does not run the items of a MAP" in caplog.text or _poll(stock, built))
        return stock.poll_task("stock", built.version_hash)

    assert not (await in_a_thread(poll, server.port)).has_task
    assert caplog.text.count(f"{waits} waits: nexum-py's own worker") == 1
    worker = OurWorker([built], port=server.port)
    assert await worker.run_until_complete(waits) == {"pages": [{"text": "Ana saw a"}], "after": {"text": "after"}}


def _poll(stock: NexumClient, built: Any) -> bool:
    task = stock.poll_task("stock", built.version_hash)
    if task.has_task:
        assert not task.is_map_subtask
        stock.complete_task(task.task_id, [{"url": "a"}])
    return False


class TypeScript:
    """What the TypeScript SDK says and hears, on nexum-py's stubs: its workers answer by the type of the node."""

    def __init__(self, server: Server) -> None:
        agent = [("grpc.primary_user_agent", "grpc-node-js/1.10.1")]
        self.channel = grpc.aio.insecure_channel(f"localhost:{server.port}", options=agent)
        self.stub = nexum_pb2_grpc.NexumServiceStub(self.channel)
        self.seen: list[Any] = []

    async def register(self, workflow_id: str, ir_json: str) -> None:
        order = pb.WorkflowIR(workflow_id=workflow_id, version_hash=f"sha256:{workflow_id}", ir_json=ir_json)
        assert (await self.stub.RegisterWorkflow(order)).ok

    async def run(self, workflow_ids: list[str], execution_id: str, answer: Callable[[Any], Any]) -> Any:
        while True:
            for workflow_id in workflow_ids:
                request = pb.PollRequest(worker_id="ts", version_hash=f"sha256:{workflow_id}")
                task = await self.stub.PollTask(request)
                if task.has_task:
                    self.seen.append(task)
                    told = json.dumps(answer(task))
                    assert (await self.stub.CompleteTask(pb.CompleteRequest(task_id=task.task_id, output_json=told))).ok
            status = await self.stub.GetStatus(pb.StatusRequest(execution_id=execution_id))
            if status.status != "RUNNING":
                return {"status": status.status} | json.loads(status.completed_nodes_json)


async def test_what_the_typescript_sdk_says_is_understood_and_answered_as_it_expects(server: Server) -> None:
    sdk = TypeScript(server)
    await sdk.register("child", '{"nodes":{"run":{"type":"EFFECT","dependencies":[]}}}')
    main = """{"nodes":{
        "validate":{"type":"COMPUTE","dependencies":[]},
        "decide":{"type":"ROUTER","dependencies":["validate"],"routes":[
            {"condition":"$.ok == true","target":"report"},{"condition":"$.ok == false","target":"repair"}]},
        "repair":{"type":"EFFECT","dependencies":["validate","decide"]},
        "report":{"type":"EFFECT","dependencies":["validate","decide"]},
        "analyze":{"type":"MAP","dependencies":["validate","decide","repair","report"]},
        "summarize":{"type":"REDUCE","dependencies":["analyze"],"mapNodeId":"analyze"},
        "pay":{"type":"SUBWORKFLOW","dependencies":["summarize"],"subWorkflowId":"child","inputFn":"(ctx) => ({})"}}}"""
    await sdk.register("main", main)
    started = await sdk.stub.StartExecution(
        pb.StartRequest(workflow_id="main", version_hash="sha256:main", input_json='{"q":1}')
    )

    def answer(task: Any) -> Any:
        given = json.loads(task.input_json)
        match task.node_type:
            case "ROUTER":
                return {"routed_to": "repair"}
            case "MAP":
                assert not task.is_map_subtask
                return ["a", {"b": 1}]
            case "MAP_SUBTASK":
                assert task.is_map_subtask
                return [task.map_index, task.map_total, json.loads(task.map_item_json)]
            case "REDUCE":
                return {"sum": given["deps"]["analyze"]}
            case "SUBWORKFLOW":
                return {"subWorkflowId": "child", "childInput": {"n": 2}}
        return {"node": task.node_id, "input": given["input"]}

    async with sdk.channel:
        ended = await sdk.run(["main", "child"], started.execution_id, answer)
    merged = [[0, 2, "a"], [1, 2, {"b": 1}]]
    assert ended == {
        "status": "COMPLETED",
        "validate": {"node": "validate", "input": {"q": 1}},
        "decide": {"routed_to": "repair"},
        "repair": {"node": "repair", "input": {"q": 1}},
        "analyze": merged,
        "summarize": {"sum": merged},
        "pay": {"node": "run", "input": {"n": 2}},
    }
    items = [task for task in sdk.seen if task.node_type == "MAP_SUBTASK"]
    assert [(task.node_id, task.idempotency_key) for task in items] == [
        ("analyze", f"{started.execution_id}:analyze__{index}:sha256:main") for index in range(2)
    ]


async def test_a_refused_answer_is_told_by_its_status_and_the_worker_may_fail_the_task(server: Server) -> None:
    sdk = TypeScript(server)
    await sdk.register("main", '{"nodes":{"each":{"type":"MAP","dependencies":[]}}}')
    started = await sdk.stub.StartExecution(pb.StartRequest(workflow_id="main", input_json="{}"))
    async with sdk.channel:
        task = await sdk.stub.PollTask(pb.PollRequest(worker_id="ts", version_hash="sha256:main"))
        with pytest.raises(grpc.aio.AioRpcError, match="it must be a list, of its items") as refused:
            await sdk.stub.CompleteTask(pb.CompleteRequest(task_id=task.task_id, output_json='"no"'))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        await sdk.stub.FailTask(pb.FailRequest(task_id=task.task_id, error_message=refused.value.details()))
        status = await sdk.stub.GetStatus(pb.StatusRequest(execution_id=started.execution_id))
        assert status.status == "RUNNING", "it is tried again"


async def test_our_worker_fails_what_the_server_does_not_understand(server: Server, client: Client) -> None:
    built = router(workflow("lost"), "decide", ["a"], lambda _: "nowhere")
    built = built.compute("a", Page, lambda _: Page(text="a")).build()
    async with working(OurWorker([built], port=server.port)):
        outcome = await client.execute(built, {}, timeout=PATIENCE_SECONDS)
    assert outcome.status == "FAILED"
    assert str(outcome.error).endswith('it must be {"routed_to": …} with one of: a.')
