"""What client and server both know of the wire: method paths, metadata keys, limits.

The messages are nexum-py's own (`nexum.proto`); nothing here adds to them. What they have no room for travels as
gRPC metadata, which a stock nexum-py peer never sends, so every key is optional.
"""

import json
from typing import Any, NoReturn

from nexum_runtime.errors import InvalidRequest

SERVICE = "nexum.NexumService"
EXTENSIONS = "nexum.NexumExtensions"

DEFAULT_HOST = "localhost"
DEFAULT_PORT = 50051
DEFAULT_ADDRESS = f"{DEFAULT_HOST}:{DEFAULT_PORT}"

# Request metadata
EXECUTION_ID = "nexum-execution-id"  # the id the client chose; makes StartExecution and Execute idempotent
MAX_ATTEMPTS = "nexum-max-attempts"
RESTART = "nexum-restart"  # "failed" or "unknown": start an ended execution of this id afresh
WAIT_MS = "nexum-wait-ms"  # hold the answer until there is something to say
LEASE_MS = "nexum-lease-ms"  # how long the attempt claimed by this call may stay silent
WORKFLOW_ID = "nexum-workflow-id"  # PollTask: only tasks of this workflow
RETRYABLE = "nexum-retryable"  # FailTask: "false" fails the task now
INTERRUPTED = "nexum-interrupted"  # FailTask: "true" hands an attempt back that was cut short
PREFIX = "nexum-prefix"  # ListExecutions: only ids that begin with this

# Trailing metadata
STATUS = "nexum-status"  # what the id was before the call: NEW, or the execution's status
ERROR = "nexum-error-bin"  # why the execution failed, UTF-8
ERROR_CODE = "nexum-error-code"
ATTEMPTS = "nexum-attempts"  # tries so far

NEW = "NEW"

# Limits
ATTEMPTS_DEFAULT, ATTEMPTS_LIMIT = 4, 20
LEASE_MS_DEFAULT, LEASE_MS_MIN, LEASE_MS_LIMIT = 60_000, 1_000, 3_600_000
WAIT_MS_LIMIT = 60_000
MESSAGE_MIB_DEFAULT = 16
ERROR_METADATA_BYTES = 4_000  # gRPC refuses more than 8 KiB of metadata in all

MIB = 1024 * 1024


def split_address(address: str) -> tuple[str, int]:
    """ "host:port" as its two parts. Raises InvalidRequest."""
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidRequest(f"The Nexum address is {address!r}; it must be host:port, such as {DEFAULT_ADDRESS}.")
    return host, int(port)


def parse_json(text: str) -> Any:
    """`text` as JSON, strictly: no NaN or Infinity, which other languages' parsers refuse.

    Raises ValueError, also for nesting deeper than the parser goes.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, characters as they are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def size_text(size_bytes: int) -> str:
    """A size for people: "812 B", "4.2 KiB", "20.0 MiB"."""
    if size_bytes < 1024:
        return f"{size_bytes} B"
    if size_bytes < MIB:
        return f"{size_bytes / 1024:.1f} KiB"
    return f"{size_bytes / MIB:.1f} MiB"
