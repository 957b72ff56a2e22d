"""What client and server both know of the wire: method paths, metadata keys, limits.

The messages are nexum-py's own (`nexum.proto`); nothing here adds to them. What they have no room for travels as
gRPC metadata, which a stock nexum-py peer never sends, so every key is optional.
"""

import hmac
import ipaddress
import json
import math
import re
from typing import Any, NoReturn

from nexum_runtime.errors import InvalidRequest
from nexum_runtime.text import shorten, size_text

SERVICE = "nexum.NexumService"
EXTENSIONS = "nexum.NexumExtensions"
HEALTH = "grpc.health.v1.Health"

DEFAULT_HOST = "localhost"
DEFAULT_PORT = 50051
DEFAULT_ADDRESS = f"{DEFAULT_HOST}:{DEFAULT_PORT}"

# Request metadata
EXECUTION_ID = "nexum-execution-id"  # the id the client chose; makes StartExecution and Execute idempotent
MAX_ATTEMPTS = "nexum-max-attempts"
EFFECT = "nexum-effect"  # "read", "idempotent" or "once": what an attempt may have done to the world
TIMEOUT_MS = "nexum-timeout-ms"  # how long one attempt may take
RESTART = "nexum-restart"  # "failed" or "unknown": start an ended execution of this id afresh
WAIT_MS = "nexum-wait-ms"  # hold the answer until there is something to say
LEASE_MS = "nexum-lease-ms"  # how long the attempt claimed by this call may stay silent
LABELS = "nexum-labels-bin"  # StartExecution, Execute, and when it COMPLETES: what the execution is. JSON in UTF-8: the
# texts "kind", "name", "text", "run", "block", "asked" and "outcome", of LABEL_CHARS at most, and "numbers", which add
# up by their names
QUESTION = "nexum-question"  # StartExecution, Execute: "true": its approvals are questions, see `rules/questions.py`
DEADLINE_MS = "nexum-deadline-ms"  # StartExecution, Execute: how long each of its approvals waits for a person
DEFAULT = "nexum-default"  # … and what a question is answered by when that time is over: a text, as JSON
TAKES_ARGS = "nexum-takes-args"  # StartExecution, Execute: "true": a yes may be to other arguments than were asked for
CLAIM = "nexum-claim"  # StartExecution, Execute: a worker id: the caller itself takes the first ready task
SYNCED = "nexum-synced"  # Execute with a CLAIM: "true": its task is told only when the claim is on the disk
COMPLETES = "nexum-completes"  # StreamCalls: the call is a CompleteTask of this task id
WORKFLOW_ID = "nexum-workflow-id"  # PollTask, StreamTasks: only tasks of this workflow
VERSION_HASH = "nexum-version-hash"  # StreamTasks: … of this version
WORKER_ID = "nexum-worker-id"  # StreamTasks
SLOTS = "nexum-slots"  # StreamTasks: how many tasks at most are unfinished at a time
BATCHES = "nexum-batches"  # StreamTasks: "true" when a message may be several (batches.py); answered by the same
HEARS_STOPS = "nexum-hears-stops"  # StreamTasks: "true" when it is told at once of a task to stop: node_type STOP_TASK
RETRYABLE = "nexum-retryable"  # FailTask: "false" fails the task now
INTERRUPTED = "nexum-interrupted"  # FailTask: "true" hands an attempt back that was cut short
UNKNOWN = "nexum-unknown"  # FailTask: "true" when the effect may have happened: it timed out, or could not be recorded
STANDSTILL = "nexum-standstill"  # Heartbeat: what blocks the worker's event loop, as JSON: [milliseconds, where]
BEGUN = "nexum-begun"  # FailTask: "false" when it failed before any effect: one that happens once may begin anew
RESOLUTION = "nexum-resolution"  # Resolve: "result", "failed" or "retry"
OLDER_THAN_MS = "nexum-older-than-ms"  # Prune
DRY_RUN = "nexum-dry-run"  # Prune: "true" only counts
TRACEPARENT = "traceparent"  # StartExecution, Execute: W3C's trace context, handed on to the worker
AUTHORIZATION = "authorization"  # "Bearer {token}", on every call when the server demands a token
PREFIX = "nexum-prefix"  # ListExecutions, ListSessions: only ids that begin with this
AFTER = "nexum-after"  # ForgetSession: how many turns stay
EVEN_ONCE = "nexum-even-once"  # ForgetSession: "true" takes back also what happens once, and may have happened
CURSOR = "nexum-cursor"  # Follow: how far a follower has come, as it was told
WORDS_AT = "nexum-words-at"  # PublishWords: from which character of its answer on these words are
TO_GO_ON = "nexum-to-go-on"  # Journal: "true" is refused for a session that is stopped

