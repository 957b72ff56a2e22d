"""What a person is asked, and the commands that answer."""

from typing import Any

from nexum_runtime import wire


def asked_at(history: dict[str, Any], node_id: str) -> dict[str, Any]:
    """What is asked at a node that waits for a person. `question` is None when it is a yes."""
    told = next(each for each in reversed(requests(history)) if each["node_id"] == node_id)
    asked = {name: told.get(name) for name in ("choices", "default", "due_at_ms")}
    return {"question": None if asked["choices"] is None else history["input"]["question"], **asked}


def requests(history: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in history["events"] if each["type"] == "ApprovalRequested"]


def answers(pending: Any, history: dict[str, Any]) -> tuple[str, str]:
    """The two commands that answer what waits for a person."""
    what = f"{pending.execution_id} {pending.node_id}"
    no = f"nexum reject {what} --reason 'why not'"
    if asked_at(history, pending.node_id)["question"] is None:
        return f"nexum approve {what}", no
    which = f" --node {pending.node_id}" if len({each["node_id"] for each in requests(history)}) > 1 else ""
    return f"nexum answer {pending.execution_id} 'your answer'{which}", no


def may_have_happened(history: dict[str, Any]) -> bool:
    return bool(history["effect"] == wire.ONCE and history["error_code"] == "OUTCOME_UNKNOWN")
