"""Two versions of a workflow, and what is different between them."""

import json
from typing import Any

from nexum_runtime import wire
from nexum_runtime.server.model import graph


def difference(before: Any, after: Any) -> dict[str, Any]:
    """`{"workflow_id", "from", "to", "compatibility", "added", "removed", "changed"}`, the last three by node."""
    old, new = (json.loads(each.ir_json)["nodes"] for each in (before, after))
    return {
        "workflow_id": after.workflow_id,
        "from": before.version_hash,
        "to": after.version_hash,
        "compatibility": graph.compatibility(graph.parse(before.ir_json), graph.parse(after.ir_json)),
        "added": {node: new[node] for node in new if node not in old},
        "removed": {node: old[node] for node in old if node not in new},
        "changed": {
            node: {"from": old[node], "to": new[node]} for node in new if node in old and old[node] != new[node]
        },
    }


def node_text(definition: dict[str, Any]) -> str:
    """ "EFFECT after a, b", and what else is said of it."""
    rest = {key: value for key, value in definition.items() if key not in ("type", "dependencies")}
    after = f" after {', '.join(definition['dependencies'])}" if definition.get("dependencies") else ""
    return f"{definition['type']}{after}{f' {wire.canonical_json(rest)}' if rest else ''}"