# Trailing metadata
STATUS = "nexum-status"  # what the id was before the call: NEW, or the execution's status
ERROR = "nexum-error-bin"  # why the execution failed, UTF-8
ERROR_CODE = "nexum-error-code"
TASK_ID = "nexum-task-id"  # the attempt that `nexum-claim` got, if it got one
WAITS_FOR = "nexum-waits-for"  # "worker" when none of its tasks runs and one could, "approval" when a person is asked
ATTEMPTS = "nexum-attempts"  # tries since the execution was last started
MAX_MESSAGE_BYTES = "nexum-max-message-bytes"  # RegisterWorkflow: the largest input or result that is accepted

FIRST_SESSION = (
    "nexum-first-session"  # Journal, before its answer: the session that it was first forked from, or itself
)

PAGE = "nexum-page"  # Journal, before its answer: the address of the server's page, if it serves one

STOP = "nexum-stop"  # StreamCalls, after the answer of a claim: its task is to be stopped, and why, or "" when it was
# cancelled

MESSAGE = "nexum-message"  # StreamCalls: of a CompleteTask

NEW = "NEW"
STOP_TASK = "STOP"
UNAVAILABLE, INVALID_ARGUMENT, RESOURCE_EXHAUSTED = "UNAVAILABLE", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"  # gRPC's
LOCAL_WORKER = "process-"  # how the worker id begins of a process that executes its own tasks
EMBEDDED_WORKER = f"{LOCAL_WORKER}engine-"  # … and has the engine too: a later engine knows that it has gone

ONCE = "once"  # an effect that is attempted at most once
EFFECTS = ("read", "idempotent", ONCE)
EFFECT_DEFAULT = "idempotent"

# Limits
ATTEMPTS_DEFAULT, ATTEMPTS_LIMIT = 4, 20
LEASE_MS_DEFAULT, LEASE_MS_MIN, LEASE_MS_LIMIT = 60_000, 1_000, 3_600_000
WAIT_MS_LIMIT = 60_000
SLOTS_LIMIT = 1_000
PARK_LIMIT = 100  # executions, until one of which ends an attempt is parked
TIMEOUT_MS_LIMIT = 86_400_000
LABEL_CHARS = 200
DEADLINE_MS_LIMIT = 10 * 366 * 86_400_000  # ten years
CHOICES_LIMIT = 100  # of a question
DEFAULT_CHARS_LIMIT = 1_000  # of the answer when nobody gives one: it travels in a header
ANSWER_CHARS_LIMIT = 64 * 1024
TOKEN_CHARS_MIN, TOKEN_CHARS_LIMIT = 8, 1_000  # a shorter one could be guessed, a longer one fills the header
MESSAGE_MIB_DEFAULT = 16
CONNECTIONS_LIMIT = 5_000  # at one address of a server; the next ones are hung up on
NESTING_LIMIT = 200  # levels of lists and objects in each other; parsers and printers of JSON give up at some depth
ERROR_METADATA_BYTES = 4_000  # gRPC refuses more than 8 KiB of metadata in all

NO_MEMORY = "The Nexum server has no memory left for this. Send it less at once, or give it more; it is tried again."
SHOWN_CHARS = 40  # of a number in an error
_TRACEPARENT = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_SURROGATE = re.compile("[\ud800-\udfff]")


