"""Workflows as nexum-py's builder defines them, without the rest of nexum-py, which takes its time to import."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal


@dataclass(frozen=True)
class Node:
    """Depends on all nodes before it. A handler takes a ContextView and returns an `output_model`."""

    id: str
    type: Literal["EFFECT", "HUMAN_APPROVAL"]
    output_model: Any = None
    handler: Callable[[Any], Awaitable[Any]] | None = None


@dataclass(frozen=True)
class Workflow:
    """The same, to the server and to a worker, as what `nexum.workflow(workflow_id)….build()` returns."""

    workflow_id: str
    nodes: tuple[Node, ...]

    @cached_property
    def ir_json(self) -> str:
        ids = [node.id for node in self.nodes]
        nodes = {node.id: {"type": node.type, "dependencies": ids[:n]} for n, node in enumerate(self.nodes)}
        return json.dumps({"nodes": nodes})

    @cached_property
    def version_hash(self) -> str:
        return f"sha256:{hashlib.sha256(self.ir_json.encode()).hexdigest()}"

    def get_node(self, node_id: str) -> Node | None:
        return next((node for node in self.nodes if node.id == node_id), None)
