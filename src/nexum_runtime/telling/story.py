"""An execution's events in words."""

from typing import Any

from nexum_runtime import wire
from nexum_runtime.telling.words import SHOWN_CHARS, clock_time
from nexum_runtime.text import duration_text, error_line, shorten, size_text


class Story:
    """Tells the events of one execution, in their order, and how long each attempt had run by then."""

    def __init__(self, history: dict[str, Any]) -> None:
        self._workflow_id = history["workflow_id"]
        self._started_ms: dict[tuple[str, int], int] = {}

    def tell(self, event: dict[str, Any]) -> str:
        key = (event["node_id"], event["attempt"])
        if event["type"] == "AttemptStarted":
            self._started_ms[key] = event["at_ms"]
        return event_text(self._workflow_id, event, event["at_ms"] - self._started_ms.get(key, event["at_ms"]))


def offset(ms: int) -> str:
    return f"+{ms / 1000:8.3f} s"


def short_values_first(value: Any) -> str:
    """JSON in the order that tells most when it is cut: plain values, then lists and objects, and nothings last."""
    if not isinstance(value, dict):
        return wire.canonical_json(value)

    def place(item: tuple[str, Any]) -> tuple[bool, bool, str]:
        return item[1] in (None, {}, [], ""), isinstance(item[1], dict | list), item[0]

    return wire.json_text(dict(sorted(value.items(), key=place)))


def event_text(workflow_id: str, event: dict[str, Any], took_ms: int) -> str:
    """One event in words; `took_ms` is how long its attempt had run by then."""
    node, attempt, worker = event["node_id"], event["attempt"], event.get("worker")
    error = shorten(error_line(event.get("error") or ""), SHOWN_CHARS)
    match event["type"]:
        case "ExecutionStarted":
            return f"{workflow_id} started at {clock_time(event['at_ms'])}"
        case "ExecutionRestarted":
            return f"{workflow_id} started again at {clock_time(event['at_ms'])}"
        case "AttemptStarted":
            return f"{node}: attempt {attempt} by {worker}"
        case "AttemptFailed" if "retry_at_ms" in event:
            pause = duration_text(event["retry_at_ms"] - event["at_ms"])
            return f"{node}: attempt {attempt} failed after {duration_text(took_ms)}, next in {pause}: {error}"
        case "AttemptFailed":
            late = ", when it had been given up" if event.get("late") else ""
            return f"{node}: attempt {attempt} failed after {duration_text(took_ms)}{late}: {error}"
        case "AttemptReturned":
            return f"{node}: attempt {attempt} returned unused by {worker}"
        case "AttemptParked":
            return f"{node}: attempt {attempt} parked after {duration_text(took_ms)}, {parked_until(event)}"
        case "TaskWoken":
            why = f"{event['ended']} has ended" if "ended" in event else "its time has come"
            return f"{node}: goes on: {why}"
        case "AttemptStopped":
            return f"{node}: attempt {attempt} stopped after {duration_text(took_ms)}: {error}"
        case "LeaseExpired":
            return f"{node}: attempt {attempt} given up after {duration_text(took_ms)}: {error}"
        case "OutcomeResolved":
            said = {"result": "it happened, and this is its result", "failed": f"it failed: {error}"}
            return f"{node}: a person said: {said[event['as']]}" if node else "a person said: try again"
        case "ApprovalRequested":
            until = f", until {clock_time(event['due_at_ms'])}" if "due_at_ms" in event else ""
            choices = shorten(error_line(", ".join(event.get("choices", ()))), SHOWN_CHARS)
            for_what = "a person's answer" if "choices" in event else "a person's yes"
            return f"{node}: waits for {for_what}{f' ({choices})' if choices else ''}{until}"
        case "TaskApproved":
            changed = f", with {wire.canonical_json(event['args'])}" if "args" in event else ""
            return f"{node}: approved{_by(event['approver'], event['comment'], changed)}"
        case "TaskAnswered":
            return f"{node}: answered{_by(event['approver'], event['answer'])}"
        case "DeadlinePassed":
            answer = f", so it is: {shorten(error_line(event['answer']), SHOWN_CHARS)}" if "answer" in event else ""
            return f"{node}: nobody answered in time{answer}"
        case "TaskRejected":
            return f"{node}: rejected{_by(event['approver'], event['reason'])}"
        case "TimerSet":
            return f"{node}: fires in {duration_text(event['due_at_ms'] - event['at_ms'])}"
        case "MapStarted":
            return f"{node}: {event['items']} items"
        case "ChildStarted":
            return f"{node}: started {event['workflow']} {event['child']}"
        case "TimerFired":
            return f"{node}: fired"
        case "TaskCompleted":
            late = ", after it had been given up" if event.get("late") else ""
            size = size_text(event["output_bytes"])
            if attempt is None:  # of its items, or of its child
                return f"{node}: done, result of {size} stored{late}"
            return f"{node}: attempt {attempt} done in {duration_text(took_ms)}, result of {size} stored{late}"
        case "ExecutionForked":
            return f"copied from session {event['session_id']}{_by(event['by'], '')}"
        case "ExecutionTakenBack":
            return f"taken back of session {event['session_id']}{_by(event['by'], '')}"
        case "ExecutionFailed":
            return f"failed ({event['error_code']}): {error}"
        case other:
            ended = {"ExecutionCompleted": "completed", "ExecutionCancelled": "cancelled"}
            return (ended | {"CancelRequested": "to be cancelled"}).get(other, str(other))


def parked_until(event: dict[str, Any]) -> str:
    """What an attempt was given back until, by its event."""
    ended, due_ms = event.get("ended", []), event.get("due_at_ms")
    until = [f"{ended[0]}{f' or one of {len(ended) - 1} more' if ended[1:] else ''} ends"] if ended else []
    return "until " + " or ".join(until + ([clock_time(due_ms)] if due_ms else []))


def parked(history: dict[str, Any]) -> str:
    """What an execution waits for that is parked."""
    last = next(event for event in reversed(history["events"]) if event["type"] == "AttemptParked")
    return f"parked {parked_until(last)}"


def _by(who: str, text: str, changed: str = "") -> str:
    told = shorten(error_line(changed), SHOWN_CHARS) + (f": {shorten(error_line(text), SHOWN_CHARS)}" if text else "")
    return (f" by {error_line(who)}" if who else "") + told
