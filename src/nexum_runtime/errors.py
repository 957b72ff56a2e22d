"""The errors of this package. Each says what is wrong and what to do next; each has one gRPC status code."""

from collections.abc import Sequence


class NexumError(Exception):
    """The base class of all errors that this package raises on purpose."""


class ServerUnavailable(NexumError):
    """UNAVAILABLE: no Nexum server answered in time."""


class DatabaseUnavailable(ServerUnavailable):
    """UNAVAILABLE, told by the server itself: it cannot use its database, whose disk is full, say, or has no
    memory left."""


class InvalidRequest(NexumError):
    """INVALID_ARGUMENT: a malformed id, bad JSON, a broken workflow, or an id already used with other input."""


class NotFound(NexumError):
    """NOT_FOUND: the server has no workflow, execution or task of this name."""


class SessionStopped(NexumError):
    """FAILED_PRECONDITION: a person has stopped the session. The text says who, and why."""


class ExecutionCancelled(NexumError):
    """An execution was cancelled while this process executed it."""


class LimitExceeded(NexumError):
    """RESOURCE_EXHAUSTED: a message, or a number of calls, is over a limit of the server. The text names the limit."""


class Unauthenticated(NexumError):
    """UNAUTHENTICATED or PERMISSION_DENIED: the token is missing or wrong, or the server is another user's."""


class ForkedWhileConnected(NexumError):
    """This process was forked while its parent had a connection, and so cannot have one. See `forking`."""


class ExecutionTimeout(NexumError):
    """The execution had not ended when the caller's time was over. It goes on: ask again for its result."""

    def __init__(self, message: str, execution_id: str) -> None:
        super().__init__(message)
        self.execution_id = execution_id


class Parked(Exception):
    """Raised by a handler to give its attempt back: the task is begun anew when one of the executions `ended`, or the
    `ms` from now on are over. Both are as `Client.park` has them."""

    def __init__(self, ended: Sequence[str] = (), ms: int | None = None) -> None:
        super().__init__("It is given back, and goes on later.")
        self.ended, self.ms = ended, ms


class TaskError(NexumError):
    """Raised by a handler to fail its task in its own words.

    `retryable=False` says that trying again cannot help: the task fails now instead of after its last attempt.
    `unknown=True` says that its effect may have happened all the same: if it is one that is attempted only once, its
    outcome is told as unknown. `begun=False` says that none of it can have happened: it may begin anew.
    """

    def __init__(self, message: str, *, retryable: bool = True, unknown: bool = False, begun: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.unknown = unknown
        self.begun = begun
