"""A workflow's intermediate representation (IR): parse it, check it, and tell which nodes are ready.

The IR is what nexum-py's builder makes: `{"nodes": {node_id: {"type": …, "dependencies": [node_id, …]}}}`, with
`delay_seconds` besides at a TIMER, `routes` at a ROUTER, `mapNodeId` at a REDUCE and `subWorkflowId` at a SUBWORKFLOW.
Pure: no clock, no store.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any

from nexum_runtime.wire import is_text, parse_json

APPROVAL, TIMER = "HUMAN_APPROVAL", "TIMER"  # these need no worker: they wait for a person, or for the time
EFFECT, COMPUTE, ROUTER, MAP, REDUCE, SUBWORKFLOW = "EFFECT", "COMPUTE", "ROUTER", "MAP", "REDUCE", "SUBWORKFLOW"
NODE_TYPES = (EFFECT, COMPUTE, ROUTER, MAP, REDUCE, SUBWORKFLOW, APPROVAL, TIMER)
ITEM = "MAP_SUBTASK"  # of a task for one item of a MAP, as the protocol has it
REPEATABLE = (COMPUTE, ROUTER, MAP, REDUCE, SUBWORKFLOW)  # their workers only compute: no attempt is an effect
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
    targets: tuple[str, ...] = ()  # of a ROUTER: the nodes among which it chooses
    of: str = ""  # of a REDUCE: its MAP; of a SUBWORKFLOW: the workflow that it starts

    @property
    def is_waited_for(self) -> bool:
        """Whether it waits for a person or for the time, and no worker executes it."""
        return self.type in (APPROVAL, TIMER)


@dataclass(frozen=True)
class Graph:
    nodes: dict[str, Node]

    @cached_property
    def routers(self) -> dict[str, list[str]]:
        """Of every target, the ROUTERs that may choose it."""
        routers: dict[str, list[str]] = {}
        for node in self.nodes.values():
            for target in node.targets:
                routers.setdefault(target, []).append(node.id)
        return routers

    @cached_property
    def subworkflows(self) -> list[str]:
        return [node.id for node in self.nodes.values() if node.type == SUBWORKFLOW]

    @cached_property
    def sinks(self) -> list[str]:
        """The nodes that no other one depends on."""
        needed = {dependency for node in self.nodes.values() for dependency in node.dependencies}
        return [node_id for node_id in self.nodes if node_id not in needed]

    def skipped(self, chosen: Mapping[str, str], scheduled: Collection[str]) -> set[str]:
        """The nodes that are not run: each router that has it as a target has chosen another one, or is skipped itself.

        `chosen` is what the routers that are done have chosen. What has been scheduled before is not skipped any more.
        """
        skipped: set[str] = set()
        while True:
            more = {
                target
                for target, routers in self.routers.items()
                if target not in scheduled
                and all(chosen.get(each, target) != target or each in skipped for each in routers)
            }
            if more <= skipped:
                return skipped
            skipped |= more

    def ready(self, done: Collection[str], scheduled: Collection[str], skipped: Collection[str] = ()) -> list[Node]:
        """The nodes whose dependencies are all done or skipped and which are neither scheduled nor skipped, in the IR's
        order."""
        return [
            node
            for node in self.nodes.values()
            if node.id not in scheduled
            and node.id not in skipped
            and all(dependency in done or dependency in skipped for dependency in node.dependencies)
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
    for node in graph.nodes.values():
        _check_meaning(graph, node)
    return graph


def _parse_node(node_id: str, definition: Any) -> Node:
    if not 1 <= len(node_id) <= NODE_ID_LIMIT or not is_text(node_id):
        raise GraphError(f"node id {node_id[:40]!r} must be 1 to {NODE_ID_LIMIT} characters of Unicode text")
    if not isinstance(definition, dict):
        raise GraphError(f"node {node_id!r} is not an object")
    node_type = definition.get("type")
    if node_type not in NODE_TYPES:
        raise GraphError(f"node {node_id!r} is of unknown type {str(node_type)[:40]!r}")
    dependencies = definition.get("dependencies", [])
    if not isinstance(dependencies, list) or not all(isinstance(each, str) for each in dependencies):
        raise GraphError(f"node {node_id!r} has dependencies that are not a list of node ids")
    delay_seconds = _parse_delay(node_id, definition) if node_type == TIMER else None
    targets = _parse_targets(node_id, definition) if node_type == ROUTER else ()
    of = _parse_name(node_id, definition, _NAMES[node_type]) if node_type in _NAMES else ""
    # a dependency that is named twice is one
    return Node(node_id, node_type, tuple(dict.fromkeys(dependencies)), delay_seconds, targets, of)


_NAMES = {REDUCE: "mapNodeId", SUBWORKFLOW: "subWorkflowId"}


def _parse_name(node_id: str, definition: dict[str, Any], key: str) -> str:
    name = definition.get(key, "")
    if not isinstance(name, str) or not is_text(name):
        raise GraphError(f"node {node_id!r} has a {key} that is no text")
    return name


def _parse_targets(node_id: str, definition: dict[str, Any]) -> tuple[str, ...]:
    routes = definition.get("routes") or []
    listed = routes if isinstance(routes, list) else [None]
    targets = [each.get("target") if isinstance(each, dict) else None for each in listed]
    if not all(isinstance(target, str) for target in targets):
        raise GraphError(f'node {node_id!r} has routes that are no list of objects with a "target", a node id')
    return tuple(dict.fromkeys(map(str, targets)))


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


def _check_meaning(graph: Graph, node: Node) -> None:
    """What a node names is there, and its items have ids of their own."""
    for target in node.targets:
        if target == node.id or target not in graph.nodes:
            where = "which is itself" if target == node.id else "which is not in the workflow"
            raise GraphError(f"node {node.id!r} routes to {target[:40]!r}, {where}")
    if node.type == REDUCE and node.of:
        of = graph.nodes.get(node.of)
        if of is None or of.type != MAP or node.of not in node.dependencies:
            raise GraphError(f"node {node.id!r} is a REDUCE of {node.of[:40]!r}, which is no MAP that it depends on")
    if found := re.fullmatch("(?s)(.*)__[0-9]+", node.id):
        of = graph.nodes.get(found[1])
        if of is not None and of.type == MAP:
            raise GraphError(f"node {node.id!r} is called as an item of the MAP {of.id!r} is; give it another id")


def item_id(map_id: str, index: int) -> str:
    """What stands as node id at the task of one item of a MAP."""
    return f"{map_id}__{index}"


def map_of(item_id: str) -> str:
    return item_id.rpartition("__")[0]


def compatibility(old: Graph, new: Graph) -> str:
    """What a new version means for work in flight, in the protocol's words: IDENTICAL, SAFE or BREAKING."""
    if old == new:
        return "IDENTICAL"
    return "SAFE" if all(new.nodes.get(node.id) == node for node in old.nodes.values()) else "BREAKING"
