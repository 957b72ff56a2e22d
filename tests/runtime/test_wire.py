"""What travels: messages, metadata and status codes, through real gRPC, with nexum-py's own stub and our Client."""

import asyncio
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from nexum import workflow
from nexum.proto import nexum_pb2 as pb
from nexum.proto import nexum_pb2_grpc as pb_grpc
from processes import PATIENCE_SECONDS, NexumDev, eventually
from pydantic import BaseModel
from slow_disk import hold_commits

from nexum_runtime import (
    Client,
    ExecutionTimeout,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    ServerUnavailable,
    Worker,
)
from nexum_runtime.server.app import CannotBind, Server, ServerConfig
from nexum_runtime.server.engine.clock import time_of_day_ms
from nexum_runtime.text import size_text

MIB = 1024 * 1024
FOREVER_MS = "60000"
RACES = 20


class Text(BaseModel):
    text: str


async def unused(_: Any) -> Text:
    raise AssertionError("no worker runs in this test")


ECHO = workflow("echo").effect("run", Text, unused).build()
UNKNOWN = workflow("unknown").effect("other", Text, unused).build()


class Wire:
    """nexum-py's own stub and the extensions, with the metadata and the status codes in plain sight."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stock = pb_grpc.NexumServiceStub(channel)

    async def call(self, method: str, request: Any, **metadata: str) -> tuple[Any, dict[str, Any]]:
        """The answer and its trailing metadata. `execution_id="x"` is sent as `nexum-execution-id: x`."""
        sent = tuple((f"nexum-{key.replace('_', '-')}", value) for key, value in metadata.items())
        call = self._method(method)(request, metadata=sent, timeout=PATIENCE_SECONDS)
        answer = await call
        return answer, dict(await call.trailing_metadata())

    async def answer(self, method: str, request: Any, **metadata: str) -> Any:
        return (await self.call(method, request, **metadata))[0]

    async def refusal(self, method: str, request: Any, **metadata: str) -> tuple[str, str]:
        """The name of the status code and the sentence that a call is refused with."""
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await self.call(method, request, **metadata)
        return refused.value.code().name, refused.value.details() or ""

    async def start(self, execution_id: str = "e", **metadata: str) -> dict[str, Any]:
        _, trailing = await self.call("StartExecution", start_request(), execution_id=execution_id, **metadata)
        return trailing

    async def claim(self, worker_id: str = "worker", **metadata: str) -> Any:
        polled = await self.answer("PollTask", poll_request(worker_id), **metadata)
        assert polled.has_task
        return polled

    async def finish(self, execution_id: str = "e", output_json: str = '{"text":"found"}') -> None:
        """Start an execution and complete it."""
        await self.start(execution_id)
        claimed = await self.claim()
        await self.answer("CompleteTask", pb.CompleteRequest(task_id=claimed.task_id, output_json=output_json))

    def attend(self, worker_id: str) -> Any:
        """The call, which yields an answer when this worker counts as here."""
        method = self._channel.unary_stream(
            "/nexum.NexumExtensions/Attend", pb.PollRequest.SerializeToString, pb.AckResponse.FromString
        )
        return method(pb.PollRequest(worker_id=worker_id), timeout=PATIENCE_SECONDS)

    def _method(self, name: str) -> Any:
        extensions = {
            "Execute": (pb.StartRequest, pb.StatusResponse),
            "Heartbeat": (pb.PollRequest, pb.AckResponse),
            "Resolve": (pb.RejectRequest, pb.AckResponse),
        }
        if name not in extensions:
            return getattr(self._stock, name)
        request, response = extensions[name]
        return self._channel.unary_unary(
            f"/nexum.NexumExtensions/{name}", request.SerializeToString, response.FromString
        )


def start_request(input_json: str = "{}", workflow_id: str = "echo", version_hash: str = ECHO.version_hash) -> Any:
    return pb.StartRequest(workflow_id=workflow_id, version_hash=version_hash, input_json=input_json)


def poll_request(worker_id: str = "worker") -> Any:
    return pb.PollRequest(worker_id=worker_id, version_hash=ECHO.version_hash)


def status_request(execution_id: str = "e") -> Any:
    return pb.StatusRequest(execution_id=execution_id)


@asynccontextmanager
async def wire_to(port: int) -> AsyncIterator[Wire]:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"localhost:{port}", options=unlimited) as channel:
        yield Wire(channel)


@pytest.fixture
async def wired(server: Server, client: Client) -> AsyncIterator[Wire]:
    await client.register(ECHO)
    async with wire_to(server.port) as wired:
        yield wired


# Refusals


@pytest.mark.parametrize(
    ("ir_json", "sentence"),
    [
        ("{", "Workflow 'w' is refused: the workflow's IR is not JSON"),
        ("[" * 100_000, "Workflow 'w' is refused: the workflow's IR is not JSON: nested too deeply."),
        ('{"nodes": {}}', "Workflow 'w' is refused: the workflow has no nodes."),
        ('{"nodes": {"a": {"type": "SPAWN"}}}', "node 'a' is of unknown type 'SPAWN'"),
        (
            '{"nodes": {"a": {"type": "ROUTER", "routes": [{"target": "b"}]}}}',
            "node 'a' routes to 'b', which",
        ),
        ('{"nodes": {"a": {"type": "TIMER"}}}', "node 'a' is a TIMER whose delay_seconds is 'None'; it must be"),
        ('{"nodes": {"a": {"type": "EFFECT", "dependencies": ["a"]}}}', "node 'a' depends on itself"),
        ('{"nodes": {"a": {"type": "EFFECT", "dependencies": ["b"]}}}', "node 'a' depends on 'b', which is not"),
    ],
)
async def test_a_broken_workflow_is_an_invalid_argument(wired: Wire, ir_json: str, sentence: str) -> None:
    code, details = await wired.refusal(
        "RegisterWorkflow", pb.WorkflowIR(workflow_id="w", version_hash="h", ir_json=ir_json)
    )
    assert code == "INVALID_ARGUMENT"
    assert sentence in details


@pytest.mark.parametrize(("workflow_id", "version_hash"), [("", "h"), ("w" * 201, "h"), ("w", ""), ("w", "h" * 201)])
async def test_a_workflow_without_a_proper_name_is_an_invalid_argument(
    wired: Wire, workflow_id: str, version_hash: str
) -> None:
    code, details = await wired.refusal(
        "RegisterWorkflow",
        pb.WorkflowIR(workflow_id=workflow_id, version_hash=version_hash, ir_json=ECHO.ir_json),
    )
    assert (code, "must be 1 to 200 characters long" in details) == ("INVALID_ARGUMENT", True)


FOX = "🦊" * 190
LONG_CIRCLE = {f"{FOX}{i}": {"type": "EFFECT", "dependencies": [f"{FOX}{(i + 1) % 9}"]} for i in range(9)}
TRIES = 20  # of what gRPC refuses at random: a header of more than 8 KiB


@pytest.mark.parametrize("nodes", [LONG_CIRCLE, {"a": {"type": "🦊" * 100_000}}], ids=["a long circle", "a long type"])
async def test_a_refusal_with_long_names_in_any_script_still_arrives(wired: Wire, nodes: dict[str, Any]) -> None:
    request = pb.WorkflowIR(workflow_id="w", version_hash="h", ir_json=json.dumps({"nodes": nodes}))
    for _ in range(TRIES):
        code, details = await wired.refusal("RegisterWorkflow", request)
        assert code == "INVALID_ARGUMENT", details
        assert details.startswith("Workflow 'w' is refused: ")


async def test_the_id_of_an_unknown_workflow_may_be_long_and_in_any_script(wired: Wire) -> None:
    for _ in range(TRIES):
        code, details = await wired.refusal("StartExecution", start_request(workflow_id="🦊" * 50_000))
        assert code == "NOT_FOUND", details
        assert details.startswith("No workflow '🦊")


@pytest.mark.parametrize("method", ["StartExecution", "Execute"])
async def test_a_bad_start_is_refused_with_the_right_code(wired: Wire, method: str) -> None:
    unknown = start_request(workflow_id="ghost")
    assert await wired.refusal(method, unknown) == (
        "NOT_FOUND",
        f"No workflow 'ghost' of version {ECHO.version_hash!r} is registered.",
    )
    code, details = await wired.refusal(method, start_request('{"a": NaN}'), execution_id="e")
    assert (code, details) == ("INVALID_ARGUMENT", "The input of e is not JSON: NaN is not JSON.")
    code, _ = await wired.refusal(method, start_request(""))
    assert code == "INVALID_ARGUMENT"
    await wired.start("e")
    code, details = await wired.refusal(method, start_request('{"other": 1}'), execution_id="e")
    assert (code, details) == (
        "INVALID_ARGUMENT",
        'Execution e was started with the input {}, not with {"other":1}. Choose another id.',
    )


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("StartExecution", "execution_id", "a b"),
        ("StartExecution", "execution_id", "x" * 201),
        ("StartExecution", "max_attempts", "-1"),
        ("StartExecution", "max_attempts", "4.0"),
        ("StartExecution", "max_attempts", ""),
        ("StartExecution", "max_attempts", "9" * 5_000),
        ("StartExecution", "restart", "always"),
        ("StartExecution", "claim", "x" * 201),
        ("StartExecution", "lease_ms", "999"),
        ("Execute", "claim", "x" * 201),
        ("Execute", "wait_ms", "soon"),
        ("Execute", "max_attempts", "1e1"),
        ("PollTask", "wait_ms", "-1"),
        ("ListExecutions", "prefix", "a b"),
    ],
)
async def test_metadata_that_makes_no_sense_is_an_invalid_argument_that_names_it(
    wired: Wire, method: str, key: str, value: str
) -> None:
    requests = {
        "StartExecution": start_request(),
        "Execute": start_request(),
        "PollTask": poll_request(),
        "ListExecutions": pb.ListRequest(),
    }
    code, details = await wired.refusal(method, requests[method], **{key: value})
    assert code == "INVALID_ARGUMENT"
    assert value[:40] in details
    listed = await wired.answer("ListExecutions", pb.ListRequest())
    assert not listed.executions, "what was refused was started"


@pytest.mark.parametrize(
    ("method", "request_message"),
    [
        ("GetStatus", pb.StatusRequest(execution_id="ghost")),
        ("CancelExecution", pb.CancelRequest(execution_id="ghost")),
        ("CompleteTask", pb.CompleteRequest(task_id="ghost.1", output_json="1")),
        ("CompleteTask", pb.CompleteRequest(task_id="", output_json="1")),
        ("FailTask", pb.FailRequest(task_id="ghost.1", error_message="no")),
        ("ApproveTask", pb.ApproveRequest(execution_id="ghost", node_id="n", approver="me")),
        ("RejectTask", pb.RejectRequest(execution_id="ghost", node_id="n", approver="me", reason="no")),
    ],
)
async def test_what_is_unknown_is_not_found(wired: Wire, method: str, request_message: Any) -> None:
    code, details = await wired.refusal(method, request_message)
    assert code == "NOT_FOUND"
    assert details.endswith(".")


async def test_nothing_waits_for_a_person(wired: Wire) -> None:
    await wired.start()
    assert list((await wired.answer("GetPendingApprovals", pb.EmptyRequest())).items) == []
    code, details = await wired.refusal("ApproveTask", pb.ApproveRequest(execution_id="e", node_id="run"))
    assert (code, details) == ("NOT_FOUND", "Node 'run' of 'e' waits for no approval.")


async def test_an_output_that_is_not_json_is_an_invalid_argument(wired: Wire) -> None:
    await wired.start()
    claimed = await wired.claim()
    code, details = await wired.refusal(
        "CompleteTask", pb.CompleteRequest(task_id=claimed.task_id, output_json="plain words")
    )
    assert code == "INVALID_ARGUMENT"
    assert claimed.task_id in details


async def test_a_worker_without_a_name_is_an_invalid_argument(wired: Wire) -> None:
    assert (await wired.refusal("PollTask", poll_request("")))[0] == "INVALID_ARGUMENT"
    assert (await wired.refusal("Heartbeat", pb.PollRequest(worker_id="")))[0] == "INVALID_ARGUMENT"
    assert await wired.attend("").code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_status_that_does_not_exist_is_an_invalid_argument(wired: Wire) -> None:
    code, details = await wired.refusal("ListExecutions", pb.ListRequest(status="DONE"))
    assert (code, details) == ("INVALID_ARGUMENT", "'DONE' is not the status of an execution.")


# One execution


async def test_a_poll_tells_all_that_a_worker_needs(wired: Wire) -> None:
    await wired.answer("StartExecution", start_request('{"q": "página"}'), execution_id="s/tool/1/0")
    polled = await wired.answer("PollTask", poll_request())
    assert polled.has_task
    assert polled.execution_id == "s/tool/1/0"
    assert (polled.node_id, polled.node_type) == ("run", "EFFECT")
    assert json.loads(polled.input_json) == {"input": {"q": "página"}, "deps": {}}
    assert polled.idempotency_key == f"s/tool/1/0:run:{ECHO.version_hash}"
    assert not (await wired.answer("PollTask", poll_request())).has_task


async def test_start_tells_what_the_id_was_before(wired: Wire) -> None:
    assert (await wired.start())["nexum-status"] == "NEW"
    assert (await wired.start())["nexum-status"] == "RUNNING"
    claimed = await wired.claim()
    await wired.answer("CompleteTask", pb.CompleteRequest(task_id=claimed.task_id, output_json="1"))
    assert (await wired.start())["nexum-status"] == "COMPLETED"


async def test_an_id_that_the_client_does_not_choose_is_made_up(wired: Wire) -> None:
    first, second = [(await wired.answer("StartExecution", start_request())).execution_id for _ in range(2)]
    assert first != second
    assert first.startswith("exec-")


async def test_status_tells_why_and_how_often(wired: Wire) -> None:
    await wired.start()
    claimed = await wired.claim()
    _, running = await wired.call("GetStatus", status_request())
    assert running["nexum-attempts"] == "1"
    assert "nexum-error-bin" not in running
    await wired.answer(
        "FailTask", pb.FailRequest(task_id=claimed.task_id, error_message="página 🦊"), retryable="false"
    )
    answer, failed = await wired.call("GetStatus", status_request())
    assert (answer.status, answer.completed_nodes_json) == ("FAILED", "{}")
    assert failed["nexum-error-bin"] == "página 🦊".encode()
    assert (failed["nexum-error-code"], failed["nexum-attempts"]) == ("TOOL_ERROR", "1")


@pytest.mark.parametrize("error", ["x" * 100_000, "🦊" * 25_000, "a" + "é" * 50_000], ids=["ascii", "foxes", "é"])
@pytest.mark.parametrize("method", ["GetStatus", "Execute"])
async def test_an_error_of_100_kilobytes_arrives_as_its_beginning(wired: Wire, error: str, method: str) -> None:
    await wired.start()
    claimed = await wired.claim()
    await wired.answer("FailTask", pb.FailRequest(task_id=claimed.task_id, error_message=error), retryable="false")
    request = status_request() if method == "GetStatus" else start_request()
    answer, trailing = await wired.call(method, request, **({} if method == "GetStatus" else {"execution_id": "e"}))
    assert answer.status == "FAILED"
    told = trailing["nexum-error-bin"].decode()
    assert error.startswith(told)
    assert len(told.encode()) > 3_900


async def test_a_failure_is_retried_unless_it_says_otherwise(wired: Wire) -> None:
    await wired.start("again")
    claimed = await wired.claim()
    await wired.answer("FailTask", pb.FailRequest(task_id=claimed.task_id, error_message="no"))
    assert (await wired.answer("GetStatus", status_request("again"))).status == "RUNNING"


async def test_an_interrupted_attempt_is_handed_on_at_once(wired: Wire) -> None:
    await wired.start()
    claimed = await wired.claim()
    await wired.answer("FailTask", pb.FailRequest(task_id=claimed.task_id, error_message="bye"), interrupted="true")
    assert (await wired.claim()).task_id != claimed.task_id


async def test_effect_and_timeout_travel_as_metadata_and_the_timeout_on_to_the_worker(
    wired: Wire, client: Client
) -> None:
    await wired.start("plain")
    await wired.start("declared", effect="once", timeout_ms="1500")
    plain, declared = await wired.claim(), await wired.claim()
    assert json.loads(plain.input_json) == {"input": {}, "deps": {}}, "who sets none is sent what was ever sent"
    assert json.loads(declared.input_json) == {"input": {}, "deps": {}, "timeout_ms": 1500}
    effects = [history["effect"] for name in ("plain", "declared") async for history in client.history(name)]
    assert effects == ["idempotent", "once"]


@pytest.mark.parametrize("method", ["StartExecution", "Execute"])
@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"effect": "twice"}, "nexum-effect is 'twice'; it can be read, idempotent, once."),
        ({"effect": "once", "max_attempts": "2"}, "An effect that happens once has one attempt, not 2."),
        ({"timeout_ms": "0"}, "nexum-timeout-ms is '0'; it must be a whole number from 1 to 86400000."),
        ({"timeout_ms": "86400001"}, "nexum-timeout-ms is '86400001'; it must be a whole number from 1 to 86400000."),
        ({"timeout_ms": "1.5"}, "nexum-timeout-ms is '1.5'; it must be a whole number from 1 to 86400000."),
    ],
)
async def test_an_effect_or_timeout_that_is_none_is_refused(
    wired: Wire, method: str, metadata: dict[str, str], sentence: str
) -> None:
    refused = await wired.refusal(method, start_request(), execution_id="e", **metadata)
    assert refused == ("INVALID_ARGUMENT", sentence)


async def test_a_person_s_word_travels_as_metadata_and_ends_with_its_code(wired: Wire, client: Client) -> None:
    result = pb.RejectRequest(execution_id="e", reason='{"text":"sent"}')
    assert await wired.refusal("Resolve", result, resolution="result") == ("NOT_FOUND", "No execution 'e' is known.")
    await wired.start(effect="once")
    claimed = await wired.claim()
    code, sentence = await wired.refusal("Resolve", result, resolution="result")
    assert (code, sentence) == ("INVALID_ARGUMENT", "Execution e is RUNNING; no outcome of it is unknown.")
    await wired.answer("FailTask", pb.FailRequest(task_id=claimed.task_id, error_message="Dead."), unknown="true")
    _, trailing = await wired.call("GetStatus", status_request())
    assert trailing["nexum-error-code"] == "OUTCOME_UNKNOWN"
    assert trailing["nexum-error-bin"] == b"Dead: the effect may or may not have happened."
    assert (await wired.refusal("Resolve", result))[0] == "INVALID_ARGUMENT", "a word without metadata is none"
    answer = await wired.answer("Resolve", result, resolution="result")
    assert (answer.ok, answer.message) == (True, "Execution e is COMPLETED.")
    assert (await client.status("e")).outputs == {"run": {"text": "sent"}}


async def test_a_second_result_is_acknowledged_and_says_that_it_was_not_recorded(wired: Wire) -> None:
    await wired.start()
    claimed = await wired.claim()
    result = pb.CompleteRequest(task_id=claimed.task_id, output_json='"first"')
    first = await wired.answer("CompleteTask", result)
    assert (first.ok, first.message) == (True, "")
    again = await wired.answer("CompleteTask", pb.CompleteRequest(task_id=claimed.task_id, output_json='"second"'))
    assert (again.ok, again.message) == (True, "Node run was completed already; this result was not recorded.")
    assert (await wired.answer("GetStatus", status_request())).completed_nodes_json == '{"run":"first"}'


async def test_a_heartbeat_lists_what_to_stop(wired: Wire) -> None:
    await wired.start()
    claimed = await wired.claim("w1")

    async def stops(worker_id: str, held: str = "") -> Any:
        request = pb.PollRequest(worker_id=worker_id, version_hash=held)
        return json.loads((await wired.answer("Heartbeat", request)).message)

    held = json.dumps([claimed.task_id])
    assert await stops("w1") == await stops("w1", held) == []
    assert await stops("w1", json.dumps([claimed.task_id, "ghost.1", ""])) == ["ghost.1", ""]
    assert (await wired.answer("CancelExecution", pb.CancelRequest(execution_id="e"))).ok
    assert await stops("w1") == await stops("w1", held) == [claimed.task_id]
    assert await stops("w2") == []
    answer, trailing = await wired.call("GetStatus", status_request())
    assert (answer.status, trailing["nexum-error-code"]) == ("CANCELLED", "CANCELLED")


@pytest.mark.parametrize("held", ["x", "{}", "[1]", r'["\ud83e.1"]', "[" * 100_000, json.dumps(["x.1"] * 10_001)])
async def test_a_heartbeat_that_holds_what_is_no_list_of_task_ids_is_an_invalid_argument(
    wired: Wire, held: str
) -> None:
    request = pb.PollRequest(worker_id="w1", version_hash=held)
    assert (await wired.refusal("Heartbeat", request))[0] == "INVALID_ARGUMENT"


# Waiting


async def test_execute_waits_for_the_end_and_tells_it(server: Server, wired: Wire) -> None:
    executing = asyncio.create_task(wired.call("Execute", start_request(), execution_id="e", wait_ms=FOREVER_MS))
    claimed = await wired.claim(wait_ms=FOREVER_MS)
    await eventually(lambda: server.engine._watched)
    await wired.answer("CompleteTask", pb.CompleteRequest(task_id=claimed.task_id, output_json='{"text": "é"}'))
    async with asyncio.timeout(PATIENCE_SECONDS):
        answer, trailing = await executing
    assert (answer.status, answer.completed_nodes_json) == ("COMPLETED", '{"run":{"text": "é"}}')
    assert (trailing["nexum-status"], trailing["nexum-attempts"]) == ("NEW", "1")


async def test_execute_answers_running_when_it_is_not_over_in_time(wired: Wire) -> None:
    for before in ("NEW", "RUNNING"):
        answer, trailing = await wired.call("Execute", start_request(), execution_id="e", wait_ms="20")
        assert (answer.status, answer.completed_nodes_json) == ("RUNNING", "{}")
        assert (trailing["nexum-status"], trailing["nexum-attempts"]) == (before, "0")


async def test_execute_twice_at_once_is_one_execution(server: Server, wired: Wire, client: Client) -> None:
    executing = [
        asyncio.create_task(wired.call("Execute", start_request(), execution_id="e", wait_ms=FOREVER_MS))
        for _ in range(5)
    ]
    await eventually(lambda: len(server.engine._watched.get("e", ())) == 5)
    claimed = await wired.claim()
    assert not (await wired.answer("PollTask", poll_request())).has_task
    await wired.answer("CompleteTask", pb.CompleteRequest(task_id=claimed.task_id, output_json="1"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        answers = await asyncio.gather(*executing)
    assert {answer.completed_nodes_json for answer, _ in answers} == {'{"run":1}'}
    assert sorted(trailing["nexum-status"] for _, trailing in answers) == ["NEW", *["RUNNING"] * 4]
    assert len(await client.executions()) == 1


async def test_who_starts_an_execution_is_told_the_task_that_it_claims(wired: Wire) -> None:
    trailing = await wired.start(claim="me")
    assert trailing["nexum-status"] == "NEW"
    assert not (await wired.answer("PollTask", poll_request())).has_task
    assert "nexum-task-id" not in await wired.start(claim="another")
    completed = pb.CompleteRequest(task_id=trailing["nexum-task-id"], output_json='"mine"')
    assert (await wired.answer("CompleteTask", completed)).message == ""
    answer, trailing = await wired.call("Execute", start_request(), execution_id="e", claim="another")
    assert (answer.status, answer.completed_nodes_json) == ("COMPLETED", '{"run":"mine"}')
    assert (trailing["nexum-status"], trailing.get("nexum-task-id")) == ("COMPLETED", None)


async def test_execute_answers_at_once_with_the_task_that_it_claims(wired: Wire) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS / 2):
        answer, trailing = await wired.call(
            "Execute", start_request(), execution_id="e", claim="me", wait_ms=FOREVER_MS
        )
    assert (answer.status, trailing["nexum-attempts"], "nexum-waits-for" in trailing) == ("RUNNING", "1", False)
    key, _, attempt = trailing["nexum-task-id"].rpartition(".")
    assert re.fullmatch("[1-9][0-9]*-[0-9a-f]{16}", key)
    assert attempt == "1"


async def test_a_task_that_its_starter_claims_is_not_handed_to_a_poll_that_waits(server: Server, wired: Wire) -> None:
    polling = asyncio.create_task(wired.answer("PollTask", poll_request(), wait_ms=FOREVER_MS))
    await eventually(lambda: server.engine._ready)
    await wired.start("mine", claim="me")
    await wired.start("theirs")
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert (await polling).execution_id == "theirs"


async def test_of_a_poll_and_a_claim_at_once_one_gets_the_task(wired: Wire) -> None:
    winners = set()
    for number in range(RACES):
        execution_id = f"e/{number}"
        await wired.start(execution_id)
        racers: list[Awaitable[Any]] = [
            wired.answer("PollTask", poll_request(), workflow_id="echo"),
            wired.call("StartExecution", start_request(), execution_id=execution_id, claim="me"),
        ]
        turn = number % 2  # who is sent first
        found = await asyncio.gather(*racers[turn:], *racers[:turn])
        polled, (_, claimed) = found[-turn:] + found[:-turn]
        assert polled.has_task != ("nexum-task-id" in claimed)
        winners.add(polled.has_task)
    assert winners == {True, False}, "nobody raced"


@pytest.mark.parametrize("how", ["cancelled", "its channel is closed"])
async def test_what_is_held_is_given_up_at_once_when_its_owner_is_seen_no_more(
    server: Server, wired: Wire, how: str
) -> None:
    async with wire_to(server.port) as owner:
        await owner.start(claim="me", lease_ms="3600000")
        attending = owner.attend("me")
        assert (await attending.read()).ok
        waiting = asyncio.create_task(
            wired.call("Execute", start_request(), execution_id="e", claim="another", wait_ms=FOREVER_MS)
        )
        await eventually(lambda: server.engine._watched)
        if how == "cancelled":
            attending.cancel()
            await eventually(waiting.done)
    async with asyncio.timeout(PATIENCE_SECONDS):
        answer, trailing = await waiting
    assert (answer.status, trailing["nexum-waits-for"]) == ("RUNNING", "worker")
    assert "nexum-task-id" in await wired.start(claim="another")


async def test_a_claim_whose_caller_vanishes_is_given_back(server: Server, wired: Wire, client: Client) -> None:
    gate = threading.Event()
    hold_commits(server.store, gate)
    async with wire_to(server.port) as vanishing:
        call = asyncio.create_task(
            vanishing.call("Execute", start_request(), execution_id="e", claim="me", wait_ms=FOREVER_MS)
        )
        await eventually(lambda: server.engine._jobs)
    await asyncio.gather(call, return_exceptions=True)
    await eventually(lambda: not server.waiting._calls, "the server has heard of it")
    gate.set()
    await eventually(lambda: not server.engine._jobs)
    (history,) = [each async for each in client.history("e")]
    assert [event["type"] for event in history["events"]] == ["ExecutionStarted", "AttemptStarted", "AttemptReturned"]


async def test_get_status_waits_for_the_end(server: Server, wired: Wire) -> None:
    await wired.start()
    waiting = asyncio.create_task(wired.answer("GetStatus", status_request(), wait_ms=FOREVER_MS))
    await eventually(lambda: server.engine._watched)
    await wired.answer("CancelExecution", pb.CancelRequest(execution_id="e"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert (await waiting).status == "CANCELLED"


async def test_callers_that_vanish_leave_nothing_behind(server: Server, wired: Wire, address: str) -> None:
    await wired.start()
    await wired.claim()
    channel = grpc.aio.insecure_channel(address)
    vanishing = Wire(channel)
    calls = [
        asyncio.create_task(vanishing.answer("GetStatus", status_request(), wait_ms=FOREVER_MS)),
        asyncio.create_task(vanishing.answer("Execute", start_request(), execution_id="e", wait_ms=FOREVER_MS)),
        asyncio.create_task(vanishing.answer("PollTask", poll_request(), wait_ms=FOREVER_MS)),
    ]
    engine = server.engine
    await eventually(lambda: len(engine._watched.get("e", ())) == 2 and engine._ready)
    await channel.close()
    await asyncio.gather(*calls, return_exceptions=True)
    await eventually(lambda: not engine._watched and not engine._ready)
    assert (await wired.answer("GetStatus", status_request())).status == "RUNNING"


async def test_a_poll_asks_only_for_the_workflow_it_names(wired: Wire, client: Client) -> None:
    twin = workflow("twin").effect("run", Text, unused).build()
    assert twin.version_hash == ECHO.version_hash
    await client.register(twin)
    await wired.start()
    assert not (await wired.answer("PollTask", poll_request(), workflow_id="twin")).has_task
    assert (await wired.answer("PollTask", poll_request(), workflow_id="echo")).has_task


async def test_a_peer_that_registered_nothing_is_served_any_workflow_of_the_hash_with_a_warning(
    wired: Wire, client: Client, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    await client.register(workflow("twin").effect("run", Text, unused).build())
    await wired.start()
    options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own, as another process has
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        assert (await Wire(channel).answer("PollTask", poll_request())).has_task
    assert "which the workflows echo, twin share, and has registered none of them" in caplog.text


# Sizes


async def test_a_result_of_5_megabytes_comes_back_whole(wired: Wire, client: Client) -> None:
    text = "é" * (5 * MIB // 2)
    await wired.finish(output_json=json.dumps({"text": text}, ensure_ascii=False))
    answer = await wired.answer("GetStatus", status_request())
    assert json.loads(answer.completed_nodes_json)["run"]["text"] == text
    assert (await client.status("e")).outputs["run"]["text"] == text
    assert (await client.execute(ECHO, {}, execution_id="e")).outputs["run"]["text"] == text


async def test_a_result_of_20_mebibytes_fails_the_task_naming_both_sizes(wired: Wire, client: Client) -> None:
    await wired.start()
    claimed = await wired.claim()
    result = pb.CompleteRequest(task_id=claimed.task_id, output_json=json.dumps("x" * (20 * MIB)))
    acknowledged = await wired.answer("CompleteTask", result)
    assert acknowledged.ok
    assert "20.0 MiB" in acknowledged.message
    outcome = await client.status("e")
    assert (outcome.status, outcome.error_code, outcome.attempts) == ("FAILED", "TOOL_ERROR", 1)
    assert outcome.error == "The result is 20.0 MiB; the limit is 16.0 MiB (nexum dev --max-message-mib)."


@pytest.mark.parametrize(
    ("size_bytes", "size"),
    [(20 * MIB, "20.0 MiB"), (20_000_000, "19.1 MiB"), (80 * MIB, "80.0 MiB")],
    ids=["20 MiB", "20 MB", "80 MiB"],
)
async def test_a_handler_s_too_large_result_fails_its_task_naming_both_sizes(
    server: Server, client: Client, size_bytes: int, size: str
) -> None:
    """80 MiB is more than the transport reads: not even the sentence that refuses it comes from the engine."""

    async def huge(_: Any) -> Text:
        return Text(text="x" * size_bytes)

    built = workflow("huge").effect("run", Text, huge).build()
    worker = Worker([built], port=server.port)
    working = asyncio.create_task(worker.run())
    outcome = await client.execute(built, {}, execution_id="e", timeout=PATIENCE_SECONDS)
    worker.stop()
    await working
    assert (outcome.status, outcome.attempts) == ("FAILED", 1)
    assert outcome.error is not None
    assert size in outcome.error
    assert "16.0 MiB" in outcome.error


async def test_a_too_large_input_is_refused_naming_both_sizes(wired: Wire, client: Client) -> None:
    with pytest.raises(LimitExceeded, match=r"The input is 20\.0 MiB; the limit is 16\.0 MiB"):
        await client.execute(ECHO, "x" * (20 * MIB), execution_id="e")
    assert await client.executions() == []


async def test_an_input_larger_than_the_transport_reads_is_refused_at_once(wired: Wire, client: Client) -> None:
    with pytest.raises(LimitExceeded):
        await client.execute(ECHO, "x" * (80 * MIB), execution_id="e", timeout=PATIENCE_SECONDS)


async def test_registering_tells_the_limit_on_sizes(wired: Wire) -> None:
    request = pb.WorkflowIR(workflow_id="echo", version_hash=ECHO.version_hash, ir_json=ECHO.ir_json)
    _, trailing = await wired.call("RegisterWorkflow", request)
    assert trailing["nexum-max-message-bytes"] == str(16 * MIB)


# Listing


async def test_executions_are_listed_newest_first_and_filtered(wired: Wire, client: Client) -> None:
    await wired.finish("s1/a")
    for name in ("s1/b", "s10/c", "s1/d"):
        await wired.start(name)

    async def listed(prefix: str = "", **request: Any) -> list[str]:
        metadata = {"prefix": prefix} if prefix else {}
        answer = await wired.answer("ListExecutions", pb.ListRequest(**request), **metadata)
        return [execution.execution_id for execution in answer.executions]

    assert await listed() == ["s1/d", "s10/c", "s1/b", "s1/a"]
    assert await listed(limit=2) == ["s1/d", "s10/c"]
    assert await listed(limit=-1) == ["s1/d", "s10/c", "s1/b", "s1/a"]
    assert await listed(status="COMPLETED") == ["s1/a"]
    assert await listed(status="RUNNING", workflow_id="echo", prefix="s1/") == ["s1/d", "s1/b"]
    assert await listed(workflow_id="other") == []
    assert await listed(prefix="s1/", limit=1) == ["s1/d"]
    newest = (await client.executions("s1/", limit=1))[0]
    assert (newest.workflow_id, newest.version_hash, newest.status) == ("echo", ECHO.version_hash, "RUNNING")
    assert newest.created_at.endswith("Z")


async def test_a_list_without_a_limit_holds_the_20_newest(wired: Wire) -> None:
    await asyncio.gather(*(wired.start(f"e{i}") for i in range(25)))
    answer = await wired.answer("ListExecutions", pb.ListRequest())
    assert len(answer.executions) == 20
    assert len((await wired.answer("ListExecutions", pb.ListRequest(limit=1_000_000))).executions) == 25


async def test_versions_are_listed_newest_first_with_what_they_run(wired: Wire, client: Client) -> None:
    await wired.finish("done")
    await wired.start("runs")
    wider = workflow("echo").effect("run", Text, unused).compute("sum", Text, unused).build()
    assert await client.register(wider) == "SAFE"
    answer = await wired.answer("ListWorkflowVersions", pb.ListVersionsRequest(workflow_id="echo"))
    assert [(each.version_hash, each.compatibility, each.active_executions) for each in answer.versions] == [
        (wider.version_hash, "SAFE", 0),
        (ECHO.version_hash, "NEW", 1),
    ]
    assert not (await wired.answer("ListWorkflowVersions", pb.ListVersionsRequest(workflow_id="none"))).versions


# History


async def test_history_tells_everything_about_one_execution(wired: Wire, client: Client) -> None:
    await wired.answer("StartExecution", start_request('{"q": "página"}'), execution_id="s/a")
    claimed = await wired.claim("w1", lease_ms="5000")
    result = pb.CompleteRequest(task_id=claimed.task_id, output_json='{"text": "é"}')
    await wired.answer("CompleteTask", result)
    (history,) = [each async for each in client.history("s/a")]
    assert history["execution_id"] == "s/a"
    assert (history["workflow_id"], history["version_hash"]) == ("echo", ECHO.version_hash)
    assert (history["status"], history["error"], history["error_code"], history["attempts"]) == (
        "COMPLETED",
        None,
        None,
        1,
    )
    assert history["input"] == {"q": "página"}
    assert history["output_bytes"] == {"run": len('{"text": "é"}'.encode())}
    assert history["created_at_ms"] <= history["ended_at_ms"]
    times = [event.pop("at_ms") for event in history["events"]]
    assert times == sorted(times)
    nowhere = {"node_id": None, "attempt": None}
    assert history["events"] == [
        {"type": "ExecutionStarted"} | nowhere,
        {"type": "AttemptStarted", "node_id": "run", "attempt": 1, "worker": "w1", "lease_ms": 5_000},
        {"type": "TaskCompleted", "node_id": "run", "attempt": 1, "output_bytes": 14},
        {"type": "ExecutionCompleted"} | nowhere,
    ]


async def test_the_history_of_a_session_is_that_of_its_executions_oldest_first(wired: Wire, client: Client) -> None:
    for name in ("s1/b", "s10/x", "s1/a"):
        await wired.start(name)
    assert [each["execution_id"] async for each in client.history("s1/")] == ["s1/b", "s1/a"]
    assert [each async for each in client.history("s2/")] == []


async def test_the_history_of_what_is_unknown_is_not_found(wired: Wire, client: Client) -> None:
    with pytest.raises(NotFound, match="No execution 'ghost' is known"):
        [each async for each in client.history("ghost")]
    for name in ("", "a b", "a b/"):
        with pytest.raises(InvalidRequest):
            [each async for each in client.history(name)]


async def test_an_input_with_half_a_surrogate_pair_is_kept_and_told(wired: Wire, client: Client) -> None:
    r"""Model output holds such things: JSON may spell "\ud83e", and protobuf cannot carry what it stands for."""
    await wired.answer("StartExecution", start_request(r'{"q": "half \ud83e"}'), execution_id="e")
    assert (await wired.answer("GetStatus", status_request())).status == "RUNNING"
    (history,) = [each async for each in client.history("e")]
    assert history["input"] == {"q": "half \ud83e"}


async def test_another_input_with_half_a_surrogate_pair_is_refused_as_any_other(wired: Wire) -> None:
    await wired.answer("StartExecution", start_request(r'{"q": "half \ud83e"}'), execution_id="e")
    code, details = await wired.refusal("StartExecution", start_request('{"q": "whole"}'), execution_id="e")
    assert code == "INVALID_ARGUMENT", details


async def test_an_output_with_half_a_surrogate_pair_comes_back_as_it_was(wired: Wire, client: Client) -> None:
    await wired.finish(output_json=r'{"text": "half \ud83e, nothing \u0000"}')
    assert (await client.status("e")).outputs == {"run": {"text": "half \ud83e, nothing \x00"}}


# Our client


async def test_a_client_can_execute_an_input_with_half_a_surrogate_pair(wired: Wire, client: Client) -> None:
    executing = asyncio.create_task(client.execute(ECHO, {"q": "half \ud83e"}, execution_id="e", timeout=10))
    polling = asyncio.create_task(wired.claim(wait_ms=FOREVER_MS))
    await asyncio.wait({executing, polling}, return_when=asyncio.FIRST_COMPLETED)
    if executing.done():
        polling.cancel()
        raise AssertionError("it did not get as far as a worker") from executing.exception()
    claimed = await polling
    assert json.loads(claimed.input_json)["input"] == {"q": "half \ud83e"}
    await wired.answer("CompleteTask", pb.CompleteRequest(task_id=claimed.task_id, output_json="1"))
    assert (await executing).status == "COMPLETED"


async def test_execute_registers_a_workflow_that_the_server_does_not_know(wired: Wire, client: Client) -> None:
    executing = asyncio.create_task(client.execute(UNKNOWN, {"q": 1}, execution_id="e", timeout=PATIENCE_SECONDS))
    request = pb.PollRequest(worker_id="worker", version_hash=UNKNOWN.version_hash)
    polled = await eventually(lambda: poll_until_task(wired, request))
    await wired.answer("CompleteTask", pb.CompleteRequest(task_id=polled.task_id, output_json='{"text":"x"}'))
    outcome = await executing
    assert (outcome.status, outcome.before, outcome.outputs, outcome.attempts) == (
        "COMPLETED",
        "NEW",
        {"other": {"text": "x"}},
        1,
    )


async def poll_until_task(wired: Wire, request: Any) -> Any:
    polled = await wired.answer("PollTask", request)
    return polled if polled.has_task else None


async def test_execute_finds_what_is_recorded_without_running_it(wired: Wire, client: Client) -> None:
    await wired.finish()
    outcome = await client.execute(ECHO, {}, execution_id="e")
    assert (outcome.before, outcome.outputs) == ("COMPLETED", {"run": {"text": "found"}})


async def test_execute_tells_what_it_waits_for(wired: Wire, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexum_runtime.client.client.FIRST_WAIT_MS", 20)
    monkeypatch.setattr("nexum_runtime.client.client.WAIT_MS", 20)
    told: list[str] = []
    executing = asyncio.create_task(
        client.execute(ECHO, {}, execution_id="e", timeout=PATIENCE_SECONDS, on_wait=told.append)
    )
    await eventually(lambda: "worker" in told)
    assert "result" not in told
    claimed = await wired.claim()
    await eventually(lambda: "result" in told)
    await wired.answer("CompleteTask", pb.CompleteRequest(task_id=claimed.task_id, output_json="1"))
    assert (await executing).before == "NEW"
    assert "server" not in told


async def test_execute_gives_up_in_a_sentence_that_names_the_execution(wired: Wire, client: Client) -> None:
    with pytest.raises(ExecutionTimeout) as gave_up:
        await client.execute(ECHO, {}, execution_id="s/x", timeout=0.2)
    assert gave_up.value.execution_id == "s/x"
    assert "nexum show s/x" in str(gave_up.value)
    assert (await client.status("s/x")).status == "RUNNING", "it goes on without its caller"


async def test_a_restart_is_asked_for_once_per_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails while the caller is between two looks at it must be told, and not be restarted again and again.

    The server is another process here, since the callback that brings it about blocks this one.
    """
    monkeypatch.setattr("nexum_runtime.client.client.FIRST_WAIT_MS", 20)
    async with NexumDev(tmp_path) as nexum, Client(nexum.address) as client:
        await client.register(ECHO)
        with grpc.insecure_channel(nexum.address) as channel:
            stub = pb_grpc.NexumServiceStub(channel)

            def fail_next(_: str = "") -> None:
                failure = pb.FailRequest(task_id=stub.PollTask(poll_request()).task_id, error_message="no luck")
                stub.FailTask(failure, metadata=(("nexum-retryable", "false"),))

            first = await client.execute(ECHO, {}, execution_id="e", on_wait=fail_next, timeout=PATIENCE_SECONDS)
            assert (first.status, first.before, first.attempts) == ("FAILED", "NEW", 1)
            again = await client.execute(
                ECHO, {}, execution_id="e", restart="failed", on_wait=fail_next, timeout=PATIENCE_SECONDS
            )
            assert (again.status, again.before) == ("FAILED", "FAILED")
            (history,) = [each async for each in client.history("e")]
            assert [event["type"] for event in history["events"]].count("AttemptStarted") == 2


