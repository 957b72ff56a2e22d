"""A worker with the agent's tool, which does nothing or takes its time.

python -m bench.tools_worker [how many calls at once]
"""

import asyncio
import sys

from nexum_agents import serve

FOUND = "A recorded result is never recomputed and never lost: it is committed and synced before the agent sees it."


async def look_up(number: int, delay_ms: int) -> str:
    """Look a number up.

    Args:
        number: Which.
        delay_ms: How many milliseconds that takes.
    """
    if delay_ms:
        await asyncio.sleep(delay_ms / 1000)
    return f"{number}: {FOUND}"


if __name__ == "__main__":
    serve([look_up], concurrency=int(sys.argv[1]) if sys.argv[1:] else 8)
