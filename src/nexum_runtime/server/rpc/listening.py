"""A gRPC server of both services and of its health, yet without an address."""

import logging
import resource
from contextlib import suppress
from typing import Any

import grpc

from nexum_runtime import wire
from nexum_runtime.server.methods.methods import Methods
from nexum_runtime.server.rpc.health import Health
from nexum_runtime.server.rpc.neighbours import OwnUser
from nexum_runtime.server.rpc.peers import TokenCheck, Waiting
from nexum_runtime.server.rpc.service import Services
from nexum_runtime.server.rpc.traffic import Traffic
from nexum_runtime.wire import keepalive

# A message up to this many times the limit is still read, to be refused in a sentence that names both sizes.
OVERSIZE_READ = 4
# Calls of one connection that have arrived and were not looked at yet. gRPC itself refuses some of more than 1,000 at
# once, as CANCELLED and without a word of why, where `Waiting` would take them or say what is wrong.
PENDING_LIMIT = 10_000
GREETING_SECONDS = 20.0  # for a connection to become one of gRPC
IDLE_SECONDS = 600.0  # without a call, until a connection is closed; a client opens another one when it needs it


FILES_KEPT = 200  # that are not for connections, of those that the process may have open


def connections_limit() -> int:
    """For each address that is listened at; there are two on loopback."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return wire.CONNECTIONS_LIMIT
    return max(1, min(wire.CONNECTIONS_LIMIT, (files - FILES_KEPT) // 2))


def allow_connections() -> None:
    """Let this process have as many files open as that takes, if it may."""
    wanted = 2 * wire.CONNECTIONS_LIMIT + FILES_KEPT
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def grpc_server(
    methods: Methods,
    waiting: Waiting,
    traffic: Traffic,
    token: str | None,
    own_user: OwnUser | None = None,
) -> Any:
    """A `grpc.aio.Server`. With a `token`, every call must bear it; with `own_user`, it must be let in by that.

    Health is told to anyone.
    """
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_not_of_a_client_that_left)
    server = grpc.aio.server(
        interceptors=[*([TokenCheck(token)] if token else []), *([own_user] if own_user else [])],
        options=[
            *keepalive.server(),
            ("grpc.so_reuseport", 0),  # a second server on this port is an error, not a rival
            ("grpc.max_receive_message_length", OVERSIZE_READ * methods.engine.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.server.max_pending_requests", PENDING_LIMIT),
            ("grpc.server.max_pending_requests_hard_limit", PENDING_LIMIT),
            ("grpc.server_handshake_timeout_ms", int(GREETING_SECONDS * 1000)),
            ("grpc.max_allowed_incoming_connections", connections_limit()),
            ("grpc.max_connection_idle_ms", int(IDLE_SECONDS * 1000)),
        ],
    )
    server.add_generic_rpc_handlers(Services(methods, waiting, traffic).handlers())
    server.add_generic_rpc_handlers((Health(methods.engine).handlers(),))
    return server


def _is_not_of_a_client_that_left(record: logging.LogRecord) -> bool:
    """gRPC logs with a traceback that an answer could not be sent, which is how it learns that a client has gone."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, grpc.aio.InternalError)
