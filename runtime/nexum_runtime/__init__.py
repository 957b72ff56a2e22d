"""What Nexum lacks on any package index: its server and command (`nexum`), and an asyncio client and worker."""

from nexum_runtime.client import Client, Outcome
from nexum_runtime.errors import (
    ExecutionTimeout,
    InvalidRequest,
    NexumError,
    NotFound,
    ServerUnavailable,
    TaskError,
    TooLarge,
)
from nexum_runtime.worker import Worker, idempotency_key

__all__ = [
    "Client",
    "ExecutionTimeout",
    "InvalidRequest",
    "NexumError",
    "NotFound",
    "Outcome",
    "ServerUnavailable",
    "TaskError",
    "TooLarge",
    "Worker",
    "idempotency_key",
]
