"""The node types of the protocol that nexum-py's builder has no method for.

Each function adds a node to a workflow that is being built, and returns its builder. Like every node it depends on all
before it, unless `depends_on` says otherwise. A handler takes a ContextView, as nexum-py's do, and may be async.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

if TYPE_CHECKING:
    from nexum.builder import WorkflowBuilder, WorkflowDef


def human_approval(
    builder: "WorkflowBuilder", node_id: str, *, depends_on: Sequence[str] | None = None
) -> "WorkflowBuilder":
    """Add a HUMAN_APPROVAL node to a workflow that is being built: what depends on it waits for a person's yes.

        human_approval(workflow("payment"), "approval").effect("pay", Receipt, pay).build()

    Like every node it depends on all before it, unless `depends_on` says otherwise. Its output is
    `{"approved": true, "approver": who, "comment": text}`; a no ends the execution FAILED, with error code REJECTED.
    """
    return _add(builder, node_id, "HUMAN_APPROVAL", None, depends_on)


def router(
    builder: "WorkflowBuilder",
    node_id: str,
    targets: Sequence[str],
    choose: Callable[..., Any],
    *,
    depends_on: Sequence[str] | None = None,
) -> "WorkflowBuilder":
    """Add a ROUTER node: `choose(context)` returns which one of the nodes `targets` is run; the others are skipped.

        router(builder, "decide", ["report", "repair"], lambda context: "report" if context.input["ok"] else "repair")

    The targets are added after it, and depend on it. Its output is `{"routed_to": node id}`; that of a skipped node is
    not there for what depends on it.
    """
    routes = [{"target": target} for target in targets]
    handler = _then(choose, lambda target: {"routed_to": target})
    return _add(builder, node_id, "ROUTER", handler, depends_on, fields={"routes": routes})


def map_over(
    builder: "WorkflowBuilder",
    node_id: str,
    items: Callable[..., Any],
    each: Callable[..., Any],
    *,
    output_model: Any = None,
    depends_on: Sequence[str] | None = None,
) -> "WorkflowBuilder":
    """Add a MAP node: `items(context)` returns a list, and `each(context, item)` is a task of its own for every item.

        map_over(builder, "pages", lambda context: context.input["urls"], visit, output_model=Page)

    Its output is the list of what `each` has returned, an `output_model` if there is one, in the order of the items.
    Only a Worker of nexum_runtime, or of the TypeScript SDK, executes items; they are JSON, 10,000 at most.
    """
    handler = _then(items, lambda listed: to_jsonable_python(list(listed)))
    return _add(builder, node_id, "MAP", handler, depends_on, each=each, result_model=output_model)


def reduce(
    builder: "WorkflowBuilder", node_id: str, map_id: str, output_model: Any, handler: Callable[..., Any]
) -> "WorkflowBuilder":
    """Add a REDUCE node, which depends on the MAP node `map_id` alone: `context.get_map_results(map_id)`."""
    return _add(builder, node_id, "REDUCE", handler, [map_id], model=output_model, fields={"mapNodeId": map_id})


def subworkflow(
    builder: "WorkflowBuilder",
    node_id: str,
    workflow_id: str,
    input: Callable[..., Any],
    *,
    output_model: Any = None,
    depends_on: Sequence[str] | None = None,
) -> "WorkflowBuilder":
    """Add a SUBWORKFLOW node: an execution of the workflow `workflow_id`, with what `input(context)` returns.

        subworkflow(builder, "pay", "payment", lambda context: {"amount": 3}, output_model=Receipt)

    That is its child: of the version registered last, with the effect, the attempts and the timeout of its parent. The
    output of its last node is this node's, an `output_model` if there is one; its failure is this node's failure.
    """
    handler = _then(input, lambda told: {"subWorkflowId": workflow_id, "childInput": to_jsonable_python(told)})
    fields = {"subWorkflowId": workflow_id}
    return _add(builder, node_id, "SUBWORKFLOW", handler, depends_on, fields=fields, result_model=output_model)


def _then(handler: Callable[..., Any], made: Callable[[Any], Any]) -> Callable[..., Any]:
    """A handler that returns what is made of the result of this one."""
    if not inspect.iscoroutinefunction(handler):
        return lambda context: made(handler(context))

    async def returned(context: Any) -> Any:
        return made(await handler(context))

    return returned


def _add(
    builder: "WorkflowBuilder",
    node_id: str,
    node_type: str,
    handler: Callable[..., Any] | None,
    depends_on: Sequence[str] | None,
    *,
    model: Any = None,
    fields: dict[str, Any] | None = None,
    each: Callable[..., Any] | None = None,
    result_model: Any = None,
) -> "WorkflowBuilder":
    from nexum.builder import NodeDef  # whoever has a builder has imported it

    dependencies = list(builder._node_order if depends_on is None else depends_on)
    node = NodeDef(node_id, node_type, model, handler, dependencies)
    node.fields, node.each, node.result_model = fields or {}, each, result_model
    builder._nodes.append(node)
    builder._node_order.append(node_id)
    builder.build = partial(_build, builder)
    return builder


def _build(builder: "WorkflowBuilder") -> "WorkflowDef":
    """As nexum-py does it, which leaves out the fields of its own that a node type has."""
    from nexum.builder import WorkflowDef

    nodes = {
        node.id: {"type": node.type, "dependencies": node.dependencies}
        | ({} if node.delay_seconds is None else {"delay_seconds": node.delay_seconds})
        | getattr(node, "fields", {})
        for node in builder._nodes
    }
    ir_json = json.dumps({"nodes": nodes})
    version_hash = f"sha256:{hashlib.sha256(ir_json.encode()).hexdigest()}"
    return WorkflowDef(builder.workflow_id, version_hash, ir_json, list(builder._nodes))
