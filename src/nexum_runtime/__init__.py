"""What Nexum lacks on any package index: its server and command (`nexum`), and an asyncio client and worker."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

# gRPC looks at these once, when it is imported. It writes to stderr of every handshake that fails, and again at every
# new try; what is wrong is said in an error. Its event engine hands each message through more threads than the
# transport that it has besides, which is slower for what Nexum does: short messages, one after the other. What it does
# about a fork ends the parent or the child by SIGSEGV with that transport; `forking` has what is done instead.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
if "grpc" in sys.modules:  # someone has imported it before, so it looks again
    from grpc._cython import cygrpc

    getattr(cygrpc, "reset_grpc_config_vars", lambda: None)()

if not (  # looked for, and not imported: it brings gRPC along
    (sdk := find_spec("nexum")) and any(Path(each, "proto").is_dir() for each in sdk.submodule_search_locations or ())
):
    raise ImportError(
        "Nexum's SDK is not here, or the unrelated project `nexum` of the package index stands in its place. "
        "Run: pip uninstall --yes nexum nexum-py && pip install nexum-py==0.2.0"
    )

from nexum_runtime.client import Client, Outcome
from nexum_runtime.client.builders import human_approval, map_over, reduce, router, subworkflow
from nexum_runtime.client.local import LocalEffect
from nexum_runtime.engines import near
from nexum_runtime.errors import (
    ExecutionCancelled,
    ExecutionTimeout,
    ForkedWhileConnected,
    InvalidRequest,
    LimitExceeded,
    NexumError,
    NotFound,
    Parked,
    ServerUnavailable,
    SessionStopped,
    TaskError,
    Unauthenticated,
)
from nexum_runtime.idempotency import idempotency_key
from nexum_runtime.worker import Worker

__all__ = [
    "Client",
    "ExecutionCancelled",
    "ExecutionTimeout",
    "ForkedWhileConnected",
    "InvalidRequest",
    "LimitExceeded",
    "LocalEffect",
    "NexumError",
    "NotFound",
    "Outcome",
    "Parked",
    "ServerUnavailable",
    "SessionStopped",
    "TaskError",
    "Unauthenticated",
    "Worker",
    "human_approval",
    "idempotency_key",
    "map_over",
    "near",
    "reduce",
    "router",
    "subworkflow",
]