async def test_without_a_server_every_method_says_how_to_start_one(tmp_path: Path) -> None:
    with socket.socket() as unused_port:
        unused_port.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused_port.getsockname()[1]}"
        sentence = f"No Nexum server answers at {address}. Start one with `nexum dev`"
        async with Client(address) as client:
            for call in (client.status("e"), client.executions(), client.register(ECHO), client.cancel("e")):
                with pytest.raises(ServerUnavailable, match=sentence):
                    await call
            with pytest.raises(ServerUnavailable, match=sentence):
                await client.check(0.1)
            with pytest.raises(ServerUnavailable, match=sentence):
                await client.execute(ECHO, {}, timeout=0.2)
            with pytest.raises(ServerUnavailable, match=sentence):
                [each async for each in client.history("e")]


@pytest.mark.parametrize("address", ["", "localhost", ":50051", "localhost:", "localhost:x", "localhost:0", "h:65536"])
async def test_an_address_that_is_none_is_refused_at_once(address: str) -> None:
    with pytest.raises(InvalidRequest, match="it must be host:port"):
        Client(address)


async def test_check_returns_when_a_server_answers(client: Client) -> None:
    await client.check()


async def test_cancel_tells_what_came_of_it(wired: Wire, client: Client) -> None:
    await wired.start()
    assert await client.cancel("e") == "Execution cancelled"
    assert await client.cancel("e") == "Execution e is CANCELLED already; nothing was changed."


