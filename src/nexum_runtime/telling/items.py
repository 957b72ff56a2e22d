"""Of a MAP with many items, which ones a person looks at: the first ones, and all that are not done."""

from typing import Any

ITEMS_SHOWN = 20  # of those of one MAP that are done


def left_out(history: dict[str, Any]) -> set[str]:
    """The nodes of items that are done and alike to those shown."""
    events = history["events"]
    maps = {event["node_id"] for event in events if event["type"] == "MapStarted"}
    if not maps:
        return set()
    found = set()
    for event in events:
        name, _, index = (event["node_id"] or "").rpartition("__")
        if event["type"] == "TaskCompleted" and name in maps and index.isdecimal() and int(index) >= ITEMS_SHOWN:
            found.add(event["node_id"])
    return found


def told(count: int) -> str:
    return f"… and {count:,} more items that are done"
