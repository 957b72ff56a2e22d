"""Every bound, at its limit and one past it. (Those on tokens are in test_guard.py, on ages in test_prune.py.)"""

import json
from typing import Any

import pytest
from nexum.proto import nexum_pb2 as pb
from test_wire import ECHO, Wire, poll_request, start_request, status_request, wired

from nexum_runtime import Client
from nexum_runtime.server.methods.methods import HELD_LIMIT, LIST_LIMIT
from nexum_runtime.server.model.graph import NODE_ID_LIMIT, NODES_LIMIT
from nexum_runtime.server.rules.checks import NAME_LIMIT
from nexum_runtime.wire import ATTEMPTS_LIMIT, LEASE_MS_LIMIT, LEASE_MS_MIN, TIMEOUT_MS_LIMIT, WAIT_MS_LIMIT

__all__ = ["wired"]


@pytest.mark.parametrize(
    ("method", "key", "least", "most"),
    [
        ("StartExecution", "max_attempts", 1, ATTEMPTS_LIMIT),
        ("StartExecution", "timeout_ms", 1, TIMEOUT_MS_LIMIT),
        ("Execute", "timeout_ms", 1, TIMEOUT_MS_LIMIT),
        ("Execute", "wait_ms", 0, WAIT_MS_LIMIT),
        ("PollTask", "wait_ms", 0, WAIT_MS_LIMIT),
        ("PollTask", "lease_ms", LEASE_MS_MIN, LEASE_MS_LIMIT),
        ("GetStatus", "wait_ms", 0, WAIT_MS_LIMIT),
    ],
)
async def test_a_number_is_taken_from_its_least_to_its_most_and_refused_beyond(
    wired: Wire, method: str, key: str, least: int, most: int
) -> None:
    await wired.finish("done")  # to be asked of without any wait
    requests = {
        "StartExecution": start_request(),
        "Execute": start_request(),
        "PollTask": poll_request(),
        "GetStatus": status_request("done"),
    }
    ids = {"execution_id": "done"} if method in ("Execute", "StartExecution") else {}
    for number in (least, most):
        if method == "PollTask":
            await wired.start(f"e-{number}")  # so that there is something to claim
        await wired.answer(method, requests[method], **ids, **{key: str(number)})
    for number in (least - 1, most + 1):
        code, details = await wired.refusal(method, requests[method], **ids, **{key: str(number)})
        assert code == "INVALID_ARGUMENT"
        assert details.endswith(f"is '{number}'; it must be a whole number from {least} to {most}.")


async def test_names_may_have_200_characters_and_no_more(wired: Wire) -> None:
    longest = "n" * NAME_LIMIT
    for workflow_id, version_hash in ((longest, "h"), ("w", longest)):
        whole = pb.WorkflowIR(workflow_id=workflow_id, version_hash=version_hash, ir_json=ECHO.ir_json)
        assert (await wired.answer("RegisterWorkflow", whole)).ok
    await wired.answer("PollTask", poll_request(longest))
    assert (await wired.refusal("PollTask", poll_request(longest + "n")))[0] == "INVALID_ARGUMENT"
    heartbeat = pb.PollRequest(worker_id=longest + "n")
    assert (await wired.refusal("Heartbeat", heartbeat))[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("nodes", "name_chars", "taken"),
    [
        (NODES_LIMIT, 1, True),
        (NODES_LIMIT + 1, 1, False),
        (1, NODE_ID_LIMIT, True),
        (1, NODE_ID_LIMIT + 1, False),
    ],
)
async def test_a_workflow_may_have_1000_nodes_of_200_characters_and_no_more(
    wired: Wire, nodes: int, name_chars: int, taken: bool
) -> None:
    node: dict[str, Any] = {"type": "EFFECT", "dependencies": []}
    ir_json = json.dumps({"nodes": {"n" * (name_chars - 1) + str(n): node for n in range(nodes)}})
    request = pb.WorkflowIR(workflow_id="w", version_hash="h", ir_json=ir_json)
    if taken:
        assert (await wired.answer("RegisterWorkflow", request)).ok
    else:
        assert (await wired.refusal("RegisterWorkflow", request))[0] == "INVALID_ARGUMENT"


async def test_a_heartbeat_may_name_10_000_tasks_and_no_more(wired: Wire) -> None:
    def beat(tasks: int) -> Any:
        return pb.PollRequest(worker_id="w", version_hash=json.dumps([f"t.{n}" for n in range(tasks)]))

    stopped = json.loads((await wired.answer("Heartbeat", beat(HELD_LIMIT))).message)
    assert len(stopped) == HELD_LIMIT
    code, details = await wired.refusal("Heartbeat", beat(HELD_LIMIT + 1))
    assert (code, f"at most {HELD_LIMIT} tasks" in details) == ("INVALID_ARGUMENT", True)


async def test_a_list_holds_what_was_asked_for_up_to_its_limit(
    wired: Wire, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LIST_LIMIT == 10_000
    monkeypatch.setattr("nexum_runtime.server.methods.methods.LIST_LIMIT", 25)  # for a list that is quickly made
    for n in range(26):
        await wired.start(f"s/{n}")
    for asked, held in ((24, 24), (25, 25), (26, 25)):
        assert len(await client.executions(limit=asked)) == held
    assert len([each async for each in client.history("s/")]) == 25
