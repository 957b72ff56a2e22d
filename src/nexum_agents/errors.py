"""The errors of this package."""

from agents.exceptions import AgentsException

import nexum_runtime
from nexum_runtime import NexumError, TaskError


class DurableCallError(AgentsException):
    """Nexum could not record a turn or a call: no server, no result in time, a refused id. It ends the run."""


class NotRecorded(DurableCallError):
    """A call or a step is not recorded, and the session is `tools="cached-only"`. It ends the run."""


class SessionStopped(DurableCallError):
    """A person has stopped the session (`nexum stop`). Nothing of it begins until `nexum go`. It ends the run."""


class LimitReached(DurableCallError):
    """The session has used up a limit of its `durable_session(…)`, such as `max_turns`. It ends the run.

    Raise the limit and run again: it goes on."""


class RunFailed(AgentsException):
    """`final_output` was asked for a run that ended with an error. The text says which."""


class ToolError(TaskError):
    """Raised by a tool to tell the model in its own words what went wrong.

    `retryable=False` says that another attempt would fail as well. `unknown=True` says that the tool may have had its
    effect all the same. `begun=False` says that it has had none.
    """


class ToolFailed(AgentsException):
    """The tool ran and failed. The model is told its words, and the run goes on."""


class ToolRejected(ToolFailed):
    """A person said no, so the tool did not run. The model is told, with the reason."""


class NoAnswer(AgentsException):
    """Nobody answered a question in time, or a person rejected it, with a reason."""


class OutcomeUnknown(ToolFailed):
    """A `once` call may or may not have run. The model is told so until someone settles it."""


def ending(error: NexumError) -> DurableCallError:
    """What ends a run for this error of the runtime's."""
    kind = SessionStopped if isinstance(error, nexum_runtime.SessionStopped) else DurableCallError
    return kind(str(error))
