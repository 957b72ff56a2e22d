"""What the results of a ROUTER, a MAP and a SUBWORKFLOW mean, as the protocol has them, and which are refused.

    ROUTER       {"routed_to": node id}
    MAP          [item, …]
    SUBWORKFLOW  {"subWorkflowId": workflow id, "childInput": JSON}

What is refused by InvalidRequest has changed nothing: its worker tells that the attempt failed. LimitExceeded fails it.
"""

import hashlib
import re
from typing import Any

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, LimitExceeded
from nexum_runtime.server.model.graph import Node
from nexum_runtime.server.rules.checks import EXECUTION_ID_LIMIT
from nexum_runtime.text import shorten

ITEMS_LIMIT = 10_000  # of a MAP
DEPTH_LIMIT = 20  # of sub-workflows in each other
SHOWN_CHARS = 120  # of a result, or of the targets, in an error
_DIGEST_CHARS = 6  # of a node's id that is too long for its child's, or has other characters


def choice(node: Node, output_json: str) -> str:
    """The target that a ROUTER has chosen."""
    told = wire.parse_json(output_json)
    target = told.get("routed_to") if isinstance(told, dict) else None
    if target not in node.targets:
        listed = shorten(", ".join(node.targets), SHOWN_CHARS)
        raise InvalidRequest(
            f'The router {node.id!r} answered {shorten(output_json, SHOWN_CHARS)}; it must be {{"routed_to": …}} with '
            f"one of: {listed}."
        )
    return str(target)


def items(node: Node, output_json: str) -> list[str]:
    """The items of a MAP, each as JSON."""
    told = wire.parse_json(output_json)
    if not isinstance(told, list):
        raise InvalidRequest(
            f"The MAP {node.id!r} answered {shorten(output_json, SHOWN_CHARS)}; it must be a list, of its items."
        )
    if len(told) > ITEMS_LIMIT:
        raise LimitExceeded(f"The MAP {node.id!r} has {len(told)} items; the limit is {ITEMS_LIMIT}.")
    return [wire.json_text(item) for item in told]


def child(node: Node, output_json: str) -> tuple[str, str]:
    """The workflow that a SUBWORKFLOW starts, and its input as JSON."""
    told: Any = wire.parse_json(output_json)
    workflow_id = told.get("subWorkflowId") if isinstance(told, dict) else None
    if not isinstance(workflow_id, str) or not workflow_id:
        raise InvalidRequest(
            f"The sub-workflow {node.id!r} answered {shorten(output_json, SHOWN_CHARS)}; "
            'it must be {"subWorkflowId": …, "childInput": …}.'
        )
    return workflow_id, wire.json_text(told.get("childInput"))


def child_id(parent_id: str, node_id: str, depth: int) -> str:
    """The id of a child, which is so many levels below the first parent. Raises LimitExceeded.

    It has the node's id, as long as there is room for those of the children that this one may have.
    """
    room = EXECUTION_ID_LIMIT - (DEPTH_LIMIT - depth) * (1 + _DIGEST_CHARS)
    name = f"{parent_id}/{node_id}"
    if not re.fullmatch("[A-Za-z0-9._:@=-]+", node_id) or len(name) > room:
        name = f"{parent_id}/{hashlib.sha256(node_id.encode()).hexdigest()[:_DIGEST_CHARS]}"
    if depth > DEPTH_LIMIT:
        raise LimitExceeded(f"Execution {parent_id} is {DEPTH_LIMIT} sub-workflows deep, and can start no other one.")
    if len(name) > EXECUTION_ID_LIMIT:
        raise LimitExceeded(
            f"The child of {parent_id} would have an id of {len(name)} characters; the limit is {EXECUTION_ID_LIMIT}."
        )
    return name
