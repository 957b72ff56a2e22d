"""The errors of this package."""

from agents.exceptions import AgentsException

import nexum_runtime
from nexum_runtime import NexumError, TaskError


class DurableCallError(AgentsException):
    """Nexum could not carry a turn or a call: no server, no result in time, a refused id. It ends the run."""


class NotRecorded(DurableCallError):
    """A call or a step that is not recorded, in a session that calls no tool. It ends the run."""


class SessionStopped(DurableCallError):
    """A person has stopped the session (`nexum stop`): nothing of it begins until `nexum go`. It ends the run."""


class LimitReached(DurableCallError):
    """The session has used up what its `durable_session(…, max_…)` allows. It ends the run; raised, it goes on."""


class RunFailed(AgentsException):
    """The run whose `final_output` is asked for ended in an error; the text says which."""


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
    """A person was asked a question, and nobody answered in time, or a person said why they do not answer it."""


class OutcomeUnknown(ToolFailed):
    """A tool that is attempted only once may or may not have run. The model is told so until someone settles it."""


def ending(error: NexumError) -> DurableCallError:
    """What ends a run for this error of the runtime's."""
    kind = SessionStopped if isinstance(error, nexum_runtime.SessionStopped) else DurableCallError
    return kind(str(error))
