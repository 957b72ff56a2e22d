"""A session as anyone can watch it, from any process: `follow`.

What is recorded comes from the store, in order and once. The words of the turn under way come from memory, as they are
said. A follower can be slow, or go: nobody waits for it.
"""

import dataclasses
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from nexum_agents.clients import nexum_client
from nexum_agents.errors import ending
from nexum_agents.recording import Unrecordable, from_recorded
from nexum_agents.sessions import WAIT_SECONDS, check_session_id
from nexum_agents.turns import text_of
from nexum_runtime import NexumError
from nexum_runtime.engines import Use

Kind = Literal["begun", "words", "waiting", "answered", "broken_off", "ended"]

KINDS: dict[str, Kind] = {  # of events of the store; the others say nothing that a follower wants to know
    "AttemptStarted": "begun",
    "ApprovalRequested": "waiting",
    "TaskApproved": "answered",
    "TaskAnswered": "answered",
    "TaskRejected": "answered",
    "DeadlinePassed": "answered",
    "AttemptFailed": "broken_off",
    "AttemptStopped": "broken_off",
    "LeaseExpired": "broken_off",
    "ExecutionCompleted": "ended",
    "ExecutionFailed": "ended",
    "ExecutionCancelled": "ended",
}


@dataclass(frozen=True)
class FollowEvent:
    """What happened in a session that is followed.

    - `kind`: "begun" (a turn is asked, a call executes), "words" (of a turn under way), "waiting" (for a person),
      "answered" (by one), "broken_off" (an attempt; another one follows, or its end), "ended".
    - `cursor`: `follow(…, after=cursor)` goes on behind this.
    - `execution_id`; `what` it is, "turn", "call", "step", "run" and so on; and its `name`. A "run" has no beginning.
    - `text`: the words that are new; of a turn that ended, all of them; else what it is about, as a call's arguments.
    - `anew`: the turn begins with these words; forget those shown of it before. `skipped`: so many characters before
      these words were left out.
    - `status` of what ended: "COMPLETED", "FAILED", "UNKNOWN" or "CANCELLED", with its `output`, JSON, or its `error`.
    - `at_ms`: when, in milliseconds since 1970; None for words.
    """

    kind: Kind
    cursor: str
    execution_id: str
    what: str
    name: str = ""
    text: str = ""
    anew: bool = False
    skipped: int = 0
    attempt: int | None = None
    status: str | None = None
    output: Any = None
    error: str | None = None
    at_ms: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Its fields, without those that are as they are by default."""
        told = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        defaults = {each.name: each.default for each in dataclasses.fields(self)}
        return {name: value for name, value in told.items() if value != defaults[name]}


async def follow(session_id: str, *, after: str = "", keep_on: bool = False) -> AsyncGenerator[FollowEvent, None]:
    """Tell all that is recorded in a session, once and in order, and the words of the turn under way as they are said.

        async for event in follow("s1"):
            print(event.text if event.kind == "words" else event)

    From any process, and as many as like. `after` is the cursor of an event: what was recorded since then is told, none
    missed and none twice. The turn under way is told from its first word on, with `anew`.
    Ends when a run has ended and nothing of the session is under way, also when that is so already; `keep_on=True`
    goes on for ever. A session that does not exist yet is waited for, and a server that is away for ten minutes.
    Words are told of turns that stream: `Runner.run_streamed`, and runs that workers execute. Where several servers
    have one database, only the one tells them that the run is connected to.
    Raises DurableCallError for a bad `session_id` or cursor, for a session of which too much is under way, and when no
    server answers.
    """
    check_session_id(session_id)
    client = nexum_client(Use.LOOK)
    outputs: dict[str, Any] = {}
    labels: dict[str, dict[str, Any]] = {}
    try:
        async with aclosing(client.follow(session_id, after, to_the_end=not keep_on, patience=WAIT_SECONDS)) as told:
            async for each in told:
                id = each.get("execution_id", "")
                if "words" in each:
                    yield _words_event(each, labels.get(id, {}))
                    continue
                kind = KINDS.get(each["type"])
                if each["type"] == "TaskCompleted" and "output" in each:
                    outputs[id] = each["output"]
                if kind is None or (kind == "begun" and each["labels"].get("kind") == "run"):  # of the note of its end
                    continue
                labels[id], output = each["labels"], None
                if kind == "ended":
                    del labels[id]
                    output = outputs.pop(id, None)
                    if each["type"] == "ExecutionCompleted" and output is None:  # it is large
                        output = next(iter((await client.status(id)).outputs.values()), None)
                yield _event(kind, each, output)
    except NexumError as error:
        raise ending(error) from None


def _words_event(told: dict[str, Any], labels: dict[str, Any]) -> FollowEvent:
    return FollowEvent(
        "words",
        told["cursor"],
        told["execution_id"],
        labels.get("kind", "turn"),
        labels.get("name", ""),
        told["words"],
        told["anew"],
        told["skipped"],
    )


def _event(kind: Kind, told: dict[str, Any], output: Any) -> FollowEvent:
    labels, status = told["labels"], None
    text, error = labels.get("text", ""), told.get("error")
    if kind == "ended":
        status = told["type"].removeprefix("Execution").upper()
        status = "UNKNOWN" if told.get("error_code") == "OUTCOME_UNKNOWN" else status
        if labels.get("kind") == "run":  # what is recorded is how it ended
            status, error = str(labels.get("outcome", status)), output.get("error")
        output = output["result"] if isinstance(output, dict) and "result" in output else output
        if labels.get("kind") == "turn":
            text = _words(output)
    elif kind == "answered":
        text = str(told.get("answer") or told.get("comment") or told.get("reason") or "")
    return FollowEvent(
        kind,
        told["cursor"],
        told["execution_id"],
        labels.get("kind", ""),
        labels.get("name", ""),
        text,
        attempt=told["attempt"],
        status=status,
        output=output,
        error=error,
        at_ms=told["at_ms"],
    )


def _words(turn: Any) -> str:
    try:
        return text_of(from_recorded(turn))
    except (Unrecordable, ValidationError):  # of another version, say: its words are not known here
        return ""
