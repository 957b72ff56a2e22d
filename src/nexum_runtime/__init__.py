"""What Nexum lacks on any package index: its server and command (`nexum`), and an asyncio client and worker."""

import os
from importlib.util import find_spec

# gRPC looks at these once, when it is imported. It writes to stderr of every handshake that fails, and again at every
# new try; what is wrong is said in an error. Its event engine hands each message through more threads than the
# transport that it has besides, which is slower for what Nexum does: short messages, one after the other.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

if find_spec("nexum") is None or find_spec("nexum.proto") is None:
    raise ImportError(
        "Nexum's SDK is not here, or the unrelated project `nexum` of the package index stands in its place. "
        "Run: pip uninstall --yes nexum nexum-py && pip install nexum-py==0.2.0"
    )

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
