"""The errors of this package. Each says what is wrong and what to do next; each has one gRPC status code."""


class NexumError(Exception):
    """Base of everything this package raises on purpose."""


class ServerUnavailable(NexumError):
    """UNAVAILABLE: no Nexum server answered, for as long as the caller was willing to wait; or its disk is full."""


class InvalidRequest(NexumError):
    """INVALID_ARGUMENT: a malformed id, bad JSON, a broken workflow, or an id already used with other input."""


class NotFound(NexumError):
    """NOT_FOUND: the server knows no workflow, execution or task of this name."""


class TooLarge(NexumError):
    """RESOURCE_EXHAUSTED: a message is over the server's limit; the text names both sizes."""


class ExecutionTimeout(NexumError):
    """The execution had not ended when the caller's time was up. It goes on; asking again finds it."""

    def __init__(self, message: str, execution_id: str) -> None:
        super().__init__(message)
        self.execution_id = execution_id


class TaskError(NexumError):
    """Raised by a handler to fail its task in its own words.

    `retryable=False` says that trying again cannot help: the task fails now instead of after its last attempt.
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable
