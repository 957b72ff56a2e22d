"""What an agent does as workflows: the same to every server and worker as if nexum-py's builder had made them."""

from typing import Any

import nexum
import pytest

from nexum_agents import workflows as own
from nexum_runtime import human_approval
from nexum_runtime.definition import Workflow


async def nothing(_: Any) -> Any:
    raise NotImplementedError


def local(workflow_id: str, node_id: str) -> nexum.WorkflowDef:
    return nexum.workflow(workflow_id).effect(node_id, own.Recorded, nothing).build()


def approval(workflow_id: str, node_id: str) -> Any:
    return human_approval(nexum.workflow(workflow_id), node_id)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (own.TOOL_CALL, local("openai-agents-tool-call", own.NODE)),
        (
            own.APPROVED_TOOL_CALL,
            approval("openai-agents-approved-tool-call", own.APPROVAL_NODE)
            .effect(own.NODE, own.Recorded, nothing)
            .build(),
        ),
        (own.APPROVAL, approval("openai-agents-approval", own.APPROVAL_NODE).build()),
        (own.MODEL_TURN, local("openai-agents-model-turn", own.TURN_NODE)),
    ],
)
def test_a_workflow_is_what_nexum_py_makes_of_it(ours: Workflow, theirs: nexum.WorkflowDef) -> None:
    assert (ours.workflow_id, ours.ir_json, ours.version_hash) == (
        theirs.workflow_id,
        theirs.ir_json,
        theirs.version_hash,
    )
    assert [(each.id, each.type) for each in ours.nodes] == [(each.id, each.type) for each in theirs.nodes]
