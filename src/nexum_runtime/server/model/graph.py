"""A workflow's intermediate representation (IR): parse it, check it, and tell which nodes are ready.

The IR is what nexum-py's builder makes: `{"nodes": {node_id: {"type": …, "dependencies": [node_id, …]}}}`, with
`delay_seconds` besides at a TIMER.
Pure: no clock, no store.
"""

from collections.abc import Collection
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from nexum_runtime.wire import is_text, parse_json

APPROVAL, TIMER = "HUMAN_APPROVAL", "TIMER"  # these need no worker: they wait for a person, or for the time
NODE_TYPES = ("EFFECT", "COMPUTE", APPROVAL, TIMER)
NODE_TYPES_TO_COME = ("ROUTER", "MAP", "REDUCE", "SUBWORKFLOW")
DELAY_SECONDS_LIMIT = 10 * 366 * 24 * 3600  # ten years
NODES_LIMIT = 1_000
NODE_ID_LIMIT = 200  # characters


class GraphError(ValueError):
    """The IR is not a workflow this server can run; the text says which node and why."""


@dataclass(frozen=True)
class Node:
    id: str
    type: str
    dependencies: tuple[str, ...]
    delay_seconds: float | None = None  # of a TIMER

    @property
    def is_waited_for(self) -> bool:
        """Whether it waits for a person or for the time, and no worker executes it."""
        return self.type in (APPROVAL, TIMER)


@dataclass(frozen=True)
class Graph:
    nodes: dict[str, Node]

    def ready(self, done: Collection[str], scheduled: Collection[str]) -> list[Node]:
        """The nodes whose dependencies are all done and which have not been scheduled yet, in the IR's order."""
        return [
            node
            for node in self.nodes.values()
            if node.id not in scheduled and all(dependency in done for dependency in node.dependencies)
        ]


def parse(ir_json: str) -> Graph:
    """The graph of an IR. Raises GraphError."""
    try:
        ir = parse_json(ir_json)
    except ValueError as error:
        raise GraphError(f"the workflow's IR is not JSON: {error}") from None
    nodes = ir.get("nodes") if isinstance(ir, dict) else None
    if not isinstance(nodes, dict):
        raise GraphError('the workflow\'s IR has no "nodes" object')
    if not nodes:
        raise GraphError("the workflow has no nodes")
    if len(nodes) > NODES_LIMIT:
        raise GraphError(f"the workflow has {len(nodes)} nodes; the limit is {NODES_LIMIT}")
    graph = Graph({node_id: _parse_node(node_id, definition) for node_id, definition in nodes.items()})
    _check_dependencies(graph)
    return graph


def _parse_node(node_id: str, definition: Any) -> Node:
    if not 1 <= len(node_id) <= NODE_ID_LIMIT or not is_text(node_id):
        raise GraphError(f"node id {node_id[:40]!r} must be 1 to {NODE_ID_LIMIT} characters of Unicode text")
    if not isinstance(definition, dict):
        raise GraphError(f"node {node_id!r} is not an object")
    node_type = definition.get("type")
    if node_type in NODE_TYPES_TO_COME:
        raise GraphError(f"node {node_id!r} is of type {node_type}, which this server does not run yet")
    if node_type not in NODE_TYPES:
        raise GraphError(f"node {node_id!r} is of unknown type {str(node_type)[:40]!r}")
    dependencies = definition.get("dependencies", [])
    if not isinstance(dependencies, list) or not all(isinstance(each, str) for each in dependencies):
        raise GraphError(f"node {node_id!r} has dependencies that are not a list of node ids")
    delay_seconds = _parse_delay(node_id, definition) if node_type == TIMER else None
    return Node(node_id, node_type, tuple(dict.fromkeys(dependencies)), delay_seconds)  # one named twice is one


def _parse_delay(node_id: str, definition: dict[str, Any]) -> float:
    told = definition.get("delay_seconds")
    if isinstance(told, int | float) and not isinstance(told, bool) and 0 <= told <= DELAY_SECONDS_LIMIT:
        return told
    raise GraphError(
        f"node {node_id!r} is a TIMER whose delay_seconds is {str(told)[:40]!r}; "
        f"it must be a number from 0 to {DELAY_SECONDS_LIMIT}"
    )


def _check_dependencies(graph: Graph) -> None:
    for node in graph.nodes.values():
        for dependency in node.dependencies:
            if dependency == node.id:
                raise GraphError(f"node {node.id!r} depends on itself")
            if dependency not in graph.nodes:
                raise GraphError(f"node {node.id!r} depends on {dependency[:40]!r}, which is not in the workflow")
    try:
        TopologicalSorter({node.id: node.dependencies for node in graph.nodes.values()}).prepare()
    except CycleError as error:
        raise GraphError("nodes depend on each other in a circle: " + " → ".join(error.args[1])) from None


def compatibility(old: Graph, new: Graph) -> str:
    """What a new version means for work in flight, in the protocol's words: IDENTICAL, SAFE or BREAKING."""
    if old == new:
        return "IDENTICAL"
    return "SAFE" if all(new.nodes.get(node.id) == node for node in old.nodes.values()) else "BREAKING"
