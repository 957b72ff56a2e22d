"""A sleep that goes on where it was: its end is recorded when it begins."""

import asyncio
import time

from nexum_agents.parking import waiting
from nexum_agents.steps import durable_step
from nexum_runtime.wire import DEADLINE_MS_LIMIT


async def durable_sleep(seconds: float) -> None:
    """Sleep for so many seconds, however often the run dies meanwhile.

        await durable_sleep(24 * 3600)    # in a tool, in a hook or beside the agent

    When it ends is recorded when it first begins, so a replay sleeps what is left of it. A run that workers execute
    holds no worker meanwhile: after a minute it is parked. A sleep is known by its length, where it is made, and its
    number among those alike there. Outside of a session it is `asyncio.sleep`.

    Raises ValueError for a time that is not from 0 to 10 years; else as `durable_step` does.
    """
    if not 0 <= seconds <= DEADLINE_MS_LIMIT / 1000:
        raise ValueError(f"The sleep is {seconds:g} s; it can be 0 to 10 years.")
    ends_at: float = await durable_step("sleep", _ends_at, seconds=seconds)
    left = ends_at - time.time()
    if left > 0:
        with waiting(ends_at=ends_at):
            await asyncio.sleep(left)


async def _ends_at(seconds: float) -> float:
    return time.time() + seconds
