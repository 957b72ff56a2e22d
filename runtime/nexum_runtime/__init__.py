"""What Nexum lacks on any package index: its server and command (`nexum`), and an asyncio client and worker."""

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
from nexum_runtime.worker import Worker, idempotency_key

__all__ = [
    "Client",
    "ExecutionTimeout",
    "InvalidRequest",
    "LimitExceeded",
    "NexumError",
    "NotFound",
    "Outcome",
    "ServerUnavailable",
    "TaskError",
    "Unauthenticated",
    "Worker",
    "idempotency_key",
]
