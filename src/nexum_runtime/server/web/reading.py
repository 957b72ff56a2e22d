"""What the page and the API tell, read by the engine's methods: bounded, and never in the way of a call."""

import asyncio
import json
import time
from typing import Any

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, NotFound
from nexum_runtime.server.methods.methods import Call, Methods, Request, history_json, labels_of
from nexum_runtime.server.model.states import State
from nexum_runtime.telling.asking import answers, asked_at
from nexum_runtime.telling.bars import RUNNING, attempts
from nexum_runtime.telling.diagnosis import Finding, findings
from nexum_runtime.telling.story import parked
from nexum_runtime.telling.versions import difference
from nexum_runtime.telling.words import OPEN
from nexum_runtime.text import timestamp

SESSIONS_LIMIT = 1_000  # in one answer, or looked at for a status
COURSE_LIMIT = 1_000  # executions of a session in one answer
PEOPLE_LIMIT = 200  # approvals, or unknown outcomes, in one answer
WORKFLOWS_LIMIT = 500  # versions in one answer
SHOWN_CHARS = 64 * 1024  # of an input or an output; the whole of it is a request of its own
INSPECT_SECONDS = 3.0  # for which what was found wrong is not looked for again
NO_END = 1 << 62  # after every execution


class Reading:
    def __init__(self, methods: Methods) -> None:
        self.methods = methods
        self._engine = methods.engine
        self._inspecting: asyncio.Task[dict[str, Any]] | None = None
        self._inspected = float("-inf")

    async def ask(self, method: str, fields: dict[str, Any], metadata: dict[str, str] | None = None) -> dict[str, Any]:
        """A method of the services, as gRPC calls it."""
        return dict(await getattr(self.methods, method)(Request(**fields), Call(metadata or {})))

    async def start(self, given: dict[str, Any]) -> dict[str, Any]:
        """Start an execution, or find it: `{"execution_id", "before": its status before, or NEW}`."""
        version_hash = given.get("version_hash", "")
        if not version_hash:
            version_hash = (await self._engine.definition(given["workflow_id"], "")).version_hash
        input_json = wire.canonical_json(given.get("input"))
        fields = {"workflow_id": given["workflow_id"], "version_hash": version_hash, "input_json": input_json}
        wishes = {
            wire.EXECUTION_ID: given["execution_id"],
            wire.LABELS: wire.json_text(given.get("labels", {})),
            wire.EFFECT: given.get("effect"),
            wire.MAX_ATTEMPTS: given.get("max_attempts"),
        }
        call = Call({name: str(wish) for name, wish in wishes.items() if wish is not None})
        answer = await self.methods.StartExecution(Request(**fields), call)
        return {"execution_id": answer["execution_id"], "before": dict(call.trailing)[wire.STATUS]}

    async def sessions(self, prefix: str = "", status: str = "", limit: int = 50) -> list[dict[str, Any]]:
        looked_at = SESSIONS_LIMIT if status else min(limit, SESSIONS_LIMIT)
        metadata = {wire.PREFIX: prefix} if prefix else {}
        told = await self.ask("ListSessions", {"limit": looked_at}, metadata)
        found = json.loads(told["completed_nodes_json"])
        return [each for each in found if not status or each["state"] == status][:limit]

    async def session(self, session_id: str) -> dict[str, Any]:
        if not session_id or "/" in session_id:
            raise InvalidRequest(f"{session_id[:80]!r} is no session: give what stands before the first / of its ids.")
        found = await self.sessions(f"{session_id}/", limit=1)
        if not found:
            raise NotFound(f"No session {session_id!r} is known. See what is there with: nexum sessions")
        return found[0]

    async def course(self, prefix: str, before: int = NO_END, limit: int = 200) -> dict[str, Any]:
        """`{"executions": the oldest first, "before": where earlier ones are asked for, or None}`."""
        limit = min(limit, COURSE_LIMIT)
        found = await self._engine.course(prefix, before, limit + 1)
        more = len(found) > limit
        shown = found[:limit]
        told = [{"order": order} | history_json(execution, state, events) for order, execution, state, events in shown]
        return {"executions": told[::-1], "before": shown[-1][0] if more else None}

    async def execution(self, execution_id: str) -> dict[str, Any]:
        """All that is known of one. `input` and the `outputs` are JSON texts, cut: see SHOWN_CHARS."""
        if execution_id.endswith("/"):
            raise NotFound(f"No execution {execution_id!r} is known.")
        snapshot, events = await self._engine.history(execution_id)
        execution = snapshot.execution
        return history_json(execution, snapshot.state, events) | {
            "attempts": snapshot.attempts,
            "input": _cut(execution.input_json),
            "outputs": {node_id: _cut(text) for node_id, text in snapshot.outputs.items()},
        }

    async def whole(self, execution_id: str, node_id: str) -> str:
        """The JSON text of an output, or of the input when `node_id` is empty."""
        snapshot, _ = await self._engine.history(execution_id)
        if not node_id:
            return snapshot.execution.input_json
        if node_id not in snapshot.outputs:
            raise NotFound(f"Node {node_id[:80]!r} of {execution_id} has no result.")
        return snapshot.outputs[node_id]

    async def answer(self, session: dict[str, Any]) -> str | None:
        """The JSON text of what is recorded of the end of a session's last run."""
        if not session["end"]:
            return None
        snapshot, _ = await self._engine.history(session["end"])
        return next(iter(snapshot.outputs.values()), None)

    async def approvals(self, limit: int = PEOPLE_LIMIT) -> list[dict[str, Any]]:
        """What waits for a person, the longest first."""
        found = []
        for each in await self._engine.approvals(min(limit, PEOPLE_LIMIT)):
            snapshot, events = await self._engine.history(each.execution_id)
            input = _parsed(snapshot.execution.input_json)
            history = history_json(snapshot.execution, snapshot.state, events)
            history["input"] = {"question": ""} | (input if isinstance(input, dict) else {})
            if not any(event["type"] == "ApprovalRequested" for event in history["events"]):
                continue  # it was answered meanwhile
            first = history["events"][0]
            found.append(
                {
                    "execution_id": each.execution_id,
                    "node_id": each.node_id,
                    "workflow_id": each.workflow_id,
                    "since_ms": each.since_ms,
                    "labels": labels_of(snapshot.execution),
                    "input": _cut(snapshot.execution.input_json),
                    "takes_args": bool(first.get("takes_args")),
                    "commands": list(answers(each, history)),
                }
                | asked_at(history, each.node_id)
            )
        return found

    async def unknown(self, limit: int = PEOPLE_LIMIT) -> list[dict[str, Any]]:
        """Executions that may or may not have happened, the newest first."""
        found = await self._engine.listed("", State.UNKNOWN, "", min(limit, PEOPLE_LIMIT))
        return [await self.execution(execution.execution_id) for execution, _ in found]

    async def server(self) -> dict[str, Any]:
        """`{"server": as `nexum doctor --json` has it, "findings": […], "well": nothing is wrong}`."""
        if self._inspecting is None or time.monotonic() - self._inspected > INSPECT_SECONDS:
            self._inspected = time.monotonic()
            self._inspecting = asyncio.create_task(self._engine.inspect())
        told = await asyncio.shield(self._inspecting)
        waiting = await self._engine.approvals(PEOPLE_LIMIT)
        found: list[Finding] = list(findings(told, waiting))
        rows = [{"cause": each.cause, "is_wrong": each.is_wrong, "text": each.text} for each in found]
        return {"well": not any(each.is_wrong for each in found), "findings": rows, "server": told}

    async def workflows(self, workflow_id: str = "") -> list[dict[str, Any]]:
        """Versions, the newest first."""
        return [
            {
                "workflow_id": each.workflow_id,
                "version_hash": each.version_hash,
                "compatibility": each.compatibility,
                "registered_at": timestamp(each.registered_at_ms),
                "running": each.active_executions,
            }
            for each in (await self._engine.versions(workflow_id))[:WORKFLOWS_LIMIT]
        ]

    async def definition(self, workflow_id: str, version_hash: str = "") -> Any:
        return await self._engine.definition(workflow_id, version_hash)

    async def difference(self, workflow_id: str, old: str, new: str) -> dict[str, Any]:
        before = await self._engine.definition(workflow_id, old)
        return difference(before, await self._engine.definition(workflow_id, new))


def waits(history: dict[str, Any], asked: dict[str, dict[str, Any]], now_ms: int) -> str:
    """What an execution of which nothing runs waits for, in a few words. `asked`: what waits for a person, by id."""
    if history["status"] == "STOPPED":
        return "its session is stopped"
    if history["status"] not in OPEN or any(bar.word == RUNNING[0] for bar in attempts(history, now_ms)):
        return ""
    if history["status"] == "WAITING":
        question = asked.get(history["execution_id"], {}).get("question")
        return "waits for an approval" if question is None else "waits for an answer"
    if history["status"] == "PARKED":
        return parked(history)
    if any((event.get("worker") or "").startswith(wire.LOCAL_WORKER) for event in history["events"]):
        return "waits for its program to be run again"
    return "waits for a worker"


def _cut(text: str) -> dict[str, Any]:
    """`{"json": the text or how it begins, "chars": of all of it, "is_whole"}`."""
    return {"json": text[:SHOWN_CHARS], "chars": len(text), "is_whole": len(text) <= SHOWN_CHARS}


def _parsed(text: str) -> Any:
    """None for what is too long to be parsed while others wait."""
    return json.loads(text) if len(text) <= 4 * SHOWN_CHARS else None
