"""worker.py as it is, with one tool more, which does nothing or takes its time.

python -m bench.tools_worker [the flags of worker.py]
"""

import asyncio

import tools
import worker

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
    tools.TOOLS["look_up"] = look_up
    asyncio.run(worker.main())
