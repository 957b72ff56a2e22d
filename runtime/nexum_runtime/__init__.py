"""What Nexum lacks on any package index: its server and command (`nexum`), and an asyncio client and worker."""

import os

# gRPC writes to stderr of every handshake that fails, and again at every new try. What is wrong is said in an error.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it looks only once, when it is imported

from nexum_runtime.approval import human_approval
from nexum_runtime.client import Client, Outcome
from nexum_runtime.errors import (
    ExecutionTimeout,
    InvalidRequest,
    LimitExceeded,
    NexumError,
    NotFound,
    ServerUnavailable,
    TaskError,
    Unauthenticated,
)
from nexum_runtime.idempotency import idempotency_key
from nexum_runtime.local import LocalEffect
from nexum_runtime.worker import Worker

__all__ = [
    "Client",
    "ExecutionTimeout",
    "InvalidRequest",
    "LimitExceeded",
    "LocalEffect",
    "NexumError",
    "NotFound",
    "Outcome",
    "ServerUnavailable",
    "TaskError",
    "Unauthenticated",
    "Worker",
    "human_approval",
    "idempotency_key",
]