# The server's address


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", pytest.param("[::1]", marks=pytest.mark.skipif(not has_ipv6(), reason="no ::1")), "localhost"],
)
async def test_every_name_of_this_machine_reaches_it(server: Server, host: str) -> None:
    async with Client(f"{host}:{server.port}") as client:
        assert await client.executions() == []


async def test_it_listens_on_loopback_alone(server: Server) -> None:
    outside = addresses_seen_from_outside()
    if not outside:
        pytest.skip("this machine has no other address")
    for host in outside:
        with pytest.raises(OSError, match="refused"), socket.create_connection((host, server.port), timeout=5):
            pass


def addresses_seen_from_outside() -> list[str]:
    """The addresses packets would leave with; a connected datagram socket tells without sending any."""
    found = []
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            found.append(str(probe.getsockname()[0]))
    return found


async def test_a_second_server_on_the_port_is_refused_in_a_sentence(server: Server, tmp_path: Path) -> None:
    second = Server(ServerConfig(tmp_path / "second.db", port=server.port))
    with pytest.raises(CannotBind) as refused:
        await second.start()
    assert str(refused.value) == (
        f"Cannot listen on 127.0.0.1:{server.port}: the port is in use. "
        "Is a Nexum server running there already? Choose another port with --port."
    )
    third = Server(ServerConfig(tmp_path / "second.db", port=0))  # the refused one has let go of its database
    await third.start()
    await third.stop()


