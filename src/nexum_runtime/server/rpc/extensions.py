"""The gRPC service beside the stock one: its table, and the methods that neither start executions nor take tasks."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from nexum.proto import nexum_pb2 as pb

from nexum_runtime import wire
from nexum_runtime.errors import InvalidRequest, NexumError
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.model.contract import EventRow, Execution, Session, StoreUnavailable, is_taken_back
from nexum_runtime.server.model.shapes import Forget, Fork, Resolution, Verdict
from nexum_runtime.server.model.states import ExecutionStatus, State
from nexum_runtime.server.rpc.client_calls import ClientCalls
from nexum_runtime.server.rpc.messages import (
    LIST_LIMIT,
    Context,
    abort,
    answering,
    metadata_of,
    readable,
    reader,
    unary,
    whole_number,
)
from nexum_runtime.server.rpc.peers import Registrations, Waiting
from nexum_runtime.server.rpc.worker_calls import WorkerCalls
from nexum_runtime.server.rules.sessions import words_of
from nexum_runtime.server.rules.snapshots import Snapshot
from nexum_runtime.text import timestamp

AGE_MS_LIMIT = 10**14  # of what is pruned: 3,000 years
TURNS_LIMIT = 10**9  # of a session


class NexumExtensions:
    """`nexum.NexumExtensions`: what the stock service lacks, made of the same messages."""

    def __init__(self, engine: Engine, waiting: Waiting, registrations: Registrations) -> None:
        self._engine = engine
        self._client_calls = ClientCalls(engine, waiting)
        self._worker_calls = WorkerCalls(engine, waiting, registrations)

    @answering
    async def Resolve(self, request: Any, context: Context) -> Any:
        """A person's word on an unknown outcome: `reason` is the output's JSON text, or why it failed."""
        word = Resolution(metadata_of(context).get(wire.RESOLUTION, ""), request.reason)
        return pb.AckResponse(ok=True, message=await self._engine.resolve(request.execution_id, request.node_id, word))

    @answering
    async def Approve(self, request: Any, context: Context) -> Any:
        """A yes to something else than was asked for: `comment` is `{"comment": text, "args": {…}}`."""
        try:
            told = wire.parse_json(request.comment)
        except ValueError:
            told = None
        comment, args = (told.get("comment", ""), told.get("args")) if isinstance(told, dict) else (None, None)
        if not isinstance(comment, str) or not isinstance(args, dict):
            raise InvalidRequest('The comment of an Approve must be {"comment": text, "args": {…}}, as JSON.')
        yes = Verdict(True, request.approver, comment, args)
        return pb.AckResponse(ok=True, message=await self._engine.answer(request.execution_id, request.node_id, yes))

    @answering
    async def Prune(self, request: Any, context: Context) -> Any:
        """Delete what ended long ago, under the prefix `execution_id`; `message` is `{"executions": …, "bytes": …}`."""
        metadata = metadata_of(context)
        if wire.OLDER_THAN_MS not in metadata:
            raise InvalidRequest(f"Prune needs {wire.OLDER_THAN_MS}.")
        executions, size_bytes = await self._engine.prune(
            request.execution_id,
            whole_number(metadata, wire.OLDER_THAN_MS, 0, 0, AGE_MS_LIMIT),
            dry_run=metadata.get(wire.DRY_RUN) == "true",
        )
        return pb.AckResponse(ok=True, message=wire.canonical_json({"executions": executions, "bytes": size_bytes}))

    @answering
    async def StopSession(self, request: Any, context: Context) -> Any:
        """Stop the session `execution_id`: who says so is the `approver`, and why the `reason`.

        `message` is `{"stopped": [execution id], "let_finish": [execution id]}`.
        """
        told = await self._engine.stop_session(request.execution_id, request.approver, request.reason)
        return pb.AckResponse(ok=True, message=wire.canonical_json(told))

    @answering
    async def GoSession(self, request: Any, context: Context) -> Any:
        """Let the session `execution_id` go on; `ok` is whether it was stopped."""
        return pb.AckResponse(ok=await self._engine.go_session(request.execution_id))

    @answering
    async def ForgetSession(self, request: Any, context: Context) -> Any:
        """Take back what the session `execution_id` has recorded from some turn on; the `approver` says so.

        That turn is `node_id`, its number or its id, or the one after those that AFTER counts. `message` is
        `{"session_id", "executions", "turns"}`, as `Records.forget` tells them.
        """
        metadata = metadata_of(context)
        if bool(request.node_id) == (wire.AFTER in metadata):
            raise InvalidRequest(f"Say from where on: one of {wire.AFTER} and the node_id, a turn.")
        after = whole_number(metadata, wire.AFTER, 0, 0, TURNS_LIMIT)
        even_once = metadata.get(wire.EVEN_ONCE) == "true"
        order = Forget(after, request.node_id, request.approver, even_once)
        told = await self._engine.forget(request.execution_id, order)
        return pb.AckResponse(ok=True, message=wire.canonical_json(told))

    @answering
    async def ForkSession(self, request: Any, context: Context) -> Any:
        """Make the new session `node_id` of what the session `execution_id` has recorded; the `approver` says so.

        `reason` is the number or the id of the first turn that it is to be without, or empty. `message` is
        `{"executions", "left_out", "turns"}`, as `Records.fork` tells them.
        """
        order = Fork(request.node_id, request.reason, request.approver)
        told = await self._engine.fork(request.execution_id, order)
        told["left_out"] = told["left_out"][:LIST_LIMIT]
        return pb.AckResponse(ok=True, message=wire.canonical_json(told))

    @answering
    async def ListSessions(self, request: Any, context: Context) -> Any:
        """Sessions, the latest first: `completed_nodes_json` is a list of what `session_json` tells."""
        limit = min(request.limit, LIST_LIMIT) if request.limit > 0 else LIST_LIMIT
        found = await self._engine.sessions(metadata_of(context).get(wire.PREFIX, ""), limit)
        return pb.StatusResponse(completed_nodes_json=wire.canonical_json([session_json(each) for each in found]))

    @answering
    async def Executions(self, request: Any, context: Context) -> Any:
        """`ListExecutions` with states and labels: `status` filters by a state, `completed_nodes_json` is a list."""
        limit = min(request.limit, LIST_LIMIT) if request.limit > 0 else LIST_LIMIT
        prefix = metadata_of(context).get(wire.PREFIX, "")
        found = await self._engine.listed(request.workflow_id, request.status, prefix, limit)
        return pb.StatusResponse(completed_nodes_json=wire.canonical_json([_listed(*each) for each in found]))

    async def Journal(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """What every COMPLETED execution under a prefix has recorded, `{execution_id: {node: output}}`, in parts."""
        try:
            if metadata_of(context).get(wire.TO_GO_ON) == "true":
                await self._engine.check_that_it_goes_on(readable(request).execution_id)
            first = await self._engine.first_session(readable(request).execution_id)
            await context.send_initial_metadata(((wire.FIRST_SESSION, first),))
            async with aclosing(self._engine.journal(readable(request).execution_id)) as parts:
                async for part in parts:
                    yield pb.StatusResponse(status=ExecutionStatus.COMPLETED, completed_nodes_json=part)
        except (NexumError, StoreUnavailable) as error:
            await abort(context, error)

    @answering
    async def Inspect(self, request: Any, context: Context) -> Any:
        """What is wrong with this server, if anything: `completed_nodes_json` is what `Engine.inspect` tells."""
        return pb.StatusResponse(completed_nodes_json=wire.canonical_json(await self._engine.inspect()))

    @answering
    async def Definition(self, request: Any, context: Context) -> Any:
        """One version of a workflow with its IR, the one registered last when `version_hash` is empty."""
        found = await self._engine.definition(request.workflow_id, request.version_hash)
        return pb.WorkflowIR(workflow_id=found.workflow_id, version_hash=found.version_hash, ir_json=found.ir_json)

    async def History(self, request: Any, context: Context) -> AsyncIterator[Any]:
        """All that is known of one execution, or of every execution under a prefix that ends in "/"."""
        try:
            prefix = readable(request).execution_id
            if prefix.endswith("/"):
                found = await self._engine.executions("", "", prefix, LIST_LIMIT)
                execution_ids = [execution.execution_id for execution in reversed(found)]
            else:
                execution_ids = [prefix]
            for execution_id in execution_ids:
                snapshot, events = await self._engine.history(execution_id)
                yield pb.StatusResponse(
                    status=snapshot.execution.status, completed_nodes_json=_history_json(snapshot, events)
                )
        except (NexumError, StoreUnavailable) as error:
            await abort(context, error)

    def handler(self) -> Any:
        return grpc.method_handlers_generic_handler(
            wire.EXTENSIONS,
            {
                "Execute": unary(self._client_calls.Execute, pb.StartRequest, pb.StatusResponse),
                "Heartbeat": unary(self._worker_calls.Heartbeat, pb.PollRequest, pb.AckResponse),
                "Executions": unary(self.Executions, pb.ListRequest, pb.StatusResponse),
                "StopSession": unary(self.StopSession, pb.RejectRequest, pb.AckResponse),
                "GoSession": unary(self.GoSession, pb.StatusRequest, pb.AckResponse),
                "ForgetSession": unary(self.ForgetSession, pb.RejectRequest, pb.AckResponse),
                "ForkSession": unary(self.ForkSession, pb.RejectRequest, pb.AckResponse),
                "ListSessions": unary(self.ListSessions, pb.ListRequest, pb.StatusResponse),
                "Resolve": unary(self.Resolve, pb.RejectRequest, pb.AckResponse),
                "Approve": unary(self.Approve, pb.ApproveRequest, pb.AckResponse),
                "Prune": unary(self.Prune, pb.StatusRequest, pb.AckResponse),
                "StreamTasks": grpc.stream_stream_rpc_method_handler(
                    self._worker_calls.StreamTasks  # bytes: see `batches`
                ),
                "StreamCalls": grpc.stream_stream_rpc_method_handler(
                    self._client_calls.StreamCalls  # bytes: see `calls`
                ),
                "Journal": grpc.unary_stream_rpc_method_handler(
                    self.Journal, reader(pb.StatusRequest), pb.StatusResponse.SerializeToString
                ),
                "Inspect": unary(self.Inspect, pb.StatusRequest, pb.StatusResponse),
                "Definition": unary(self.Definition, pb.WorkflowIR, pb.WorkflowIR),
                "Attend": grpc.unary_stream_rpc_method_handler(
                    self._worker_calls.Attend, reader(pb.PollRequest), pb.AckResponse.SerializeToString
                ),
                "History": grpc.unary_stream_rpc_method_handler(
                    self.History, reader(pb.StatusRequest), pb.StatusResponse.SerializeToString
                ),
            },
        )


def _history_json(snapshot: Snapshot, events: list[EventRow]) -> str:
    execution = snapshot.execution
    return wire.canonical_json(
        {
            "execution_id": execution.execution_id,
            "workflow_id": execution.workflow_id,
            "version_hash": execution.version_hash,
            "status": snapshot.state,
            "error": execution.error,
            "error_code": execution.error_code,
            "effect": execution.effect,
            "labels": labels_of(execution),
            "attempts": snapshot.attempts,
            "created_at_ms": execution.created_at_ms,
            "ended_at_ms": execution.ended_at_ms,
            "input": wire.parse_json(execution.input_json),
            "output_bytes": {node_id: len(text.encode()) for node_id, text in snapshot.outputs.items()},
            "events": [
                {"at_ms": e.at_ms, "type": e.type, "node_id": e.node_id, "attempt": e.attempt, **e.data} for e in events
            ],
        }
    )


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
        "stopped": vars(session.stop) | {"words": words_of(session.session_id, session.stop)} if session.stop else None,
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
        "running": session.running,
        "forked_from": session.forked_from,
        "taken_back": session.taken_back,
    }


def _state(session: Session, last: dict[str, Any]) -> str:
    if is_taken_back(session.session_id):
        return "TAKEN_BACK"
    if session.stop:
        return "STOPPED"
    if session.unknown:
        return "UNKNOWN"
    if session.asks:
        return "WAITING"
    if session.running or session.waiting:
        return "RUNNING"
    return str(last.get("outcome", "RUNNING"))
