"""The stock gRPC service: messages in, engine calls, messages and status codes out."""

from typing import Any

import grpc
from nexum.proto import nexum_pb2 as pb

from nexum_runtime import wire
from nexum_runtime.crash import crash_point
from nexum_runtime.errors import InvalidRequest
from nexum_runtime.server.engine.engine import Engine
from nexum_runtime.server.model.shapes import Verdict
from nexum_runtime.server.model.states import ExecutionStatus
from nexum_runtime.server.rpc.messages import (
    LIST_LIMIT,
    Context,
    answering,
    lease_ms,
    metadata_of,
    outcome_metadata,
    start_order,
    started_metadata,
    status_response,
    traced,
    unary,
    whole_number,
)
from nexum_runtime.server.rpc.outbox import task_response
from nexum_runtime.server.rpc.peers import Registrations, Waiting
from nexum_runtime.text import timestamp

LIST_LIMIT_DEFAULT = 20


class NexumService:
    """`nexum.NexumService`, as nexum-py 0.2.0 has it."""

    def __init__(self, engine: Engine, waiting: Waiting, registrations: Registrations) -> None:
        self._engine = engine
        self._waiting = waiting
        self._registrations = registrations

    @answering
    async def RegisterWorkflow(self, request: Any, context: Context) -> Any:
        compatibility = await self._engine.register(request.workflow_id, request.version_hash, request.ir_json)
        self._registrations.add(context.peer(), request.workflow_id, request.version_hash)
        context.set_trailing_metadata(((wire.MAX_MESSAGE_BYTES, str(self._engine.max_message_bytes)),))
        return pb.AckResponse(ok=True, compatibility=compatibility)

    @answering
    async def StartExecution(self, request: Any, context: Context) -> Any:
        order = start_order(request, metadata_of(context))
        with traced("StartExecution", order) as (span, order):
            started = await self._engine.start(order)
            span.tell(before=started.before)
        context.set_trailing_metadata(started_metadata(started))
        return pb.StartResponse(execution_id=started.execution_id)

    @answering
    async def PollTask(self, request: Any, context: Context) -> Any:
        metadata = metadata_of(context)
        named = metadata.get(wire.WORKFLOW_ID)
        with self._waiting.place(context, request):
            claimed = await self._engine.poll(
                request.worker_id,
                request.version_hash,
                [named] if named else await self._registrations.served(context.peer(), request.version_hash),
                lease_ms(metadata),
                whole_number(metadata, wire.WAIT_MS, 0, 0, wire.WAIT_MS_LIMIT),
                renews=wire.LEASE_MS not in metadata,  # it is not a worker of ours
            )
        if claimed is None:
            return pb.PollResponse(has_task=False)
        crash_point("claim-committed")
        return task_response(claimed)

    @answering
    async def CompleteTask(self, request: Any, context: Context) -> Any:
        message = await self._engine.complete(request.task_id, request.output_json)
        return pb.AckResponse(ok=True, message=message)

    @answering
    async def FailTask(self, request: Any, context: Context) -> Any:
        metadata = metadata_of(context)
        message = await self._engine.fail(
            request.task_id,
            request.error_message,
            retryable=metadata.get(wire.RETRYABLE) != "false",
            interrupted=metadata.get(wire.INTERRUPTED) == "true",
            unknown=metadata.get(wire.UNKNOWN) == "true",
            begun=metadata.get(wire.BEGUN) != "false",
        )
        return pb.AckResponse(ok=True, message=message)

    @answering
    async def GetStatus(self, request: Any, context: Context) -> Any:
        wait_ms = whole_number(metadata_of(context), wire.WAIT_MS, 0, 0, wire.WAIT_MS_LIMIT)
        with self._waiting.place(context, request):
            snapshot = await self._engine.snapshot(request.execution_id, wait_ms)
        context.set_trailing_metadata(outcome_metadata(snapshot))
        return status_response(snapshot)

    @answering
    async def ListExecutions(self, request: Any, context: Context) -> Any:
        if request.status and request.status not in set(ExecutionStatus):
            raise InvalidRequest(f"{request.status[:40]!r} is not the status of an execution.")
        executions = await self._engine.executions(
            request.workflow_id,
            request.status,
            metadata_of(context).get(wire.PREFIX, ""),
            min(request.limit, LIST_LIMIT) if request.limit > 0 else LIST_LIMIT_DEFAULT,
        )
        return pb.ListResponse(
            executions=[
                pb.ExecutionSummary(
                    execution_id=execution.execution_id,
                    workflow_id=execution.workflow_id,
                    version_hash=execution.version_hash,
                    status=execution.status,
                    created_at=timestamp(execution.created_at_ms),
                )
                for execution in executions
            ]
        )

    @answering
    async def CancelExecution(self, request: Any, context: Context) -> Any:
        return pb.AckResponse(ok=True, message=await self._engine.cancel(request.execution_id))

    @answering
    async def ListWorkflowVersions(self, request: Any, context: Context) -> Any:
        return pb.ListVersionsResponse(
            versions=[
                pb.VersionInfo(
                    workflow_id=version.workflow_id,
                    version_hash=version.version_hash,
                    compatibility=version.compatibility,
                    registered_at=timestamp(version.registered_at_ms),
                    active_executions=version.active_executions,
                )
                for version in await self._engine.versions(request.workflow_id)
            ]
        )

    @answering
    async def ApproveTask(self, request: Any, context: Context) -> Any:
        yes = Verdict(True, request.approver, request.comment)
        return pb.AckResponse(ok=True, message=await self._engine.answer(request.execution_id, request.node_id, yes))

    @answering
    async def RejectTask(self, request: Any, context: Context) -> Any:
        no = Verdict(False, request.approver, request.reason)
        return pb.AckResponse(ok=True, message=await self._engine.answer(request.execution_id, request.node_id, no))

    @answering
    async def GetPendingApprovals(self, request: Any, context: Context) -> Any:
        return pb.PendingApprovalsResponse(
            items=[
                pb.PendingApprovalItem(
                    execution_id=approval.execution_id,
                    node_id=approval.node_id,
                    workflow_id=approval.workflow_id,
                    started_at=timestamp(approval.since_ms),
                )
                for approval in await self._engine.approvals(LIST_LIMIT)
            ]
        )

    def handler(self) -> Any:
        return grpc.method_handlers_generic_handler(
            wire.SERVICE,
            {
                "RegisterWorkflow": unary(self.RegisterWorkflow, pb.WorkflowIR, pb.AckResponse),
                "StartExecution": unary(self.StartExecution, pb.StartRequest, pb.StartResponse),
                "PollTask": unary(self.PollTask, pb.PollRequest, pb.PollResponse),
                "CompleteTask": unary(self.CompleteTask, pb.CompleteRequest, pb.AckResponse),
                "FailTask": unary(self.FailTask, pb.FailRequest, pb.AckResponse),
                "GetStatus": unary(self.GetStatus, pb.StatusRequest, pb.StatusResponse),
                "ListExecutions": unary(self.ListExecutions, pb.ListRequest, pb.ListResponse),
                "CancelExecution": unary(self.CancelExecution, pb.CancelRequest, pb.AckResponse),
                "ListWorkflowVersions": unary(
                    self.ListWorkflowVersions, pb.ListVersionsRequest, pb.ListVersionsResponse
                ),
                "ApproveTask": unary(self.ApproveTask, pb.ApproveRequest, pb.AckResponse),
                "RejectTask": unary(self.RejectTask, pb.RejectRequest, pb.AckResponse),
                "GetPendingApprovals": unary(self.GetPendingApprovals, pb.EmptyRequest, pb.PendingApprovalsResponse),
            },
        )
