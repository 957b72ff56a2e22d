"""What is done with a session from outside: it is stopped and goes on, and its end is waited for."""

import asyncio
import getpass
import json
from collections.abc import Awaitable
from typing import Any, TypeVar

from pydantic import TypeAdapter

from nexum_agents.clients import nexum_client
from nexum_agents.errors import RunFailed, SessionStopped, ending
from nexum_agents.sessions import check_session_id
from nexum_agents.workflows import RUN_END
from nexum_runtime import NexumError

LOOK_SECONDS_MIN, LOOK_SECONDS_MAX = 0.1, 1.0  # between two looks whether a run has ended

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


async def final_output(
    session_id: str, output_type: Any = None, *, wait: bool = True, timeout: float | None = None
) -> Any:
    """Return the final output of a session's latest run, in any process.

    With `output_type`, any type that pydantic can validate, it is of that type; else it is JSON: a text, or what the
    agent's output type became. While the session has no run that ended, or goes on after one, it is waited for: for
    `timeout` seconds at most. With `wait=False` it is that of the latest run that has ended, whatever goes on.

    Raises RunFailed when the run ended in an error, TimeoutError when there is no end in time, SessionStopped while the
    session is stopped and is waited for, pydantic's ValidationError for what is not of the `output_type`, and
    DurableCallError when no server answers.
    """
    check_session_id(session_id)
    try:
        async with asyncio.timeout(timeout if wait else None):
            outputs = await _end_of(session_id, wait=wait)
    except TimeoutError:
        raise TimeoutError(f"The latest run of session {session_id} has not ended within {timeout:g} s.") from None
    if outputs is None:
        raise TimeoutError(f"No run of session {session_id} has ended.")
    if error := outputs.get("error"):
        raise RunFailed(f"The run of session {session_id} ended in an error: {error}")
    if output_type is None:
        return outputs["result"]
    return TypeAdapter(output_type).validate_json(json.dumps(outputs["result"]))  # a strict type takes a time as a text


async def _end_of(session_id: str, *, wait: bool) -> dict[str, Any] | None:
    """What is recorded of the end of its latest run; None when there is none, and none is to be waited for."""
    pause = LOOK_SECONDS_MIN
    while True:
        found = await _asked(nexum_client().session(session_id))
        if found and found["end"] and (not wait or found["state"] in ("COMPLETED", "FAILED")):
            outcome = await _asked(nexum_client().status(found["end"]))
            return dict(outcome.outputs[RUN_END.nodes[0].id])
        if not wait:
            return None
        if found and found["stopped"]:
            raise SessionStopped(found["stopped"]["words"])
        await asyncio.sleep(pause)
        pause = min(2 * pause, LOOK_SECONDS_MAX)


async def _asked(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except NexumError as error:
        raise ending(error) from None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in many containers
        return ""