def is_lack_of_memory(error: Exception) -> bool:
    """Whether protobuf could not parse because of that, and not because of the bytes."""
    return "alloc failed" in str(error)


def split_address(address: str) -> tuple[str, int]:
    """ "host:port" as its two parts. Raises InvalidRequest."""
    host, _, port = address.rpartition(":")
    is_host = re.fullmatch(r"[^\s/:]+|\[[^\s/]+\]", host)
    if not is_host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidRequest(f"The Nexum address is {address!r}; it must be host:port, such as {DEFAULT_ADDRESS}.")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. A name other than localhost may lead anywhere."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_token(token: str, origin: str) -> str:
    """The token, if it can be one. `origin` says where it came from; the token itself is never told.

    Raises InvalidRequest.
    """
    if not TOKEN_CHARS_MIN <= len(token) <= TOKEN_CHARS_LIMIT or not fits_header(token):
        raise InvalidRequest(
            f"The token in {origin} is not {TOKEN_CHARS_MIN} to {TOKEN_CHARS_LIMIT} printable ASCII characters on one "
            "line without spaces at its ends. Make one with: openssl rand -hex 32"
        )
    return token


def bears(authorization: str, token: str) -> bool:
    """Whether the value of an authorization header has the token."""
    scheme, _, given = authorization.partition(" ")
    # In constant time: how long a refusal takes tells nothing of how much of the token was right.
    right = hmac.compare_digest(given.encode(errors="replace"), token.encode())
    return right and scheme.lower() == "bearer"


def parse_json(text: str) -> Any:
    """`text` as JSON, strictly: no NaN or Infinity, which other languages' parsers refuse, nor a number so large that
    it would be read as one.

    Raises ValueError, also for nesting deeper than the parser goes.
    """
    try:
        return _STRICT.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def is_nested_too_deeply(value: Any) -> bool:
    """Whether a JSON value is lists and objects in more than NESTING_LIMIT levels."""
    level = [value]
    for _ in range(NESTING_LIMIT + 1):
        containers = [each for each in level if isinstance(each, (list, dict))]
        if not containers:
            return False
        level = [part for each in containers for part in (each.values() if isinstance(each, dict) else each)]
    return True


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, and else as `json_text` has it."""
    return json_text(value, sort_keys=True)


def json_text(value: Any, *, sort_keys: bool = False) -> str:
    """`value` as JSON: no spaces, characters as they are.

    Only half a surrogate pair is escaped: JSON can spell it, and models do, but it is no text that could be sent.
    """
    text = (_SORTED if sort_keys else _PLAIN).encode(value)
    return text if is_text(text) else _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def is_text(text: str) -> bool:
    """Whether it is Unicode text, which half a surrogate pair is not."""
    return _SURROGATE.search(text) is None


def is_traceparent(text: str) -> bool:
    return _TRACEPARENT.fullmatch(text) is not None


def attempt_number(task_id: str) -> int:
    """The attempt that a task id names; 0, which none has, if it is malformed."""
    number = task_id.rpartition(".")[2]
    return int(number) if number.isascii() and number.isdecimal() and len(number) < 10 else 0


def fits_header(text: str) -> bool:
    """Whether a metadata value can carry it as it is: printable ASCII, no space at either end."""
    return text.isascii() and text.isprintable() and text == text.strip()


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{shorten(number, SHOWN_CHARS)} is too large a number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# Made once: `json.dumps` and `json.loads` would make one for each call that asks for anything special.
_STRICT = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
_PLAIN = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_SORTED = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False, sort_keys=True)


def too_large(what: str, text: str, limit_bytes: int) -> str:
    """A sentence that names both sizes when `text` is over the limit, else ""."""
    if len(text) * 4 <= limit_bytes or (size_bytes := len(text.encode())) <= limit_bytes:  # 4 bytes a character at most
        return ""
    return f"{what} is {size_text(size_bytes)}; the limit is {size_text(limit_bytes)} (nexum dev --max-message-mib)."
