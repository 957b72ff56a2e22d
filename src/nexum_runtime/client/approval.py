"""The node type of the protocol that nexum-py's builder has no method for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nexum.builder import WorkflowBuilder


def human_approval(
    builder: "WorkflowBuilder", node_id: str, *, depends_on: Sequence[str] | None = None
) -> "WorkflowBuilder":
    """Add a HUMAN_APPROVAL node to a workflow that is being built: what depends on it waits for a person's yes.

        human_approval(workflow("payment"), "approval").effect("pay", Receipt, pay).build()

    Like every node it depends on all before it, unless `depends_on` says otherwise. Its output is
    `{"approved": true, "approver": who, "comment": text}`; a no ends the execution FAILED, with error code REJECTED.
    """
    from nexum.builder import NodeDef  # whoever has a builder has imported it

    dependencies = list(builder._node_order if depends_on is None else depends_on)
    builder._nodes.append(NodeDef(node_id, "HUMAN_APPROVAL", None, None, dependencies))
    builder._node_order.append(node_id)
    return builder
