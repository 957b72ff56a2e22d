"""The methods of both services, and the messages that they take and return: nexum-py's own."""

from typing import Any

from nexum.proto import nexum_pb2 as pb

from nexum_runtime import wire

Types = tuple[Any, Any]

STOCK: dict[str, Types] = {
    "RegisterWorkflow": (pb.WorkflowIR, pb.AckResponse),
    "StartExecution": (pb.StartRequest, pb.StartResponse),
    "PollTask": (pb.PollRequest, pb.PollResponse),
    "CompleteTask": (pb.CompleteRequest, pb.AckResponse),
    "FailTask": (pb.FailRequest, pb.AckResponse),
    "GetStatus": (pb.StatusRequest, pb.StatusResponse),
    "ListExecutions": (pb.ListRequest, pb.ListResponse),
    "CancelExecution": (pb.CancelRequest, pb.AckResponse),
    "ListWorkflowVersions": (pb.ListVersionsRequest, pb.ListVersionsResponse),
    "ApproveTask": (pb.ApproveRequest, pb.AckResponse),
    "RejectTask": (pb.RejectRequest, pb.AckResponse),
    "GetPendingApprovals": (pb.EmptyRequest, pb.PendingApprovalsResponse),
}
EXTENSIONS: dict[str, Types] = {
    "Execute": (pb.StartRequest, pb.StatusResponse),
    "Heartbeat": (pb.PollRequest, pb.AckResponse),
    "Executions": (pb.ListRequest, pb.StatusResponse),
    "StopSession": (pb.RejectRequest, pb.AckResponse),
    "GoSession": (pb.StatusRequest, pb.AckResponse),
    "ForgetSession": (pb.RejectRequest, pb.AckResponse),
    "ForkSession": (pb.RejectRequest, pb.AckResponse),
    "ListSessions": (pb.ListRequest, pb.StatusResponse),
    "Park": (pb.CompleteRequest, pb.AckResponse),
    "Resolve": (pb.RejectRequest, pb.AckResponse),
    "Approve": (pb.ApproveRequest, pb.AckResponse),
    "Prune": (pb.StatusRequest, pb.AckResponse),
    "Inspect": (pb.StatusRequest, pb.StatusResponse),
    "Definition": (pb.WorkflowIR, pb.WorkflowIR),
    "PublishWords": (pb.RejectRequest, pb.AckResponse),
    "HandOver": (pb.EmptyRequest, pb.AckResponse),
}
STREAMS: dict[str, Types] = {  # extensions whose answer is several messages
    "Attend": (pb.PollRequest, pb.AckResponse),
    "History": (pb.StatusRequest, pb.StatusResponse),
    "Journal": (pb.StatusRequest, pb.StatusResponse),
    "Follow": (pb.StatusRequest, pb.StatusResponse),
}


def path_of(name: str) -> str:
    """Of any method, those besides whose messages are bytes."""
    return f"/{wire.SERVICE if name in STOCK else wire.EXTENSIONS}/{name}"


def types_of(name: str) -> Types:
    return STOCK.get(name) or EXTENSIONS.get(name) or STREAMS[name]
