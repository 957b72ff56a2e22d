"""What each method of the services does, whoever calls it and by whatever way: fields in, engine calls, fields out."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeAlias

from nexum_runtime import wire
from nexum_runtime.crash import crash_point
from nexum_runtime.errors import InvalidRequest, LimitExceeded
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.engine.following import WORDS_CHARS_LIMIT
from nexum_runtime.server.methods.orders import (
    Fields,
    Trailing,
    lease_ms,
    outcome_metadata,
    start_order,
    started_metadata,
    status_fields,
    task_fields,
    traced,
    whole_number,
)
from nexum_runtime.server.model.contract import EventRow, Execution, Session, is_taken_back
from nexum_runtime.server.model.shapes import Forget, Fork, Resolution, Verdict
from nexum_runtime.server.model.states import ExecutionStatus, State
from nexum_runtime.server.rules.sessions import words_of, words_of_rebuild
from nexum_runtime.server.rules.snapshots import Snapshot
from nexum_runtime.text import timestamp

NEXUM_PY = "grpc-python"  # how the user agent begins of its workers, as of ours; the TypeScript SDK's is another
LIST_LIMIT = 10_000  # executions, or approvals, in one answer
LIST_LIMIT_DEFAULT = 20
AGE_MS_LIMIT = 10**14  # of what is pruned: 3,000 years
APPROVE_CHARS_LIMIT = 256 * 1024  # of a comment with other arguments
TURNS_LIMIT = 10**9  # of a session
TASK_ID_CHARS = 300  # no task id is longer, as JSON
WORDS_LIMIT = 10**9  # characters of one answer
HELD_LIMIT = 10_000  # tasks of one worker in one heartbeat


# Given a snapshot, which may have been read lazily, and how to read it again: the snapshot that may be answered with.
LetOut: TypeAlias = Callable[[Snapshot, Callable[[], Awaitable[Snapshot]]], Awaitable[Snapshot]]


class Request(SimpleNamespace):
    """The fields of a request, of whoever has no message; those that were not given are empty, as in one."""

    def __getattr__(self, name: str) -> Any:
        return 0 if name == "limit" else ""


@dataclass
class Call:
    """What comes and goes beside the messages."""

    metadata: dict[str, Any]
    peer: str = ""
    leading: Trailing = ()  # to be sent before the answer
    trailing: Trailing = ()  # … and after it
    workflow_ids: list[str] = field(default_factory=list)  # PollTask: whose tasks are meant by a hash alone
    unsent: Callable[[bool], None] | None = None  # to be told that the answer was not sent: whether it may have been
    let_out: LetOut | None = None  # returns when there is room for the answer, where that has a bound


class Methods:
    """A request is anything that has the fields of its message; so an answer is these fields, by their names.

    Each method raises what the engine does. `hand_over()` makes this process leave its database to another one soon.
    """

    def __init__(self, engine: Engine, hand_over: Callable[[], None] | None = None) -> None:
        self.engine = engine
        self.page = ""  # its address, where one is served
        self._hand_over = hand_over

    # Of the stock service

    async def RegisterWorkflow(self, request: Any, call: Call) -> Fields:
        compatibility = await self.engine.register(request.workflow_id, request.version_hash, request.ir_json)
        call.trailing = ((wire.MAX_MESSAGE_BYTES, str(self.engine.max_message_bytes)),)
        return {"ok": True, "compatibility": compatibility}

    async def StartExecution(self, request: Any, call: Call) -> Fields:
        order = start_order(request, call.metadata)
        with traced("StartExecution", order) as (span, order):
            started = await self.engine.start(order)
            span.tell(before=started.before)
        if started.claimed is not None:
            call.unsent = partial(self.engine.give_back, started.claimed)
        call.trailing = started_metadata(started)
        return {"execution_id": started.execution_id}

    async def PollTask(self, request: Any, call: Call) -> Fields:
        metadata = call.metadata
        claimed = await self.engine.poll(
            request.worker_id,
            request.version_hash,
            [metadata[wire.WORKFLOW_ID]] if wire.WORKFLOW_ID in metadata else call.workflow_ids,
            lease_ms(metadata),
            whole_number(metadata, wire.WAIT_MS, 0, 0, wire.WAIT_MS_LIMIT),
            renews=wire.LEASE_MS not in metadata,  # it is not a worker of ours
            with_items=wire.LEASE_MS in metadata or not metadata.get("user-agent", "").startswith(NEXUM_PY),
        )
        if claimed is None:
            return {"has_task": False}
        call.unsent = partial(self.engine.give_back, claimed)
        crash_point("claim-committed")
        return task_fields(claimed)

    async def CompleteTask(self, request: Any, call: Call) -> Fields:
        message = await self.engine.complete(request.task_id, request.output_json)
        return _done(message)

    async def FailTask(self, request: Any, call: Call) -> Fields:
        metadata = call.metadata
        message = await self.engine.fail(
            request.task_id,
            request.error_message,
            retryable=metadata.get(wire.RETRYABLE) != "false",
            interrupted=metadata.get(wire.INTERRUPTED) == "true",
            unknown=metadata.get(wire.UNKNOWN) == "true",
            begun=metadata.get(wire.BEGUN) != "false",
        )
        return _done(message)

    async def GetStatus(self, request: Any, call: Call) -> Fields:
        wait_ms = whole_number(call.metadata, wire.WAIT_MS, 0, 0, wire.WAIT_MS_LIMIT)
        if call.let_out is None:
            snapshot = await self.engine.snapshot(request.execution_id, wait_ms)
        else:
            snapshot = await call.let_out(
                await self.engine.snapshot(request.execution_id, wait_ms, lazily=True),
                lambda: self.engine.snapshot(request.execution_id),
            )
        call.trailing = outcome_metadata(snapshot)
        return status_fields(snapshot)

    async def ListExecutions(self, request: Any, call: Call) -> Fields:
        if request.status and request.status not in set(ExecutionStatus):
            raise InvalidRequest(f"{request.status[:40]!r} is not the status of an execution.")
        executions = await self.engine.executions(
            request.workflow_id,
            request.status,
            call.metadata.get(wire.PREFIX, ""),
            min(request.limit, LIST_LIMIT) if request.limit > 0 else LIST_LIMIT_DEFAULT,
        )
        return {
            "executions": [
                {
                    "execution_id": execution.execution_id,
                    "workflow_id": execution.workflow_id,
                    "version_hash": execution.version_hash,
                    "status": execution.status,
                    "created_at": timestamp(execution.created_at_ms),
                }
                for execution in executions
            ]
        }

    async def CancelExecution(self, request: Any, call: Call) -> Fields:
        return _done(await self.engine.cancel(request.execution_id))

    async def ListWorkflowVersions(self, request: Any, call: Call) -> Fields:
        return {
            "versions": [
                {
                    "workflow_id": version.workflow_id,
                    "version_hash": version.version_hash,
                    "compatibility": version.compatibility,
                    "registered_at": timestamp(version.registered_at_ms),
                    "active_executions": version.active_executions,
                }
                for version in await self.engine.versions(request.workflow_id)
            ]
        }

    async def ApproveTask(self, request: Any, call: Call) -> Fields:
        yes = Verdict(True, request.approver, request.comment)
        return _done(await self.engine.answer(request.execution_id, request.node_id, yes))

    async def RejectTask(self, request: Any, call: Call) -> Fields:
        no = Verdict(False, request.approver, request.reason)
        return _done(await self.engine.answer(request.execution_id, request.node_id, no))

    async def GetPendingApprovals(self, request: Any, call: Call) -> Fields:
        return {
            "items": [
                {
                    "execution_id": approval.execution_id,
                    "node_id": approval.node_id,
                    "workflow_id": approval.workflow_id,
                    "started_at": timestamp(approval.since_ms),
                }
                for approval in await self.engine.approvals(LIST_LIMIT)
            ]
        }

    # Extensions

    async def Heartbeat(self, request: Any, call: Call) -> Fields:
        """Renew a worker's leases; `message` is a JSON list of the task ids it should stop.

        `version_hash` has no meaning of its own here: a worker may say in it, as a JSON list, which task ids it holds.
        """
        held = _task_ids(request.version_hash) if request.version_hash else None
        stops = await self.engine.heartbeat(request.worker_id, held, _standstill(call.metadata))
        return _done(wire.canonical_json(stops))

    async def Park(self, request: Any, call: Call) -> Fields:
        """`output_json` is what the attempt is given back until: `{"ended": [execution id], "ms": from now on}`."""
        return _done(await self.engine.park(request.task_id, request.output_json))

    async def Resolve(self, request: Any, call: Call) -> Fields:
        """A person's word on an unknown outcome: `reason` is the output's JSON text, or why it failed."""
        word = Resolution(call.metadata.get(wire.RESOLUTION, ""), request.reason)
        return _done(await self.engine.resolve(request.execution_id, request.node_id, word))

    async def Approve(self, request: Any, call: Call) -> Fields:
        """A yes to something else than was asked for: `comment` is `{"comment": text, "args": {…}}`."""
        if len(request.comment) > APPROVE_CHARS_LIMIT:
            raise LimitExceeded(
                f"The comment and the arguments of an Approve are {len(request.comment)} characters long; the limit is "
                f"{APPROVE_CHARS_LIMIT}."
            )
        try:
            told = wire.parse_json(request.comment)
        except ValueError:
            told = None
        comment, args = (told.get("comment", ""), told.get("args")) if isinstance(told, dict) else (None, None)
        if not isinstance(comment, str) or not isinstance(args, dict):
            raise InvalidRequest('The comment of an Approve must be {"comment": text, "args": {…}}, as JSON.')
        yes = Verdict(True, request.approver, comment, args)
        return _done(await self.engine.answer(request.execution_id, request.node_id, yes))

    async def Prune(self, request: Any, call: Call) -> Fields:
        """Delete what ended long ago, under the prefix `execution_id`; `message` is `{"executions": …, "bytes": …}`."""
        metadata = call.metadata
        if wire.OLDER_THAN_MS not in metadata:
            raise InvalidRequest(f"Prune needs {wire.OLDER_THAN_MS}.")
        executions, size_bytes = await self.engine.prune(
            request.execution_id,
            whole_number(metadata, wire.OLDER_THAN_MS, 0, 0, AGE_MS_LIMIT),
            dry_run=metadata.get(wire.DRY_RUN) == "true",
        )
        return _done(wire.canonical_json({"executions": executions, "bytes": size_bytes}))

    async def StopSession(self, request: Any, call: Call) -> Fields:
        """Stop the session `execution_id`: who says so is the `approver`, and why the `reason`.

        `message` is `{"stopped": [execution id], "let_finish": [execution id]}`.
        """
        told = await self.engine.stop_session(request.execution_id, request.approver, request.reason)
        return _done(wire.canonical_json(told))

    async def GoSession(self, request: Any, call: Call) -> Fields:
        """Let the session `execution_id` go on; `ok` is whether it was stopped."""
        return {"ok": await self.engine.go_session(request.execution_id)}

    async def ForgetSession(self, request: Any, call: Call) -> Fields:
        """Take back what the session `execution_id` has recorded from some turn on; the `approver` says so.

        That turn is `node_id`, its number or its id, or the one after those that AFTER counts. `message` is
        `{"session_id", "executions", "turns"}`, as `Records.forget` tells them.
        """
        metadata = call.metadata
        if bool(request.node_id) == (wire.AFTER in metadata):
            raise InvalidRequest(f"Say from where on: one of {wire.AFTER} and the node_id, a turn.")
        after = whole_number(metadata, wire.AFTER, 0, 0, TURNS_LIMIT)
        even_once = metadata.get(wire.EVEN_ONCE) == "true"
        order = Forget(after, request.node_id, request.approver, even_once)
        told = await self.engine.forget(request.execution_id, order)
        return _done(wire.canonical_json(told))

    async def ForkSession(self, request: Any, call: Call) -> Fields:
        """Make the new session `node_id` of what the session `execution_id` has recorded; the `approver` says so.

        `reason` is the number or the id of the first turn that it is to be without, or empty. `message` is
        `{"executions", "left_out", "turns"}`, as `Records.fork` tells them.
        """
        order = Fork(request.node_id, request.reason, request.approver)
        told = await self.engine.fork(request.execution_id, order)
        told["left_out"] = told["left_out"][:LIST_LIMIT]
        return _done(wire.canonical_json(told))

    async def ListSessions(self, request: Any, call: Call) -> Fields:
        """Sessions, the latest first: `completed_nodes_json` is a list of what `session_json` tells."""
        limit = min(request.limit, LIST_LIMIT) if request.limit > 0 else LIST_LIMIT
        found = await self.engine.sessions(call.metadata.get(wire.PREFIX, ""), limit)
        return {"completed_nodes_json": wire.canonical_json([session_json(each) for each in found])}

    async def Executions(self, request: Any, call: Call) -> Fields:
        """`ListExecutions` with states and labels: `status` filters by a state, `completed_nodes_json` is a list."""
        limit = min(request.limit, LIST_LIMIT) if request.limit > 0 else LIST_LIMIT
        prefix = call.metadata.get(wire.PREFIX, "")
        found = await self.engine.listed(request.workflow_id, request.status, prefix, limit)
        told = await asyncio.to_thread(lambda: wire.canonical_json([_listed(*each) for each in found]))
        return {"completed_nodes_json": told}

    async def Journal(self, request: Any, call: Call) -> AsyncGenerator[Fields, None]:
        """What every COMPLETED execution under a prefix has recorded, `{execution_id: {node: output}}`, in parts."""
        if call.metadata.get(wire.TO_GO_ON) == "true":
            await self.engine.check_that_it_goes_on(request.execution_id)
        first = (wire.FIRST_SESSION, await self.engine.first_session(request.execution_id))
        call.leading = (first, (wire.PAGE, self.page)) if self.page else (first,)
        async with aclosing(self.engine.journal(request.execution_id)) as parts:
            async for part in parts:
                yield {"status": ExecutionStatus.COMPLETED, "completed_nodes_json": part}

    async def Inspect(self, request: Any, call: Call) -> Fields:
        """What is wrong with this server, if anything: `completed_nodes_json` is what `Engine.inspect` tells."""
        return {"completed_nodes_json": wire.canonical_json(await self.engine.inspect())}

    async def HandOver(self, request: Any, call: Call) -> Fields:
        """Leave the database to a server that is about to start: whoever is embedded does, and a server does not."""
        if self._hand_over is None:
            raise InvalidRequest("This is a server, and no process that would hand over its database.")
        self._hand_over()
        return {"ok": True}

    async def Definition(self, request: Any, call: Call) -> Fields:
        """One version of a workflow with its IR, the one registered last when `version_hash` is empty."""
        found = await self.engine.definition(request.workflow_id, request.version_hash)
        return {"workflow_id": found.workflow_id, "version_hash": found.version_hash, "ir_json": found.ir_json}

    async def History(self, request: Any, call: Call) -> AsyncGenerator[Fields, None]:
        """All that is known of one execution, or of every execution under a prefix that ends in "/"."""
        execution_ids = [request.execution_id]
        if request.execution_id.endswith("/"):
            found = await self.engine.executions("", "", request.execution_id, LIST_LIMIT)
            execution_ids = [execution.execution_id for execution in reversed(found)]
        for execution_id in execution_ids:
            snapshot, events = await self.engine.history(execution_id)
            yield {
                "status": snapshot.execution.status,
                "completed_nodes_json": _history_json(snapshot, events),
            }

    async def Follow(self, request: Any, call: Call) -> AsyncGenerator[Fields, None]:
        """What is recorded of the session `execution_id` from CURSOR on, and the words of answers under way."""
        cursor = call.metadata.get(wire.CURSOR, "")
        async with aclosing(self.engine.followers.follow(request.execution_id, cursor)) as following:
            async for told in following:
                yield {"completed_nodes_json": told}

    async def PublishWords(self, request: Any, call: Call) -> Fields:
        """What is said in an answer that is not recorded yet: `reason` are words of the execution, from WORDS_AT on.

        `node_id` is the attempt that says it, a number.
        """
        if len(request.reason) > WORDS_CHARS_LIMIT:
            raise LimitExceeded(f"The words are {len(request.reason)} characters; the limit is {WORDS_CHARS_LIMIT}.")
        at = whole_number(call.metadata, wire.WORDS_AT, 0, 0, WORDS_LIMIT)
        attempt = int(request.node_id) if re.fullmatch("[0-9]{1,9}", request.node_id) else 0
        self.engine.followers.publish(request.execution_id, attempt, at, request.reason)
        return {"ok": True}

    async def Attend(self, request: Any, call: Call) -> AsyncGenerator[Fields, None]:
        """Held open by who executes tasks in its own process: the end of this call is its own end."""
        async with aclosing(self.engine.attend(request.worker_id)) as attending:
            async for _ in attending:
                yield {"ok": True}


def _done(message: str) -> Fields:
    return {"ok": True, "message": message}


def _history_json(snapshot: Snapshot, events: list[EventRow]) -> str:
    execution = snapshot.execution
    told = wire.canonical_json(
        history_json(execution, snapshot.state, events)
        | {
            "attempts": snapshot.attempts,
            "output_bytes": {node_id: len(text.encode()) for node_id, text in snapshot.outputs.items()},
        }
    )
    return f'{told[:-1]},"input":{execution.input_json}}}'  # which is JSON already, and may be large


def history_json(execution: Execution, state: State | None, events: list[EventRow]) -> dict[str, Any]:
    """What is known of an execution, as JSON, without its input and its outputs."""
    return {
        "execution_id": execution.execution_id,
        "workflow_id": execution.workflow_id,
        "version_hash": execution.version_hash,
        "status": state,
        "error": execution.error,
        "error_code": execution.error_code,
        "effect": execution.effect,
        "labels": labels_of(execution),
        "created_at_ms": execution.created_at_ms,
        "ended_at_ms": execution.ended_at_ms,
        "events": [
            {"at_ms": e.at_ms, "type": e.type, "node_id": e.node_id, "attempt": e.attempt, **e.data} for e in events
        ],
    }


def _listed(execution: Execution, state: State) -> dict[str, Any]:
    return {
        "execution_id": execution.execution_id,
        "workflow_id": execution.workflow_id,
        "version_hash": execution.version_hash,
        "status": state,
        "created_at": timestamp(execution.created_at_ms),
        "labels": labels_of(execution),
    }


def labels_of(execution: Execution) -> dict[str, Any]:
    return dict(wire.parse_json(execution.labels_json)) if execution.labels_json else {}


def session_json(session: Session) -> dict[str, Any]:
    """A session as JSON. `state` is the first of these that holds: TAKEN_BACK (it is what was, of another session),
    STOPPED, UNKNOWN (an outcome is), WAITING (for a person), RUNNING (something does, or its last run has not ended),
    or how its last run has ended."""
    last = labels_of(session.last) if session.last else {}
    return {
        "session_id": session.session_id,
        "state": _state(session, last),
        "stopped": _stopped(session),
        "began_at_ms": session.began_at_ms,
        "heard_at_ms": session.heard_at_ms,
        "executions": session.executions,
        "kinds": session.kinds,
        "recorded": session.recorded,
        "end": session.end,
        "runs": session.runs,
        "numbers": session.numbers,
        "unknown": session.unknown,
        "asks": session.asks,
        "waiting": session.waiting,
        "waits_for_worker": session.waits_for_worker,
        "running": session.running,
        "parked": session.parked,
        "forked_from": session.forked_from,
        "taken_back": session.taken_back,
    }


def _stopped(session: Session) -> dict[str, Any] | None:
    if rebuild := session.rebuild:
        return {"at_ms": rebuild.at_ms, "by": rebuild.by, "reason": "", "words": words_of_rebuild(rebuild)}
    if stop := session.stop:
        return vars(stop) | {"words": words_of(session.session_id, stop)}
    return None


def _state(session: Session, last: dict[str, Any]) -> str:
    if is_taken_back(session.session_id) and not (session.stop and session.stop.reason):
        return "TAKEN_BACK"
    if session.stop or session.rebuild:
        return "STOPPED"
    if session.unknown:
        return "UNKNOWN"
    if session.asks:
        return "WAITING"
    if session.running or session.waiting:
        return "RUNNING"
    if session.parked:
        return "PARKED"
    return str(last.get("outcome", "RUNNING"))


def _standstill(metadata: dict[str, Any]) -> tuple[int, str] | None:
    """For how many milliseconds a worker has stood still, and where; None if it does not."""
    if (text := metadata.get(wire.STANDSTILL)) is None:
        return None
    try:
        ms, where = wire.parse_json(text)
    except (TypeError, ValueError):
        ms, where = None, None
    if type(ms) is not int or not isinstance(where, str) or ms < 0:
        raise InvalidRequest(f"{wire.STANDSTILL} is {text[:80]!r}; it must be a JSON list of milliseconds and a text.")
    return ms, where


def _task_ids(text: str) -> list[str]:
    if len(text) > HELD_LIMIT * TASK_ID_CHARS:
        raise InvalidRequest(f"A worker holds at most {HELD_LIMIT} tasks; this one names more.")
    try:
        task_ids = wire.parse_json(text)
    except ValueError:
        task_ids = None
    if not isinstance(task_ids, list) or not all(isinstance(each, str) and wire.is_text(each) for each in task_ids):
        raise InvalidRequest(f"The task ids {text[:80]!r} are not a JSON list of texts.")
    if len(task_ids) > HELD_LIMIT:
        raise InvalidRequest(f"A worker holds at most {HELD_LIMIT} tasks; this one names {len(task_ids)}.")
    return task_ids
