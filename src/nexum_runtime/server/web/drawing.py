"""Where things stand in a picture: bars of a timeline, and the nodes of a workflow. Pure."""

import json
from typing import Any

from nexum_runtime.telling.bars import Axis, Bar, attempts
from nexum_runtime.telling.words import OPEN, what_text
from nexum_runtime.text import duration_text

WAITS = {"ApprovalRequested": "a person", "TimerSet": "a timer"}
WAITED = ("TaskApproved", "TaskAnswered", "TaskRejected", "DeadlinePassed", "TimerFired")
WAIT_SHARE = 1.0  # percent of the axis that a wait has at the least
SHORTEST_SHARE = 0.3  # percent of the axis: a bar that can be seen, and hit
NODE_WIDTH, NODE_HEIGHT, GAP_X, GAP_Y = 190, 48, 56, 22
SHORT_CHARS = 24  # of a node's id in its box
MARKS = {"green": "done", "red": "failed", "yellow": "cut", "dim": "unused", "cyan": "runs"}  # of a bar: its class


def timeline(histories: list[dict[str, Any]], waits: dict[str, str], now_ms: int, prefix: str) -> dict[str, Any]:
    """`{"rows": a lane for each execution, "gaps": [{"x", "text"}], "length"}`, places in percent.

    `waits` says of which execution what it waits for.
    """
    drawn = {history["execution_id"]: attempts(history, now_ms) for history in histories}
    axis = Axis(bar for bars in drawn.values() for bar in bars)
    rows, turns, blocks = [], 0, {""}
    for history in histories:
        labels, name = history["labels"], history["execution_id"]
        is_again = len(blocks) > 1 and labels.get("block", "") not in blocks
        blocks.add(labels.get("block", ""))
        turns += labels.get("kind") == "turn"
        rows.append(
            {
                "execution_id": name,
                "label": what_text(labels) or name.removeprefix(prefix),
                "kind": labels.get("kind", "execution"),
                "turn": turns if labels.get("kind") == "turn" else None,
                "is_again": is_again,  # a later try at the session's work begins with it
                "status": history["status"],
                "effect": history["effect"],
                "waits": waits.get(name, ""),
                "took": _took(drawn[name]),
                "attempts": len(drawn[name]),
                "bars": [
                    *(_placed_wait(*wait, axis) for wait in _waits(history, now_ms)),
                    *(_placed(bar, axis, number) for number, bar in enumerate(drawn[name], 1)),
                ],
            }
        )
    gaps = [
        {"x": round(place / axis.length * 100, 3), "text": f"nothing ran for {duration_text(ms)}"}
        for place, ms in axis.left_out
    ]
    return {"rows": rows, "gaps": gaps}


def _placed(bar: Bar, axis: Axis, number: int) -> dict[str, Any]:
    start, end = axis.place(bar.start_ms) * 100, axis.place(bar.end_ms) * 100
    width = max(end - start, SHORTEST_SHARE)
    word, took = bar.word or "done", duration_text(bar.end_ms - bar.start_ms)
    return {
        "x": round(min(start, 100 - width), 3),
        "width": round(width, 3),
        "class": MARKS[bar.style],
        "word": word,
        "text": f"{bar.node_id}, attempt {number}: {word}, {took}",
    }


def _waits(history: dict[str, Any], now_ms: int) -> list[tuple[str, int, int]]:
    """(of what, from when, until when) it waited for a person or for the time."""
    begun: dict[str, tuple[str, int]] = {}
    found = []
    for event in history["events"]:
        if event["type"] in WAITS:
            begun[event["node_id"]] = WAITS[event["type"]], event["at_ms"]
        elif event["type"] in WAITED and event["node_id"] in begun:
            found.append((*begun.pop(event["node_id"]), event["at_ms"]))
    if history["status"] in OPEN:
        found += [(what, at_ms, now_ms) for what, at_ms in begun.values()]
    return found


def _placed_wait(what: str, start_ms: int, end_ms: int, axis: Axis) -> dict[str, Any]:
    start, end = axis.around(start_ms, end_ms)
    width = max((end - start) * 100, WAIT_SHARE)
    text = f"waited for {what}, {duration_text(max(end_ms - start_ms, 0))}"
    x, width = round(min(start * 100, 100 - width), 3), round(width, 3)
    return {"x": x, "width": width, "class": "wait", "word": "wait", "text": text}


def _took(bars: list[Bar]) -> str:
    return duration_text(max(bar.end_ms for bar in bars) - min(bar.start_ms for bar in bars)) if bars else ""


def graph(ir_json: str) -> dict[str, Any]:
    """`{"width", "height", "nodes": [{"x", "y", "id", "short", "type"}], "edges": [path]}`, left to right."""
    nodes: dict[str, Any] = json.loads(ir_json)["nodes"]
    depths: dict[str, int] = {}
    while len(depths) < len(nodes):  # of no more than NODES_LIMIT, and without circles: it was checked
        for name, node in nodes.items():
            if name not in depths and all(each in depths for each in node.get("dependencies", ())):
                depths[name] = 1 + max((depths[each] for each in node.get("dependencies", ())), default=-1)
    columns: dict[int, list[str]] = {}
    for name, depth in depths.items():
        columns.setdefault(depth, []).append(name)
    tallest = max(len(column) for column in columns.values())
    height = tallest * (NODE_HEIGHT + GAP_Y) - GAP_Y
    places: dict[str, tuple[int, float]] = {}
    for depth, column in columns.items():
        top = (height - (len(column) * (NODE_HEIGHT + GAP_Y) - GAP_Y)) / 2
        for i, name in enumerate(column):
            places[name] = (depth * (NODE_WIDTH + GAP_X), top + i * (NODE_HEIGHT + GAP_Y))
    edges = [_edge(places[each], places[name]) for name in nodes for each in nodes[name].get("dependencies", ())]
    return {
        "width": len(columns) * (NODE_WIDTH + GAP_X) - GAP_X,
        "height": height,
        "node_width": NODE_WIDTH,
        "node_height": NODE_HEIGHT,
        "edges": edges,
        "nodes": [
            {
                "id": name,
                "short": name if len(name) <= SHORT_CHARS else f"{name[: SHORT_CHARS - 1]}…",
                "type": nodes[name]["type"],
                "x": x,
                "y": y,
            }
            for name, (x, y) in places.items()
        ],
    }


def _edge(start: tuple[int, float], end: tuple[int, float]) -> str:
    x1, y1 = start[0] + NODE_WIDTH, start[1] + NODE_HEIGHT / 2
    x2, y2 = end[0], end[1] + NODE_HEIGHT / 2
    middle = (x1 + x2) / 2
    return f"M{x1:g},{y1:g} C{middle:g},{y1:g} {middle:g},{y2:g} {x2:g},{y2:g}"
