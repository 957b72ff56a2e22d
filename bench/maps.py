"""A MAP of a thousand items and of ten thousand: what each takes of the time of all, from the start to the end."""

import time

from bench import processes
from bench.context import Context
from bench.effect_worker import ITEMS
from bench.measure import Kind, Samples

ITEMS_FEW, ITEMS_MOST = 1_000, 10_000
TIMEOUT_SECONDS = 600.0


async def kinds(context: Context, sizes: tuple[int, ...]) -> list[Kind]:
    database = context.folder / "maps.db"
    _, address = await context.stack.enter_async_context(processes.server(context.folder, database))
    await context.worker(address, "bench.effect_worker")
    client = await context.client(address)

    def of(items: int) -> Kind:
        async def each() -> Samples:
            began = time.perf_counter()
            outcome = await client.execute(ITEMS, {"items": items}, timeout=TIMEOUT_SECONDS)
            took_ms = (time.perf_counter() - began) * 1000
            assert outcome.outputs == {"each": list(range(items))}, outcome
            return [took_ms / items]

        return Kind(f"growth.map_{items}", f"a MAP of {items:,} items: each", "ms", each)

    return [of(items) for items in sizes]
