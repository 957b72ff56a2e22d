"""What is done with a session from outside: it is stopped, and goes on."""

import getpass
from collections.abc import Awaitable
from typing import TypeVar

from nexum_agents.clients import nexum_client
from nexum_agents.errors import DurableCallError
from nexum_agents.sessions import check_session_id
from nexum_runtime import NexumError

T = TypeVar("T")


async def stop_session(session_id: str, *, reason: str = "", by: str | None = None) -> list[str]:
    """Stop a session, as `nexum stop` does: from now on no turn, call or step of it begins, in any process.

    What runs is cut short where it runs; a run of the session raises SessionStopped, and so does every later one until
    `go_session`. Calls whose effect is "once" are let finish and are recorded: their execution ids are returned. What
    is recorded stays. `by` says who stops it, by default the user of this process.

    Raises DurableCallError for a session that nothing was ever recorded in, or when no server answers.
    """
    check_session_id(session_id)
    told = await _asked(nexum_client().stop_session(session_id, _user() if by is None else by, reason))
    return told["let_finish"]


async def go_session(session_id: str) -> bool:
    """Let a stopped session go on, as `nexum go` does: run it again. Returns whether it was stopped.

    Raises DurableCallError as `stop_session` does.
    """
    check_session_id(session_id)
    return await _asked(nexum_client().go_session(session_id))


async def _asked(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except NexumError as error:
        raise DurableCallError(str(error)) from None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in many containers
        return ""