async def test_an_address_that_is_not_this_machine_s_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotBind, match=r"Cannot listen on 192\.0\.2\.1:0: cannot assign requested address\.$"):
        await Server(ServerConfig(tmp_path / "nexum.db", host="192.0.2.1", port=0, insecure=True)).start()


async def test_what_was_acknowledged_is_there_after_a_stop(tmp_path: Path) -> None:
    config = ServerConfig(tmp_path / "nexum.db", port=0)
    server = Server(config)
    await server.start()
    async with Client(f"localhost:{server.port}") as client:
        await client.register(ECHO)
        with pytest.raises(ExecutionTimeout):
            await client.execute(ECHO, {"q": 1}, execution_id="e", timeout=0.1)
    await server.stop()
    server = Server(config)
    await server.start()
    async with Client(f"localhost:{server.port}") as client:
        assert (await client.status("e")).status == "RUNNING"
    await server.stop()


async def test_a_server_that_was_away_lets_no_lease_expire_that_it_could_not_hear_of(tmp_path: Path) -> None:
    config = ServerConfig(tmp_path / "nexum.db", port=0)
    server = Server(config)
    await server.start()
    async with Client(f"localhost:{server.port}") as client, wire_to(server.port) as wired:
        await client.register(ECHO)
        await wired.start()
        task_id = (await wired.claim(lease_ms="1000")).task_id
    (task,) = await server.store.read(lambda reader: reader.tasks("e"))
    await server.stop()
    await eventually(lambda: time_of_day_ms() > (task.lease_expires_at_ms or 0))
    server = Server(config)
    first_sweep_ms = server.engine._last_sweep_ms
    await server.start()
    await eventually(lambda: server.engine._last_sweep_ms > first_sweep_ms)
    async with Client(f"localhost:{server.port}") as client:
        assert await client.complete(task_id, "1") == ""
        (history,) = [each async for each in client.history("e")]
    await server.stop()
    assert "LeaseExpired" not in [event["type"] for event in history["events"]]


def test_sizes_are_told_to_people() -> None:
    assert [size_text(size) for size in (0, 812, 4_301, 20 * MIB, 20_000_000)] == [
        "0 B",
        "812 B",
        "4.2 KiB",
        "20.0 MiB",
        "19.1 MiB",
    ]
