"""The attempts of executions as bars on one axis of time. Pure: histories in, as the server tells them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

GAP_MS_MIN, GAP_SHARE_MIN = 5_000, 0.5  # when nothing ran for longer, and for this share of the busy time, …
GAP_SHARE_DRAWN = 0.1  # … it is drawn as if it had been that
OUTCOMES = {  # how an attempt ends → its word, its color
    "TaskCompleted": ("", "green"),
    "MapStarted": ("", "green"),
    "ChildStarted": ("", "green"),
    "AttemptFailed": ("failed", "red"),
    "AttemptReturned": ("unused", "dim"),
    "AttemptParked": ("parked", "dim"),
    "AttemptStopped": ("stopped", "yellow"),
    "LeaseExpired": ("given up", "yellow"),
    "ExecutionCancelled": ("cancelled", "yellow"),
    "CancelRequested": ("cancelled", "yellow"),
}
RUNNING = ("running", "cyan")


@dataclass(frozen=True)
class Bar:
    node_id: str
    label: str
    start_ms: int
    end_ms: int
    word: str  # what came of it; "" when it is done
    style: str


def attempts(history: dict[str, Any], now_ms: int) -> list[Bar]:
    """A bar for each attempt, in the order they began. `label` is the node, and from the second on the attempt."""
    bars: dict[tuple[str, int], Bar] = {}
    open_ones: set[tuple[str, int]] = set()
    for event in history["events"]:
        key = (event["node_id"], event["attempt"])
        if event["type"] == "AttemptStarted":
            label = f"  attempt {key[1]}" if any(node == key[0] for node, _ in bars) else key[0]
            bars[key] = Bar(key[0], label, event["at_ms"], max(now_ms, event["at_ms"]), *RUNNING)
            open_ones.add(key)
        elif event.get("late") and key in bars:  # of an attempt that had been given up
            bars[key] = replace(bars[key], end_ms=max(event["at_ms"], bars[key].end_ms), word="came late")
        elif event["type"] in OUTCOMES:
            for each in {key} & open_ones if event["node_id"] else set(open_ones):
                open_ones.discard(each)
                word, style = OUTCOMES[event["type"]]
                end_ms = max(event["at_ms"], bars[each].start_ms)
                bars[each] = replace(bars[each], end_ms=end_ms, word=word, style=style)
    return list(bars.values())


class Axis:
    """Milliseconds as places on a line, with the long waits between bars left out."""

    def __init__(self, bars: Iterable[Bar]) -> None:
        spans: list[list[int]] = []
        for start, end in sorted((bar.start_ms, bar.end_ms) for bar in bars):
            if spans and start <= spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], end)
            else:
                spans.append([start, end])
        self._spans = spans
        busy_ms = sum(end - start for start, end in spans)
        self.left_out: list[tuple[float, int]] = []  # (place of its middle, milliseconds)
        self._starts: list[float] = []
        place = 0.0
        for i, (start, end) in enumerate(spans):
            gap_ms = drawn_ms = float(start - spans[i - 1][1] if i else 0)
            if gap_ms > max(busy_ms * GAP_SHARE_MIN, GAP_MS_MIN):
                drawn_ms = max(busy_ms * GAP_SHARE_DRAWN, 1.0)
                self.left_out.append((place + drawn_ms / 2, int(gap_ms)))
            place += drawn_ms
            self._starts.append(place)
            place += end - start
        self.length = max(place, 1.0)

    def place(self, at_ms: int) -> float:
        """From 0 to 1; within a span, as every end of a bar is."""
        for (start, end), place in zip(self._spans, self._starts, strict=True):
            if start <= at_ms <= end:
                return (place + at_ms - start) / self.length
        raise AssertionError("a bar lies in a span")

    def around(self, start_ms: int, end_ms: int) -> tuple[float, float]:
        """The places of a time in which nothing may have run: from what ran before it to what ran after it."""
        before, after = 0.0, 1.0
        for (start, end), place in zip(self._spans, self._starts, strict=True):
            if start <= start_ms:
                before = (place + min(start_ms, end) - start) / self.length
        for (start, end), place in reversed(list(zip(self._spans, self._starts, strict=True))):
            if end >= end_ms:
                after = (place + max(end_ms, start) - start) / self.length
        return before, max(before, after)
