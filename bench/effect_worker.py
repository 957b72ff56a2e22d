"""A worker with an effect that returns as many characters as it is asked for, and a MAP of as many items.

python -m bench.effect_worker        NEXUM_ADDRESS says where the server is
"""

import asyncio
import logging
import os
from typing import Any

from nexum import workflow
from nexum.context import ContextView
from pydantic import BaseModel

from nexum_runtime import Worker, map_over, wire
from nexum_runtime.logs import log_to_stderr
from nexum_runtime.signals import stop_requested

NODE = "effect"
CONCURRENCY = 64  # more than the benchmark has callers
SENTENCE = "A recorded result is never recomputed, and never lost. "


class Returned(BaseModel):
    text: str


def text_of(chars: int) -> str:
    return (SENTENCE * (chars // len(SENTENCE) + 1))[:chars]


async def effect(context: ContextView) -> Returned:
    return Returned(text=text_of(context.input["chars"]))


EFFECT: Any = workflow("benchmark").effect(NODE, Returned, effect).build()


async def same(context: ContextView, item: int) -> int:
    return item


ITEMS: Any = map_over(workflow("items"), "each", lambda context: range(context.input["items"]), same).build()


async def main() -> None:
    log_to_stderr("%(message)s")
    logging.getLogger("nexum.worker").setLevel(logging.INFO)
    host, port = wire.split_address(os.environ["NEXUM_ADDRESS"])
    worker = Worker([EFFECT, ITEMS], concurrency=CONCURRENCY, host=host, port=port)
    working = asyncio.create_task(worker.run())
    await asyncio.wait({working, asyncio.create_task(stop_requested())}, return_when=asyncio.FIRST_COMPLETED)
    worker.stop()
    await working


if __name__ == "__main__":
    asyncio.run(main())
