"""A new session that begins with what another one has recorded."""

from nexum_agents.clients import nexum_client
from nexum_agents.errors import DurableCallError
from nexum_agents.sessions import check_session_id
from nexum_runtime import InvalidRequest, NexumError


async def fork_session(
    session_id: str, new_session_id: str, *, before: str | int | None = None, exist_ok: bool = False
) -> list[str]:
    """Begin a new session with all that another session has recorded, or with what it had `before` a turn.

        await fork_session("yesterday", "cheaper", before=3)
        with durable_session("cheaper"):
            ...                                 # what came before the third turn is from the store

    `before` is the number of a turn, from 1 in the order in which they began, or its execution's id. What was done is
    not done again: calls that completed come from the store, those that failed, or may have happened, stay so, and a
    person's yes counts. The other session stays as it is. With `exist_ok` a session of the new id that was forked from
    this one before is taken as it is.

    Returns the ids of what is left out, as it has not ended. Raises DurableCallError when there is a session of the
    new id already, when there is no such session or turn, or when no server answers.
    """
    check_session_id(session_id)
    check_session_id(new_session_id, "new_session_id")
    client = nexum_client()
    try:
        try:
            return list((await client.fork_session(session_id, new_session_id, before=before))["left_out"])
        except InvalidRequest:
            if not exist_ok:
                raise
            found = [each for each in await client.sessions(new_session_id) if each["session_id"] == new_session_id]
            if not found or (found[0]["forked_from"] or {}).get("session_id") != session_id:
                raise
            return []
    except NexumError as error:
        raise DurableCallError(str(error)) from None
