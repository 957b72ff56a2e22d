"""The kinds of runs that a session cannot record, and so refuses: realtime and voice."""

import sys
from typing import Any

from nexum_agents.errors import DurableCallError
from nexum_agents.sessions import current_scope


def refuse() -> None:
    """Have those kinds refused in a session, as soon as they are imported."""
    for module, cls, method, what in (
        ("agents.realtime.runner", "RealtimeRunner", "run", "A RealtimeRunner"),
        ("agents.voice.pipeline", "VoicePipeline", "run", "A VoicePipeline"),
    ):
        found = getattr(sys.modules.get(module), cls, None)
        if found is None or hasattr(getattr(found, method), "_nexum_plain"):
            continue
        setattr(found, method, _refused(getattr(found, method), what))


def _refused(plain: Any, what: str) -> Any:
    async def refuse(*args: Any, **options: Any) -> Any:
        if current_scope() is not None:
            raise DurableCallError(
                f"{what} cannot run in a durable session: what is said in it goes both ways at once, and cannot be "
                "replayed. Run it outside of the block."
            )
        return await plain(*args, **options)

    setattr(refuse, "_nexum_plain", plain)  # noqa: B010
    return refuse
