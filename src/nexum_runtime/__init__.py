"""What Nexum lacks on any package index: its server and command (`nexum`), and an asyncio client and worker."""

import os

# gRPC looks at these once, when it is imported. It writes to stderr of every handshake that fails, and again at every
# new try; what is wrong is said in an error. Its event engine hands each message through more threads than the
# transport that it has besides, which is slower for what Nexum does: short messages, one after the other.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

from nexum_runtime.client import Client, Outcome
from nexum_runtime.client.approval import human_approval
from nexum_runtime.client.local import LocalEffect
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
